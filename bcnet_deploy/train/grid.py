"""Slices of a supernet, steps of them, and the grid of widths they are drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

from bcnet_deploy.errors import ConfigError

Widths = npt.NDArray[np.int64]
Side = Literal["left", "right"]
Role = Literal["sampled", "anchor", "teacher", "pupil"]
SIDES: tuple[Side, Side] = ("left", "right")


@dataclass(frozen=True)
class Path:
    """One slice of a step: ``widths`` (L,), its ``side``, the ``weight`` of its loss.

    A ``teacher`` learns from the labels and its output teaches the step's ``pupil`` paths; a
    ``sampled`` path learns from the labels alone, and so does an ``anchor``, which every step runs and
    which therefore leaves no loss record. ``teacher_index`` is the teacher's place in the step.
    """

    widths: Widths
    side: Side
    weight: float = 1.0
    role: Role = "sampled"
    teacher_index: int = 0


@dataclass(frozen=True)
class Step:
    """The paths between two optimiser updates, in the order in which they run."""

    paths: tuple[Path, ...]


@dataclass(frozen=True)
class WidthGrid:
    """What a sampler draws from: the ``choices`` of each variable and the ``stored`` channels (L,).

    ``stored`` exceeds the last choice where the supernet was widened for a minimum width (BCNetV2,
    bcnet.md section 4): there the left slice is [0, c) and the right one [stored - c, stored).
    """

    choices: tuple[tuple[int, ...], ...]
    stored: Widths

    @classmethod
    def create(
        cls, choices: Sequence[Sequence[int]], stored: Sequence[int] | Widths | None = None
    ) -> WidthGrid:
        """Check and freeze. ``stored`` defaults to each variable's largest choice.

        Raises:
            ConfigError: a variable has no choice, choices do not ascend from at least 1, or a stored
                count is below the largest choice.
        """
        frozen = tuple(tuple(int(width) for width in variable) for variable in choices)
        for index, variable in enumerate(frozen):
            if not variable or variable[0] < 1 or any(a >= b for a, b in pairwise(variable)):
                raise ConfigError(
                    f"the choices of width variable {index} are {list(variable)}; "
                    "they must ascend from 1 or more"
                )
        full = np.array([variable[-1] for variable in frozen], dtype=np.int64)
        kept = full if stored is None else np.asarray(stored, dtype=np.int64)
        if kept.shape != full.shape or bool((kept < full).any()):
            raise ConfigError(
                f"stored channels {kept.tolist()} must be one a variable and not below the widest "
                f"{full.tolist()}"
            )
        return cls(frozen, kept)

    @property
    def full(self) -> Widths:
        """(L,): the widest choice of each variable."""
        return np.array([variable[-1] for variable in self.choices], dtype=np.int64)

    @property
    def narrowest(self) -> Widths:
        """(L,): the narrowest choice of each variable."""
        return np.array([variable[0] for variable in self.choices], dtype=np.int64)

    @property
    def widened(self) -> bool:
        """Whether any variable stores more channels than its widest choice."""
        return bool((self.stored > self.full).any())

    def draw(self, rng: np.random.Generator) -> Widths:
        """(L,): each variable uniform over its choices, independently."""
        return np.array([variable[rng.integers(len(variable))] for variable in self.choices], dtype=np.int64)

    def complement(self, widths: Widths) -> Widths:
        """(L,): the vector whose left and right slices tile the layers with right and left of ``widths``.

        That is ``stored - width`` channels, exactly, whether or not it is one of the choices. Where
        nothing is left (the full width of a layer that was not widened) it is min + max - width, the
        narrowest choice (bcnet.md section 3).
        """
        rest = self.stored - widths
        return np.where(rest > 0, rest, self.narrowest + self.full - widths)


def both_sides(widths: Widths) -> Step:
    """One step of left and right of ``widths`` (L,), half the loss each."""
    return Step(tuple(Path(widths, side, 0.5) for side in SIDES))


def channel_counts(grid: WidthGrid, paths: Sequence[Path]) -> tuple[npt.NDArray[np.int64], ...]:
    """How often the paths train each stored channel: one array (stored_l,) a variable."""
    counts = tuple(np.zeros(int(stored), dtype=np.int64) for stored in grid.stored)
    for path in paths:
        for count, width in zip(counts, path.widths, strict=True):
            if path.side == "left":
                count[:width] += 1
            else:
                count[len(count) - width :] += 1
    return counts
