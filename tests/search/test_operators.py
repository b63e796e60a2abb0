"""Repair, neighbours and genetic operators; the regression; fronts."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.linear_model import BayesianRidge

from bcnet_deploy.search.constraints import build_constraints
from bcnet_deploy.search.feasibility import require_feasible
from bcnet_deploy.search.lattice import Lattice, uniform_ladder
from bcnet_deploy.search.proposals import Feasible, IntegerPolynomialMutation
from bcnet_deploy.search.regression import Surrogate
from bcnet_deploy.search.result import nondominated
from tests.search.fakes import FakeSpace, Staircase, brute_front

LADDER = tuple(range(4, 33, 4))


def feasible_of(space: FakeSpace, share: float, table: Staircase | None = None) -> Feasible:
    given_constraints = {"macs": f"{share}x"}
    if table is not None:
        given_constraints["latency_ms"] = (table, "0.5x")
    constraints = build_constraints(space, given_constraints)
    lattice = Lattice(space.variables)
    return Feasible(lattice, constraints, require_feasible(lattice, constraints, np.random.default_rng(0)))


@given(seed=st.integers(0, 10**6), share=st.floats(0.05, 1.0), dip=st.sampled_from([0.0, 0.2]))
def test_repair_always_ends_within_the_budgets_and_leaves_the_rest_alone(seed, share, dip):
    space = FakeSpace((LADDER,) * 7)
    feasible = feasible_of(space, share, Staircase(dip=dip))
    rng = np.random.default_rng(seed)
    vectors = feasible.lattice.random(50, rng)
    before = feasible.mask(vectors)
    repaired = feasible.repair(vectors, rng)
    assert feasible.mask(repaired).all()
    np.testing.assert_array_equal(repaired[before], vectors[before])
    assert (repaired <= np.maximum(vectors, feasible.anchor)).all()
    filled = feasible.fill(repaired, rng)
    assert feasible.mask(filled).all() and (filled >= repaired).all()


def test_fill_uses_a_monotone_budget_up():
    space = FakeSpace((LADDER,) * 7)
    feasible = feasible_of(space, 0.3)
    rng = np.random.default_rng(0)
    filled = feasible.fill(feasible.lattice.narrowest[None].repeat(200, axis=0), rng)
    used = feasible.constraints.bounds(feasible.lattice.widths(filled))[:, 0] / feasible.constraints.limits[0]
    assert (used <= 1).all() and used.mean() > 0.9
    assert len(np.unique(filled, axis=0)) > 100, "widening must not always take the same way"


def test_neighbours_are_one_step_away():
    space = FakeSpace(((1, 2, 3), (1, 2, 3), (1, 2)))
    feasible = feasible_of(space, 1.0)
    found = feasible.neighbours(np.array([[1, 1, 0]]), np.random.default_rng(0))
    expected = {
        (0, 1, 0),
        (2, 1, 0),
        (1, 0, 0),
        (1, 2, 0),
        (1, 1, 1),
        (2, 0, 0),
        (0, 2, 0),
        (0, 1, 1),
        (1, 0, 1),
    }
    assert {tuple(row) for row in found.tolist()} == expected


def test_mutation_moves_by_whole_steps_within_bounds_at_its_rate():
    top = np.array([3, 1, 19, 0])
    problem = SimpleNamespace(xl=np.zeros(4, dtype=int), xu=top, n_var=4)
    mutation = IntegerPolynomialMutation(prob=1.0, prob_var=0.25, eta=3)
    rng = np.random.default_rng(0)
    before = rng.integers(0, top + 1, size=(20000, 4))
    after = mutation._do(problem, before, random_state=rng)
    assert after.dtype == np.int64 and (after >= 0).all() and (after <= top).all()
    rates = (after != before).mean(axis=0)
    # A mutated variable moves unless it sits at a bound and is pushed outwards.
    assert (rates[:3] > 0.1).all() and (rates[:3] <= 0.26).all() and rates[3] == 0


@given(
    hnp.arrays(
        np.float64, st.tuples(st.integers(0, 40), st.integers(2, 4)),
        elements=st.sampled_from([0.0, 1.0, 2.0, 3.0, 0.5, np.inf]),
    )
)  # fmt: skip
def test_front_is_brute_forces(values):
    finite = np.isfinite(values).all(axis=1)
    expected = np.zeros(len(values), dtype=bool)
    expected[finite] = brute_front(values[finite])
    np.testing.assert_array_equal(nondominated(values), expected)


def test_regression_predicts_as_well_as_scikit_learns_on_the_same_features():
    rng = np.random.default_rng(0)
    x = rng.random((400, 6))
    truth = np.sin(2 * x[:, 0]) + x[:, 1] ** 2 + 2 * x[:, 2] * x[:, 3] + 0.3 * x.sum(axis=1)
    noisy = truth + rng.normal(0, 0.05, 400)
    ours = Surrogate(6)
    ours.fit(x[:120], noisy[:120])
    mean, deviation = ours.predict(x[120:])
    matrix, _ = ours.features(x)
    theirs = BayesianRidge().fit(matrix[:120], noisy[:120]).predict(matrix[120:])
    error = np.sqrt(((mean - truth[120:]) ** 2).mean())
    assert error < 1.1 * np.sqrt(((theirs - truth[120:]) ** 2).mean()) and error < 0.06
    # Errors are about as large as the deviations say.
    assert 0.5 < np.sqrt((((mean - truth[120:]) / deviation) ** 2).mean()) < 2


def test_regression_is_exact_without_noise_in_its_own_family():
    rng = np.random.default_rng(1)
    x = rng.random((200, 4))
    truth = 90 + x[:, 0] - 2 * x[:, 1] ** 3 + x[:, 2] * x[:, 3]
    model = Surrogate(4)
    model.fit(x[:120], truth[:120])
    np.testing.assert_allclose(model.predict(x[120:])[0], truth[120:], atol=0.02)


def test_uniform_ladder_scales_all_layers_alike():
    lattice = Lattice(FakeSpace(((2, 4, 6, 8), (10, 20, 30, 40))).variables)
    assert uniform_ladder(lattice).tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]]


def test_grid_counts_and_converts():
    lattice = Lattice(FakeSpace(((2, 4, 9), (10,), (1, 7))).variables)
    assert lattice.size == 6 and len(np.unique(lattice.all(), axis=0)) == 6
    np.testing.assert_array_equal(np.concatenate(list(lattice.blocks(4))), lattice.all())
    np.testing.assert_array_equal(lattice.nearest(lattice.widths(lattice.all())), lattice.all())
    np.testing.assert_array_equal(lattice.nearest([[7, 99, 4]]), [[2, 0, 0]])
    scaled = lattice.scaled(lattice.all())
    assert scaled.min() == 0 and scaled.max() == 1 and scaled[2, 1] == 0
    assert scaled[2, 0] == pytest.approx(np.log(2) / np.log(4.5))
