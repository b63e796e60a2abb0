"""The posterior against joint normal conditioning and known truths; scores that are few, equal or false."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bcnet_deploy as bd
from bcnet_deploy.search.explain import uniform_to_compare
from bcnet_deploy.search.lattice import Lattice
from bcnet_deploy.search.posterior import BETWEEN_SUPERNETS, Belief, Posterior, Transfer
from tests.search.fakes import FakeSpace, Hashed

LADDER = (8, 16, 24, 32)
SPACE = FakeSpace((LADDER,) * 5)
LATTICE = Lattice(SPACE.variables)
EFFECTS = np.array([3.0, 2.0, 1.0, 0.5, 0.1])
FULL_TERMS = 1 + 4 + 5 + 10


def truth(widths: np.ndarray) -> np.ndarray:
    """Percent: log widths, and a product of two."""
    x = np.log(np.asarray(widths) / 32)
    return 80 + x @ EFFECTS + 0.8 * x[:, 0] * x[:, 1]


def scored(rng: np.random.Generator, count: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    indices = LATTICE.all()[rng.permutation(LATTICE.size)[:count]]
    return indices, truth(LATTICE.widths(indices)) + rng.normal(0, noise, count)


@settings(max_examples=15)
@given(
    seed=st.integers(0, 10**6),
    shares=st.tuples(st.floats(0.1, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)),
    uneven=st.booleans(),
)
def test_mean_and_interval_are_those_of_joint_normal_conditioning(seed, shares, uneven):
    """f and this supernet's t are jointly normal: cov(f) = cov(f, t) = share * cov(t) for each kind."""
    rng = np.random.default_rng(seed)
    indices, scores = scored(rng, 60, 0.5)
    noise = rng.uniform(0.2, 1.5, 60) if uneven else np.full(60, 0.5)
    posterior = Posterior(LATTICE, Transfer(*shares, own=0.0))
    posterior.fit(indices, scores, noise)
    regression = posterior._regression
    new = LATTICE.random(20, rng)
    terms, labels = posterior._terms(np.concatenate([indices, new]))
    terms = (terms - regression.centre) / np.sqrt(regression.precision)
    by_kind = [terms[:, labels == kind] @ terms[:, labels == kind].T for kind in range(4)]
    own = sum(by_kind)
    general = sum(share * kernel for share, kernel in zip(shares, by_kind, strict=True))
    measured = own[:60, :60] + np.diag((posterior.noise_ratio * noise) ** 2)
    solved = np.linalg.solve(measured, general[:60, 60:]).T
    values = np.maximum(
        scores, np.quantile(scores, 0.25) - 1.5 * np.subtract(*np.quantile(scores, [0.75, 0.25]))
    )
    mean, deviation = posterior.predict(new)
    np.testing.assert_allclose(mean, regression.constant + solved @ (values - regression.constant), atol=1e-6)
    variance = np.diag(general[60:, 60:]) - np.einsum("ij,ji->i", solved, general[:60, 60:])
    np.testing.assert_allclose(deviation**2, variance + regression.constant_variance, rtol=1e-5, atol=1e-9)
    difference = general[60, 60] + general[61, 61] - 2 * general[60, 61]
    between = general[:60, 60] - general[:60, 61]
    spread = np.sqrt(difference - between @ np.linalg.solve(measured, between))
    if spread > 1e-6:
        z = (mean[0] - mean[1]) / spread
        # The normal distribution by its series' closed form: erf of the standard library.
        from math import erf, sqrt

        assert posterior.probability_better(new[0], new[1]) == pytest.approx(
            0.5 + 0.5 * erf(z / sqrt(2)), abs=1e-5
        )


def test_the_mean_is_nearer_to_the_truth_than_the_scores_and_intervals_hold():
    inside, errors = [], []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        indices, scores = scored(rng, 150, 1.0)
        posterior = Posterior(LATTICE)
        posterior.fit(indices, scores, np.ones(150))
        mean, deviation = posterior.predict(indices)
        error = mean - truth(LATTICE.widths(indices))
        errors.append(error.std())
        inside.append(np.mean(np.abs(error) <= 1.96 * deviation))
        assert 0.8 < posterior.noise_ratio < 1.2 and not posterior.notes()
    assert np.mean(errors) < 0.5, "scores alone are off by 1"
    assert 0.85 < np.mean(inside) <= 1


@pytest.mark.parametrize("own", [0.0, 1.0])
def test_what_no_term_explains_counts_where_the_score_is_the_networks_own(own):
    """Every fifth network is 5 points better, for no reason in its widths; the noise is 0.5."""
    rng = np.random.default_rng(2)
    indices, scores = scored(rng, 300, 0.5)
    gift = 5.0 * (np.arange(300) % 5 == 0)
    posterior = Posterior(LATTICE, Transfer(own=own))
    posterior.fit(indices, scores + gift, np.full(300, 0.5))
    mean, deviation = posterior.predict(indices)
    error = mean - truth(LATTICE.widths(indices)) - gift
    assert (np.abs(error).mean() < 0.5) == bool(own) and (np.abs(error).max() > 3) != bool(own)
    assert any("do not explain" in note for note in posterior.notes())
    if own:
        assert np.mean(np.abs(error) <= 1.96 * deviation) > 0.85
        new = LATTICE.all()
        unseen = [i for i, row in enumerate(new) if not (indices == row).all(axis=1).any()]
        assert posterior.predict(new[unseen])[1].min() > 1.5, "of networks never scored nobody knows it"


@pytest.mark.parametrize("factor", [0.1, 0.3, 3.0])
def test_residuals_tell_of_a_wrong_noise(factor):
    indices, scores = scored(np.random.default_rng(0), 400, 1.0)
    posterior = Posterior(LATTICE)
    posterior.fit(indices, scores, np.full(400, factor))
    assert posterior.noise_ratio * factor == pytest.approx(1.0, rel=0.15)
    lied = [note for note in posterior.notes() if "times as much as their stated noise" in note]
    assert bool(lied) == (factor < 0.5)


@pytest.mark.parametrize(
    ("count", "form"),
    [
        (1, "mean"), (2, "mean"), (3, "common slope"), (6, "common slope"), (7, "slopes"),
        (12, "slopes and curvature"), (FULL_TERMS + 1, "slopes and curvature"),
        (FULL_TERMS + 2, "slopes, curvature and products"),
    ],
)  # fmt: skip
def test_fewer_networks_than_terms_fall_back_and_say_so(count, form):
    indices, scores = scored(np.random.default_rng(3), count, 0.1)
    posterior = Posterior(LATTICE)
    posterior.fit(indices, scores, np.full(count, 0.1))
    assert posterior.form == form
    assert any("too few" in note for note in posterior.notes()) == (count < FULL_TERMS + 2)
    mean, deviation = posterior.predict(LATTICE.all())
    assert np.isfinite(mean).all() and (deviation > 0).all()
    if count == 1:
        assert mean.tolist() == pytest.approx([scores[0]] * LATTICE.size)


@pytest.mark.parametrize("scores", [(51, 60, 80), (55, 51, 80), (60, 51, 80), (51, 55, 80)])
def test_what_left_out_terms_would_explain_counts_for_the_network(scores):
    """Three of four networks: too few for each layer's slope, so the common one sees no difference."""
    lattice = Lattice(FakeSpace(((8, 16),) * 2).variables)
    indices = lattice.all()[:3]
    posterior = Posterior(lattice, BETWEEN_SUPERNETS)
    posterior.fit(indices, np.array(scores, dtype=np.float64), np.ones(3))
    assert posterior.form == "common slope"
    mean, deviation = posterior.predict(indices)
    assert mean == pytest.approx(scores, abs=2.5) and (deviation > 1).all()
    assert posterior.probability_better(indices[2], indices[1]) > 0.95


@pytest.mark.parametrize("kind", ["", "shares_weights", "trains_each", "before_training"])
@pytest.mark.parametrize("best", [8, 16])
def test_of_two_networks_the_better_one_is_found(kind, best):
    """One variable of two choices: too few for any slope."""
    space = FakeSpace(((8, 16),))

    class Two(Noisy):
        def __call__(self, widths):
            return np.where(np.asarray(widths)[:, 0] == best, 90.0, 50.0)

    accuracy = Two(0, noise=1.0)
    if kind:
        setattr(accuracy, kind, True)
    result = bd.search(space, accuracy, {"macs": "1x"})
    assert result.widths.tolist() == [best] and result.belief.mean == pytest.approx(90.0, abs=0.5)
    assert len(result.front) == (1 if best == 8 else 2)
    narrow_wins = result.posterior.probability_better(np.array([0]), np.array([1]))
    assert narrow_wins == pytest.approx(1.0 if best == 8 else 0.0, abs=0.01)


def test_equal_scores_say_nothing():
    indices = LATTICE.all()[::7]
    posterior = Posterior(LATTICE)
    posterior.fit(indices, np.full(len(indices), 70.0), np.full(len(indices), 0.5))
    mean, deviation = posterior.predict(LATTICE.all())
    np.testing.assert_allclose(mean, 70.0)
    assert (deviation < 0.5).all()
    top, bottom = LATTICE.top, LATTICE.narrowest
    assert posterior.probability_better(top, bottom) == pytest.approx(0.5, abs=0.01)
    assert Belief.of(posterior, top, top).beats_uniform == 0.5


class Noisy:
    """The truth plus normal noise that is drawn once a network; ``stated`` is what it says of itself."""

    def __init__(self, seed: int, noise: float = 1.5, stated: float | None = None) -> None:
        self.seed, self.scatter = seed, noise
        self.stated = noise if stated is None else stated

    def __call__(self, widths):
        draws = [np.random.default_rng([self.seed, *row]).normal() for row in np.asarray(widths)]
        return truth(widths) + self.scatter * np.array(draws)

    def noise(self, widths):
        return np.full(len(widths), self.stated)


def test_what_is_chosen_is_truly_better_than_the_largest_score():
    """36 searches of 80 networks: the true accuracy of the posterior's choice and of the luckiest."""
    gains, surprises, beats = [], [], []
    for seed in range(12):
        for budget in ("0.3x", "0.5x", "0.7x"):
            noisy = bd.search(SPACE, Noisy(seed), {"macs": budget}, 80, seed, population_size=20)
            lucky = noisy.evaluated[np.argmax(
                np.where(noisy.constraints.feasible(noisy.evaluated), noisy.evaluated_accuracy, -np.inf)
            )]  # fmt: skip
            gains.append(float(truth(noisy.widths[None])[0] - truth(lucky[None])[0]))
            surprises.append(noisy.belief.mean - float(truth(noisy.widths[None])[0]))
            beats.append(noisy.belief.low <= float(truth(noisy.widths[None])[0]) <= noisy.belief.high)
            assert noisy.front.accuracy.max() == pytest.approx(noisy.belief.mean)
    assert np.mean(gains) > 3 * np.std(gains) / np.sqrt(len(gains)) and np.mean(gains) > 0.2
    assert abs(np.mean(surprises)) < 0.5, "the largest score is above its truth by more than its noise of 1.5"
    assert np.mean(beats) > 0.8


def test_the_stated_probability_to_beat_uniform_is_kept():
    stated, true = [], []
    for seed in range(20):
        for share in (0.3, 0.5, 0.7):
            noisy = Noisy(seed, noise=4.0)
            result = bd.search(SPACE, noisy, {"macs": f"{share}x"}, 30, seed, population_size=10)
            uniform, _ = uniform_to_compare(result.constraints)
            if (uniform != result.widths).any():
                stated.append(result.belief.beats_uniform)
                true.append(truth(result.widths[None])[0] > truth(uniform[None])[0])
    assert abs(np.mean(stated) - np.mean(true)) < 0.1, (np.mean(stated), np.mean(true))


def test_no_front_promises_more_than_there_can_be():
    """Few scores of much noise, none above 76: the means of a regression on them go beyond."""

    class Bounded(Noisy):
        bounds = (0.0, 76.0)

        def __call__(self, widths):
            return np.minimum(super().__call__(widths), 76.0)

    means, fronts = [], []
    for seed in range(8):
        accuracy = Bounded(seed, noise=1.0)
        result = bd.search(SPACE, accuracy, {"macs": "0.9x"}, 30, seed, population_size=10)
        means.append(result.belief.mean)
        fronts.append(result.front.accuracy.max())
    assert max(means) > 76.0 >= max(fronts), "what the regression says of one network stays as it is"


def test_scores_that_are_said_to_have_no_noise_are_taken_as_they_are():
    """On a scale of 0 to 1, where a deviation of 1 would drown all scores."""

    class Exact(Noisy):
        def __call__(self, widths):
            return super().__call__(widths) / 100

    silent = bd.search(SPACE, Exact(0).__call__, {"macs": "0.6x"}, 1024)
    stated = bd.search(SPACE, Exact(0, stated=0.0), {"macs": "0.6x"}, 1024)
    assert stated.widths.tolist() == silent.widths.tolist()
    assert stated.accuracy == silent.accuracy == stated.evaluated_accuracy.max()
    assert stated.belief.mean == pytest.approx(stated.accuracy, abs=1e-6)


def test_exact_values_are_not_smoothed():
    plain = bd.search(SPACE, Hashed(), {"macs": "0.5x"}, 60)
    assert plain.belief is None and plain.to_dict()["posterior"] is None and plain.images is None
    assert plain.accuracy == max(
        a for a, w in zip(plain.evaluated_accuracy, plain.evaluated, strict=True)
        if plain.constraints.feasible(w[None])[0]
    )  # fmt: skip


@pytest.mark.parametrize("strategy", ["nsga2", "random", "greedy", "uniform"])
def test_noisy_accuracies_by_every_strategy_and_with_networks_that_cannot_be_had(strategy):
    inner = Noisy(1)

    class Partly(Noisy):
        def __call__(self, widths):
            return np.where(np.asarray(widths)[:, 2] == 8, -np.inf, inner(widths))

    results = [
        bd.search(SPACE, Partly(1), {"macs": "0.6x"}, 60, 2, strategy=strategy).to_dict() for _ in range(2)
    ]
    assert results[0] == results[1] and results[0]["widths"][2] != 8
    assert results[0]["posterior"]["low"] < results[0]["posterior"]["mean"] < results[0]["posterior"]["high"]


@pytest.mark.parametrize(
    ("noise", "word"),
    [
        (lambda widths: np.zeros(3), "noise returned shape"),
        (lambda widths: np.full(len(widths), -1.0), "noise is"),
        (lambda widths: np.full(len(widths), np.nan), "noise is"),
    ],
)
def test_a_noise_that_cannot_be_is_refused(noise, word):
    accuracy = Noisy(0)
    accuracy.noise = noise
    with pytest.raises(bd.EvaluationError, match=word):
        bd.search(SPACE, accuracy, {"macs": "0.5x"}, 20)


def test_a_killed_noisy_search_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "journal.jsonl"
    expected = bd.search(SPACE, Noisy(5), {"macs": "0.5x"}, 60, checkpoint=path).to_dict()
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:25]) + "\n")
    assert bd.search(SPACE, Noisy(5), {"macs": "0.5x"}, 60, checkpoint=path).to_dict() == expected
