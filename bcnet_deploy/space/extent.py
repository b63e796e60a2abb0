"""Sizes that depend on the widths, as exact integer forms. NumPy only."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Units = Int64
"""(N, L) numbers of kept units: widths divided by each variable's step."""


@dataclass(frozen=True)
class Segment:
    """``size`` units of one variable, each standing for ``repeat`` consecutive positions.

    ``variable`` is -1 for positions that are always kept.
    """

    variable: int
    size: int
    repeat: int = 1

    @property
    def positions(self) -> int:
        return self.size * self.repeat


Segments = tuple[Segment, ...]

Attribute = Segments | list[Segments]
"""An integer attribute that follows widths, or a sequence of such."""


@dataclass(frozen=True)
class SlicePlan:
    """How the tensors and integer attributes of a model follow the widths.

    Attributes:
        model_name: for messages.
        units: (L,) units of each variable at full width.
        tensors: for each parameter and buffer, the segments of each dimension.
        attributes: (module path, attribute name) -> its segments.
    """

    model_name: str
    units: tuple[int, ...]
    tensors: dict[str, tuple[Segments, ...]]
    attributes: dict[tuple[str, str], Attribute]

    def shapes(self, units: Sequence[int] | npt.NDArray[np.int64]) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter and buffer for one vector of (L,) units."""
        return {
            name: tuple(kept_positions(segments, units) for segments in dims)
            for name, dims in self.tensors.items()
        }

    def attribute_values(
        self, units: Sequence[int] | npt.NDArray[np.int64]
    ) -> list[tuple[str, str, int | tuple[int, ...]]]:
        """(module path, name, value) of every attribute for one vector of (L,) units."""
        return [
            (path, key, tuple(kept_positions(item, units) for item in value))
            if isinstance(value, list)
            else (path, key, kept_positions(value, units))
            for (path, key), value in self.attributes.items()
        ]


@dataclass(frozen=True)
class Extent:
    """``const + sum(multiplicity * units[variable])``: the size of a dimension at given widths.

    ``steps`` are the steps of the variables of ``terms``, so that it can be called with widths;
    ``max`` is its value at full width.
    """

    const: int
    terms: tuple[tuple[int, int], ...] = ()
    steps: tuple[int, ...] = ()
    max: int = 0

    def of_columns(self, columns: Units) -> npt.NDArray[np.int64]:
        """(L, N) units, one row a variable -> (N,) sizes."""
        total = np.full(columns.shape[1], self.const, dtype=np.int64)
        for multiplicity, variable in self.terms:
            total += multiplicity * columns[variable]
        return total

    def __call__(self, widths: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """(N, L) widths in channels -> (N,) sizes. Widths are taken as checked."""
        array = np.atleast_2d(np.asarray(widths, dtype=np.int64))
        total = np.full(len(array), self.const, dtype=np.int64)
        for (multiplicity, variable), step in zip(self.terms, self.steps, strict=True):
            total += multiplicity * (array[:, variable] // step)
        return total

    @property
    def is_fixed(self) -> bool:
        return not self.terms

    @property
    def variables(self) -> tuple[int, ...]:
        return tuple(variable for _, variable in self.terms)

    def to_list(self) -> list[Any]:
        return [self.const, self.max, [list(term) for term in self.terms], list(self.steps)]

    @classmethod
    def from_list(cls, data: list[Any]) -> Extent:
        """What :meth:`to_list` gave. Raises ValueError for anything else."""
        const, maximum, terms, steps = data
        found = cls(const, tuple((m, v) for m, v in terms), tuple(steps), maximum)
        numbers = (const, maximum, *(number for term in found.terms for number in term), *found.steps)
        if not all(type(number) is int and 0 <= number < 2**40 for number in numbers):
            raise ValueError(f"{reprlib.repr(data)} is no size of a dimension: sizes are whole numbers")
        if len(found.steps) != len(found.terms) or 0 in found.steps:
            raise ValueError(f"{reprlib.repr(data)} is no size of a dimension: each term has a step")
        return found


def extent_of(segments: Segments, steps: tuple[int, ...]) -> Extent:
    """The size of a dimension made of ``segments``; ``steps`` are those of all variables."""
    const = 0
    terms: dict[int, int] = {}
    for segment in segments:
        if segment.variable < 0:
            const += segment.positions
        else:
            terms[segment.variable] = terms.get(segment.variable, 0) + segment.repeat
    ordered = tuple((multiplicity, variable) for variable, multiplicity in sorted(terms.items()))
    return Extent(
        const,
        ordered,
        tuple(steps[variable] for _, variable in ordered),
        sum(segment.positions for segment in segments),
    )


def constant(size: int) -> Extent:
    return Extent(size, max=size)


def kept_positions(segments: Segments, units: Sequence[int] | npt.NDArray[np.int64]) -> int:
    """The size of a dimension made of ``segments`` for one vector of (L,) units."""
    return sum(
        segment.positions if segment.variable < 0 else segment.repeat * int(units[segment.variable])
        for segment in segments
    )


class ProductSum:
    """``sum of coefficient * product of extents`` over many terms, for many width vectors at once."""

    def __init__(self, terms: list[tuple[int, tuple[Extent, ...]]], variables: int) -> None:
        merged: dict[tuple[Extent, ...], int] = {}
        self.constant = 0
        for coefficient, factors in terms:
            varying = []
            for factor in factors:
                if factor.is_fixed:
                    coefficient *= factor.const
                else:
                    varying.append(factor)
            if varying:
                key = tuple(sorted(varying, key=lambda e: (e.terms, e.const)))
                merged[key] = merged.get(key, 0) + coefficient
            else:
                self.constant += coefficient
        self.terms = list(merged.items())
        self.variables = variables

    def __call__(self, units: Units) -> Int64:
        """(N, L) units -> (N,) sums."""
        total = np.full(len(units), self.constant, dtype=np.int64)
        values: dict[Extent, Int64] = {}
        columns = np.ascontiguousarray(units.T)
        for factors, coefficient in self.terms:
            product: Int64 | None = None
            for factor in factors:
                value = values.get(factor)
                if value is None:
                    value = values[factor] = factor.of_columns(columns)
                product = value if product is None else product * value
            assert product is not None
            total += coefficient * product
        return total
