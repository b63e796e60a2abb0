"""Small spaces whose costs and accuracies can be written down."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np


@dataclass
class FakeSpace:
    """Variables with given choices; MACs couple neighbours as dense layers do, parameters are a sum."""

    choices: tuple[tuple[int, ...], ...]
    coefficients: tuple[int, ...] = ()

    @property
    def variables(self) -> list[Any]:
        return [
            SimpleNamespace(name=f"layer{i}", channels=c[-1], choices=c) for i, c in enumerate(self.choices)
        ]

    @property
    def weights(self) -> np.ndarray:
        return np.array(self.coefficients or [1 + i % 3 for i in range(len(self.choices) + 1)])

    def macs(self, widths: Any) -> np.ndarray:
        w = np.asarray(widths, dtype=np.int64)
        inputs = np.concatenate([np.full((len(w), 1), 3), w], axis=1)
        outputs = np.concatenate([w, np.full((len(w), 1), 10)], axis=1)
        return (inputs * outputs * self.weights[: w.shape[1] + 1]).sum(axis=1)

    def params(self, widths: Any) -> np.ndarray:
        return 7 + 5 * np.asarray(widths, dtype=np.int64).sum(axis=1)

    def all(self) -> np.ndarray:
        """(size, L) every width vector."""
        return np.array(list(itertools.product(*self.choices)), dtype=np.int64)


class Hashed:
    """A repeatable random accuracy a vector, to 9 decimals as a search keeps; counts what it is asked."""

    def __init__(self, seed: int = 0, absent: float = 0.0, distinct: int = 1 << 30) -> None:
        self.seed, self.absent, self.distinct = seed, absent, distinct
        self.asked: list[tuple[int, ...]] = []

    def value(self, row: Any) -> float:
        rng = np.random.default_rng([self.seed, *(int(w) for w in row)])
        if rng.random() < self.absent:
            return -np.inf
        return round(float(rng.integers(self.distinct)) / self.distinct, 9)

    def __call__(self, widths: Any) -> np.ndarray:
        self.asked += [tuple(int(w) for w in row) for row in widths]
        return np.array([self.value(row) for row in widths])


class Staircase:
    """A latency that rises in steps of ``tile`` channels; widths off the steps cost ``dip`` more."""

    device = "stair"

    def __init__(self, tile: int = 8, dip: float = 0.0, relative_error: float = 0.05) -> None:
        self.tile, self.dip, self.relative_error = tile, dip, relative_error

    def predict(self, widths: Any) -> np.ndarray:
        w = np.asarray(widths, dtype=np.float64)
        tiles = np.ceil(w / self.tile)
        misaligned = (w % self.tile != 0) * self.dip
        inputs = np.concatenate([np.ones((len(w), 1)), tiles[:, :-1]], axis=1)
        return 0.1 + (0.01 * inputs * tiles + misaligned).sum(axis=1)

    def uncertainty(self, widths: Any) -> np.ndarray:
        return self.relative_error * self.predict(widths)


def brute_front(objectives: np.ndarray) -> np.ndarray:
    """(N, M) to be minimised -> (N,) by comparing each with each."""
    keep = np.ones(len(objectives), dtype=bool)
    for i, row in enumerate(objectives):
        beats = (objectives <= row).all(axis=1) & (objectives < row).any(axis=1)
        keep[i] = not beats.any()
    return keep
