"""Forward and backward of a step's paths, one after another: only one path's activations are alive."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from bcnet_deploy.nn import Supernet
from bcnet_deploy.tasks import Task, as_float, detached
from bcnet_deploy.train.config import TrainConfig
from bcnet_deploy.train.samplers import Slice, Step


class PathRunner:
    """Adds the gradients of a step's paths to the weights.

    Args:
        runs: what is called on images: the network, compiled or wrapped for several processes or not.
        supernet: whose slices the paths are; None for a plain network, which has one path.
        config: accumulation, smoothing, temperature and precision.
        device: of network and images.
        scaler: of fp16 losses; disabled otherwise.
        task: its loss and distillation.
        teacher: network in evaluation mode, whose outputs half of each loss follows; a step's pupils follow
            it alone, in place of the step's widest path.
    """

    _keeps_casts: bool | None = None
    """Whether autocast keeps the weights that it has cast; None is PyTorch's own choice."""

    def __init__(
        self,
        runs: nn.Module,
        supernet: Supernet | None,
        config: TrainConfig,
        device: torch.device,
        scaler: torch.amp.GradScaler,
        task: Task,
        teacher: nn.Module | None = None,
    ) -> None:
        self.runs, self.supernet, self.task, self.teacher = runs, supernet, task, teacher
        self.config, self.device, self.scaler = config, device, scaler

    def __call__(self, drawn: Step | None, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Backward of every path and part of the batch; returns each path's loss on the targets."""
        # As equal as can be: a part of one image is more than batch norm can take.
        count = min(self.config.accumulation, len(images))
        image_parts, label_parts = images.tensor_split(count), labels.tensor_split(count)
        paths: tuple[Slice | None, ...] = drawn if drawn is not None else (None,)
        taught: dict[int, list[Any]] = {}
        guides = [self._guide(x) for x in image_parts]
        losses = []
        temperature = self.config.temperature
        for index, path in enumerate(paths):
            parts = []
            for part, (x, y) in enumerate(zip(image_parts, label_parts, strict=True)):
                last = index == len(paths) - 1 and part == len(image_parts) - 1
                share = len(x) / len(images)
                with self._running(index, path, last) as network:
                    with self._autocast():
                        outputs = network(x)
                    outputs = as_float(outputs)
                    smoothed = self.task.loss(outputs, y, self.config.label_smoothing)
                    loss = smoothed
                    if path is not None and path.role == "teacher":
                        taught.setdefault(index, []).append(detached(outputs))
                    guide = guides[part]
                    if path is not None and path.role == "pupil":
                        to = taught[path.teacher_index][part] if guide is None else guide
                        loss = self.task.distillation(outputs, to, 1.0 if guide is None else temperature)
                    elif guide is not None:
                        loss = 0.5 * smoothed + 0.5 * self.task.distillation(outputs, guide, temperature)
                    weight = share * (path.weight if path is not None else 1.0)
                    self.scaler.scale(loss * weight).backward()
                parts.append(smoothed.detach() * share)
            losses.append(torch.stack(parts).sum())
        return torch.stack(losses)

    def _guide(self, images: torch.Tensor) -> Any:
        """What the teacher network says: once for all the paths of a step."""
        if self.teacher is None:
            return None
        with torch.no_grad(), self._autocast():
            return as_float(self.teacher(images))

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.config.amp == "off":
            return nullcontext()
        dtype = torch.bfloat16 if self.config.amp == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype, cache_enabled=self._keeps_casts)

    @contextmanager
    def _running(self, index: int, path: Slice | None, last: bool) -> Iterator[nn.Module]:
        """What runs a path forward and backward, ready for both.

        Ranks exchange gradients once, in the step's last backward, when all paths have added theirs; that
        takes hooks on the full weights. A process alone lets a supernet add them in place.

        Args:
            index: of the path in its step.
            path: None for a plain network.
            last: whether the step's last backward is to come.
        """
        if path is not None and self.supernet is not None:
            self.supernet.set_active(path.widths, path.side)
        gradients: AbstractContextManager[Any] = nullcontext()
        if isinstance(self.runs, DistributedDataParallel):
            gradients = nullcontext() if last else self.runs.no_sync()
        elif self.supernet is not None:
            gradients = self.supernet.gradients_in_place()
        with gradients:
            yield self.runs
