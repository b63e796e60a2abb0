"""Which networks to measure: corners, then random ones, then those that should teach most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bcnet_deploy.lut.layers import Layer
from bcnet_deploy.lut.network import layer_dims

if TYPE_CHECKING:
    from bcnet_deploy.space import WidthSpace

Int64 = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_POOL = 48
_REPEAT_VALUE = 0.15
_ANY_WIDTH = 0.1
_TENDENCY = 4.0  # a share of the choices u becomes u^t with t from a quarter to four


def structured(space: WidthSpace) -> Int64:
    """(n, L) networks that bound and anchor the table.

    The full network, the least widths (the lower corner of every layer's range), the narrowest
    choices, uniform widths, and two networks in which narrow and full variables alternate.
    """
    least = np.array([variable.lowest for variable in space.variables], dtype=np.int64)
    rows = [space.full, least, space.narrowest, *(space.uniform(ratio) for ratio in (0.25, 0.5, 0.75))]
    odd = np.arange(len(least)) % 2 == 1
    rows += [np.where(odd, space.full, space.narrowest), np.where(odd, space.narrowest, space.full)]
    return np.unique(np.stack(rows), axis=0)


class Novelty:
    """How much of a network has not been measured yet, weighted by where predictions are wrong.

    Args:
        layers: of the network.
        known: for each key, measured channel counts (n, D), as in the entries of a table.
    """

    def __init__(self, layers: Sequence[Layer], known: dict[str, Int64] | None = None) -> None:
        self.layers = layers
        self.errors: dict[str, float] = {}
        self._seen: dict[str, set[tuple[int, ...]]] = {layer.key: set() for layer in layers}
        for key, dims in (known or {}).items():
            if key in self._seen:
                self._seen[key].update(map(tuple, dims.tolist()))

    def add(self, widths: Int64) -> None:
        """Count (L,) ``widths`` as measured."""
        for layer in self.layers:
            self._seen[layer.key].add(tuple(layer_dims(layer, widths[None])[0].tolist()))

    def learn(self, predicted_us: Floats, measured_us: Floats) -> None:
        """Take (n, layers) predictions and measurements of held-out networks: where the error is."""
        error = np.abs(predicted_us - measured_us).mean(axis=0)
        totals: dict[str, list[float]] = {}
        for layer, value in zip(self.layers, error, strict=True):
            totals.setdefault(layer.key, []).append(float(value))
        self.errors = {key: float(np.mean(values)) for key, values in totals.items()}

    def score(self, candidates: Int64) -> Floats:
        """(n, L) -> (n,) expected gain of measuring each."""
        scores = np.zeros(len(candidates))
        for layer in self.layers:
            weight = self.errors.get(layer.key, 1.0)
            seen = self._seen[layer.key]
            rows = layer_dims(layer, candidates).tolist()
            scores += weight * np.array([_REPEAT_VALUE if tuple(row) in seen else 1.0 for row in rows])
        return scores

    @property
    def cells(self) -> int:
        """How many distinct layers have been measured."""
        return sum(map(len, self._seen.values()))


def of_all_sizes(space: WidthSpace, count: int, rng: np.random.Generator) -> Int64:
    """(count, L) random networks, narrow and wide ones as well as those in between.

    Widths drawn uniformly and independently make nearly every network about half as large as the full
    one. A search looks where the budget is, so every second network has a tendency of its own.
    """
    shares = rng.random((count, len(space.variables)))
    tendency = _TENDENCY ** rng.uniform(-1, 1, (count, 1))
    tendency[::2] = 1.0
    shares **= tendency
    columns = [
        np.array(variable.choices, dtype=np.int64)[(share * len(variable.choices)).astype(np.int64)]
        for variable, share in zip(space.variables, shares.T, strict=True)
    ]
    return np.stack(columns, axis=1) if columns else np.zeros((count, 0), dtype=np.int64)


def next_network(
    space: WidthSpace, novelty: Novelty, taken: set[tuple[int, ...]], rng: np.random.Generator
) -> Int64:
    """(L,) the most promising of a pool of random networks; none of ``taken`` unless all are."""
    if rng.random() < _ANY_WIDTH:
        # Predictions are for all widths; choices may all be multiples of what a runtime likes.
        pool = np.stack(
            [v.step * rng.integers(v.lowest // v.step, v.units + 1, _POOL) for v in space.variables], axis=1
        )
    else:
        pool = of_all_sizes(space, _POOL, rng)
    fresh = np.array([tuple(row) not in taken for row in pool.tolist()])
    if fresh.any():
        pool = pool[fresh]
    return np.asarray(pool[int(np.argmax(novelty.score(pool)))])


def held_out(space: WidthSpace, count: int, taken: set[tuple[int, ...]], rng: np.random.Generator) -> Int64:
    """(count or fewer, L) networks of all sizes that are not in ``taken``; fewer in a space that small."""
    rows: list[list[int]] = []
    known = set(taken)
    for row in of_all_sizes(space, 4 * count + 16, rng).tolist():
        if tuple(row) not in known and len(rows) < count:
            rows.append(row)
            known.add(tuple(row))
    return np.array(rows, dtype=np.int64).reshape(len(rows), len(space.variables))
