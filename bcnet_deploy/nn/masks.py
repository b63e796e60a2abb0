"""Sub-networks as the full network times masks: the same function as a slice, in tensors whose shapes stay.

A channel that is left out has zeros for weights, so it adds nothing to what reads it. The product costs as
much as the full width, whatever the slice. But every width vector runs the same kernels on the same memory:
one CUDA graph serves them all (:mod:`bcnet_deploy.train.graphs`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from bcnet_deploy.nn.supernet import Supernet
from bcnet_deploy.space.extent import Segments
from bcnet_deploy.space.patching import TensorPlace, patched, tensor_places

AGREES = 0.01
"""Largest difference between a slice and its masked network, relative to the outputs' spread."""


@dataclass(frozen=True)
class _Masked:
    """A parameter or buffer and the mask of each dimension: (axis, begin, end) in the flat masks."""

    places: list[TensorPlace]
    axes: tuple[tuple[int, int, int], ...]

    @property
    def full(self) -> torch.Tensor:
        return self.places[0].table[self.places[0].key]

    def mask(self, flat: torch.Tensor) -> torch.Tensor:
        """Ones and zeros of a shape that broadcasts to the tensor's."""
        mask = None
        for axis, begin, end in self.axes:
            shape = [1] * self.full.ndim
            shape[axis] = end - begin
            part = flat[begin:end].view(shape)
            mask = part if mask is None else mask * part
        assert mask is not None
        return mask


class WidthMasks:
    """Runs the sub-networks of a supernet as its full network times masks.

    Networks that normalise over channels (layer and group norms) see the zeros: :meth:`agree` tells.

    Args:
        supernet: whose weights are used; already on its device.
    """

    def __init__(self, supernet: Supernet) -> None:
        self.supernet, self.space = supernet, supernet.space
        self.device = next(supernet.model.parameters()).device
        known: dict[Segments, tuple[int, int]] = {}
        positions: list[npt.NDArray[np.int64]] = []
        self._weights: list[_Masked] = []
        self._buffers: list[_Masked] = []
        places, length = tensor_places(supernet.model), 0
        for name, dims in self.space.slices.items():
            axes = []
            for axis, segments in enumerate(dims):
                if all(segment.variable < 0 for segment in segments):
                    continue
                if segments not in known:
                    positions.append(_positions(segments, supernet.stored_units))
                    known[segments] = length, length + positions[-1].shape[1]
                    length = known[segments][1]
                axes.append((axis, *known[segments]))
            if axes:
                kind = self._weights if places[name][0].is_parameter else self._buffers
                kind.append(_Masked(places[name], tuple(axes)))
        table = np.concatenate(positions, axis=1) if positions else np.zeros((4, 0), dtype=np.int64)
        self._variable, self._at, self._total, self._repeat = torch.from_numpy(table).to(self.device)

    def flat(self, units: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """The masks of all dimensions, one after another, computed on the device.

        Args:
            units: (L,) int64 kept units of each variable.
            right: () bool, whether the last units are kept in place of the first.
        """
        kept = units[self._variable.clamp(min=0)] * self._repeat
        inside = torch.where(right, self._at >= self._total - kept, self._at < kept)
        return (inside | (self._variable < 0)).to(torch.float32)

    @contextmanager
    def masked(self, flat: torch.Tensor) -> Iterator[nn.Module]:
        """The wrapped model with its weights times the masks; gradients reach the full weights.

        What forward makes of running statistics is kept for the channels of the slice alone.
        """
        tensors = [(item, item.full * item.mask(flat).to(item.full.dtype)) for item in self._weights]
        buffers = [(item, item.full, item.full.clone()) for item in self._buffers]
        tensors += [(item, own) for item, _, own in buffers]
        placed = [(place, tensor) for item, tensor in tensors for place in item.places]
        with patched(placed, ()):
            yield self.supernet.model
        with torch.no_grad():
            for item, full, own in buffers:
                full.copy_(torch.where(item.mask(flat) > 0, own, full))

    @torch.no_grad()
    def agree(self, images: torch.Tensor, rng: np.random.Generator) -> bool:
        """Whether masked networks give what slices give: the narrowest, and two random ones, left and right.

        Of models that normalise over channels, or whose layers depend on widths in another way, they do not.
        """
        supernet, training = self.supernet, self.supernet.training
        former, side = supernet.active
        supernet.eval()
        try:
            # Of few choices random ones may all be the full width, which agrees whatever the layers do.
            for widths, kept in zip(
                (self.space.narrowest, *self.space.random(2, rng)), ("left", "left", "right"), strict=True
            ):
                supernet.set_active(widths, kept)
                sliced = _first(supernet(images)).double()
                units = torch.tensor(self.space.one(widths), device=self.device)
                with self.masked(
                    self.flat(units, torch.tensor(kept == "right", device=self.device))
                ) as model:
                    other = _first(model(images)).double()
                spread = float(sliced.std()) or 1.0
                if sliced.shape != other.shape or not float((sliced - other).abs().max()) <= AGREES * spread:
                    return False
            return True
        finally:
            supernet.set_active(former, side)
            supernet.train(training)


def _positions(segments: Segments, stored: list[int]) -> npt.NDArray[np.int64]:
    """(4, n) of each position of a dimension: its variable or -1, its place in the segment, size, repeat."""
    parts = []
    for segment in segments:
        fixed = segment.variable < 0
        total = segment.positions if fixed else stored[segment.variable] * segment.repeat
        part = np.zeros((4, total), dtype=np.int64)
        part[0], part[1], part[2] = segment.variable, np.arange(total), total
        part[3] = 0 if fixed else segment.repeat
        parts.append(part)
    return np.concatenate(parts, axis=1)


def _first(outputs: object) -> torch.Tensor:
    """One tensor of what a network returns."""
    return next(leaf for leaf in tree_leaves(outputs) if isinstance(leaf, torch.Tensor))
