"""How new width vectors are made: repair onto the budgets, neighbours, and the genetic operators.

Nothing here rejects in a loop: every operator does a fixed amount of work, however tight the budget.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pymoo.core.repair import Repair
from pymoo.operators.mutation.pm import PolynomialMutation

from bcnet_deploy.search.constraints import Constraints
from bcnet_deploy.search.lattice import Int64, Lattice

_BISECTIONS = 11
"""Halvings of a path of at most a few hundred steps."""


class Feasible:
    """Moves vectors onto the feasible set.

    Args:
        lattice: the choices.
        constraints: the budgets.
        anchor: (L,) indices that keep all budgets (from :func:`require_feasible`).

    What is proposed (to :meth:`repair`, or drawn by :meth:`sample`) and how much of it kept the budgets
    before any repair is counted; :meth:`take_share` tells.
    """

    def __init__(self, lattice: Lattice, constraints: Constraints, anchor: Int64) -> None:
        self.lattice = lattice
        self.constraints = constraints
        self.anchor = anchor
        self._proposed = 0
        self._kept = 0

    def take_share(self) -> float | None:
        """Of what was proposed since the last call, the share within the budgets; None: nothing was."""
        share = self._kept / self._proposed if self._proposed else None
        self._proposed = self._kept = 0
        return share

    def _count(self, inside: np.ndarray[Any, np.dtype[np.bool_]]) -> None:
        self._proposed += len(inside)
        self._kept += int(inside.sum())

    def mask(self, indices: Int64) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """(N, L) indices -> (N,) whether they keep all budgets."""
        return self.constraints.feasible(self.lattice.widths(indices))

    def repair(self, indices: Int64, rng: np.random.Generator) -> Int64:
        """(N, L) any vectors -> (N, L) vectors that keep all budgets; those that do are unchanged.

        Each vector is moved towards the anchor by single steps in random order, as far as bisection
        finds necessary: 11 batched cost evaluations, always ending on a feasible vector.
        """
        inside = self.mask(indices)
        self._count(inside)
        outside = ~inside
        if not outside.any():
            return indices
        result = indices.copy()
        anchors = np.repeat(self.anchor[None], int(outside.sum()), axis=0)
        result[outside] = self._farthest(anchors, indices[outside], rng)
        return result

    def fill(self, indices: Int64, rng: np.random.Generator) -> Int64:
        """(N, L) feasible vectors -> widened by single steps in random order up to where a budget binds."""
        tops = np.repeat(self.lattice.top[None], len(indices), axis=0)
        return self._farthest(indices, tops, rng)

    def _farthest(self, start: Int64, goal: Int64, rng: np.random.Generator) -> Int64:
        """Bisects the random path of single steps from a feasible start for its last feasible vector.

        Each step has a random time in 0..1, so that the path is a function of time and needs no
        sorting. Where the cost is monotone along the path the result is its last feasible vector, to
        the resolution of the bisection; on a staircase that falls again it is one of them. The vector
        returned has always been checked.
        """
        distance = goal - start
        steps = np.abs(distance)
        longest = int(steps.max(initial=0))
        if longest == 0:
            return start
        times = rng.random((*start.shape, longest))
        times[np.arange(longest) >= steps[:, :, None]] = np.inf
        sign = np.sign(distance)
        result = start.copy()
        low, high = np.zeros(len(start)), np.full(len(start), 2.0)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            trial = start + sign * (times < middle[:, None, None]).sum(axis=2)
            good = self.mask(trial)
            result[good] = trial[good]
            low = np.where(good, middle, low)
            high = np.where(good, high, middle)
        return result

    def neighbours(self, indices: Int64, rng: np.random.Generator, limit: int | None = None) -> Int64:
        """Feasible vectors one step away from any of (N, L): one variable moved, or one up and one down."""
        rows, length = indices.shape
        unit = np.eye(length, dtype=np.int64)
        single = np.concatenate([unit, -unit, 2 * unit, -2 * unit])
        pairs = (unit[:, None] - unit[None]).reshape(-1, length)
        moves = np.concatenate([single, pairs[~np.eye(length, dtype=np.bool_).ravel()]])
        if limit is not None and rows * len(moves) > limit:
            per_row = max(1, limit // rows)
            moves = moves[rng.permutation(len(moves))[:per_row]]
        trial = (indices[:, None] + moves[None]).reshape(-1, length)
        inside = ((trial >= 0) & (trial <= self.lattice.top)).all(axis=1)
        trial = trial[inside]
        return np.asarray(trial[self.mask(trial)]) if len(trial) else trial

    def sample(self, n: int, rng: np.random.Generator) -> Int64:
        """(n, L) feasible vectors: uniform draws that keep the budgets, the rest uniform draws repaired.

        Uniform over the feasible set where that is not rare; bounded work in any case.
        """
        found = np.zeros((0, self.lattice.length), dtype=np.int64)
        for _ in range(8):
            draws = self.lattice.random(4 * n, rng)
            inside = self.mask(draws)
            self._count(inside)
            found = np.concatenate([found, draws[inside]])
            if len(found) >= n:
                return found[:n]
        return np.concatenate([found, self.repair(self.lattice.random(n - len(found), rng), rng)])

    def spread(self, n: int, rng: np.random.Generator) -> Int64:
        """(n, L) feasible vectors with costs all over the feasible range, near the budget most often.

        Levels are drawn around a common level a vector: independent uniform levels would nearly all
        cost the same in a network of many layers.
        """
        centre = rng.random((n, 1))
        width = rng.uniform(0.1, 0.5, size=(n, 1))
        draws = centre + width * rng.standard_normal((n, self.lattice.length))
        indices = np.clip(np.rint(draws * self.lattice.top), 0, self.lattice.top).astype(np.int64)
        return self.repair(indices, rng)


class IntegerPolynomialMutation(PolynomialMutation):
    """Polynomial mutation on choice indices, rounded to integers.

    A change that rounding would undo becomes one step up or down: with few levels most would be lost.
    """

    def _do(self, problem: Any, X: Any, *args: Any, random_state: Any = None, **kwargs: Any) -> Any:
        before = np.asarray(X, dtype=np.int64)
        moved = super()._do(problem, X, *args, random_state=random_state, **kwargs)
        after = np.rint(moved).astype(np.int64)
        undone = (after == before) & (moved != before)
        after = after + np.where(undone, np.sign(moved - before).astype(np.int64), 0)
        return np.clip(after, problem.xl, problem.xu).astype(np.int64)


class BudgetRepair(Repair):
    """pymoo's hook for :meth:`Feasible.repair`."""

    def __init__(self, feasible: Feasible) -> None:
        super().__init__()
        self.feasible = feasible

    def _do(self, problem: Any, X: Any, random_state: Any = None, **kwargs: Any) -> Any:
        return self.feasible.repair(np.asarray(X, dtype=np.int64), random_state)
