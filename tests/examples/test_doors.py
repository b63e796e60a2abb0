"""The examples of parts of one's own, by the conformance suites and by what each promises."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

import bcnet_deploy as bd
from bcnet_deploy.search.strategies import Strategy
from bcnet_deploy.tasks import load_task
from bcnet_deploy.testing.samplers import GRIDS, SamplerConformance
from bcnet_deploy.testing.strategies import SmallSpace, StrategyConformance
from bcnet_deploy.train.evaluate import evaluate_network
from bcnet_deploy.train.samplers import WidthGrid, WidthSampler
from examples.doors.sampler import Balanced
from examples.doors.strategy import anneal

DOORS = Path(__file__).parents[2] / "examples" / "doors"


class TestAnnealing(StrategyConformance):
    def strategy(self) -> str | Strategy:
        return anneal

    def test_it_finds_the_best_of_a_smooth_space(self) -> None:
        space = SmallSpace((tuple(range(1, 9)),) * 4)
        everything = space.all()
        kept = everything[space.macs(everything) <= 0.4 * space.macs(everything[-1:])[0]]

        def accuracy(widths: np.ndarray) -> np.ndarray:
            return np.sqrt(np.asarray(widths)).sum(axis=1) / 12

        found = [
            bd.search(space, accuracy, {"macs": "0.4x"}, 400, seed=seed, strategy=anneal).accuracy
            for seed in range(5)
        ]
        best = float(accuracy(kept).max())
        assert max(found) <= best + 1e-9 and np.mean(found) > 0.98 * best


class TestBalanced(SamplerConformance):
    def make_sampler(self, grid: WidthGrid, rng: np.random.Generator) -> WidthSampler:
        return Balanced(grid, rng)

    def test_each_width_comes_once_a_round(self) -> None:
        for path in range(2):
            counts = [
                Counter(int(step[path].widths[layer]) for step in self.steps(GRIDS["even"], 40))
                for layer in range(3)
            ]
            assert all(set(count.values()) == {10} for count in counts)


def test_balanced_accuracy_is_scikit_learns() -> None:
    """Over batches of uneven size, named as in a recipe; one class is rare and one is absent."""
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.choice(4, size=90, p=[0.8, 0.15, 0.05, 0.0]))
    outputs = torch.from_numpy(rng.normal(size=(90, 4))) + 2 * torch.nn.functional.one_hot(labels, 4)
    batches = [(outputs[:40], labels[:40]), (outputs[40:], labels[40:])]
    task = load_task(f"{DOORS / 'task.py'}:BalancedAccuracy")
    score, loss = evaluate_network(torch.nn.Identity(), batches, task)
    assert score == pytest.approx(100 * balanced_accuracy_score(labels, outputs.argmax(dim=1)))
    assert loss == pytest.approx(float(torch.nn.functional.cross_entropy(outputs.float(), labels)), rel=1e-5)
    assert (task.metric_name, task.unit) == ("balanced accuracy", "%")
