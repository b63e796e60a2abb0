"""A cost as a sum of terms of one and of two width variables.

Multiply-accumulates, parameters and latencies that are summed layer by layer are of this form in
every network whose layers see one input and one output width: a dense layer couples two
variables, a depthwise layer none. The form gives what a black box cannot: exact expectations
under independent draws, their gradients, and the exact minimum, also of a staircase.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from bcnet_deploy.search.constraints import CostFunction
from bcnet_deploy.search.lattice import Float, Int64, Lattice, Space

Pair = tuple[int, int]
_MOST_EVALUATIONS = 250_000
EXACT = 1e-5
"""Relative residual of a form that is the cost itself: latency tables predict in single precision."""
_LARGEST_TABLE = 400_000
"""Entries of one table during elimination; beyond it the exact minimum is given up."""


def interacting_pairs(space: Space, length: int) -> tuple[Pair, ...]:
    """Pairs of variables that meet in one operator; all pairs when the space does not tell its operators."""
    told = getattr(space, "interacting_pairs", None)
    if told is not None:
        return tuple(told)
    ops = getattr(space, "ops", None)
    if ops is None:
        return tuple(combinations(range(length), 2))
    tensors: Any = getattr(space, "tensors", ())
    pairs: set[Pair] = set()
    for op in ops:
        extents = [e for e in (op.in_channels, op.out_channels, op.groups) if e is not None]
        extents += list(op.mac_factors)
        for tensor in (*op.inputs, op.output):
            extents += list(tensors[tensor].shape)
        pairs.update(combinations(sorted({v for e in extents for v in e.variables}), 2))
    for dims in getattr(space, "slices", {}).values():
        held = sorted({s.variable for dim in dims for s in dim if s.variable >= 0})
        pairs.update(combinations(held, 2))
    return tuple(sorted(pairs))


def readable(lattice: Lattice, pairs: Sequence[Pair]) -> bool:
    """Whether a cost can be read off in seconds; not where concatenations make thousands of pairs."""
    return sum(int(lattice.counts[a] * lattice.counts[b]) for a, b in pairs) <= _MOST_EVALUATIONS


@dataclass(frozen=True)
class PairwiseCost:
    """``constant + sum of unary[l][x_l] + sum of pair[l, m][x_l, x_m]`` over choice indices x.

    Attributes:
        residual: the largest relative difference from the cost function at random vectors; about
            1e-15 where the form is exact, 1e-7 where the cost itself is of single precision.
    """

    constant: float
    unary: tuple[Float, ...]
    pair: dict[Pair, Float]
    residual: float

    @property
    def exact(self) -> bool:
        return self.residual < EXACT

    def __call__(self, indices: Int64) -> Float:
        """(N, L) choice indices -> (N,) costs."""
        total = np.full(len(indices), self.constant)
        for column, values in enumerate(self.unary):
            total += values[indices[:, column]]
        for (a, b), table in self.pair.items():
            total += table[indices[:, a], indices[:, b]]
        return total

    def expected(self, probabilities: Sequence[Float]) -> float:
        """The mean cost when each variable is drawn on its own from its probabilities."""
        total = self.constant + sum(float(p @ u) for p, u in zip(probabilities, self.unary, strict=True))
        return total + sum(float(probabilities[a] @ t @ probabilities[b]) for (a, b), t in self.pair.items())

    def partial(self, probabilities: Sequence[Float], variable: int) -> Float:
        """(choices,) derivative of :meth:`expected` by the probabilities of one variable.

        Up to a constant the expected cost given that this variable takes each choice.
        """
        total: Float = self.unary[variable].copy()
        for a, b, table in self._by_variable.get(variable, ()):
            total += table @ probabilities[b] if a == variable else probabilities[a] @ table
        return total

    @property
    def _by_variable(self) -> dict[int, list[tuple[int, int, Float]]]:
        cached = self.__dict__.get("_index")
        if cached is None:
            cached = {}
            for (a, b), table in self.pair.items():
                cached.setdefault(a, []).append((a, b, table))
                cached.setdefault(b, []).append((a, b, table))
            self.__dict__["_index"] = cached
        return cached

    def combined(self, weight: float, other: PairwiseCost, other_weight: float) -> PairwiseCost:
        """``weight * self + other_weight * other``."""
        pair = {key: weight * table for key, table in self.pair.items()}
        for key, table in other.pair.items():
            pair[key] = pair[key] + other_weight * table if key in pair else other_weight * table
        return PairwiseCost(
            weight * self.constant + other_weight * other.constant,
            tuple(weight * a + other_weight * b for a, b in zip(self.unary, other.unary, strict=True)),
            pair,
            max(self.residual, other.residual),
        )

    def minimum(self) -> tuple[float, Int64] | None:
        """The least cost over all vectors and a vector that has it, by eliminating variables one by one.

        None when a table of the elimination would grow too large (many variables meet in one place).
        """
        return _eliminate(self)


def decompose(
    cost: CostFunction,
    lattice: Lattice,
    pairs: Sequence[Pair],
    rng: np.random.Generator,
    anchor: Int64 | None = None,
) -> PairwiseCost:
    """Read the terms of ``cost`` off its values around one vector.

    Args:
        cost: widths (N, L) -> (N,).
        lattice: the choices.
        pairs: the pairs that may interact.
        rng: for the vectors that check the form.
        anchor: (L,) indices that all other variables keep; the middle choices by default.
    """
    base = (lattice.counts // 2 if anchor is None else anchor).astype(np.int64)
    rows: list[Int64] = [base[None]]
    for column, count in enumerate(lattice.counts):
        block = np.repeat(base[None], count, axis=0)
        block[:, column] = np.arange(count)
        rows.append(block)
    for a, b in pairs:
        block = np.repeat(base[None], lattice.counts[a] * lattice.counts[b], axis=0)
        block[:, a] = np.repeat(np.arange(lattice.counts[a]), lattice.counts[b])
        block[:, b] = np.tile(np.arange(lattice.counts[b]), lattice.counts[a])
        rows.append(block)
    values = _evaluate(cost, lattice, np.concatenate(rows))
    constant, at = float(values[0]), 1
    unary = []
    for count in lattice.counts:
        unary.append(values[at : at + count] - constant)
        at += count
    pair: dict[Pair, Float] = {}
    for a, b in pairs:
        count = int(lattice.counts[a] * lattice.counts[b])
        table = values[at : at + count].reshape(lattice.counts[a], lattice.counts[b])
        at += count
        table = table - constant - unary[a][:, None] - unary[b][None, :]
        if np.abs(table).max() > 1e-12 * max(abs(constant), 1e-300):
            pair[a, b] = table
    form = PairwiseCost(constant, tuple(unary), pair, 0.0)
    check = lattice.random(64, rng)
    truth = _evaluate(cost, lattice, check)
    residual = float(np.max(np.abs(form(check) - truth) / np.maximum(np.abs(truth), 1e-300)))
    return PairwiseCost(constant, tuple(unary), pair, residual)


def _evaluate(cost: CostFunction, lattice: Lattice, indices: Int64, block: int = 1 << 15) -> Float:
    parts = [
        np.asarray(cost(lattice.widths(indices[i : i + block])), dtype=np.float64)
        for i in range(0, len(indices), block)
    ]
    return np.concatenate(parts)


def _eliminate(form: PairwiseCost) -> tuple[float, Int64] | None:
    """Bucket elimination, fewest neighbours first, then the choices read back in reverse order."""
    factors: list[tuple[tuple[int, ...], Float]] = [((i,), u) for i, u in enumerate(form.unary)]
    factors += list(form.pair.items())
    sizes = [len(u) for u in form.unary]
    left = set(range(len(sizes)))
    decided: list[tuple[int, tuple[int, ...], Int64]] = []
    constant = form.constant
    while left:
        scopes = {v: set().union(*(set(s) for s, _ in factors if v in s)) - {v} for v in left}
        variable = min(left, key=lambda v: (np.prod([float(sizes[u]) for u in scopes[v]]), v))
        others = tuple(sorted(scopes[variable]))
        if np.prod([float(sizes[u]) for u in others]) * sizes[variable] > _LARGEST_TABLE:
            return None
        order = (*others, variable)
        joint = np.zeros([sizes[u] for u in order])
        for scope, table in factors:
            if variable in scope:
                joint = joint + _aligned(scope, table, order)
        factors = [(s, t) for s, t in factors if variable not in s]
        decided.append((variable, others, joint.argmin(axis=-1).astype(np.int64)))
        smallest = joint.min(axis=-1)
        if others:
            factors.append((others, smallest))
        else:
            constant += float(smallest)
        left.discard(variable)
    chosen = np.zeros(len(sizes), dtype=np.int64)
    for variable, others, best in reversed(decided):
        chosen[variable] = best[tuple(chosen[u] for u in others)]
    return constant, chosen


def _aligned(scope: tuple[int, ...], table: Float, order: tuple[int, ...]) -> Float:
    """``table`` over ``scope`` with one axis for each variable of ``order``, of size 1 where it has none."""
    arranged = np.transpose(table, np.argsort([order.index(v) for v in scope]))
    present = set(scope)
    shape, axis = [], 0
    for variable in order:
        if variable in present:
            shape.append(arranged.shape[axis])
            axis += 1
        else:
            shape.append(1)
    return arranged.reshape(shape)
