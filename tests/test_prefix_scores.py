"""Shared prefixes change no score: held against the package's own evaluator."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import bcnet_deploy as bd
from bcnet_deploy.train.evaluate import SupernetEvaluator
from benchmarks.prefix_scores import PrefixScorer


@pytest.mark.parametrize("sides", [("left",), ("left", "right")])
def test_scores_are_the_evaluators(sides: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    model = bd.build_model("channel_bench_macro_mobilenet", num_classes=10)
    space = bd.WidthSpace.from_model(model, (3, 8, 8), levels=4)
    supernet = bd.Supernet(model, space)
    calibration, images = torch.randn(16, 3, 8, 8), torch.randn(80, 3, 8, 8)
    labels = torch.randint(10, (80,))
    scorer = PrefixScorer(supernet, calibration, images, labels, sides)
    evaluator = SupernetEvaluator(supernet, [calibration], [(images, labels)], sides=sides)
    levels = [
        "1111111", "1111112", "1111141", "1112141", "4312141", "4312144", "4444444", "1111111",
    ]  # fmt: skip
    for arch in levels:
        widths = np.array([int(digit) for digit in arch]) * space.full // 4
        accuracy, loss = scorer(widths)
        assert accuracy == pytest.approx(evaluator.sides(widths)[0])
        correct = scorer.correct(widths)
        assert correct.shape == (len(sides), len(labels))
        assert 100 * correct.mean(axis=1) == pytest.approx(accuracy)
        assert loss == pytest.approx(evaluator.losses(widths)[0], rel=1e-5)
        accuracy, loss = scorer(widths, 30)
        fewer = SupernetEvaluator(supernet, [calibration], [(images[:30], labels[:30])], sides=sides)
        assert accuracy == pytest.approx(fewer.sides(widths)[0])
        assert loss == pytest.approx(fewer.losses(widths)[0], rel=1e-5)
