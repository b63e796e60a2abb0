"""The variants of the default rule that the benchmark of better supernets trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import bcnet_deploy as bd
from bcnet_deploy.search.lattice import Lattice
from bcnet_deploy.testing.samplers import GRIDS, SamplerConformance
from bcnet_deploy.train import TrainConfig
from bcnet_deploy.train.samplers import Bilateral, WidthGrid, WidthSampler


@pytest.fixture(scope="module")
def variants(benchmark_module: Callable[[str], Any]) -> Any:
    return benchmark_module("bm_supernet_variants")


class OfVariant(SamplerConformance):
    variants: Any

    @pytest.fixture(autouse=True)
    def _of(self, variants: Any) -> None:
        self.variants = variants


class TestWide(OfVariant):
    def make_sampler(self, grid: WidthGrid, rng: np.random.Generator) -> WidthSampler:
        return self.variants.Wide(grid, rng)  # type: ignore[no-any-return]


class TestSpread(OfVariant):
    def make_sampler(self, grid: WidthGrid, rng: np.random.Generator) -> WidthSampler:
        return self.variants.Spread(grid, rng)  # type: ignore[no-any-return]


class TestOneStep(OfVariant):
    def make_sampler(self, grid: WidthGrid, rng: np.random.Generator) -> WidthSampler:
        return self.variants.OneStep(grid, rng)  # type: ignore[no-any-return]


class TestWarm(OfVariant):
    def make_sampler(self, grid: WidthGrid, rng: np.random.Generator) -> WidthSampler:
        return self.variants.FromFullWidth(Bilateral(grid, rng), 3)  # type: ignore[no-any-return]


def test_what_the_samplers_draw_is_what_their_names_say(variants: Any) -> None:
    grid = GRIDS["even"]

    def sizes(sampler: WidthSampler) -> np.ndarray:
        """Of the vectors drawn, without their complements."""
        return np.array([sampler.draw()[0][0].widths.mean() / 8 for _ in range(2000)])

    usual, wide, spread = (
        sizes(kind(grid, np.random.default_rng(0))) for kind in (Bilateral, variants.Wide, variants.Spread)
    )
    # Levels 1 to 4 with probabilities 1 to 4 of 10: 30/40 on average; independent ones 25/40.
    assert wide.mean() == pytest.approx(0.75, abs=0.01) and usual.mean() == pytest.approx(0.625, abs=0.01)
    assert spread.mean() == pytest.approx(0.625, abs=0.01) and spread.std() > 1.4 * usual.std()
    warm = variants.warm(grid, np.random.default_rng(0), TrainConfig(cost=128 * 8.0, batch_size=128))
    steps = [warm.next_step() for _ in range(4)]
    assert [len(step) for step in steps] == [1, 1, 3, 3], "a quarter of eight steps' images, then distilled"


def test_beyond_size_leaves_what_size_does_not_say(variants: Any) -> None:
    space = bd.WidthSpace.from_model(bd.build_model(variants.MODEL, num_classes=10), (3, 32, 32), levels=4)
    logs = np.log(Lattice(space.variables).widths(variants.networks(space))).mean(axis=1)
    rest = np.random.default_rng(0).normal(size=len(logs))
    rest -= np.polyval(np.polyfit(logs, rest, 1), logs)
    sides = np.stack([3 + 2 * logs + rest, 1 - logs], axis=1)
    np.testing.assert_allclose(
        variants.beyond_size(space, sides), np.stack([rest, 0 * rest], axis=1), atol=1e-9
    )
