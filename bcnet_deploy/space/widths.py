"""The width space of a network: its variables, choices and exact costs. Needs NumPy only."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bcnet_deploy import files
from bcnet_deploy.errors import CheckpointError, WidthError, nearest
from bcnet_deploy.space.extent import (
    Attribute,
    Extent,
    Int64,
    ProductSum,
    Segment,
    Segments,
    SlicePlan,
    extent_of,
)
from bcnet_deploy.space.graph import FrozenPart, Op, TensorSpec

if TYPE_CHECKING:
    from torch import nn

FORMAT = 2


@dataclass(frozen=True)
class WidthVariable:
    """One width to choose.

    Attributes:
        name: the first layer, in execution order, whose output channels it counts.
        channels: the maximal width.
        choices: the widths a search may take, ascending; the last is ``channels``.
        step: widths are multiples of it (channels per group of a grouped convolution; else 1).
        index: position in a width vector.
        layers: all layers whose output channels follow this variable.
        lowest: the least width at which the model's code runs; 0 stands for ``step``.
    """

    name: str
    channels: int
    choices: tuple[int, ...]
    step: int = 1
    index: int = 0
    layers: tuple[str, ...] = ()
    lowest: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "lowest", max(self.lowest, self.step))

    @property
    def units(self) -> int:
        return self.channels // self.step

    def checked_choices(self, choices: Sequence[int]) -> tuple[int, ...]:
        """``choices`` with the full width added. Raises :class:`WidthError` unless they are allowed."""
        array = _array(choices)
        given = f"given for variable {self.index} ({self.name}): {list(choices)!r}"
        if array.ndim != 1 or not array.size or array.dtype.kind not in "iu":
            raise WidthError(f"choices are one or more whole numbers of channels; {given}")
        if (np.diff(array) <= 0).any():
            raise WidthError(f"choices ascend and none comes twice; {given}")
        if array[0] < self.lowest or array[-1] > self.channels or (array % self.step).any():
            grid = f" in steps of {self.step}" if self.step > 1 else ""
            raise WidthError(f"choices are within {self.lowest}..{self.channels}{grid}; {given}")
        return tuple(sorted({*array.tolist(), self.channels}))


def _array(values: npt.ArrayLike) -> npt.NDArray[Any]:
    """``values``; lists of unlike lengths in it are objects, which no check takes for numbers."""
    try:
        return np.asarray(values)
    except ValueError:
        return np.asarray(values, dtype=object)


def level_choices(units: int, step: int, levels: int, min_level: int, lowest: int = 0) -> tuple[int, ...]:
    """Widths of levels ``max(1, min_level)..levels``: level j keeps ceil(j * units / levels) units.

    Widths under ``lowest`` are raised to it.
    Source: BCNet (CVPR 2021), section 3.1; the smallest level: BCNetV2, section 3.
    """
    first = max(1, min_level)
    widths = {step * math.ceil(j * units / levels) for j in range(first, levels + 1)}
    return tuple(sorted({max(width, lowest) for width in widths}))


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
        plan: how the model's tensors and attributes follow the widths.
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
    plan: SlicePlan = field(repr=False)
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
        # PyTorch is loaded here and in extract alone: a space that exists already does without it.
        from bcnet_deploy.space.trial import analysed

        whole = all(isinstance(number, (int, np.integer)) for number in (levels, min_level))
        if not whole or levels < 1 or not 0 <= min_level <= levels:
            raise WidthError(
                f"levels must be an integer of at least 1 and min_level one of 0..levels; given: "
                f"levels={levels!r}, min_level={min_level!r}"
            )
        grouping = analysed(model, tuple(input_size))
        channels, height, width = input_size
        return cls(
            variables=tuple(
                WidthVariable(
                    name=raw.name,
                    channels=raw.units * raw.step,
                    choices=level_choices(raw.units, raw.step, levels, min_level, raw.lowest * raw.step),
                    step=raw.step,
                    index=index,
                    layers=raw.layers,
                    lowest=raw.lowest * raw.step,
                )
                for index, raw in enumerate(grouping.variables)
            ),
            input_size=(channels, height, width),
            levels=levels,
            min_level=min_level,
            model_name=grouping.plan.model_name,
            ops=tuple(grouping.ops),
            tensors=tuple(grouping.tensors),
            plan=grouping.plan,
            parameter_names=grouping.parameter_names,
            frozen=tuple(grouping.frozen),
            notes=tuple(grouping.notes),
        )

    @property
    def slices(self) -> dict[str, tuple[Segments, ...]]:
        """For each parameter and buffer, the segments of each dimension."""
        return self.plan.tensors

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

    def with_choices(self, choices: Mapping[str, Sequence[int]] | Mapping[int, Sequence[int]]) -> WidthSpace:
        """The same space in which a search takes other widths.

        Args:
            choices: by a variable's name or index, its widths in channels, ascending. The full width is
                always kept. Variables that are not named keep their choices.

        Raises:
            WidthError: no such variable, or a width that is out of range, not a multiple of the variable's
                step, or given twice.
        """
        variables = list(self.variables)
        index_of = {variable.name: variable.index for variable in variables}
        for key, widths in choices.items():
            index = index_of.get(key, -1) if isinstance(key, str) else int(key)
            if not 0 <= index < len(variables):
                raise WidthError(
                    f"{self.model_name} has no width variable {key!r}{nearest(str(key), index_of)}; "
                    f"allowed: names and indices of its {len(variables)} variables"
                )
            variable = variables[index]
            variables[index] = replace(variable, choices=variable.checked_choices(widths))
        return replace(self, variables=tuple(variables))

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
        given = _array(widths)
        array = given[None] if given.ndim == 1 else given
        count = len(self.variables)
        if array.ndim != 2 or array.shape[1] != count:
            raise WidthError(
                f"a width vector of {self.model_name} has {count} widths; given: shape {given.shape}"
            )
        whole = array.dtype.kind in "iu" or (
            array.dtype.kind == "f" and bool((np.isfinite(array) & (array == np.round(array))).all())
        )
        if not whole:
            raise WidthError(f"widths are whole numbers of channels; given: {array.dtype} {array[:1]}")
        lowest = np.array([variable.lowest for variable in self.variables], dtype=np.int64)
        bad = (array < lowest) | (array > self.full) | (array % self._steps != 0)
        if bad.any():
            row, column = (int(i) for i in np.argwhere(bad)[0])
            variable = self.variables[column]
            grid = f" in steps of {variable.step}" if variable.step > 1 else ""
            raise WidthError(
                f"width {array[row, column].item()} of variable {column} ({variable.name}) is out of range; "
                f"allowed: {variable.lowest}..{variable.channels}{grid}"
            )
        return array.astype(np.int64)

    def units(self, widths: npt.ArrayLike) -> Int64:
        """Checked widths in units of each variable's step. Raises :class:`WidthError`."""
        return np.asarray(self.check(widths) // self._steps)

    def one(self, widths: npt.ArrayLike) -> list[int]:
        """The units of a single width vector, (L,) or (1, L). Raises :class:`WidthError`."""
        rows = self.units(widths)
        if len(rows) != 1:
            raise WidthError(f"one width vector is needed; given: {len(rows)}")
        return [int(n) for n in rows[0]]

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

        return extract(self.plan, model, self.one(widths), side)

    # -- as data -------------------------------------------------------------------------------

    @cached_property
    def fingerprint(self) -> str:
        """Identifies network, input size and variables; the same in every process.

        Choices do not enter: a latency table or a supernet serves every choice of widths.
        """
        return _digest(
            [
                list(self.input_size),
                [[v.name, v.channels, v.step] for v in self.variables],
                [[op.kind, op.name, op.inputs, op.attrs, _plain(op.mac_factors)] for op in self.ops],
                [_plain(tensor.shape) for tensor in self.tensors],
            ]
        )

    @cached_property
    def choices_fingerprint(self) -> str:
        """Identifies the network together with the widths that a search may take."""
        return _digest([self.fingerprint, [v.choices for v in self.variables]])

    def to_dict(self) -> dict[str, Any]:
        """Everything but weights, ready for JSON."""
        return {
            "format": FORMAT,
            "model_name": self.model_name,
            "input_size": list(self.input_size),
            "levels": self.levels,
            "min_level": self.min_level,
            "variables": [
                {
                    "name": v.name,
                    "channels": v.channels,
                    "choices": list(v.choices),
                    "step": v.step,
                    "layers": list(v.layers),
                    **({} if v.lowest == v.step else {"lowest": v.lowest}),
                }
                for v in self.variables
            ],
            "ops": [op.to_dict() for op in self.ops],
            "tensors": [
                {"shape": _plain(t.shape), **({} if t.alias_of is None else {"alias_of": t.alias_of})}
                for t in self.tensors
            ],
            "slices": {name: [_listed(d) for d in dims] for name, dims in self.slices.items()},
            "attributes": [
                [path, key, [_listed(d) for d in value] if isinstance(value, list) else _listed(value)]
                for (path, key), value in self.plan.attributes.items()
            ],
            "parameter_names": sorted(self.parameter_names),
            "frozen": [[part.name, part.reason] for part in self.frozen],
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> WidthSpace:
        """The inverse of :meth:`to_dict`.

        Raises:
            CheckpointError: the description is damaged or of another version.
        """
        with files.malformed("the width space", CheckpointError, files.AGAIN):
            if data["format"] not in (1, FORMAT):
                raise CheckpointError(
                    f"the width space has format {data['format']}, this version reads 1 and {FORMAT}"
                )
            levels, min_level = int(data["levels"]), int(data["min_level"])
            variables = []
            for index, v in enumerate(data["variables"]):
                # Format 1 had no choices but those of the levels.
                units, step = v["channels"] // v["step"], v["step"]
                lowest = int(v.get("lowest", step))
                variable = WidthVariable(
                    v["name"],
                    v["channels"],
                    level_choices(units, step, levels, min_level, lowest),
                    step,
                    index,
                    tuple(v["layers"]),
                    lowest,
                )
                if "choices" in v:
                    variable = replace(variable, choices=variable.checked_choices(v["choices"]))
                variables.append(variable)
            channels, height, width = data["input_size"]
            return cls(
                variables=tuple(variables),
                input_size=(channels, height, width),
                levels=levels,
                min_level=min_level,
                model_name=data["model_name"],
                ops=tuple(Op.from_dict(op) for op in data["ops"]),
                tensors=tuple(
                    TensorSpec(tuple(Extent.from_list(e) for e in t["shape"]), t.get("alias_of"))
                    for t in data["tensors"]
                ),
                plan=SlicePlan(
                    data["model_name"],
                    tuple(variable.units for variable in variables),
                    {name: tuple(map(_segments, dims)) for name, dims in data["slices"].items()},
                    {(path, key): _attribute(value) for path, key, value in data["attributes"]},
                ),
                parameter_names=frozenset(data["parameter_names"]),
                frozen=tuple(FrozenPart(name, reason) for name, reason in data["frozen"]),
                notes=tuple(data["notes"]),
            )


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()[:16]


def _plain(extents: tuple[Extent, ...]) -> list[Any]:
    return [extent.to_list() for extent in extents]


def _listed(segments: Segments) -> list[list[int]]:
    return [[s.variable, s.size, s.repeat] for s in segments]


def _segments(data: list[list[int]]) -> Segments:
    return tuple(Segment(variable, size, repeat) for variable, size, repeat in data)


def _attribute(data: list[Any]) -> Attribute:
    """A list of segments, or a list of such lists."""
    return _segments(data) if isinstance(data[0][0], int) else [_segments(item) for item in data]
