"""The prior initial population: layer-wise sampling probabilities from the supernet's loss records.

E(l, c) is what choice c at layer l does to the loss (:mod:`bcnet_deploy.search.records`). Wanted are
probabilities P that minimise the expected loss sum P*E with an expected cost within the budgets,
each layer drawn on its own. (BCNet, CVPR 2021, section 3.4; the hardware-aware form takes the
expected latency of the table in the place of FLOPs.)

The expected cost is exact wherever a cost is a sum of terms of one and two variables
(:mod:`bcnet_deploy.search.pairwise`), staircase or not. The least loss alone would put nearly all
probability on one choice a layer, which is useless as a population. A temperature adds entropy:
minimise sum P*E - T*H(P). The solution is a softmax in E plus the prices of the budgets. The
population uses the lowest temperature that yields enough distinct networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bcnet_deploy.search.constraints import Constraints
from bcnet_deploy.search.lattice import Float, Int64, Lattice, keys, uniform_ladder
from bcnet_deploy.search.pairwise import PairwiseCost, decompose, interacting_pairs, readable
from bcnet_deploy.search.proposals import Feasible
from bcnet_deploy.search.records import Estimator, Records, additive_effects

Probabilities = tuple[Float, ...]

TOLERANCE = 0.01
"""Expected costs meet a binding budget within this share of it."""
_SWEEPS = 30
_LOWEST_SHARE = 0.8
"""Drawn networks use at least this share of one budget (the paper keeps 0.8-1.0)."""


@dataclass(frozen=True)
class Prior:
    """Layer-wise sampling probabilities.

    Attributes:
        probabilities: one array a layer, each sums to 1.
        objective: expected loss.
        expected_costs: of each budget, in its own units.
        temperature: in units of the losses.
        exact_costs: whether every cost was exactly a sum of terms of one and two variables.
    """

    probabilities: tuple[Float, ...]
    objective: float
    expected_costs: Float
    temperature: float
    exact_costs: bool

    def draw(self, n: int, rng: np.random.Generator) -> Int64:
        """(n, L) choice indices, each layer on its own."""
        columns = [
            np.searchsorted(np.cumsum(p)[:-1], rng.random(n), side="right") for p in self.probabilities
        ]
        return np.stack(columns, axis=1).astype(np.int64)


def pairwise_costs(
    constraints: Constraints, lattice: Lattice, rng: np.random.Generator
) -> tuple[PairwiseCost, ...]:
    """What is held against each budget, as terms of one and two variables, relative to its limit."""
    pairs: Sequence[tuple[int, int]] = interacting_pairs(constraints.space, lattice.length)
    known = readable(lattice, pairs)
    ladder = uniform_ladder(lattice)
    forms = []
    for budget in constraints.budgets:
        anchor = None
        if not known:
            # Too many pairs: terms of one variable around the uniformly scaled network at the budget.
            distance = np.abs(np.asarray(budget.bound(lattice.widths(ladder))) - budget.limit)
            pairs, anchor = (), ladder[int(distance.argmin())]
        form = decompose(budget.bound, lattice, pairs, rng, anchor)
        zero = PairwiseCost(0.0, tuple(np.zeros(c) for c in lattice.counts), {}, 0.0)
        forms.append(form.combined(1 / budget.limit, zero, 0.0))
    return tuple(forms)


def fit_prior(
    records: Records,
    lattice: Lattice,
    constraints: Constraints,
    rng: np.random.Generator,
    *,
    temperature: float | None = None,
    estimator: Estimator = additive_effects,
    losses: Sequence[Float] | None = None,
    forms: Sequence[PairwiseCost] | None = None,
) -> Prior:
    """The prior of these records under the budgets.

    Args:
        temperature: as a share of the largest difference of E within a layer; None takes 0.1.
        estimator: makes E of the records.
        losses, forms: E and the costs where they are known already; by default made here.
    """
    losses = estimator(records, lattice) if losses is None else losses
    costs = pairwise_costs(constraints, lattice, rng) if forms is None else forms
    spread = max(float(np.ptp(e)) for e in losses) or 1.0
    heat = (0.1 if temperature is None else temperature) * spread
    probabilities, _ = solve(losses, costs, heat)
    return Prior(
        probabilities,
        sum(float(p @ e) for p, e in zip(probabilities, losses, strict=True)),
        np.array(
            [c.expected(probabilities) * b.limit for c, b in zip(costs, constraints.budgets, strict=True)]
        ),
        heat,
        all(c.exact for c in costs),
    )


def prior_population(
    records: Records,
    feasible: Feasible,
    n: int,
    rng: np.random.Generator,
    *,
    estimator: Estimator = additive_effects,
) -> tuple[Int64, Prior]:
    """(n, L) distinct feasible choice indices drawn from the prior, and the prior itself.

    Drawn networks keep all budgets and use at least 0.8 of one of them. The temperature rises from
    0.02 in a few steps until ``n`` distinct ones are found; what is missing after that is
    repaired. Bounded work in any case.
    """
    lattice, constraints = feasible.lattice, feasible.constraints
    losses, forms = estimator(records, lattice), pairwise_costs(constraints, lattice, rng)
    chosen: dict[bytes, Int64] = {}
    prior: Prior | None = None
    for temperature in (0.02, 0.05, 0.1, 0.2, 0.4):
        prior = fit_prior(
            records, lattice, constraints, rng, temperature=temperature, losses=losses, forms=forms
        )  # fmt: skip
        drawn = prior.draw(max(64 * n, 2048), rng)
        good = drawn[_in_band(feasible, drawn)]
        chosen = dict(reversed(list(zip(keys(good), good, strict=True))))
        if len(chosen) >= n:
            break
    assert prior is not None
    rows = list(reversed(list(chosen.values())))[:n]
    if len(rows) < n:
        repaired = feasible.repair(prior.draw(4 * n, rng), rng)
        for key, row in zip(keys(repaired), repaired, strict=True):
            if len(rows) < n and key not in chosen:
                chosen[key] = row
                rows.append(row)
    return np.array(rows, dtype=np.int64).reshape(-1, lattice.length), prior


def _in_band(feasible: Feasible, indices: Int64) -> Any:
    if not feasible.constraints.budgets:
        return np.ones(len(indices), dtype=np.bool_)
    share = 1 + feasible.constraints.excess(feasible.lattice.widths(indices))
    return (share <= 1) & (share >= _LOWEST_SHARE)


def solve(
    losses: Sequence[Float], costs: Sequence[PairwiseCost], temperature: float, spend: bool = True
) -> tuple[Probabilities, float]:
    """Probabilities that minimise the expected loss less temperature times entropy, costs at most 1.

    Args:
        losses: E, one array a layer.
        costs: relative to their budgets.
        temperature: above 0, in units of the losses.
        spend: raise the expected cost to the budget where the least loss would leave some of it unused
            (records are noisy, and wider is better where they are silent).

    Returns:
        Probabilities, and the largest expected relative cost (<= 1 where the budgets can be met).
    """
    probabilities = _Softmax(losses, costs, temperature).solve(spend)
    return probabilities, _largest(costs, probabilities)


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
