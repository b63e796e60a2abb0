"""Pareto fronts: networks that no evaluated network beats in accuracy and in every cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bcnet_deploy.errors import ConstraintError, nearest
from bcnet_deploy.search.grid import Float, Int64


def nondominated(objectives: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """(N, M) values to be minimised -> (N,) whether no other row is at most as large in all and less in one.

    Equal rows do not beat one another. Rows with an infinite value are never in the front.
    O(N log N) for two objectives, O(N * front) otherwise.
    """
    values = np.asarray(objectives, dtype=np.float64)
    keep = np.zeros(len(values), dtype=np.bool_)
    rows = np.flatnonzero(np.isfinite(values).all(axis=1))
    if not len(rows):
        return keep
    unique, inverse = np.unique(values[rows], axis=0, return_inverse=True)
    # In lexicographic order a row can only be beaten by an earlier one.
    if unique.shape[1] == 2:
        least_before = np.concatenate([[np.inf], np.minimum.accumulate(unique[:, 1])[:-1]])
        best = unique[:, 1] < least_before
    else:
        best = np.zeros(len(unique), dtype=np.bool_)
        front = np.empty((0, unique.shape[1]))
        for i, row in enumerate(unique):
            if not (front <= row).all(axis=1).any():
                best[i] = True
                front = np.vstack([front, row])
    keep[rows] = best[inverse.reshape(-1)]
    return keep


class Front:
    """Networks of a front, cheapest first. Behaves as the (M, L) array of its widths.

    Attributes:
        widths: (M, L) channels.
        accuracy: (M,)
        costs: cost key -> (M,), for every budget and for ``macs`` and ``params``.
    """

    def __init__(self, widths: Int64, accuracy: Float, costs: Mapping[str, Float]) -> None:
        self.widths = widths
        self.accuracy = accuracy
        self.costs = dict(costs)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.widths.shape

    @property
    def ndim(self) -> int:
        return self.widths.ndim

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.widths.dtype

    def __len__(self) -> int:
        return len(self.widths)

    def __iter__(self) -> Iterator[Int64]:
        return iter(self.widths)

    def __getitem__(self, item: Any) -> Any:
        return self.widths[item]

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Any:
        return np.array(self.widths, dtype=dtype, copy=True if copy is None else copy)

    def __eq__(self, other: object) -> Any:
        return self.widths == np.asarray(other)

    __hash__ = None  # type: ignore[assignment]

    def tolist(self) -> list[list[int]]:
        return [[int(w) for w in row] for row in self.widths]

    def best_within(self, **budgets: float) -> int | None:
        """Row of the most accurate network within these costs, or None. Costs are named as in ``costs``.

        Raises:
            ConstraintError: a cost the front does not have.
        """
        inside = np.ones(len(self), dtype=np.bool_)
        for key, limit in budgets.items():
            if key not in self.costs:
                raise ConstraintError(f"the front has no cost {key!r}{nearest(key, self.costs)}")
            inside &= self.costs[key] <= limit
        rows = np.flatnonzero(inside)
        return int(rows[np.argmax(self.accuracy[rows])]) if len(rows) else None

    def to_list(self) -> list[dict[str, Any]]:
        """One JSON-able record a network."""
        return [
            {
                "widths": [int(w) for w in self.widths[i]],
                "accuracy": float(self.accuracy[i]),
                "costs": {key: float(values[i]) for key, values in self.costs.items()},
            }
            for i in range(len(self))
        ]

    def __repr__(self) -> str:
        return f"Front({len(self)} networks, costs {', '.join(self.costs)})"


def front_of(
    widths: Int64, accuracy: Float, costs: Mapping[str, Float], objective_keys: tuple[str, ...]
) -> Front:
    """The front of accuracy (more is better) against the named costs (less is better).

    Widths must be distinct; ``-inf`` accuracies are left out.
    """
    objectives = np.stack([-accuracy, *(costs[key] for key in objective_keys)], axis=1)
    rows = np.flatnonzero(nondominated(objectives))
    order = np.lexsort(
        (*widths[rows].T[::-1], -accuracy[rows], *(costs[k][rows] for k in objective_keys[::-1]))
    )
    rows = rows[order]
    return Front(widths[rows], accuracy[rows], {key: values[rows] for key, values in costs.items()})
