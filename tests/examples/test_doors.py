"""The examples of parts of one's own, by the conformance suites and by what each promises."""

from __future__ import annotations

from collections import Counter

import numpy as np

import bcnet_deploy as bd
from bcnet_deploy.search.strategies import Strategy
from bcnet_deploy.testing.samplers import GRIDS, SamplerConformance
from bcnet_deploy.testing.strategies import SmallSpace, StrategyConformance
from bcnet_deploy.train.samplers import WidthGrid, WidthSampler
from examples.doors.sampler import Balanced
from examples.doors.strategy import anneal


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
