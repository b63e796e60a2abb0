"""Layer-wise probabilities of least expected loss under expected-cost budgets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linprog

from bcnet_deploy.search.grid import Float, Int64
from bcnet_deploy.search.pairwise import PairwiseCost

Probabilities = tuple[Float, ...]

TOLERANCE = 0.01
"""Expected costs meet a binding budget within this share of it."""
_SWEEPS = 30


def solve(
    losses: Sequence[Float], costs: Sequence[PairwiseCost], temperature: float = 0.0, spend: bool = True
) -> tuple[Probabilities, float]:
    """Probabilities that minimise the expected loss (less temperature times entropy), costs at most 1.

    Args:
        losses: E, one array a layer.
        costs: relative to their budgets.
        temperature: 0 solves linear programmes; above, a softmax with prices.
        spend: at a temperature, raise the expected cost to the budget where the least loss would leave
            some of it unused (records are noisy, and wider is better where they are silent).

    Returns:
        Probabilities, and the largest expected relative cost (<= 1 where the budgets can be met).
    """
    if temperature > 0:
        probabilities = _Softmax(losses, costs, temperature).solve(spend)
        return probabilities, _largest(costs, probabilities)
    return _linear_programmes(losses, costs)


def _linear_programmes(losses: Sequence[Float], costs: Sequence[PairwiseCost]) -> tuple[Probabilities, float]:
    """Sequential linear programming with a trust region in total variation.

    One programme, exact, when no cost couples two variables.
    """
    sizes = [len(e) for e in losses]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    linear = all(not cost.pair for cost in costs)
    objective = np.concatenate(list(losses))
    best: tuple[float, Probabilities] | None = None
    for start in _starts(losses, costs):
        current, radius = start, 2.0 if linear else 0.5
        value = _merit(losses, costs, current)
        for _ in range(1 if linear else 200):
            step = _programme(objective, costs, current, starts, radius)
            if step is None:
                break
            trial = tuple(step[a:b] for a, b in zip(starts[:-1], starts[1:], strict=True))
            trial_value = _merit(losses, costs, trial)
            if trial_value < value - 1e-12:
                current, value, radius = trial, trial_value, min(2.0, radius * 1.5)
            else:
                radius *= 0.5
                if radius < 1e-4:
                    break
        if best is None or value < best[0]:
            best = (value, current)
        if linear:
            break
    assert best is not None
    return best[1], _largest(costs, best[1])


def _starts(losses: Sequence[Float], costs: Sequence[PairwiseCost]) -> list[Probabilities]:
    """Uniform probabilities, and the solution at a moderate temperature."""
    spread = max(float(np.ptp(e)) for e in losses) or 1.0
    uniform = tuple(np.full(len(e), 1 / len(e)) for e in losses)
    soft = _Softmax(losses, costs, 0.05 * spread).solve(spend=False)
    return [soft, uniform]


def _merit(losses: Sequence[Float], costs: Sequence[PairwiseCost], probabilities: Sequence[Float]) -> float:
    """Expected loss plus a penalty for overshoot that exceeds any price a budget can have here."""
    value = sum(float(p @ e) for p, e in zip(probabilities, losses, strict=True))
    over = sum(max(0.0, cost.expected(probabilities) - 1) for cost in costs)
    scale = sum(float(np.ptp(e)) for e in losses) or 1.0
    return value + 1e3 * scale * over


def _programme(
    objective: Float, costs: Sequence[PairwiseCost], current: Probabilities, starts: Int64, radius: float
) -> Float | None:
    """One linear programme around ``current``; overshoot is allowed at a high price."""
    layers, total, flat = len(current), int(starts[-1]), np.concatenate(current)
    slopes = [np.concatenate([c.partial(current, i) for i in range(layers)]) for c in costs]
    limits = [1 - c.expected(current) + float(s @ flat) for c, s in zip(costs, slopes, strict=True)]
    scale = sum(float(np.ptp(objective[a:b])) for a, b in zip(starts[:-1], starts[1:], strict=True)) or 1.0
    upper = np.zeros((len(costs), total + len(costs)))
    for i, slope in enumerate(slopes):
        upper[i, :total] = slope
        upper[i, total + i] = -1
    equal = np.zeros((layers, total + len(costs)))
    for i, (a, b) in enumerate(zip(starts[:-1], starts[1:], strict=True)):
        equal[i, a:b] = 1
    lower_bound = np.maximum(0, flat - radius)
    upper_bound = np.minimum(1, flat + radius)
    bounds = [*zip(lower_bound, upper_bound, strict=True), *[(0, None)] * len(costs)]
    result = linprog(
        np.concatenate([objective, np.full(len(costs), 1e3 * scale)]),
        A_ub=upper if costs else None, b_ub=limits if costs else None,
        A_eq=equal, b_eq=np.ones(layers), bounds=bounds, method="highs",
    )  # fmt: skip
    if result.status != 0:
        return None
    solution: Float = np.clip(result.x[:total], 0, 1)
    return solution


def _largest(costs: Sequence[PairwiseCost], probabilities: Sequence[Float]) -> float:
    return max((cost.expected(probabilities) for cost in costs), default=0.0)


class _Softmax:
    """Softmax of (loss + price * marginal cost) / temperature, with the prices that meet the budgets."""

    def __init__(self, losses: Sequence[Float], costs: Sequence[PairwiseCost], temperature: float) -> None:
        self.losses, self.costs, self.temperature = losses, costs, temperature
        self.unit = sum(float(np.ptp(e)) for e in losses) or 1.0

    def solve(self, spend: bool) -> Probabilities:
        prices = np.zeros(len(self.costs))
        current = self._settle(prices, tuple(np.full(len(e), 1 / len(e)) for e in self.losses))
        # Several budgets: each price is moved in turn while the others stand.
        for _ in range(1 if len(self.costs) < 2 else 6):
            for j, cost in enumerate(self.costs):
                prices[j] = 0.0
                free = self._settle(prices, current)
                if cost.expected(free) <= 1:
                    current = free
                else:
                    current = self._meet([cost], j, prices, free, sign=1.0)
            if _largest(self.costs, current) <= 1 + 1e-9:
                break
        if spend and len(self.costs) and _largest(self.costs, current) < 1 - TOLERANCE / 2:
            shares = [cost.expected(current) for cost in self.costs]
            current = self._meet(self.costs, int(np.argmax(shares)), prices, current, sign=-1.0)
        return current

    def _settle(self, prices: Float, current: Probabilities) -> Probabilities:
        """For given prices, the layers in turn, each to its exact minimiser, until they settle."""
        layers = [p.copy() for p in current]
        active = [(c, float(w)) for c, w in zip(self.costs, prices, strict=True) if w != 0]
        for _ in range(_SWEEPS):
            change = 0.0
            for i, loss in enumerate(self.losses):
                energy = loss.copy()
                for cost, price in active:
                    energy += price * cost.partial(layers, i)
                weights = np.exp(-(energy - energy.min()) / self.temperature)
                new = weights / weights.sum()
                change = max(change, float(np.abs(new - layers[i]).max()))
                layers[i] = new
            if change < 1e-4:
                break
        return tuple(layers)

    def _meet(
        self, costs: Sequence[PairwiseCost], j: int, prices: Float, start: Probabilities, sign: float
    ) -> Probabilities:
        """Move price j (up for sign 1, below zero for -1) until the largest of ``costs`` is just below 1."""
        near, far, moved = float(prices[j]), self.unit, start
        within, beyond = (None, start) if sign > 0 else (start, None)
        for _ in range(20):
            prices[j] = sign * far
            moved = self._settle(prices, moved)
            inside = _largest(costs, moved) <= 1
            within, beyond = (moved, beyond) if inside else (within, moved)
            if inside == (sign > 0):
                break
            near, far = sign * far, far * 4
        else:
            # Not even this price reaches the budget: the cheapest (or widest) there is.
            return moved
        far *= sign
        for _ in range(25):
            prices[j] = (near + far) / 2
            moved = self._settle(prices, within if within is not None else moved)
            share = _largest(costs, moved)
            if (share <= 1) == (sign > 0):
                far = float(prices[j])
            else:
                near = float(prices[j])
            if share <= 1:
                within = moved
                if share >= 1 - TOLERANCE / 4:
                    return moved
            else:
                beyond = moved
        assert within is not None and beyond is not None
        return _mixture(costs, within, beyond)


def _mixture(costs: Sequence[PairwiseCost], within: Probabilities, beyond: Probabilities) -> Probabilities:
    """Between two solutions on either side of a jump, the mixture whose largest cost is 1."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        mixed = tuple((1 - middle) * p + middle * q for p, q in zip(within, beyond, strict=True))
        if _largest(costs, mixed) <= 1:
            low = middle
        else:
            high = middle
    return tuple((1 - low) * p + low * q for p, q in zip(within, beyond, strict=True))
