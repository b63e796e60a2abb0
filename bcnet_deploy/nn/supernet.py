"""The weight-sharing supernet: any sub-network runs on slices of one set of weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils import checkpoint

from bcnet_deploy.space import WidthSpace
from bcnet_deploy.space.patching import TensorPlace, attribute_patches, patched, tensor_places
from bcnet_deploy.space.slicing import (
    Ranges,
    check_model,
    check_side,
    extract,
    kept_ranges,
    resized,
    take,
    take_leaf,
)

_Plan = list[tuple[list[TensorPlace], tuple[Ranges, ...]]]
_PLANS = 256


class Supernet(nn.Module):
    """A network that runs any of its sub-networks, on slices of its own weights.

    The active slice is one width vector and one side: ``left`` uses the first channels of every
    layer, ``right`` the last (bilaterally coupled weight sharing; BCNet, CVPR 2021, section 3.2).
    Slices are views; only where a layer reads a concatenation are its ranges joined. The wrapped
    model is changed during ``forward`` alone and is itself again afterwards, in any case.

    With ``space.min_level`` m > 0 the supernet stores K + m levels of each variable, so that
    every channel is still trained equally often (BCNetV2, section 3); it then wraps a widened copy
    of the model.

    Args:
        model: the model of ``space``; wrapped, not copied, unless ``space.min_level`` > 0.
        space: its width space.
        generator: draws the initial values of added channels.

    Raises:
        CheckpointError: the model is not of this space.
    """

    def __init__(
        self, model: nn.Module, space: WidthSpace, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        units = [variable.units for variable in space.variables]
        check_model(space.plan, model, units)
        self.space = space
        self._steps = np.array([variable.step for variable in space.variables], dtype=np.int64)
        self.stored_units = units
        if space.min_level > 0:
            total = space.levels + space.min_level
            self.stored_units = [-(-total * n // space.levels) for n in units]
            generator = generator or torch.Generator().manual_seed(0)
            model = resized(space.plan, model, self.stored_units, generator)
        self.model = model
        self._modules_by_path = dict(model.named_modules())
        places = tensor_places(model)
        self._sliced = [
            (places[name], dims)
            for name, dims in space.slices.items()
            if any(segment.variable >= 0 for segments in dims for segment in segments)
        ]
        """The tensors that follow widths."""
        self._plans: dict[tuple[str, tuple[int, ...]], tuple[_Plan, list[tuple[nn.Module, str, Any]]]] = {}
        self._in_place = False
        self.set_active(space.full)

    @property
    def max_channels(self) -> npt.NDArray[np.int64]:
        """(L,) stored channels of each variable."""
        return np.array(self.stored_units, dtype=np.int64) * self._steps

    @property
    def active(self) -> tuple[npt.NDArray[np.int64], str]:
        """The active (L,) widths and side."""
        return self._widths.copy(), self._side

    def set_active(self, widths: npt.ArrayLike, side: str = "left") -> None:
        """Choose the slice that ``forward`` runs.

        Args:
            widths: (L,) channels of each variable.
            side: ``left`` or ``right``, for the whole network.

        Raises:
            WidthError: the widths are not in the space, or the side is neither.
        """
        check_side(side)
        units = self.space.one(widths)
        key = side, tuple(units)
        if key not in self._plans:
            # An evaluation runs each of its networks batch by batch: their plans are made once.
            if len(self._plans) >= _PLANS:
                self._plans.clear()
            plan = [
                (places, tuple([kept_ranges(segments, units, self.stored_units, side) for segments in dims]))
                for places, dims in self._sliced
            ]
            values = self.space.plan.attribute_values(units)
            self._plans[key] = plan, attribute_patches(self._modules_by_path, values)
        self._plan, self._attributes = self._plans[key]
        self._widths, self._side = np.array(units, dtype=np.int64) * self._steps, side

    @contextmanager
    def sliced(self) -> Iterator[nn.Module]:
        """The wrapped model with the active slice in place; it is restored on exit, also on error."""
        slices: list[_Slice] = []
        for places, ranges in self._plan:
            full = places[0].table[places[0].key]
            direct = self._in_place and full.requires_grad and torch.is_grad_enabled()
            part = take_leaf(full, ranges) if direct else take(full, ranges)
            slices.append(_Slice(places, full, ranges, part))
        attributes = self._attributes
        with _put(slices, attributes), _again_in_backward(lambda: _put(slices, attributes)):
            yield self.model

    @contextmanager
    def gradients_in_place(self) -> Iterator[None]:
        """Within it ``backward`` adds a slice's gradient straight to its part of the weights' ``grad``.

        The sums are the same, and no full-size tensor is written for a small slice. For ``backward`` alone:
        ``torch.autograd.grad``, hooks on weights and DistributedDataParallel do not see these gradients.
        """
        former, self._in_place = self._in_place, True
        try:
            yield
        finally:
            self._in_place = former

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The output of the active sub-network; same inputs and outputs as the wrapped model."""
        with self.sliced() as model:
            return model(*args, **kwargs)

    def extract(self, widths: npt.ArrayLike, side: str = "left") -> nn.Module:
        """A plain sub-network with copied weights. Raises as :meth:`WidthSpace.extract`."""
        units = self.space.one(widths)
        return extract(self.space.plan, self.model, units, side, stored=self.stored_units)


@dataclass(slots=True)
class _Slice:
    """A part of a tensor, for all places that refer to the tensor."""

    places: list[TensorPlace]
    full: torch.Tensor
    ranges: tuple[Ranges, ...]
    part: torch.Tensor

    def write_back(self) -> None:
        """What forward made of a buffer belongs in the full one: it may have assigned a new tensor."""
        current = [place.table.get(place.key) for place in self.places]
        changed = next((tensor for tensor in current if tensor is not self.part), self.part)
        is_view = changed is self.part and all(len(ranges) == 1 for ranges in self.ranges)
        if not is_view and isinstance(changed, torch.Tensor) and changed.shape == self.part.shape:
            with torch.no_grad():
                _assign(self.full, self.ranges, changed)


@contextmanager
def _put(slices: list[_Slice], attributes: list[tuple[nn.Module, str, Any]]) -> Iterator[None]:
    tensors = [(place, item.part) for item in slices for place in item.places]
    with patched(tensors, attributes):
        try:
            yield
        finally:
            for item in slices:
                if not item.places[0].is_parameter:
                    item.write_back()


def _assign(full: torch.Tensor, dims: tuple[Ranges, ...], part: torch.Tensor, axis: int = 0) -> None:
    """Undo :func:`take`."""
    if axis == len(dims):
        full.copy_(part)
        return
    position = 0
    for start, length in dims[axis]:
        own = part.narrow(axis, position, length)
        _assign(full.narrow(axis, start, length), dims, own, axis + 1)
        position += length


@contextmanager
def _again_in_backward(put: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Within it, functions that are checkpointed run under ``put()`` also when backward runs them again.

    PyTorch has no way to ask for that: the two functions are wrapped through which every call of
    ``torch.utils.checkpoint`` goes, whoever imported it under whichever name.
    """
    if not torch.is_grad_enabled():
        yield
        return

    def under_slice(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            with put():
                return function(*args, **kwargs)

        return run

    former = {name: getattr(checkpoint, name) for name in _CHECKPOINTS if hasattr(checkpoint, name)}
    try:
        for name, original in former.items():
            if isinstance(original, type):
                wrapped: Any = SimpleNamespace(
                    apply=lambda function, *args, own=original: own.apply(under_slice(function), *args)
                )
            else:

                def wrapped(function: Any, *args: Any, own: Any = original, **kwargs: Any) -> Any:
                    return own(under_slice(function), *args, **kwargs)

            setattr(checkpoint, name, wrapped)
        yield
    finally:
        for name, original in former.items():
            setattr(checkpoint, name, original)


_CHECKPOINTS = (
    "CheckpointFunction",
    "_checkpoint_without_reentrant_generator_impl",
    "_checkpoint_without_reentrant_generator",
)
