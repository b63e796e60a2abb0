"""Sums over layers as small tables: millions of width vectors a second, with NumPy alone.

Nearly every layer depends on one or two width variables, and a variable takes few values. All layers
of the same two variables become one table over the pairs of their values, so that a network's latency
is one gather a table. Rows are taken in chunks whose columns stay in the cache.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_CHUNK = 4096
_PARALLEL_FROM = 4 * _CHUNK


@dataclass(frozen=True)
class Term:
    """A function of some of the width variables.

    ``evaluate`` takes widths (n, L), of which it reads the columns ``variables``, and returns (n,) values.
    """

    variables: tuple[int, ...]
    evaluate: Callable[[Int64], Floats]


class CompiledSum:
    """``constant + sum of terms`` for many width vectors.

    Args:
        terms: the summands.
        channels: (L,) maximal widths.
        choices: the widths of each variable that are tabulated at once; others are added when seen.
        constant: added to every sum.
    """

    def __init__(
        self,
        terms: Sequence[Term],
        channels: Sequence[int],
        choices: Sequence[Sequence[int]],
        constant: float = 0.0,
    ) -> None:
        self.constant = constant + float(
            sum(
                term.evaluate(np.asarray([channels], dtype=np.int64))[0]
                for term in terms
                if not term.variables
            )
        )
        self.channels = np.asarray(channels, dtype=np.int64)
        self._groups, self._direct = _grouped([term for term in terms if term.variables])
        self._values = [np.unique(np.asarray(values, dtype=np.int64)) for values in choices]
        self._tables: list[tuple[tuple[int, ...], npt.NDArray[np.float32]]] = []
        self._positions: list[npt.NDArray[np.intp]] = []
        self._build()

    def __call__(self, widths: Int64) -> Floats:
        """(N, L) checked widths -> (N,) sums."""
        rows = len(widths)
        result = np.empty(rows)
        if rows == 0:
            return result
        self._extend(widths)
        tables, positions = self._tables, self._positions
        starts = range(0, rows, _CHUNK)
        workers = min(len(starts), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)

        def work(first: int) -> None:
            for start in starts[first::workers]:
                part = widths[start : start + _CHUNK]
                result[start : start + _CHUNK] = self._chunk(part, tables, positions)

        if rows >= _PARALLEL_FROM and workers > 1:
            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(work, range(workers)))
        else:
            workers = 1
            work(0)
        return result

    def _chunk(
        self,
        widths: Int64,
        tables: list[tuple[tuple[int, ...], npt.NDArray[np.float32]]],
        positions: list[npt.NDArray[np.intp]],
    ) -> Floats:
        columns = np.ascontiguousarray(widths.T)
        stride = self._stride
        # Every table has the same row length, so that a variable's index is scaled once for all of them.
        indices = [
            position.take(column, mode="clip") for position, column in zip(positions, columns, strict=True)
        ]
        scaled = {
            variable: indices[variable] * stride for variables, _ in tables for variable in variables[:1]
        }
        total = np.full(len(widths), self.constant, dtype=np.float32)
        flat = np.empty(len(widths), dtype=np.intp)
        part = np.empty(len(widths), dtype=np.float32)
        for variables, table in tables:
            if len(variables) == 1:
                table.take(scaled[variables[0]], out=part, mode="clip")
            else:
                np.add(scaled[variables[0]], indices[variables[1]], out=flat)
                table.take(flat, out=part, mode="clip")
            total += part
        sums = total.astype(np.float64)
        for term in self._direct:
            sums += _direct(term, widths)
        return sums

    def _extend(self, widths: Int64) -> None:
        """Tabulate widths that have not been seen yet."""
        grown = False
        for variable, position in enumerate(self._positions):
            column = widths[:, variable]
            if (position.take(column) < 0).any():
                self._values[variable] = np.union1d(self._values[variable], column)
                grown = True
        if grown:
            self._build()

    def _build(self) -> None:
        self._positions = []
        self._stride = max((len(values) for values in self._values), default=1)
        for channels, values in zip(self.channels, self._values, strict=True):
            position = np.full(int(channels) + 1, -1, dtype=np.intp)
            position[values] = np.arange(len(values))
            self._positions.append(position)
        self._tables = []
        for variables, terms in self._groups.items():
            mesh = np.meshgrid(*[self._values[variable] for variable in variables], indexing="ij")
            grid = np.ones((mesh[0].size, len(self.channels)), dtype=np.int64)
            for variable, axis in zip(variables, mesh, strict=True):
                grid[:, variable] = axis.ravel()
            total = np.zeros(len(grid))
            for term in terms:
                total += term.evaluate(grid)
            shape = [len(self._values[variable]) for variable in variables]
            padded = np.zeros((shape[0], self._stride), dtype=np.float32)
            padded[:, : shape[1] if len(shape) == 2 else 1] = total.reshape(shape[0], -1)
            self._tables.append((variables, padded.ravel()))


def _grouped(terms: Sequence[Term]) -> tuple[dict[tuple[int, ...], list[Term]], list[Term]]:
    """Terms by their variables, those of one variable joined to a pair that has it; and the rest.

    Terms of three and more variables (behind a concatenation) have too many cells to tabulate.
    """
    pairs: dict[tuple[int, ...], list[Term]] = {}
    direct = []
    for term in terms:
        if len(term.variables) == 2:
            pairs.setdefault(term.variables, []).append(term)
        elif len(term.variables) > 2:
            direct.append(term)
    home = {variable: pair for pair in pairs for variable in pair}
    for term in terms:
        if len(term.variables) == 1:
            pairs.setdefault(home.get(term.variables[0], term.variables), []).append(term)
    return pairs, direct


def _direct(term: Term, widths: Int64) -> Floats:
    """Evaluate on the distinct combinations only."""
    unique, inverse = np.unique(widths[:, term.variables], axis=0, return_inverse=True)
    grid = np.ones((len(unique), widths.shape[1]), dtype=np.int64)
    grid[:, term.variables] = unique
    return np.asarray(term.evaluate(grid)[inverse.ravel()])
