"""The share of proposals that keep the budgets before repair: recounted from what was really proposed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import bcnet_deploy as bd
from bcnet_deploy.search.lattice import Lattice
from bcnet_deploy.search.proposals import BudgetRepair, Feasible
from tests.search.fakes import FakeSpace, Hashed

LADDER = tuple(range(4, 33, 4))
SPACE = FakeSpace((LADDER,) * 7)
LIMIT = 0.3 * float(SPACE.macs([[32] * 7])[0])


def within(indices: np.ndarray) -> list[bool]:
    """Each vector on its own, by the costs written down in the fake space."""
    return [bool(SPACE.macs([[LADDER[i] for i in row]])[0] <= LIMIT) for row in indices.tolist()]


@pytest.mark.parametrize("surrogate", [True, False])
def test_the_share_of_offspring_is_of_mating_before_repair(
    monkeypatch: pytest.MonkeyPatch, surrogate: bool
) -> None:
    proposed: list[bool] = []
    inner = BudgetRepair._do

    def spy(self: BudgetRepair, problem: Any, X: Any, **more: Any) -> Any:
        proposed.extend(within(np.asarray(X)))
        return inner(self, problem, X, **more)

    monkeypatch.setattr(BudgetRepair, "_do", spy)
    told: list[tuple[float | None, list[bool]]] = []

    def progress(generation: bd.search.Generation) -> None:
        told.append((generation.proposed_feasible, proposed.copy()))
        proposed.clear()

    result = bd.search(
        SPACE, Hashed(2), {"macs": LIMIT}, 120, seed=3, population_size=20, surrogate=surrogate,
        progress=progress,
    )  # fmt: skip
    later = told[1:]
    assert len(later) >= 4
    for share, offspring in later:
        assert share == pytest.approx(np.mean(offspring))
    # Mating proposes far outside of a tight budget; what is evaluated is inside.
    assert min(np.mean(offspring) for _, offspring in later) < 0.9
    assert (SPACE.macs(result.evaluated) <= LIMIT).all()
    assert [g["proposed_feasible"] for g in result.to_dict()["generations"]] == [share for share, _ in told]


def test_the_share_of_random_draws_is_before_any_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[bool] = []
    inner = Lattice.random

    def spy(self: Lattice, n: int, rng: np.random.Generator) -> np.ndarray:
        draws = inner(self, n, rng)
        drawn.extend(within(draws))
        return draws

    monkeypatch.setattr(Lattice, "random", spy)
    result = bd.search(SPACE, Hashed(), {"macs": LIMIT}, 60, strategy="random", population_size=30)
    counts = [g.proposed_feasible for g in result.generations]
    # Shares of equal numbers of draws: their mean is the share of all.
    assert len(counts) >= 2 and np.mean(counts) == pytest.approx(np.mean(drawn), abs=0.02)
    assert 0 < np.mean(drawn) < 0.9


@pytest.mark.parametrize("strategy", ["random", "exhaustive", "nsga2"])
def test_the_share_of_a_space_known_as_a_whole_is_brute_forces(strategy: str) -> None:
    space = FakeSpace(((1, 2, 3), (2, 4, 6), (1, 5)))
    costs = space.macs(space.all())
    limit = float(np.quantile(costs, 0.6))
    result = bd.search(space, Hashed(), {"macs": limit}, 18, strategy=strategy)
    assert result.generations[-1].proposed_feasible == pytest.approx(np.mean(costs <= limit))


def test_counting_takes_nothing_from_the_generator() -> None:
    lattice = Lattice(SPACE.variables)
    from bcnet_deploy.search.constraints import build_constraints

    feasible = Feasible(lattice, build_constraints(SPACE, {"macs": LIMIT}), lattice.narrowest)
    one, two = np.random.default_rng(5), np.random.default_rng(5)
    first = [feasible.spread(9, one), feasible.take_share(), feasible.sample(9, one)][::2]
    second = [feasible.spread(9, two), feasible.sample(9, two)]
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    feasible.take_share()
    assert feasible.take_share() is None, "nothing was proposed"
