"""What a search returns."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bcnet_deploy.search.constraints import Constraints
from bcnet_deploy.search.front import Front
from bcnet_deploy.search.grid import Float, Int64

FORMAT = 1


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
        }
