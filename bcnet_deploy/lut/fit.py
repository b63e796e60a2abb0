"""From measured layers to any width between them: a staircase with a smooth residual.

Runtimes round channels up to blocks and switch kernels when a count is not aligned, so a layer's time
is a staircase with jumps. The model has two parts:

1. a base with non-negative coefficients over channel counts, their block-rounded counts and products,
   one set for each regime (which channel counts are aligned, which are below one block). Some kernels
   compute the channels beyond the last block one by one: then the count of those is a coefficient, too;
2. a Gaussian process over the log of measured / base, which bends the base to the measurements and
   says how sure it is between them. Some counts are fast or slow by themselves (a kernel chosen by exact
   size), unlike their neighbours: each count of each dimension has a factor of its own, too.

Relative errors are what is fitted: a layer of 20 microseconds counts as much, in proportion, as one of 500.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any

import numpy as np
import numpy.typing as npt

from bcnet_deploy.errors import TableError
from bcnet_deploy.lut.entries import finite

Int64 = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_MAX_CELLS = 700
_SHAPE_CELLS = 200
_ROBUST_STEPS = 3
_OWN = (0.0, 0.02, 0.05)
_TRUSTED = 1.0
_MIN_REGIME = 10
_TELLING = 30  # measurements from which the rounding can be told
_JUDGED_ROWS = 250
_UNEXPLAINED = 0.005  # mean error below which a base is as good as can be
_CLOCK_US = 0.3  # what is left of the profile clock's 1 us after averaging several runs
_ROW_CHUNK = 2048


@dataclass(frozen=True)
class Granularity:
    """How a runtime rounds channels: to ``block``; ``align`` divides the counts of its fast layout.

    ``tail``: channels beyond the last multiple of it take longer, each of them; 0: there is no such thing.
    """

    block: int
    align: int
    tail: int = 0

    def alternatives(self) -> tuple[Granularity, ...]:
        """Itself, and what kernels were seen to do instead.

        ONNX Runtime's depthwise INT8 convolutions compute channels beyond a multiple of 8 one by one, and
        some are fast at multiples of 16 alone.
        """
        seen = ((16, 8, 8), (8, 8, 8), (16, 16, 8))
        others = ((self.block, self.align, self.align), (self.block, self.block, 0), *seen)
        return tuple(dict.fromkeys((self, *(Granularity(*other) for other in others))))

    def coordinates(self, dims: Int64) -> tuple[Floats, Int64]:
        """(n, D) channel counts -> (n, 2 D) smooth coordinates and (n, 2 D) regime flags."""
        blocks = -(-dims // self.block)
        smooth = np.concatenate([np.log2(blocks + 0.5), np.log2(dims + self.block / 2)], axis=1)
        flags = np.concatenate([dims % self.align != 0, dims < self.block], axis=1)
        return smooth, flags.astype(np.int64)

    def basis(self, dims: Int64) -> Floats:
        """(n, D) -> (n, F): 1 and the products of raw and of block-rounded counts over subsets of dims.

        With a tail also those in which one count is replaced by what it has beyond.
        """
        raw = dims.astype(np.float64)
        rounded = (-(-dims // self.block) * self.block).astype(np.float64)
        columns = [np.ones(len(dims))]
        for size in range(1, dims.shape[1] + 1):
            for subset in combinations(range(dims.shape[1]), size):
                columns.append(raw[:, subset].prod(axis=1))
                columns.append(rounded[:, subset].prod(axis=1))
                for beyond in subset if self.tail else ():
                    rest = [column for column in subset if column != beyond]
                    columns.append((dims[:, beyond] % self.tail) * raw[:, rest].prod(axis=1))
        return np.stack(columns, axis=1)


@dataclass(frozen=True)
class Fit:
    """The time of one kind of layer at any channel counts.

    Attributes:
        bases: by regime (flags as text; ``""`` for those with few measurements): coefficients of the basis.
        cells: (n, D) mean channel counts of the measurements that were merged.
        weights: (n,) of the Gaussian process.
        amplitude, length, noise: of the Gaussian process, in log time; noise is of one measurement.
        own: in log time, how far a single channel count lies from its neighbours; 0: not at all.
    """

    granularity: Granularity
    bases: dict[str, Floats]
    cells: Int64
    weights: Floats
    amplitude: float
    length: float
    noise: float
    own: float = 0.0

    def time_us(self, dims: Int64) -> Floats:
        """(n, D) channel counts -> (n,) microseconds."""
        result = np.empty(len(dims))
        for start in range(0, len(dims), _ROW_CHUNK):
            part = dims[start : start + _ROW_CHUNK]
            result[start : start + _ROW_CHUNK] = self._base(part) * np.exp(self._kernel(part) @ self.weights)
        return result

    def slowed(self, factor: float) -> Fit:
        """The same with every time multiplied by ``factor``."""
        return replace(self, bases={regime: values * factor for regime, values in self.bases.items()})

    def _base(self, dims: Int64) -> Floats:
        return base_time(self.granularity, self.bases, dims)

    def _kernel(self, dims: Int64) -> Floats:
        return kernel(self.granularity, dims, self.cells, self.amplitude, self.length, self.own)

    def check(self, where: str) -> None:
        """What a fit computes with must be finite and fit together, or every prediction would be NaN.

        Raises :class:`TableError` naming ``where`` and the key.
        """
        g = self.granularity
        if not (0 < g.block < 2**31 and 0 < g.align < 2**31 and 0 <= g.tail < 2**31):
            raise TableError(f"{where}.granularity must be two positive numbers and one of 0 or more")
        if self.cells.ndim != 2 or self.weights.shape != (len(self.cells),) or not self.cells.size:
            raise TableError(f"{where}: cells and weights must have one row each, and some")
        if "" not in self.bases:
            raise TableError(f"{where}.bases lacks the key ''; it was edited by hand or is damaged")
        width = self.granularity.basis(self.cells[:1]).shape[1]
        flags = 2 * self.cells.shape[1]
        for regime, values in self.bases.items():
            if len(values) != width or (regime and len(regime) != flags) or set(regime) - set("01"):
                raise TableError(
                    f"{where}.bases[{regime!r}] must be {flags} flags and have {width} coefficients"
                )
        for name, numbers in (
            ("bases", np.concatenate(list(self.bases.values()))),
            ("weights", self.weights),
        ):
            finite(numbers.tolist(), f"{where}.{name}")
        for name in ("amplitude", "length", "noise"):
            value = getattr(self, name)
            if not 0 < value < np.inf:
                raise TableError(f"{where}.{name} must be a positive number; given {value}")
        if not 0 <= self.own < np.inf:
            raise TableError(f"{where}.own must be a number of 0 or more; given {self.own}")

    def to_dict(self) -> dict[str, Any]:
        return {
            "form": "fit",
            "granularity": [self.granularity.block, self.granularity.align, self.granularity.tail],
            "bases": {regime: _rounded(values) for regime, values in self.bases.items()},
            "cells": self.cells.tolist(),
            "weights": _rounded(self.weights),
            "amplitude": self.amplitude,
            "length": self.length,
            "noise": round(self.noise, 5),
            "own": self.own,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any], granularity: Granularity) -> Fit:
        cells = np.asarray(data["cells"], dtype=np.int64)
        own = data.get("granularity")  # tables of earlier versions have one for all
        return cls(
            granularity=granularity if own is None else Granularity(*(int(size) for size in own)),
            bases={
                str(regime): np.asarray(values, dtype=np.float64) for regime, values in data["bases"].items()
            },
            cells=cells.reshape(len(cells), -1),
            weights=np.asarray(data["weights"], dtype=np.float64),
            amplitude=float(data["amplitude"]),
            length=float(data["length"]),
            noise=float(data["noise"]),
            own=float(data.get("own", 0.0)),  # tables of earlier versions have none
        )


def base_time(granularity: Granularity, bases: dict[str, Floats], dims: Int64) -> Floats:
    """(n, D) -> (n,) microseconds of the base, at least a tenth of one."""
    basis = granularity.basis(dims)
    _, flags = granularity.coordinates(dims)
    result = basis @ bases[""]
    for regime, coefficients in bases.items():
        if regime:
            rows = (flags == np.array([int(flag) for flag in regime])).all(axis=1)
            result[rows] = basis[rows] @ coefficients
    return np.maximum(result, 0.1)


def kernel(
    granularity: Granularity, left: Int64, right: Int64, amplitude: float, length: float, own: float = 0.0
) -> Floats:
    """Covariances (n, m) of log residuals: near in size, of one regime; and equal counts, by ``own``."""
    a, a_flags = granularity.coordinates(left)
    b, b_flags = granularity.coordinates(right)
    dimensions = left.shape[1]
    distance = np.zeros((len(left), len(right)))
    differing = np.zeros((len(left), len(right)))
    for column in range(a.shape[1]):
        # Block counts decide in the fast layout, raw counts elsewhere; both are near when either matters.
        scale = length if column < dimensions else 1.5 * length
        distance += ((a[:, column, None] - b[None, :, column]) / scale) ** 2
        differing += a_flags[:, column, None] != b_flags[None, :, column]
    covariance = amplitude**2 * np.exp(-0.5 * distance - 1.5 * differing)
    if own:
        covariance += own**2 * _equal_counts(left, right)
    return np.asarray(covariance)


def _equal_counts(left: Int64, right: Int64) -> Int64:
    """(n, m): in how many dimensions two layers have the same channel count."""
    return np.asarray((left[:, None] == right[None]).sum(axis=2))


def fit(dims: Int64, times_us: Floats, counts: Int64, granularity: Granularity) -> Fit:
    """Fit the model to measured layers of one key.

    Args:
        dims: (n, D) channel counts, distinct.
        times_us: (n,) median microseconds.
        counts: (n,) measurements behind each.
        granularity: a guess; where the measurements clearly say otherwise, another is taken.
    """
    times_us = np.maximum(times_us, _CLOCK_US)
    granularity = _told(dims, times_us, counts, granularity)
    bases = _fit_bases(dims, times_us, counts, granularity)
    residual = np.log(times_us / base_time(granularity, bases, dims))
    cells, targets, weights = _merge(dims, residual, counts, granularity)
    clock = (_CLOCK_US / base_time(granularity, bases, cells)) ** 2
    # The few numbers that shape the process are chosen on a part of the cells; all of them enter the weights.
    part = np.random.default_rng(0).permutation(len(cells))[:_SHAPE_CELLS]
    best: tuple[float, tuple[float, float, float, float]] | None = None
    equal = _equal_counts(cells[part], cells[part])
    for length in (0.35, 0.8, 1.8):
        unit = kernel(granularity, cells[part], cells[part], 1.0, length)
        for amplitude, own, noise in product((0.03, 0.1, 0.3), _OWN, (0.01, 0.03, 0.1)):
            covariance = amplitude**2 * unit + own**2 * equal
            solved = _solve(covariance, targets[part], noise**2 / weights[part] + clock[part])
            if best is None or solved[0] > best[0]:
                best = (solved[0], (amplitude, length, noise, own))
    assert best is not None
    amplitude, length, noise, own = best[1]
    covariance = kernel(granularity, cells, cells, amplitude, length, own)
    variance = noise**2 / weights + clock
    _, solution = _solve(covariance, targets, variance)
    for _ in range(_ROBUST_STEPS):
        # What a machine does besides only ever adds time: distrust what lies far above the rest.
        above = (targets - covariance @ solution) / np.sqrt(noise**2 / weights + clock)
        variance = (noise**2 / weights + clock) * np.maximum(1.0, above / _TRUSTED) ** 2
        _, solution = _solve(covariance, targets, variance)
    return Fit(granularity, bases, cells, solution, amplitude, length, noise, own)


def _solve(covariance: Floats, targets: Floats, noise: Floats) -> tuple[float, Floats]:
    """Log marginal likelihood (up to a constant) and weights of a Gaussian process."""
    from scipy.linalg import cho_factor, cho_solve

    factor = cho_factor(covariance + np.diag(noise), lower=True, overwrite_a=True, check_finite=False)
    weights = np.asarray(cho_solve(factor, targets, check_finite=False))
    return float(-0.5 * targets @ weights - np.log(np.diag(factor[0])).sum()), weights


def _fit_bases(dims: Int64, times: Floats, counts: Int64, granularity: Granularity) -> dict[str, Floats]:
    basis = granularity.basis(dims)
    _, flags = granularity.coordinates(dims)
    names = np.array(["".join(map(str, row)) for row in flags])
    bases = {"": _nonnegative(basis, times, counts)}
    for name in np.unique(names):
        rows = names == name
        if rows.sum() >= _MIN_REGIME and not rows.all():
            bases[str(name)] = _nonnegative(basis[rows], times[rows], counts[rows])
    return bases


def _told(dims: Int64, times: Floats, counts: Int64, guess: Granularity) -> Granularity:
    """The granularity whose base explains most with the fewest coefficients (Bayesian information criterion).

    Errors count by their magnitude and not by their square, for what a machine does besides.
    """
    if len(dims) < _TELLING or len(guess.alternatives()) == 1:
        return guess
    part = np.random.default_rng(0).permutation(len(dims))[:_JUDGED_ROWS]
    dims, times, counts = dims[part], times[part], counts[part]
    costs = []
    for granularity in guess.alternatives():
        bases = _fit_bases(dims, times, counts, granularity)
        error = float(np.abs(np.log(times / base_time(granularity, bases, dims))).mean())
        size = sum(np.count_nonzero(values) for values in bases.values())
        costs.append(2 * len(dims) * np.log(error + _UNEXPLAINED) + size * np.log(len(dims)))
    return guess.alternatives()[int(np.argmin(costs))]


def _nonnegative(basis: Floats, times: Floats, counts: Int64) -> Floats:
    """Non-negative least squares of relative errors."""
    from scipy.optimize import nnls

    row = np.sqrt(np.minimum(counts, 10)) / times
    scale = np.maximum(np.abs(basis).max(axis=0), 1e-12)
    solution, _ = nnls(basis / scale * row[:, None], times * row)
    return np.asarray(solution / scale)


def _merge(
    dims: Int64, residual: Floats, counts: Int64, granularity: Granularity
) -> tuple[Int64, Floats, Floats]:
    """One cell for measurements in the same blocks and regime, where they are too many to solve fast."""
    weights = counts.astype(np.float64)
    if len(dims) <= _MAX_CELLS:
        return dims, residual, weights
    _, flags = granularity.coordinates(dims)
    step = granularity.block
    while True:
        labels = np.concatenate([-(-dims // step), flags], axis=1)
        _, group = np.unique(labels, axis=0, return_inverse=True)
        group = group.ravel()
        size = int(group.max()) + 1
        if size <= _MAX_CELLS:
            break
        step *= 2
    total: Floats = np.bincount(group, weights, size).astype(np.float64)
    cells = np.stack([np.bincount(group, weights * column, size) / total for column in dims.T], axis=1)
    # The mean of merged counts must stay in its regime: take the member nearest to it.
    nearest = _nearest_members(dims, cells, group)
    merged: Floats = np.bincount(group, weights * residual, size) / total
    return dims[nearest], merged, total


def _nearest_members(dims: Int64, means: Floats, group: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    distance = ((dims - means[group]) ** 2).sum(axis=1)
    order = np.lexsort((distance, group))
    _, first = np.unique(group[order], return_index=True)
    return np.asarray(order[first], dtype=np.intp)


def _rounded(values: Sequence[float] | Floats) -> list[float]:
    return [float(f"{value:.6g}") for value in values]
