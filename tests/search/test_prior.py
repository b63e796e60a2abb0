"""The prior: E, the expected cost, and the optimum against brute force and closed forms."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bcnet_deploy as bd
from bcnet_deploy.search.constraints import build_constraints
from bcnet_deploy.search.feasibility import require_feasible
from bcnet_deploy.search.lattice import Lattice
from bcnet_deploy.search.pairwise import PairwiseCost, decompose
from bcnet_deploy.search.prior import fit_prior, prior_population, solve
from bcnet_deploy.search.proposals import Feasible
from bcnet_deploy.search.records import Records
from tests.search.fakes import FakeSpace, Staircase

LADDER = tuple(range(4, 33, 4))


def random_problem(seed, sizes, couple):
    rng = np.random.default_rng(seed)
    losses = [rng.uniform(0, 1, n) for n in sizes]
    unary = tuple(np.sort(rng.uniform(0, 1, n)) for n in sizes)
    pair = {}
    if couple:
        for a in range(len(sizes) - 1):
            pair[a, a + 1] = np.outer(
                np.sort(rng.uniform(0, 1, sizes[a])), np.sort(rng.uniform(0, 1, sizes[a + 1]))
            )
    cost = PairwiseCost(0.0, unary, pair, 0.0)
    vectors = np.array(list(itertools.product(*[range(n) for n in sizes])))
    values = cost(vectors)
    budget = values.min() + rng.uniform(0.1, 0.7) * (values.max() - values.min())
    return losses, cost.combined(1 / budget, cost, 0.0), vectors


def brute_mixtures(losses, cost, vectors):
    """Best of all vectors and of all mixtures of two choices in one layer that meet the budget exactly.

    With one budget and no coupled terms a linear programme has its optimum at one of these.
    """
    values = cost(vectors)
    expected = sum(loss[vectors[:, i]] for i, loss in enumerate(losses))
    best = expected[values <= 1 + 1e-9].min()  # a space of one network spends its budget to the last digit
    for i, j in itertools.combinations(range(len(vectors)), 2):
        if (vectors[i] != vectors[j]).sum() == 1 and (values[i] - 1) * (values[j] - 1) < 0:
            share = (1 - values[j]) / (values[i] - values[j])
            best = min(best, share * expected[i] + (1 - share) * expected[j])
    return best


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    heat=st.floats(0.001, 0.1),
)
def test_the_expected_loss_is_within_the_entropy_of_brute_forces(seed, sizes, heat):
    """A minimum of loss - T*H is at most T*max(H) above the least loss. Budgets may be left 1% unspent."""
    losses, cost, vectors = random_problem(seed, sizes, couple=False)
    probabilities, share = solve(losses, [cost], heat, spend=False)
    found = sum(float(p @ e) for p, e in zip(probabilities, losses, strict=True))
    assert all(p.sum() == pytest.approx(1) and (p >= 0).all() for p in probabilities)
    assert share <= 1 + 1e-6
    tighter = cost.combined(1 / 0.99, cost, 0.0)
    entropy = heat * sum(np.log(n) for n in sizes)
    reachable = (tighter(vectors) <= 1).any()
    best = brute_mixtures(losses, tighter if reachable else cost, vectors)
    assert brute_mixtures(losses, cost, vectors) - 1e-6 <= found <= best + entropy + 1e-6


@settings(max_examples=12)
@given(seed=st.integers(0, 10**6))
def test_the_bilinear_free_energy_is_near_a_grids_least(seed):
    """Two layers of three choices: every product of probabilities in steps of 1/25."""
    losses, cost, _ = random_problem(seed, [3, 3], couple=True)
    heat = 0.1
    probabilities, share = solve(losses, [cost], heat, spend=False)
    found = sum(float(p @ e + heat * p @ np.log(p)) for p, e in zip(probabilities, losses, strict=True))
    steps = 25
    simplex = np.array([
        (i / steps, j / steps, (steps - i - j) / steps)
        for i in range(steps + 1) for j in range(steps + 1 - i)
    ])  # fmt: skip
    costs = (simplex @ cost.unary[0])[:, None] + (simplex @ cost.unary[1])[None]
    if cost.pair:
        costs = costs + simplex @ cost.pair[0, 1] @ simplex.T
    negentropy = heat * np.where(simplex > 0, simplex * np.log(np.maximum(simplex, 1e-300)), 0).sum(axis=1)
    expected = (simplex @ losses[0] + negentropy)[:, None] + (simplex @ losses[1] + negentropy)[None]
    best = expected[costs + cost.constant <= 1].min()
    # The grid cannot meet the budget exactly: the solver may be better by a step's worth, hardly worse.
    assert share <= 1 + 1e-6
    assert best - 0.1 < found < best + 0.01


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10**6),
    sizes=st.lists(st.integers(2, 5), min_size=2, max_size=5),
    heat=st.floats(0.01, 1),
)
def test_at_a_temperature_the_expected_cost_is_within_one_percent_of_the_budget(seed, sizes, heat):
    losses, cost, vectors = random_problem(seed, sizes, couple=True)
    probabilities, share = solve(losses, [cost], heat)
    weights = np.prod([p[vectors[:, i]] for i, p in enumerate(probabilities)], axis=0)
    assert weights.sum() == pytest.approx(1)
    exact = float(weights @ cost(vectors))  # over all vectors, not by the form's own expectation
    assert share == pytest.approx(exact, rel=1e-9)
    assert 0.99 <= exact <= 1 + 1e-9


def test_without_a_binding_budget_the_softmax_is_the_closed_form():
    losses = [np.array([0.0, 1.0, 2.0]), np.array([3.0, 1.0])]
    cheap = PairwiseCost(0.5, (np.zeros(3), np.zeros(2)), {}, 0.0)
    probabilities, _ = solve(losses, [cheap], 0.7, spend=False)
    for p, e in zip(probabilities, losses, strict=True):
        np.testing.assert_allclose(p, np.exp(-e / 0.7) / np.exp(-e / 0.7).sum(), rtol=1e-9)


def test_decomposition_is_exact_for_products_of_neighbours_and_staircases():
    space = FakeSpace((LADDER, (3, 5, 9), LADDER, (1, 40)))
    lattice = Lattice(space.variables)
    pairs = [(0, 1), (1, 2), (2, 3)]
    for cost in (space.macs, Staircase(tile=6, dip=0.3).predict):
        form = decompose(cost, lattice, pairs, np.random.default_rng(0))
        everything = lattice.all()
        np.testing.assert_allclose(form(everything), cost(lattice.widths(everything)), rtol=1e-12)
        assert form.exact
        least, where = form.minimum()
        assert least == pytest.approx(cost(lattice.widths(everything)).min(), rel=1e-12)
        assert cost(lattice.widths(where[None]))[0] == pytest.approx(least, rel=1e-12)
    lacking = decompose(space.macs, lattice, pairs[:2], np.random.default_rng(0))
    assert not lacking.exact and lacking.residual > 1e-3


@pytest.mark.parametrize("kind", ["macs", "latency", "both"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_population_keeps_all_budgets_and_prefers_what_the_records_prefer(kind, share):
    space = FakeSpace((LADDER,) * 8)
    rng = np.random.default_rng(1)
    # Layers 0-3 matter, 4-7 hardly: that must show in the widths.
    importance = np.array([4, 4, 4, 4, 0.2, 0.2, 0.2, 0.2])
    widths = rng.choice(LADDER, (600, 8))
    loss = -(np.log(widths) * importance).sum(axis=1) + rng.normal(0, 0.5, 600)
    table = Staircase(tile=8)
    constraints = {}
    if kind != "latency":
        constraints["macs"] = share * float(space.macs([[32] * 8])[0])
    if kind != "macs":
        constraints["latency_ms"] = (table, share * float(table.predict([[32] * 8])[0]))
    budgets = build_constraints(space, constraints)
    lattice = Lattice(space.variables)
    feasible = Feasible(lattice, budgets, require_feasible(lattice, budgets, rng))
    population, prior = prior_population(Records(widths, loss), feasible, 40, rng)
    drawn = lattice.widths(population)
    assert drawn.shape == (40, 8) and len(np.unique(drawn, axis=0)) == 40
    used = budgets.bounds(drawn) / budgets.limits
    assert (used <= 1).all() and used.max(axis=1).min() >= 0.8
    assert prior.exact_costs
    assert 0.99 <= (prior.expected_costs / budgets.limits).max() <= 1 + 1e-9
    # The expectation, by drawing: 20,000 draws have a standard error well below 1%.
    draws = lattice.widths(prior.draw(20000, rng))
    np.testing.assert_allclose(budgets.bounds(draws).mean(axis=0), prior.expected_costs, rtol=0.01)
    assert drawn[:, :4].mean() > drawn[:, 4:].mean()
    uniform = lattice.widths(feasible.sample(400, rng))
    quality = lambda w: (np.log(w) * importance).sum(axis=1).mean()  # noqa: E731
    assert quality(drawn) > quality(uniform)


def test_prior_is_used_and_reported_by_the_search():
    space = FakeSpace((LADDER,) * 6)
    rng = np.random.default_rng(0)
    widths = rng.choice(LADDER, (300, 6))
    loss = -np.log(widths).sum(axis=1)
    accuracy = lambda w: np.log(w).sum(axis=1)  # noqa: E731
    result = bd.search(space, accuracy, {"macs": "0.3x"}, 200, records=(widths, loss))
    full = float(space.macs([[32] * 6])[0])
    assert result.prior_costs["macs"] == pytest.approx(0.3 * full, rel=0.01)
    first = result.evaluated[:40]
    assert (space.macs(first) >= 0.8 * 0.3 * full).all()


def test_records_are_read_from_a_file_with_a_torn_last_line(tmp_path):
    lattice = Lattice(FakeSpace((LADDER,) * 3).variables)
    path = tmp_path / "records.jsonl"
    rows = [{"step": i, "widths": [4, 8, 12], "loss": float(i)} for i in range(3)]
    path.write_text("\n".join(json.dumps(row) for row in rows) + '\n{"step": 3, "wid')
    records = Records.of(path, lattice)
    assert records.loss.tolist() == [0.0, 1.0, 2.0] and records.widths.shape == (3, 3)


@pytest.mark.parametrize(
    ("given_records", "word"),
    [
        ((np.ones((5, 2)), np.ones(5)), "another space"),
        ((np.ones((5, 3)), np.ones(4)), "shape"),
        ((np.ones((2, 3)), np.full(2, np.nan)), "finite"),
        ([{"widths": [1, 2, 3]}], "loss"),
        (7, "records.jsonl"),
    ],
)
def test_records_of_another_space_or_form_are_refused(given_records, word):
    space = FakeSpace((LADDER,) * 3)
    with pytest.raises(bd.DataError, match=word):
        bd.search(space, lambda w: np.zeros(len(w)), {"macs": "0.5x"}, 10, records=given_records)


def test_prior_of_mobilenet_v2_is_within_one_percent_by_exact_costs():
    model = bd.build_model("mobilenet_v2", num_classes=10)
    space = bd.WidthSpace.from_model(model, (3, 64, 64), levels=6)
    rng = np.random.default_rng(0)
    widths = space.random(300, rng)
    loss = -np.log(widths / space.full).mean(axis=1)
    for share in (0.1, 0.5):
        budgets = build_constraints(space, {"macs": f"{share}x", "params": "0.9x"})
        lattice = Lattice(space.variables)
        prior = fit_prior(Records(widths, loss), lattice, budgets, rng)
        assert prior.exact_costs
        means = [space.macs(lattice.widths(prior.draw(20000, rng))).mean()]
        assert means[0] == pytest.approx(share * space.macs(space.full)[0], rel=0.015)
        assert prior.expected_costs[0] == pytest.approx(share * space.macs(space.full)[0], rel=0.01)
