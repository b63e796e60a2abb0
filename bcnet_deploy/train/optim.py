"""Learning-rate schedules, optimisers and weight averaging."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from bcnet_deploy.train.config import TrainConfig


def rate_factor(config: TrainConfig, progress: float, epochs: float) -> float:
    """The learning rate as a share of its peak.

    Args:
        config: schedule, milestones and warm-up.
        progress: share of the training done, 0..1.
        epochs: length of the whole training, so that warm-up and milestones can be in epochs.
    """
    epoch = progress * epochs
    if epoch < config.warmup_epochs:
        # A step above zero at the very start: a rate of exactly 0 would waste the first step.
        return max(epoch / config.warmup_epochs, 1e-3)
    if config.schedule == "cosine":
        span = epochs - config.warmup_epochs
        done = (epoch - config.warmup_epochs) / span if span > 0 else 1.0
        return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    if config.schedule == "step":
        return config.gamma ** sum(epoch >= milestone for milestone in config.milestones)
    if config.schedule == "exponential":
        return config.gamma ** math.floor(epoch / config.step_epochs)
    return 1.0


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD or RMSprop; weights of norms (one-dimensional) and biases in a group without decay."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim > 1 or config.decay_norm_and_bias else free).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "rmsprop":
        # EfficientNet's: decay 0.9 and a large epsilon, momentum on the scaled gradient.
        return torch.optim.RMSprop(
            groups, lr=config.learning_rate, alpha=0.9, eps=1e-3, momentum=config.momentum
        )
    # Fused: one pass over the weights where the plain form makes five. It walks memory in order, so weight,
    # gradient and momentum must be laid out alike: gradients follow weights that are stored without gaps.
    parameters = (*decayed, *free)
    alike = all(_without_gaps(p) for p in parameters) and len({p.device.type for p in parameters}) == 1
    return torch.optim.SGD(
        groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.nesterov,
        # With fp16 the plain form also asks the GPU in every step whether a gradient was infinite.
        fused=True if alike and parameters[0].device.type in ("cpu", "cuda") else None,
    )  # fmt: skip


def _without_gaps(tensor: torch.Tensor) -> bool:
    return tensor.is_contiguous() or (
        tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    )


class WeightAverage:
    """Exponential moving average of parameters and floating-point buffers (EMA).

    The decay is smaller at first, (1 + n) / (10 + n), so that the average forgets the random start.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._live = averaged_tensors(model)
        self.tensors = {name: tensor.detach().clone() for name, tensor in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take one step's weights into the average."""
        self.updates += 1
        share = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.tensors.values()), list(self._live.values()), share)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's tensors with the averaged ones; a second call undoes it."""
        for name, live in self._live.items():
            kept = live.clone()
            live.copy_(self.tensors[name])
            self.tensors[name].copy_(kept)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Within it the model has the averaged tensors."""
        self.swap()
        try:
            yield
        finally:
            self.swap()


def averaged_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and floating-point buffers by name."""
    named: Iterable[tuple[str, torch.Tensor]] = (*model.named_parameters(), *model.named_buffers())
    return {name: tensor.detach() for name, tensor in named if tensor.is_floating_point()}
