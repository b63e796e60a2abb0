"""Widths worth choosing: those that no wider layer beats.

On a staircase most widths pay for channels they do not have. A width is worth having only if every wider
one takes longer; the others can be left out of a search without loss.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bcnet_deploy.errors import TableError
from bcnet_deploy.lut.table import LatencyTable

if TYPE_CHECKING:
    from bcnet_deploy.space import WidthSpace

_CONTEXTS = (1.0, 0.75, 0.5)
_STEPS = (64, 48, 32, 24, 16, 12, 8, 6, 4, 3, 2)


@dataclass(frozen=True)
class Suggestion:
    """The widths of one variable that are worth choosing.

    Attributes:
        name, index, channels: of the variable.
        widths: ascending; the last is ``channels``.
        saved_ms: of each width: by how much it is faster than the full width, in the full network.
        step: the largest number that most of the widths are multiples of; 1 if there is none.
    """

    name: str
    index: int
    channels: int
    widths: tuple[int, ...]
    saved_ms: tuple[float, ...]
    step: int


def suggest_steps(
    table: LatencyTable, *, gain: float = 0.002, most: int | None = None
) -> tuple[Suggestion, ...]:
    """For each variable of the table's network, the widths at which latency drops.

    Args:
        table: a bound table, measured or estimated.
        gain: a width counts if it is faster than every wider one by this share of the full network.
        most: keep at most so many widths, those with the largest drops; None keeps all.

    Raises:
        TableError: the table is bound to no network.
    """
    network = table.network
    full = np.array([variable.channels for variable in network.variables], dtype=np.int64)
    threshold = gain * float(table.predict(full)[0]) * 1e3
    terms = table.terms()
    suggestions = []
    for index, variable in enumerate(network.variables):
        widths = np.arange(variable.step, variable.channels + 1, variable.step, dtype=np.int64)
        touched = [term for term in terms if index in term.variables]
        curves = []
        for ratio in _CONTEXTS:
            rows = np.tile(np.maximum(_snap(full, ratio), 1), (len(widths), 1))
            rows[:, index] = widths
            curves.append(np.sum([term.evaluate(rows) for term in touched], axis=0))
        curve = np.mean(curves, axis=0)
        kept = _worthwhile(curve, threshold)
        if most is not None and kept.sum() > most:
            kept = _largest_drops(curve, kept, most)
        chosen = widths[kept]
        saved = (curves[0][-1] - curves[0][kept]) / 1e3
        suggestions.append(
            Suggestion(
                variable.name, index, variable.channels, tuple(int(width) for width in chosen),
                tuple(round(float(value), 5) for value in saved), _common_step(chosen),
            )
        )  # fmt: skip
    return tuple(suggestions)


def learned_choices(
    space: WidthSpace, tables: Iterable[LatencyTable], *, gain: float = 0.002, most: int | None = None
) -> dict[str, tuple[int, ...]]:
    """Name of each variable of ``space`` -> its widths worth choosing, for ``space.with_choices``.

    A width is worth choosing if it is on the staircase of one of the tables. The narrowest and the widest
    choice of ``space`` stay, so that the same budgets can be kept. Narrower ones are left out.

    Args:
        space: whose variables are asked about.
        tables: one a device.
        gain, most: see :func:`suggest_steps`; for each table.

    Raises:
        TableError: a table is of another network, or there is none.
    """
    found: list[set[int]] = [{variable.choices[0], variable.choices[-1]} for variable in space.variables]
    bound = [table.for_space(space) for table in tables]
    if not bound:
        raise TableError(
            "channel steps are learned from a latency table; given: none. Profile a device first"
        )
    for table in bound:
        for suggestion, kept in zip(suggest_steps(table, gain=gain, most=most), found, strict=True):
            kept.update(width for width in suggestion.widths if width >= min(kept))
    return {v.name: tuple(sorted(kept)) for v, kept in zip(space.variables, found, strict=True)}


def _snap(full: npt.NDArray[np.int64], ratio: float) -> npt.NDArray[np.int64]:
    """Widths near a ratio that are aligned, so that the context itself is on no bad step."""
    aligned = np.maximum(1, np.round(full * ratio / 16)).astype(np.int64) * 16
    return np.where((full >= 32) & (ratio < 1), np.minimum(aligned, full), full)


def _worthwhile(curve: npt.NDArray[np.float64], threshold: float) -> npt.NDArray[np.bool_]:
    """The full width, and going down each that is faster than the last one kept by ``threshold``."""
    kept = np.zeros(len(curve), dtype=bool)
    best = np.inf
    for position in range(len(curve) - 1, -1, -1):
        if position == len(curve) - 1 or curve[position] <= best - threshold:
            kept[position] = True
            best = curve[position]
    return kept


def _largest_drops(
    curve: npt.NDArray[np.float64], kept: npt.NDArray[np.bool_], most: int
) -> npt.NDArray[np.bool_]:
    """Thin out: drop the width whose removal loses least, until ``most`` are left; the ends stay."""
    positions = list(np.flatnonzero(kept))
    while len(positions) > max(most, 2):
        losses = [
            curve[after] - curve[before] for before, after in zip(positions, positions[2:], strict=False)
        ]
        del positions[1 + int(np.argmin(losses))]
    result = np.zeros(len(curve), dtype=bool)
    result[positions] = True
    return result


def _common_step(widths: npt.NDArray[np.int64]) -> int:
    inner = widths[:-1] if len(widths) > 1 else widths
    for step in _STEPS:
        if (inner % step == 0).mean() >= 0.7:
            return step
    return 1
