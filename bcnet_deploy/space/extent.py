"""Sizes that depend on the widths, as exact integer forms. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Units = npt.NDArray[np.int64]
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
        const, maximum, terms, steps = data
        return cls(const, tuple((m, v) for m, v in terms), tuple(steps), maximum)


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
