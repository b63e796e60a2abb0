"""Networks drawn over the whole space, and what a search over their posterior finds."""

from __future__ import annotations

import numpy as np
import pytest

import bcnet_deploy as bd
from bcnet_deploy.search.design import PER_TERM, drawn
from bcnet_deploy.search.explain import uniform_to_compare
from bcnet_deploy.search.posterior import Posterior
from tests.search.test_posterior import LATTICE, SPACE, Noisy, truth


class Supernet(Noisy):
    """The truth, what this supernet alone makes of the widths, and noise."""

    shares_weights = True

    def __init__(self, seed: int, noise: float = 0.5) -> None:
        super().__init__(seed, noise)
        rng = np.random.default_rng([seed, 99])
        length = LATTICE.length
        self.squares, self.products = rng.normal(0, 0.6, length), rng.normal(0, 0.6, (length, length))
        self.asked: list[np.ndarray] = []

    def __call__(self, widths):
        self.asked += list(np.asarray(widths))
        x = np.log(np.asarray(widths, dtype=np.float64) / LATTICE.widths(LATTICE.top[None])[0]) + 0.7
        own = x**2 @ self.squares + np.einsum("ni,ij,nj->n", x, self.products, x)
        return super().__call__(widths) + own


@pytest.mark.parametrize("count", [1, 7, 200])
def test_drawn_networks_are_distinct_and_of_all_sizes(count):
    rows = drawn(LATTICE, count, np.random.default_rng(0))
    assert rows.shape == (count, LATTICE.length) and len(np.unique(rows, axis=0)) == count
    assert (rows >= 0).all() and (rows <= LATTICE.top).all()
    assert (rows == drawn(LATTICE, count, np.random.default_rng(0))).all()
    if count == 200:
        size = (rows / LATTICE.top).mean(axis=1)
        fifths = np.histogram(size, bins=5, range=(0, 1))[0]
        assert (fifths >= 12).all(), fifths
        for column, top in zip(rows.T, LATTICE.top, strict=True):
            assert set(column) == set(range(top + 1))


def test_a_design_larger_than_the_space_is_the_space():
    assert (drawn(LATTICE, 10**6, np.random.default_rng(0)) == LATTICE.all()).all()


@pytest.mark.parametrize("evaluations", [1, 2, 5])
def test_a_few_scores_are_enough_to_return_something(evaluations):
    result = bd.search(SPACE, Supernet(0), {"macs": "0.4x"}, evaluations, 0)
    assert result.evaluations == evaluations and result.constraints.feasible(result.widths[None]).all()
    if evaluations == 1:
        assert (result.widths == uniform_to_compare(result.constraints)[0]).all()


def test_the_network_with_the_highest_mean_of_the_whole_space_is_found_and_scored():
    supernet = Supernet(0)
    result = bd.search(SPACE, supernet, {"macs": "0.5x"}, 400, 1)
    everything = LATTICE.all()
    inside = everything[result.constraints.feasible(LATTICE.widths(everything))]
    best = inside[result.posterior.predict(inside)[0].argmax()]
    assert (result.widths == LATTICE.widths(best[None])[0]).all()
    assert any((result.widths == row).all() for row in supernet.asked)
    terms = Posterior(LATTICE).most_terms
    assert PER_TERM * terms <= result.evaluations == len(supernet.asked) <= PER_TERM * terms + 20


def test_about_half_of_the_scores_without_more_regret_than_a_search_that_scores_where_it_goes():
    regrets: dict[bool, list[float]] = {True: [], False: []}
    scored: dict[bool, int] = {True: 0, False: 0}
    everything = LATTICE.widths(LATTICE.all())
    for seed in range(12):
        for share in ("0.3x", "0.5x", "0.7x"):
            for design in regrets:
                result = bd.search(SPACE, Supernet(seed), {"macs": share}, 300, seed, design=design)
                inside = everything[result.constraints.feasible(everything)]
                regrets[design].append(float(truth(inside).max() - truth(result.widths[None])[0]))
                scored[design] += result.evaluations
    difference = np.array(regrets[False]) - np.array(regrets[True])
    assert scored[True] < 0.6 * scored[False]
    assert difference.mean() > -2.5 * difference.std() / np.sqrt(len(difference)), (
        np.mean(regrets[True]), np.mean(regrets[False]),
    )  # fmt: skip


def test_a_killed_search_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "journal.jsonl"
    expected = bd.search(SPACE, Supernet(5), {"macs": "0.5x"}, 150, checkpoint=path).to_dict()
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:25]) + "\n")
    supernet = Supernet(5)
    assert bd.search(SPACE, supernet, {"macs": "0.5x"}, 150, checkpoint=path).to_dict() == expected
    assert len(supernet.asked) == len(lines) - 25


def test_along_a_front_networks_of_many_budgets_are_scored():
    result = bd.search(SPACE, Supernet(2), {"macs": "0.9x"}, 300, pareto=True)
    costs = SPACE.macs(result.front.widths)
    assert len(costs) > 10 and costs.max() > 3 * costs.min()
    assert (np.diff(result.front.accuracy[np.argsort(costs)]) > 0).all()
    assert result.evaluations <= 300


def test_networks_that_cannot_be_had_are_passed_over():
    class Partly(Supernet):
        def __call__(self, widths):
            bad = np.asarray(widths)[:, 2] == LATTICE.choices[2][-1]
            return np.where(bad, -np.inf, super().__call__(widths))

    result = bd.search(SPACE, Partly(1), {"macs": "0.8x"}, 200, 2)
    assert result.widths[2] != LATTICE.choices[2][-1] and np.isfinite(result.accuracy)


@pytest.mark.parametrize("evaluations", [2, 5, 20])
def test_few_evaluations_are_enough_for_a_network_within_the_budget(evaluations):
    result = bd.search(SPACE, Supernet(3), {"macs": "0.4x"}, evaluations)
    assert result.evaluations <= evaluations
    assert result.constraints.feasible(result.widths[None])[0]
