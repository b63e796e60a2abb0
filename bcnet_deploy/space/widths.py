"""The width space of a network: its variables, choices and exact costs. Needs NumPy only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bcnet_deploy.errors import WidthError
from bcnet_deploy.space import description
from bcnet_deploy.space.extent import Segments, extent_of
from bcnet_deploy.space.ops import FrozenPart, Int64, Op, ProductSum, TensorSpec, WidthVariable

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class WidthSpace:
    """All networks that differ from one network in the widths of its layers.

    Widths are channels. A width vector has one entry a variable, in the order of ``variables``;
    batches of vectors are integer arrays of shape (N, L).

    Attributes:
        variables: ordered by first appearance in execution.
        input_size: (channels, height, width).
        levels: K, the number of levels of each variable.
        min_level: m, the smallest level; with m > 0 a supernet stores K + m levels.
        ops, tensors: what the network computes, in order, on a batch of one.
        slices: for each parameter and buffer, the segments of each dimension.
        attributes: integer module attributes that follow widths.
        parameter_names: names in ``slices`` that are parameters, not buffers.
        frozen: layers kept at full width, with reasons.
        notes: what else a user should know.
    """

    variables: tuple[WidthVariable, ...]
    input_size: tuple[int, int, int]
    levels: int
    min_level: int
    model_name: str
    ops: tuple[Op, ...]
    tensors: tuple[TensorSpec, ...]
    slices: dict[str, tuple[Segments, ...]] = field(repr=False)
    attributes: dict[tuple[str, str], Segments | tuple[Segments, ...]] = field(repr=False)
    parameter_names: frozenset[str] = field(repr=False)
    frozen: tuple[FrozenPart, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        input_size: Sequence[int] = (3, 224, 224),
        levels: int = 20,
        min_level: int = 0,
    ) -> WidthSpace:
        """The width space of any CNN. The model is run on shapes alone and not changed.

        Args:
            model: its forward takes one image batch.
            input_size: (channels, height, width).
            levels: K, the number of levels of each variable.
            min_level: m, the smallest level allowed (BCNetV2).

        Raises:
            UnsupportedModelError: not a CNN, or its control flow depends on data.
            InputSizeError: the model does not run on this input size.
            WidthError: ``levels`` or ``min_level`` is out of range.
        """
        from bcnet_deploy.space.build import space_of

        return space_of(cls, model, tuple(input_size), levels, min_level)

    # -- width vectors -------------------------------------------------------------------------

    @property
    def full(self) -> Int64:
        """(L,) maximal widths."""
        return np.array([variable.channels for variable in self.variables], dtype=np.int64)

    @property
    def narrowest(self) -> Int64:
        """(L,) smallest choices."""
        return np.array([variable.choices[0] for variable in self.variables], dtype=np.int64)

    @property
    def size(self) -> int:
        """Number of width vectors over the choices."""
        return math.prod(len(variable.choices) for variable in self.variables)

    def uniform(self, ratio: float) -> Int64:
        """(L,) each variable's choice nearest to ``ratio`` of its channels."""
        return np.array(
            [
                min(variable.choices, key=lambda c, v=variable: abs(c - ratio * v.channels))  # type: ignore[misc]
                for variable in self.variables
            ],
            dtype=np.int64,
        )

    def random(self, n: int, rng: np.random.Generator) -> Int64:
        """(n, L) widths, uniform over the choices of each variable independently."""
        columns = [rng.choice(np.array(v.choices, dtype=np.int64), size=n) for v in self.variables]
        return np.stack(columns, axis=1) if columns else np.zeros((n, 0), dtype=np.int64)

    def check(self, widths: npt.ArrayLike) -> Int64:
        """``widths`` as an (N, L) integer array; (L,) is taken as N = 1.

        Raises:
            WidthError: wrong length, not integers, out of range or not a multiple of the step;
                names the variable, what was given and what is allowed.
        """
        array = np.asarray(widths)
        if array.ndim == 1:
            array = array[None]
        count = len(self.variables)
        if array.ndim != 2 or array.shape[1] != count:
            raise WidthError(
                f"a width vector of {self.model_name} has {count} widths; given: shape {np.shape(widths)}"
            )
        whole = array.dtype.kind in "iu" or (
            array.dtype.kind == "f" and np.array_equal(array, np.round(array))
        )
        if not whole:
            raise WidthError(f"widths are whole numbers of channels; given: {array.dtype} {array[:1]}")
        bad = (array < 1) | (array > self.full) | (array % self._steps != 0)
        if bad.any():
            row, column = (int(i) for i in np.argwhere(bad)[0])
            variable = self.variables[column]
            grid = f" in steps of {variable.step}" if variable.step > 1 else ""
            raise WidthError(
                f"width {array[row, column].item()} of variable {column} ({variable.name}) is out of range; "
                f"allowed: {variable.step}..{variable.channels}{grid}"
            )
        return array.astype(np.int64)

    def units(self, widths: npt.ArrayLike) -> Int64:
        """Checked widths in units of each variable's step. Raises :class:`WidthError`."""
        return np.asarray(self.check(widths) // self._steps)

    @cached_property
    def _steps(self) -> Int64:
        return np.array([variable.step for variable in self.variables], dtype=np.int64)

    # -- costs ---------------------------------------------------------------------------------

    def macs(self, widths: npt.ArrayLike) -> Int64:
        """(N, L) widths -> (N,) multiply-accumulates of convolutions and matrix products, exact.

        Normalisation, activations and additions are not counted. Raises :class:`WidthError`.
        """
        return self._macs(self.units(widths))

    def params(self, widths: npt.ArrayLike) -> Int64:
        """(N, L) widths -> (N,) number of parameters (buffers not counted), exact.

        Raises:
            WidthError: see :meth:`check`.
        """
        return self._params(self.units(widths))

    @cached_property
    def _macs(self) -> ProductSum:
        terms = [(op.mac_coefficient, op.mac_factors) for op in self.ops if op.mac_coefficient]
        return ProductSum(terms, len(self.variables))

    @cached_property
    def _params(self) -> ProductSum:
        steps = tuple(variable.step for variable in self.variables)
        terms = [
            (1, tuple(extent_of(segments, steps) for segments in self.slices[name]))
            for name in sorted(self.parameter_names)
        ]
        return ProductSum(terms, len(self.variables))

    def peak_activation_bytes(self, widths: npt.ArrayLike, bytes_per_element: int = 4) -> Int64:
        """(N, L) widths -> (N,) most bytes of activations alive at once, for a batch of one.

        An operator's inputs and output are alive while it runs, a tensor from the operator that makes
        it to the last that reads it; views and in-place results share memory with their source. A
        runtime that fuses operators needs less. Raises :class:`WidthError`.
        """
        array = self.check(widths)
        root = list(range(len(self.tensors)))
        for index, tensor in enumerate(self.tensors):
            if tensor.alias_of is not None:
                root[index] = root[tensor.alias_of]
        last = {root[i]: step for step, op in enumerate(self.ops) for i in (*op.inputs, op.output)}
        live = np.zeros(len(array), dtype=np.int64)
        peak = np.zeros(len(array), dtype=np.int64)
        elements: dict[int, Int64] = {}
        for step, op in enumerate(self.ops):
            for index in (*op.inputs, op.output):
                owner = root[index]
                if owner not in elements:
                    elements[owner] = self.tensors[owner].elements(array)
                    live += elements[owner]
            np.maximum(peak, live, out=peak)
            for owner in {root[i] for i in (*op.inputs, op.output)}:
                if last[owner] == step:
                    live -= elements[owner]
        return peak * bytes_per_element

    def weight_bytes(self, widths: npt.ArrayLike, bytes_per_element: int = 4) -> Int64:
        """(N, L) widths -> (N,) bytes of all parameters. Raises :class:`WidthError`."""
        return self.params(widths) * bytes_per_element

    # -- networks ------------------------------------------------------------------------------

    def extract(self, model: nn.Module, widths: npt.ArrayLike, side: str = "left") -> nn.Module:
        """A plain copy of ``model`` with these widths; weights are copied slices.

        Args:
            model: the model of this space (it is not changed).
            widths: (L,) or (1, L).
            side: ``left`` keeps the first channels of each layer, ``right`` the last.

        Raises:
            WidthError: the widths are not in the space.
            CheckpointError: the model is not of this space.
            NonFiniteWeightError: a weight of the model is not finite.
        """
        from bcnet_deploy.space.slicing import extract

        return extract(self, model, widths, side)

    # -- as data -------------------------------------------------------------------------------

    @cached_property
    def fingerprint(self) -> str:
        """Identifies network, input size and variables; the same in every process.

        Levels do not enter: a latency table serves every choice of levels.
        """
        return description.fingerprint(self)

    def to_dict(self) -> dict[str, Any]:
        """Everything but weights, ready for JSON."""
        return description.to_dict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> WidthSpace:
        """The inverse of :meth:`to_dict`.

        Raises:
            CheckpointError: the description is damaged or of another version.
        """
        return description.from_dict(cls, data)
