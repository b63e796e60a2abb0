"""E(l, c) of loss records: means by hand, the regression against scikit-learn and known effects."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from sklearn.linear_model import Ridge

from bcnet_deploy.search.lattice import Lattice
from bcnet_deploy.search.records import Records, additive_effects, best_means
from tests.search.fakes import FakeSpace


def sampled(rng: np.random.Generator, count: int, choices: tuple[tuple[int, ...], ...]) -> np.ndarray:
    return np.stack([rng.choice(layer, count) for layer in choices], axis=1)


def test_best_means_follow_the_definition() -> None:
    lattice = Lattice(FakeSpace(((1, 2, 3), (5, 6))).variables)
    widths = np.array([[1, 5], [1, 6], [2, 5], [2, 5], [1, 6]])
    loss = np.array([1.0, 2.0, 3.0, 5.0, 99.0])
    table = best_means(Records(widths, loss), lattice, best=4)
    # Best 4 are the first four; width 3 of layer 0 was never seen: the largest mean seen, 4.
    np.testing.assert_allclose(table[0], [1.5, 4.0, 4.0])
    np.testing.assert_allclose(table[1], [3.0, 2.0])


def test_effects_are_those_of_a_ridge_regression_on_relative_losses() -> None:
    rng = np.random.default_rng(0)
    choices = ((1, 2, 3), (5, 6), (4, 8, 12, 16))
    lattice = Lattice(FakeSpace(choices).variables)
    widths = sampled(rng, 300, choices)
    loss = rng.uniform(0.5, 2.5, 300)
    level = np.log(loss)
    relative = np.array([v - level[max(0, i - 50) : i + 51].mean() for i, v in enumerate(level)])
    indicators = np.concatenate(
        [(widths[:, [i]] == np.array(layer)).astype(float) for i, layer in enumerate(choices)], axis=1
    )
    expected = Ridge(alpha=10.0, fit_intercept=False).fit(indicators, relative).coef_
    effects = np.concatenate(additive_effects(Records(widths, loss), lattice))
    np.testing.assert_allclose(effects, expected, atol=1e-9)


def test_effects_are_found_under_a_falling_loss_and_noisy_batches() -> None:
    """The best records are those of the end and of easy batches; the effects are in all of them."""
    rng = np.random.default_rng(1)
    choices = (tuple(range(8, 65, 8)),) * 6
    lattice = Lattice(FakeSpace(choices).variables)
    widths = sampled(rng, 4000, choices)
    true = [-0.1 * np.log(np.array(layer)) * (1 + i) / 6 for i, layer in enumerate(choices)]
    effect = sum(table[widths[:, i] // 8 - 1] for i, table in enumerate(true))
    loss = np.exp(np.linspace(0.8, -0.5, 4000) + effect + rng.normal(0, 0.3, 4000))
    found = additive_effects(Records(widths, loss), lattice)

    def agreement(tables: tuple[np.ndarray, ...]) -> float:
        centred = [table - table.mean() for table in tables]
        return float(np.corrcoef(np.concatenate(centred), np.concatenate([t - t.mean() for t in true]))[0, 1])

    assert agreement(found) > 0.9
    assert agreement(best_means(Records(widths, loss), lattice)) < 0.7


def test_a_choice_never_used_is_pessimistic_and_losses_may_be_negative() -> None:
    lattice = Lattice(FakeSpace(((1, 2, 3), (5, 6))).variables)
    widths = np.array([[1, 5], [2, 6]] * 20)
    for shift in (0.0, -5.0):
        first, second = additive_effects(Records(widths, np.array([1.0, 3.0] * 20) + shift), lattice)
        assert first[0] < first[1] and first[2] == max(*first[:2], *second) and second[0] < second[1]


def test_the_full_widths_loss_on_the_same_batch_takes_the_batch_out(tmp_path: Path) -> None:
    """With losses = effect x difficulty of the batch, references leave but the window."""
    rng = np.random.default_rng(2)
    choices = ((1, 2, 3, 4), (5, 6))
    lattice = Lattice(FakeSpace(choices).variables)
    widths = sampled(rng, 3000, choices)
    effect = -0.05 * widths[:, 0] + 0.03 * (widths[:, 1] == 6)
    batch = np.exp(rng.normal(0, 0.5, 3000))
    rows = [
        {"step": i, "widths": w.tolist(), "loss": float(b * np.exp(e)), "reference": float(b)}
        for i, (w, b, e) in enumerate(zip(widths, batch, effect, strict=True))
    ]
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = additive_effects(Records.of(path, lattice), lattice)
    np.testing.assert_allclose(np.diff(first), [-0.05] * 3, atol=0.003)
    np.testing.assert_allclose(np.diff(second), [0.03], atol=0.003)
    gaps = rows[:1] + [{**row, "reference": None} for row in rows[1:]]
    without = additive_effects(Records.of(gaps, lattice), lattice)
    assert abs(float(np.diff(without[1])[0]) - 0.03) > 0.003
