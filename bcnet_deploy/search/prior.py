"""The prior initial population: layer-wise sampling probabilities from the supernet's loss records.

E(l, c) is what choice c at layer l does to the loss (:mod:`bcnet_deploy.search.record_effects`). Wanted are
probabilities P that minimise the expected loss sum P*E with an expected cost within the budgets,
each layer drawn on its own. (BCNet, CVPR 2021, section 3.4; the hardware-aware form takes the
expected latency of the table in the place of FLOPs.)

The expected cost is exact wherever a cost is a sum of terms of one and two variables
(:mod:`bcnet_deploy.search.pairwise`), staircase or not. At temperature 0 the problem is a linear
programme when no term couples two variables, solved exactly, and otherwise a sequence of linear
programmes in which the expected cost is linear in one layer at a time. Its solution puts nearly
all probability on one choice a layer: useless as a population. A temperature adds entropy:
minimise sum P*E - T*H(P); its solution is a softmax in E plus the prices of the budgets. The
population uses the lowest temperature that yields enough distinct networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bcnet_deploy.search.constraints import Constraints
from bcnet_deploy.search.grid import Float, Grid, Int64, keys, uniform_ladder
from bcnet_deploy.search.operators import Feasible
from bcnet_deploy.search.pairwise import PairwiseCost, decompose, interacting_pairs, readable
from bcnet_deploy.search.prior_solver import solve
from bcnet_deploy.search.record_effects import Estimator, additive_effects
from bcnet_deploy.search.records import Records

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
    constraints: Constraints, grid: Grid, rng: np.random.Generator
) -> tuple[PairwiseCost, ...]:
    """What is held against each budget, as terms of one and two variables, relative to its limit."""
    pairs: Sequence[tuple[int, int]] = interacting_pairs(constraints.space, grid.length)
    known = readable(grid, pairs)
    ladder = uniform_ladder(grid)
    forms = []
    for budget in constraints.budgets:
        anchor = None
        if not known:
            # Too many pairs: terms of one variable around the uniformly scaled network at the budget.
            distance = np.abs(np.asarray(budget.bound(grid.widths(ladder))) - budget.limit)
            pairs, anchor = (), ladder[int(distance.argmin())]
        form = decompose(budget.bound, grid, pairs, rng, anchor)
        zero = PairwiseCost(0.0, tuple(np.zeros(c) for c in grid.counts), {}, 0.0)
        forms.append(form.combined(1 / budget.limit, zero, 0.0))
    return tuple(forms)


def fit_prior(
    records: Records,
    grid: Grid,
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
    losses = estimator(records, grid) if losses is None else losses
    costs = pairwise_costs(constraints, grid, rng) if forms is None else forms
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
    grid, constraints = feasible.grid, feasible.constraints
    losses, forms = estimator(records, grid), pairwise_costs(constraints, grid, rng)
    chosen: dict[bytes, Int64] = {}
    prior: Prior | None = None
    for temperature in (0.02, 0.05, 0.1, 0.2, 0.4):
        prior = fit_prior(
            records, grid, constraints, rng, temperature=temperature, losses=losses, forms=forms
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
    return np.array(rows, dtype=np.int64).reshape(-1, grid.length), prior


def _in_band(feasible: Feasible, indices: Int64) -> Any:
    if not feasible.constraints.budgets:
        return np.ones(len(indices), dtype=np.bool_)
    share = 1 + feasible.constraints.excess(feasible.grid.widths(indices))
    return (share <= 1) & (share >= _LOWEST_SHARE)
