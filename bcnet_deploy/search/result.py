"""What a search returns: the best network, the Pareto front, and how they were found."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bcnet_deploy.errors import ConstraintError, nearest
from bcnet_deploy.search.constraints import Constraints
from bcnet_deploy.search.lattice import Float, Int64
from bcnet_deploy.search.posterior import Belief, Posterior

FORMAT = 1


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


@dataclass(frozen=True)
class Generation:
    """One line of the search's log, also passed to the progress callback.

    Attributes:
        index: from 0.
        evaluations: distinct networks asked so far, of ``limit``.
        best_accuracy: of the networks within the budgets; -inf while there is none.
        best_widths: its channels, empty while there is none.
        feasible_share: of the networks asked so far, those that could be had (accuracy not -inf).
        proposed_feasible: of what this generation proposed (offspring, random draws), the share that kept
            all budgets before repair; None where nothing was proposed.
        seconds: since the start of this process's search. Not part of the result.
        seconds_left: estimate from the pace so far; None before there is one.
    """

    index: int
    evaluations: int
    limit: int
    best_accuracy: float
    best_widths: tuple[int, ...]
    feasible_share: float
    proposed_feasible: float | None
    seconds: float
    seconds_left: float | None

    def to_dict(self) -> dict[str, Any]:
        """What is the same in every run with one seed, ready for JSON."""
        return {
            "generation": self.index,
            "evaluations": self.evaluations,
            "best_accuracy": self.best_accuracy if math.isfinite(self.best_accuracy) else None,
            "best_widths": list(self.best_widths),
            "feasible_share": self.feasible_share,
            "proposed_feasible": self.proposed_feasible,
        }


@dataclass(frozen=True)
class SearchResult:
    """The best network, the front, and how they were found.

    Attributes:
        widths: (L,) channels of the most accurate network within all budgets.
        accuracy: its accuracy, as the callable gave it.
        costs: its expected costs by key (``macs``, ``params`` and every budget's).
        bounds: what was held against each budget: the cost, or its upper bound at the confidence.
        front: all networks that no other evaluated one beats in accuracy and in every budget's cost;
            only networks within the budgets.
        evaluated: (E, L) every vector asked, in order; ``evaluated_accuracy``: (E,), -inf for those
            that could not be had.
        generations: the log.
        strategy, seed, stopped: how it was run and why it ended.
        failures: vectors whose evaluation failed and why (with on_error='skip').
        prior_costs: expected cost of the prior population by budget, where a prior was used.
        belief: for accuracies with noise: posterior mean and interval of the found network, and the
            probability that it beats uniform scaling. ``widths`` and ``front`` are then chosen by posterior
            means, and ``front.accuracy`` holds these.
        images: scored over all networks, where the accuracy is of images.
        posterior: for accuracies with noise: what all scores say about any network.
    """

    widths: Int64
    accuracy: float
    costs: dict[str, float]
    bounds: dict[str, float]
    front: Front
    evaluated: Int64
    evaluated_accuracy: Float
    generations: tuple[Generation, ...]
    strategy: str
    seed: int
    stopped: str
    constraints: Constraints = field(repr=False)
    failures: tuple[tuple[list[int], str], ...] = ()
    prior_costs: dict[str, float] | None = None
    belief: Belief | None = None
    images: int | None = None
    posterior: Posterior | None = field(default=None, repr=False, compare=False)

    @property
    def evaluations(self) -> int:
        """Distinct networks asked."""
        return len(self.evaluated)

    @property
    def by_name(self) -> dict[str, int]:
        """Widths by variable name."""
        names = [v.name for v in self.constraints.space.variables]
        return {name: int(width) for name, width in zip(names, self.widths, strict=True)}

    def best_within(self, **budgets: float) -> Int64 | None:
        """(L,) widths of the most accurate network of the front within tighter budgets, or None."""
        row = self.front.best_within(**budgets)
        return None if row is None else self.front.widths[row]

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON; equal for equal searches (no times in it)."""
        return {
            "format": FORMAT,
            "strategy": self.strategy,
            "seed": self.seed,
            "stopped": self.stopped,
            "evaluations": self.evaluations,
            "budgets": [
                {
                    "key": b.key,
                    "device": b.device,
                    "limit": b.limit,
                    "given": b.given,
                    "confidence": b.confidence,
                }
                for b in self.constraints.budgets
            ],
            "widths": [int(w) for w in self.widths],
            "accuracy": self.accuracy,
            "costs": self.costs,
            "bounds": self.bounds,
            "front": self.front.to_list(),
            "generations": [g.to_dict() for g in self.generations],
            "evaluated": [
                {"widths": [int(w) for w in row], "accuracy": float(a) if np.isfinite(a) else None}
                for row, a in zip(self.evaluated, self.evaluated_accuracy, strict=True)
            ],
            "failures": [{"widths": widths, "reason": reason} for widths, reason in self.failures],
            "prior_costs": self.prior_costs,
            "posterior": None if self.belief is None else self.belief.to_dict(),
            "images": self.images,
        }
