"""A book says of every network what the package's own evaluator says of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bcnet_deploy import WidthSpace, build_model
from bcnet_deploy.models.channel_bench import _assemble, _conv_bn, _InvertedResidual
from bcnet_deploy.nn import Supernet
from bcnet_deploy.search.evaluation import RacingAccuracy
from bcnet_deploy.train.evaluate import SupernetEvaluator


@pytest.fixture(scope="module")
def score_book(benchmark_module):  # type: ignore[no-untyped-def]
    return benchmark_module("score_book")


def small_network() -> nn.Module:
    """The benchmark's network at a 32nd of its widths, without two of its blocks: four variables."""
    blocks = nn.Sequential(_InvertedResidual(4, 24, 8, 2), _InvertedResidual(8, 48, 8, 1))
    return _assemble(_conv_bn(3, 4, 3, stride=2), blocks, _conv_bn(8, 32, 1), nn.Linear(32, 10))


@pytest.mark.parametrize("sides", [("left",), ("left", "right")])
def test_every_network_as_the_evaluator_scores_it(score_book, sides, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    space = WidthSpace.from_model(small_network(), (3, 8, 8), levels=4)
    supernet = Supernet(small_network(), space)
    calibration, images = torch.randn(16, 3, 8, 8), torch.randn(300, 3, 8, 8)
    labels = torch.randint(10, (300,))
    scorer = score_book.PrefixScorer(supernet, calibration, images, labels, sides)
    book = score_book.score_everything(scorer, 200, {"rule": "any"})
    book.save(tmp_path / "book.npz")
    book = score_book.ScoreBook.load(tmp_path / "book.npz")
    assert book.right.shape == (4 ** len(space.full), len(sides), 2, 2) and book.seen.shape[2] == 1

    val = [(images[:100], labels[:100]), (images[100:200], labels[100:200])]
    evaluator = SupernetEvaluator(supernet, [calibration], val, sides=sides)
    seen = SupernetEvaluator(supernet, [calibration], [(images[200:], labels[200:])], sides=sides)
    accuracy = score_book.BookAccuracy(book, space, recalibration=16)
    rows = np.random.default_rng(0).permutation(4 ** len(space.full))[:40]
    widths = score_book.everything(len(space.full))[rows] * space.full // 4
    # A logit's last bit may tip an image that lies on the edge.
    assert np.abs(accuracy(widths) - evaluator(widths)).max() <= 0.5
    assert np.abs(accuracy(widths) - evaluator(widths)).mean() < 0.02
    assert isinstance(accuracy, RacingAccuracy), "a search may race by a book"
    assert accuracy.image_passes == evaluator.image_passes
    assert np.abs(accuracy.on(widths, 100) - evaluator.on(widths, 100)).max() <= 1.0
    assert book.loss[rows].mean(axis=1) == pytest.approx(evaluator.losses(widths).mean(axis=1), rel=1e-4)
    assert np.abs(book.seen[rows].sum(axis=(2, 3)) - seen.sides(widths)).max() <= 1.0
    assert book.halves(rows).mean(axis=1) == pytest.approx(accuracy(widths))
    assert accuracy.noise(widths) == pytest.approx(evaluator.noise(widths), rel=0.02)


def test_the_stages_that_searches_of_books_share_are_the_evaluators_own(score_book) -> None:  # type: ignore[no-untyped-def]
    model = build_model("channel_bench_macro_mobilenet", num_classes=10)
    supernet = Supernet(model, WidthSpace.from_model(model, (3, 8, 8), levels=4))
    images = torch.randn(2, 3, 8, 8)
    evaluator = SupernetEvaluator(supernet, [images], [(images, torch.zeros(2, dtype=torch.int64))])
    assert evaluator.prefixes == score_book.PREFIXES
