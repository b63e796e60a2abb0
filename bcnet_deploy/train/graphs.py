"""A step's paths as one CUDA graph: small networks are otherwise held up by the launch of every layer.

A graph repeats the same kernels on the same memory, and slices of other widths are other kernels. So a
supernet's paths run as its full network times masks (:mod:`bcnet_deploy.nn.masks`): only the widths change
between replays. The gradients are those of the slices, up to rounding.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from bcnet_deploy.nn.masks import WidthMasks
from bcnet_deploy.train.paths import PathRunner
from bcnet_deploy.train.samplers import Slice, Step

_WARM_UPS = 3
"""Runs before a capture: libraries choose their kernels and take their memory."""


@dataclass
class _Graph:
    """A captured kind of step, and where its inputs and outputs lie."""

    graph: torch.cuda.CUDAGraph
    images: torch.Tensor
    labels: torch.Tensor
    units: torch.Tensor
    right: torch.Tensor
    losses: torch.Tensor


class GraphedPaths(PathRunner):
    """A :class:`PathRunner` that captures each kind of step once and replays it.

    Steps are of a kind whose batches have one shape and whose paths have the same roles and weights. What
    cannot be captured, or be masked, runs as it would without graphs; a warning says so, once.
    """

    _keeps_casts = False  # weights cast before the capture would be missing from it

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._graphs: dict[Any, _Graph] = {}
        self._masks: WidthMasks | None = None
        self._flat: list[torch.Tensor] = []
        self._refused = False

    def __call__(self, drawn: Step | None, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if self._refused:
            return super().__call__(drawn, images, labels)
        kind = (
            tuple(images.shape), tuple(labels.shape),
            tuple((path.role, path.weight, path.teacher_index) for path in drawn or ()),
        )  # fmt: skip
        if kind not in self._graphs:
            try:
                self._graphs[kind] = self._capture(drawn, images, labels)
            except torch.OutOfMemoryError:
                raise
            except (_NotMaskable, RuntimeError) as error:
                self._refused, self._masks = True, None
                warnings.warn(f"training without CUDA graphs: {error}", stacklevel=2)
                return super().__call__(drawn, images, labels)
        own = self._graphs[kind]
        own.images.copy_(images)
        own.labels.copy_(labels)
        if drawn is not None and self._masks is not None:
            units = torch.tensor([self._masks.space.one(path.widths) for path in drawn])
            right = torch.tensor([path.side == "right" for path in drawn])
            own.units.copy_(units.pin_memory(), non_blocking=True)
            own.right.copy_(right.pin_memory(), non_blocking=True)
        own.graph.replay()
        return own.losses.clone()  # the next replay writes there

    def _parameters(self) -> list[nn.Parameter]:
        return list((self.supernet or self.runs).parameters())

    def _capture(self, drawn: Step | None, images: torch.Tensor, labels: torch.Tensor) -> _Graph:
        if self.supernet is not None and self._masks is None:
            masks = WidthMasks(self.supernet)
            if not masks.agree(images, np.random.default_rng(0)):
                raise _NotMaskable("its layers read all channels at once, so left-out ones cannot be zeros")
            self._masks = masks
        paths = len(drawn or ())
        count = 0 if self._masks is None else len(self._masks.space.variables)
        own = _Graph(
            torch.cuda.CUDAGraph(), torch.empty_like(images), torch.empty_like(labels),
            torch.ones(paths, count, dtype=torch.int64, device=self.device),
            torch.zeros(paths, dtype=torch.bool, device=self.device),
            torch.zeros(max(paths, 1), device=self.device),
        )  # fmt: skip
        own.images.copy_(images)
        own.labels.copy_(labels)
        for parameter in self._parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        buffers = list((self.supernet or self.runs).buffers())
        kept = [buffer.clone() for buffer in buffers]
        generator = torch.cuda.get_rng_state(self.device)

        def run() -> torch.Tensor:
            return self._masked(drawn, own.units, own.right, own.images, own.labels)

        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        try:
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    run()
            torch.cuda.current_stream(self.device).wait_stream(stream)
            # Another thread may be fetching the next batch.
            with torch.cuda.graph(own.graph, stream=stream, capture_error_mode="thread_local"):
                own.losses = run()
        finally:
            # What the runs before the capture did is undone: the first replay is the step.
            with torch.no_grad():
                for buffer, former in zip(buffers, kept, strict=True):
                    buffer.copy_(former)
                for parameter in self._parameters():
                    if parameter.grad is not None:
                        parameter.grad.zero_()
            torch.cuda.set_rng_state(generator, self.device)
        return own

    def _masked(
        self,
        drawn: Step | None,
        units: torch.Tensor,
        right: torch.Tensor,
        images: torch.Tensor,
        labels: torch.Tensor,
    ) -> torch.Tensor:
        """A step of (paths, L) units and (paths,) sides on the device; ``drawn`` tells roles and weights."""
        if self._masks is not None:
            self._flat = [self._masks.flat(*path) for path in zip(units, right, strict=True)]
        return super().__call__(drawn, images, labels)

    @contextmanager
    def _running(self, index: int, path: Slice | None, last: bool) -> Iterator[nn.Module]:
        if self._masks is None:
            with super()._running(index, path, last) as network:
                yield network
            return
        with self._masks.masked(self._flat[index]) as network:
            yield network


class _NotMaskable(Exception):
    """A network whose slices are not its masked self."""
