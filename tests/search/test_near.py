"""Scores that take a training each: networks near the budget, and what a search over them finds."""

from __future__ import annotations

import numpy as np
import pytest

import bcnet_deploy as bd
from bcnet_deploy.search.lattice import uniform_ladder
from bcnet_deploy.search.near import TRAINED_EVALUATIONS
from tests.search.fakes import FakeSpace
from tests.search.test_posterior import LATTICE, SPACE, Noisy, truth


class Trained(Noisy):
    """The truth and noise; who asks is written down."""

    trains_each = True

    def __init__(self, seed: int, noise: float = 0.3) -> None:
        super().__init__(seed, noise)
        self.asked: list[np.ndarray] = []

    def __call__(self, widths):
        self.asked += list(np.asarray(widths))
        return super().__call__(widths)


def true(widths) -> float:
    return float(truth(np.asarray(widths)[None])[0])


@pytest.mark.parametrize("budgets", [{"macs": "0.4x"}, {"macs": "0.5x", "params": "0.6x"}])
def test_all_that_is_scored_keeps_the_budgets_and_leaves_little_of_them(budgets):
    accuracy = Trained(0)
    result = bd.search(SPACE, accuracy, budgets, TRAINED_EVALUATIONS, 0)
    asked = np.stack(accuracy.asked)
    assert result.evaluations == len(asked) == len(np.unique(asked, axis=0)) == TRAINED_EVALUATIONS
    assert result.constraints.feasible(asked).all()
    used = np.max([b.cost(asked) / b.limit for b in result.constraints.budgets], axis=0)
    everything = LATTICE.widths(LATTICE.all())
    inside = everything[result.constraints.feasible(everything)]
    usual = np.max([b.cost(inside) / b.limit for b in result.constraints.budgets], axis=0)
    assert np.quantile(used, 0.2) > np.median(usual) and np.median(used) >= np.quantile(usual, 0.8)


def test_better_than_uniform_widths_and_than_scores_where_a_search_goes():
    """By the truth, over seeds; the oracle is the truth's best of the whole space."""
    gains, others = [], []
    everything = LATTICE.all()
    for seed in range(6):
        found = bd.search(SPACE, Trained(seed), {"macs": "0.4x"}, TRAINED_EVALUATIONS, seed)
        plain = bd.search(SPACE, Trained(seed), {"macs": "0.4x"}, TRAINED_EVALUATIONS, seed, design=False)
        inside = everything[found.constraints.feasible(LATTICE.widths(everything))]
        best = truth(LATTICE.widths(inside)).max()
        ladder = LATTICE.widths(uniform_ladder(LATTICE))
        uniform = true(ladder[found.constraints.feasible(ladder)][-1])
        gains.append((true(found.widths) - uniform) / (best - uniform))
        others.append((true(plain.widths) - uniform) / (best - uniform))
    assert np.mean(gains) > 0.5, (gains, others)
    assert np.mean(gains) > np.mean(others), (gains, others)


class Untrained(Trained):
    """Scores before training: each network has an effect of its own that its training undoes."""

    trains_each, before_training = False, True

    def __call__(self, widths):
        own = [np.random.default_rng(row.astype(np.int64)).normal(0, 1.5) for row in np.asarray(widths)]
        return super().__call__(widths) + np.array(own)


def test_what_a_network_alone_scores_before_training_does_not_choose():
    """Over seeds: nearer to the truth's best than the highest score of as many."""
    found, luckiest = [], []
    for seed in range(6):
        accuracy = Untrained(seed)
        result = bd.search(SPACE, accuracy, {"macs": "0.4x"}, seed=seed)
        asked = np.stack(accuracy.asked)
        assert len(asked) <= 400
        found.append(true(result.widths))
        luckiest.append(true(result.evaluated[result.evaluated_accuracy.argmax()]))
    assert np.mean(found) > np.mean(luckiest), (found, luckiest)


def test_the_same_seed_scores_the_same_networks_and_goes_on(tmp_path):
    journal = tmp_path / "journal.jsonl"
    whole, first, rest = Trained(0), Trained(0), Trained(0)
    expected = bd.search(SPACE, whole, {"macs": "0.4x"}, 24, 1)

    class Killed(Exception):
        pass

    def stop(count: int) -> None:
        if count >= 10:
            raise Killed

    with pytest.raises(Killed):
        bd.search(
            SPACE, first, {"macs": "0.4x"}, 24, 1, checkpoint=journal, batch_size=1, answered=stop
        )  # fmt: skip
    result = bd.search(SPACE, rest, {"macs": "0.4x"}, 24, 1, checkpoint=journal, batch_size=1)
    assert (result.widths == expected.widths).all() and len(rest.asked) < 24
    assert {tuple(row) for row in (*first.asked, *rest.asked)} == {tuple(row) for row in whole.asked}


@pytest.mark.parametrize("evaluations", [1, 2, 5])
def test_a_few_scores_are_enough_to_return_something(evaluations):
    result = bd.search(SPACE, Trained(0), {"macs": "0.4x"}, evaluations, 0)
    assert result.evaluations == evaluations and result.constraints.feasible(result.widths[None]).all()


def test_a_front_is_searched_as_ever():
    result = bd.search(SPACE, Trained(0), {"macs": "1x"}, 60, 0, pareto=True)
    assert len(result.front.widths) > 3


@pytest.mark.parametrize("kind", [Trained, Untrained])
def test_a_budget_that_one_odd_network_alone_keeps(kind):
    """Neither a uniform network nor any that is drawn near the budget keeps it."""
    only = np.array([8, 32] * 5)
    space = FakeSpace(((8, 16, 24, 32),) * len(only))

    class Accuracy(kind):
        def __call__(self, widths):
            return np.full(len(widths), 60.0)

    def latency(widths):
        return 1.0 + np.abs(np.asarray(widths) - only).sum(axis=1)

    result = bd.search(space, Accuracy(0), {"latency_ms": (latency, "2ms")}, 20)
    assert (result.widths == only).all() and result.evaluations == 1


def test_networks_to_start_from_are_brought_within_the_budgets():
    accuracy = Trained(0)
    initial = [[32, 32, 32, 32, 32], [8, 16, 8, 8, 8]]
    result = bd.search(SPACE, accuracy, {"macs": "0.4x"}, 16, initial=initial)
    assert result.constraints.feasible(np.stack(accuracy.asked)).all()
    assert accuracy.asked[1].tolist() == initial[1], "one that keeps them is scored as it is"
