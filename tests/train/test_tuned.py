"""Scores after a short fine-tuning: against the same training done by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import bcnet_deploy as bd
from bcnet_deploy.errors import WidthError
from bcnet_deploy.importance import permute_by_importance
from bcnet_deploy.space import WidthSpace
from bcnet_deploy.tasks import Classification
from bcnet_deploy.train import TrainConfig, TunedEvaluator, retrain
from bcnet_deploy.train.retrain import RetrainResult
from tests.train.helpers import SIZE, images, splits, trained_plain

CPU = torch.device("cpu")
CONFIG = TrainConfig.load("finetune").replace(batch_size=16, workers=0)


@pytest.fixture(scope="module")
def ordered(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, WidthSpace]:
    model = trained_plain(12, tmp_path_factory.mktemp("trained"))
    space = WidthSpace.from_model(model, SIZE, levels=4)
    return permute_by_importance(model, space, "l2"), space


def test_a_score_is_the_accuracy_after_so_many_steps(
    ordered: tuple[nn.Module, WidthSpace], tmp_path: Path
) -> None:
    model, space = ordered
    data = splits()

    def never() -> None:
        raise AssertionError("test images were opened")

    evaluator = TunedEvaluator(model, space, replace(data, open_test=never), CONFIG, steps=7, device=CPU)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = np.array([space.full, [4, 9]])
    scores = evaluator(rows)
    for index, (row, score) in enumerate(zip(rows, scores, strict=True)):
        epochs = 7 * 16 / len(data.train)
        config = CONFIG.replace(
            epochs=epochs, warmup_epochs=min(CONFIG.warmup_epochs, epochs / 10), min_steps=0
        )
        result = retrain(
            model, space, row, data, config, tmp_path / str(index), model_ref={}, initial=model,
            teacher=model, device=CPU,
        )  # fmt: skip
        assert result.steps == 7
        assert score == pytest.approx(result.val_metric)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    share = scores / 100
    share = (share * len(data.val) + 1) / (len(data.val) + 2)
    expected = 100 * np.sqrt(share * (1 - share) / len(data.val))
    assert evaluator.noise(rows) == pytest.approx(expected)
    assert evaluator.val_count == len(data.val) and evaluator.sides(rows).shape == (2, 1)


@pytest.mark.parametrize(("count", "batch"), [(128, 32), (120, 64), (24, 32)])
def test_it_trains_as_many_steps_as_are_asked_for(
    ordered: tuple[nn.Module, WidthSpace], count: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch of 120 images has one batch of 64, not 1.9."""
    model, space = ordered
    made: list[int] = []

    def counted(*given: object, **more: object) -> RetrainResult:
        result = retrain(*given, **more)  # type: ignore[arg-type]
        made.append(result.steps)
        return result

    monkeypatch.setattr("bcnet_deploy.train.tuned.retrain", counted)
    data = replace(splits(), train=images(count, 1))
    config = CONFIG.replace(batch_size=batch)
    TunedEvaluator(model, space, data, config, steps=10, device=CPU)(space.narrowest)
    assert made == [10]


def test_every_network_is_trained_once(ordered: tuple[nn.Module, WidthSpace]) -> None:
    model, space = ordered
    told: list[tuple[int, int]] = []
    evaluator = TunedEvaluator(
        model, space, splits(), CONFIG, steps=1, limit=10, device=CPU, progress=lambda *at: told.append(at)
    )
    rows = np.array([[4, 9], [2, 3], [4, 9]])
    scores = evaluator(rows)
    assert (evaluator(rows) == scores).all() and scores[0] == scores[2]
    assert told == [(1, 2), (2, 2)] and evaluator.val_count == 10
    assert (scores * 10 / 100 == (scores * 10 / 100).round()).all()  # of ten images
    with pytest.raises(WidthError):
        evaluator(np.array([[99, 9]]))


def test_a_search_trains_networks_near_the_budget(ordered: tuple[nn.Module, WidthSpace]) -> None:
    model, space = ordered
    evaluator = TunedEvaluator(model, space, splits(), CONFIG, steps=2, device=CPU)
    result = bd.search(space, evaluator, {"macs": "0.5x"}, 6, 0)
    assert result.evaluations <= 6 and space.macs(result.widths)[0] <= 0.5 * space.macs(space.full)[0]
    assert result.belief is not None


def test_a_task_without_known_noise_has_none(ordered: tuple[nn.Module, WidthSpace]) -> None:
    class Other(Classification):
        name = "other"

    model, space = ordered
    assert hasattr(TunedEvaluator(model, space, splits(), CONFIG, task=Other(), device=CPU), "noise")

    class Plain:
        unit = ""

    assert not hasattr(TunedEvaluator(model, space, splits(), CONFIG, task=Plain(), device=CPU), "noise")  # type: ignore[arg-type]
