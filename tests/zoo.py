"""Checks that hold for any model and its width space; shared by the tests and benchmarks/check_zoo.py.

None of them uses our own slicing or counting as its oracle: parameters are counted by summing tensors,
multiply-accumulates by torch's FlopCounterMode on the extracted network, and a slice is known by the values
in it (every weight is first set to its own position number).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import bcnet_deploy as bd

TOLERANCE = 1e-10

# Inputs where 64 gives less than a 2x2 map in the last stage, or the model fixes the size.
_SMALL = {"inception_v3": 139, "alexnet": 96, "maxvit_t": 224}
_OWN_SIZE = ("demo", "vgg19_cifar10", "mobilenet_v2_cifar10", "channel_bench_macro")


def small_input(name: str) -> tuple[int, int, int]:
    """A small input size at which ``name`` still has a map of at least 2x2 in its last stage."""
    from bcnet_deploy.models import default_input_size

    if name.startswith(_OWN_SIZE):
        return default_input_size(name)
    side = _SMALL.get(name, 64)
    return (3, side, side)


def counted_macs(model: nn.Module, input_size: tuple[int, int, int]) -> int:
    """torch's own count of multiply-accumulates (half its FLOPs) at batch 1. The model moves to ``meta``."""
    # Without gradients: the counter hooks whatever tensor of those it meets as an argument.
    model = model.to("meta").eval().requires_grad_(False)
    counter = FlopCounterMode(display=False)
    dtype = next(model.parameters()).dtype
    with counter, torch.no_grad():
        model(torch.zeros(1, *input_size, device="meta", dtype=dtype))
    return int(counter.get_total_flops()) // 2


def counted_params(model: nn.Module) -> int:
    """Number of parameters, by summing tensors."""
    return sum(parameter.numel() for parameter in model.parameters())


def any_widths(space: bd.WidthSpace, n: int, rng: np.random.Generator) -> np.ndarray:
    """(n, L) widths drawn from *all* multiples of the step, not only from the choices."""
    units = rng.integers(
        1, [v.channels // v.step + 1 for v in space.variables], size=(n, len(space.variables))
    )
    return units * np.array([v.step for v in space.variables])


def randomize(model: nn.Module, seed: int = 0) -> None:
    """Weights and running statistics that let every channel matter.

    (A fresh ConvNeXt multiplies its blocks by 1e-6, a fresh batch norm by 1: errors would not show.)
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: Tensor) -> None:
        tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype))

    def normal(tensor: Tensor, deviation: float) -> None:
        tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) * deviation)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                normal(parameter, 0.1)
            elif "layer_scale" in name or parameter.dim() < 2:
                uniform(parameter)
            else:
                normal(parameter, (2 / parameter[0].numel()) ** 0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                normal(buffer, 0.1)
            elif name.endswith("running_var"):
                uniform(buffer)


def _tracked(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and batch-norm statistics by name, a shared tensor once."""
    buffers = {n: b for n, b in model.named_buffers() if n.endswith(("running_mean", "running_var"))}
    return {**dict(model.named_parameters()), **buffers}


def kept_positions(
    model: nn.Module, space: bd.WidthSpace, widths: np.ndarray, side: str
) -> dict[str, Tensor]:
    """For each tensor of the extracted network, which positions of the full tensor it holds.

    Overwrites the weights of ``model`` (float64) with their position numbers.
    """
    with torch.no_grad():
        for tensor in _tracked(model).values():
            tensor.copy_(torch.arange(tensor.numel(), dtype=tensor.dtype).reshape(tensor.shape))
    return {
        name: tensor.detach().to(torch.int64)
        for name, tensor in _tracked(space.extract(model, widths, side=side)).items()
    }


def _difference(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference over the largest magnitude."""
    assert a.shape == b.shape, (a.shape, b.shape)
    scale = max(float(b.abs().max()), 1e-300)
    assert np.isfinite(scale), "the reference is not finite"
    return float((a - b).abs().max()) / scale


@dataclass
class Equality:
    """Largest relative differences between the supernet's slice and the extracted network."""

    eval_mode: float = 0.0
    train_mode: float = 0.0
    statistics: float = 0.0
    gradients: float = 0.0
    leaked: list[str] = field(default_factory=list)
    sides: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        worst = max(self.eval_mode, self.train_mode, self.statistics, self.gradients)
        return bool(self.sides) and worst <= TOLERANCE and not self.leaked


def check_equality(
    model: nn.Module,
    space: bd.WidthSpace,
    widths: np.ndarray,
    input_size: tuple[int, int, int],
    *,
    batch: int = 3,
    sides: tuple[str, ...] = ("left", "right"),
    train: bool = True,
) -> Equality:
    """Compare the supernet's slice with the extracted network, in float64.

    In training mode also the batch-norm statistics that the forward pass updates and the gradients: each must
    equal the extracted network's inside the slice and be untouched, or exactly zero, outside of it.
    """
    model.double()
    result = Equality()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, *input_size, generator=generator, dtype=torch.float64)
    for side in sides:
        positions = kept_positions(model, space, widths, side)
        randomize(model)
        supernet = bd.Supernet(model, space)
        supernet.set_active(widths, side=side)
        subnet = space.extract(model, widths, side=side)
        with torch.no_grad():
            difference = _difference(supernet.eval()(x), subnet.eval()(x))
        result.eval_mode = max(result.eval_mode, difference)
        if train:
            _compare_training(result, supernet, subnet, positions, x)
        result.sides.append(side)
    return result


def _compare_training(
    result: Equality, supernet: bd.Supernet, subnet: nn.Module, positions: dict[str, Tensor], x: Tensor
) -> None:
    model = supernet.model
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if name in positions}
    torch.manual_seed(0)  # dropout and stochastic depth draw alike in both
    theirs = subnet.train()(x)
    torch.manual_seed(0)
    ours = supernet.train()(x)
    result.train_mode = max(result.train_mode, _difference(ours.detach(), theirs.detach()))

    for name, buffer in subnet.named_buffers():
        if name not in before:
            continue
        after = model.get_buffer(name).flatten()
        inside = positions[name].flatten()
        result.statistics = max(result.statistics, _difference(after[inside], buffer.flatten()))
        outside = torch.ones_like(after, dtype=torch.bool)
        outside[inside] = False
        if not torch.equal(after[outside], before[name].flatten()[outside]):
            result.leaked.append(f"{name} (statistics)")

    direction = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(2), dtype=theirs.dtype)
    direction /= float(theirs.detach().abs().max())
    (theirs * direction).sum().backward()
    # Gradients are compared and dropped one by one as they come: the largest models would not fit twice.
    expected = {name: parameter.grad for name, parameter in subnet.named_parameters()}
    scale = max(float(grad.abs().max()) for grad in expected.values() if grad is not None)
    seen: set[str] = set()

    def compare(name: str, parameter: nn.Parameter) -> None:
        seen.add(name)
        grad, reference = parameter.grad.flatten(), expected[name]
        parameter.grad = None
        inside = positions[name].flatten()
        if reference is None:
            reference = torch.zeros_like(inside, dtype=grad.dtype)
        # A bias before batch norm has no gradient but rounding; it is held to the scale of the others.
        own_scale = max(float(reference.abs().max()), 1e-4 * scale)
        error = float((grad[inside] - reference.flatten()).abs().max()) / own_scale
        result.gradients = max(result.gradients, error)
        if int(torch.count_nonzero(grad)) != int(torch.count_nonzero(grad[inside])):
            result.leaked.append(name)

    handles = [
        parameter.register_post_accumulate_grad_hook(lambda p, n=name: compare(n, p))
        for name, parameter in model.named_parameters()
    ]
    (ours * direction).sum().backward()
    for handle in handles:
        handle.remove()
    missing = [name for name, grad in expected.items() if grad is not None and name not in seen]
    result.leaked += [f"{name} (no gradient)" for name in missing]
