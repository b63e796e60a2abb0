"""Scores of width vectors against networks extracted, recalibrated and run by themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from bcnet_deploy.data import PlainBatches
from bcnet_deploy.errors import EvaluationError, WidthError
from bcnet_deploy.train import SupernetEvaluator, evaluate_network
from tests.train.helpers import make_supernet, make_trainer, settings, splits


def batches() -> tuple[PlainBatches, PlainBatches]:
    data, cpu = splits(), torch.device("cpu")
    return PlainBatches(data.train, data, 32, cpu, limit=96), PlainBatches(data.val, data, 24, cpu)


def trained(tmp_path, **options):  # type: ignore[no-untyped-def]
    supernet = make_supernet(**options)
    make_trainer(supernet, settings(epochs=4), tmp_path).run()
    return supernet


def by_hand(supernet, widths, side, train, val):  # type: ignore[no-untyped-def]
    """Extract, average the statistics of each batch norm's inputs with momentum 1/n, count right answers."""
    net = supernet.extract(widths, side)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    net.train()
    with torch.no_grad():
        for images, _ in train:
            net(images)
        net.eval()
        right = sum(int((net(images).argmax(1) == labels).sum()) for images, labels in val)
    return 100 * right / 64


@pytest.mark.parametrize("min_level", [0, 1])
def test_scores_equal_those_of_extracted_networks(min_level: int, tmp_path) -> None:  # type: ignore[no-untyped-def]
    supernet = trained(tmp_path, min_level=min_level)
    train, val = batches()
    evaluator = SupernetEvaluator(supernet, train, val)
    widths = supernet.space.random(4, np.random.default_rng(0))
    expected = [[by_hand(supernet, row, side, train, val) for side in ("left", "right")] for row in widths]
    assert evaluator.sides(widths).tolist() == expected
    assert evaluator(widths).tolist() == np.mean(expected, axis=1).tolist()
    assert (evaluator.losses(widths) > 0).all()


def test_each_vector_runs_once_and_the_supernet_is_left_alone(tmp_path) -> None:  # type: ignore[no-untyped-def]
    supernet = trained(tmp_path)
    supernet.set_active([4, 6], "right")
    supernet.train()
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    said: list[tuple[int, int]] = []
    train, val = batches()
    evaluator = SupernetEvaluator(supernet, train, val, progress=lambda done, of: said.append((done, of)))
    evaluator([[2, 3], [8, 12], [2, 3]])
    evaluator([2, 3])
    assert said == [(1, 2), (2, 2)] and evaluator.evaluations == 2
    assert all(torch.equal(tensor, before[name]) for name, tensor in supernet.state_dict().items())
    assert supernet.training and supernet.active[0].tolist() == [4, 6] and supernet.active[1] == "right"


def test_bad_input_is_refused() -> None:
    train, val = batches()
    with pytest.raises(EvaluationError, match="given: 0 and 3"):
        SupernetEvaluator(make_supernet(), [], val)
    with pytest.raises(EvaluationError, match="at least one image"):
        evaluate_network(nn.Identity(), [])
    with pytest.raises(WidthError):
        SupernetEvaluator(make_supernet(), train, val)([[0, 3]])
