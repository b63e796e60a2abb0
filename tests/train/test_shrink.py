"""Narrowing a trained network step by step."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bcnet_deploy.data import ImageSet
from bcnet_deploy.errors import ConfigError
from bcnet_deploy.models.ref import ModelRef
from bcnet_deploy.space import WidthSpace
from bcnet_deploy.space.slicing import stored_units
from bcnet_deploy.train.optim import rate_factor
from bcnet_deploy.train.pruned import permuted_on
from bcnet_deploy.train.retrain import RetrainResult, retrain
from bcnet_deploy.train.shrink import shrink, stage_config, stage_widths
from tests.train.helpers import SIZE, settings, splits, tiny, trained_plain

REF = ModelRef("tests.train.helpers:tiny", num_classes=4, input_size=SIZE, levels=4)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    return trained_plain(6, tmp_path_factory.mktemp("trained"))


def test_widths_shrink_by_the_same_factor_a_step(trained: nn.Module) -> None:
    """64 to 8 in three steps is halving."""
    space = WidthSpace.from_model(
        nn.Sequential(nn.Conv2d(1, 64, 3), nn.ReLU(), nn.Conv2d(64, 4, 3)), (1, 8, 8)
    )
    assert stage_widths(space, [64], [8], 3).tolist() == [[32], [16], [8]]
    assert stage_widths(space, [64], [64], 2).tolist() == [[64], [64]]
    for start, end in ((64, 5), (63, 1), (17, 16)):
        rows = stage_widths(space, [start], [end], 4)[:, 0]
        assert rows[-1] == end and (np.diff(rows) <= 0).all() and rows[0] <= start


def test_each_step_has_its_share_of_the_training() -> None:
    config = settings(epochs=6, warmup_epochs=0.6)
    third = stage_config(config, 3)
    assert (third.epochs, third.warmup_epochs) == (2, pytest.approx(0.2))
    assert stage_config(config.replace(cost=900.0), 3).cost == 300
    with pytest.raises(ConfigError, match="steps is 0"):
        stage_config(config, 0)


@pytest.mark.parametrize(
    "schedule",
    [{"schedule": "step", "milestones": (50.0, 75.0)}, {"schedule": "exponential", "step_epochs": 10.0}],
)
def test_each_step_has_the_schedule_of_the_whole(schedule: dict[str, object]) -> None:
    config = settings(epochs=100, gamma=0.5, **schedule)
    stage = stage_config(config, 4)
    for done in (0.0, 0.3, 0.55, 0.8, 0.999):
        assert rate_factor(stage, done, stage.epochs) == rate_factor(config, done, config.epochs)


def test_a_new_beginning_that_was_killed_in_a_step_goes_on(trained: nn.Module, tmp_path: Path) -> None:
    """As ``retrain --steps 3 --force`` killed, then asked again without anything to be made anew."""
    space = WidthSpace.from_model(trained, SIZE, levels=4)
    begin = permuted_on(trained, space, splits(), device=CPU)

    class Killed(BaseException):
        pass

    def in_second_step(share: float, note: str) -> None:
        if note.startswith("step 2"):
            raise Killed

    def command(epochs: int, steps: int, *, fresh: bool, kill: bool = False) -> RetrainResult:
        config = stage_config(settings(epochs=epochs, log_every=1), steps)
        initial = shrink(
            trained, space, begin, [2, 3], splits(), config, tmp_path, steps=steps, model_ref=REF, device=CPU,
            fresh=fresh, progress=in_second_step if kill else None,
        )  # fmt: skip
        return retrain(
            trained, space, [2, 3], splits(), config, tmp_path, model_ref=REF, initial=initial, device=CPU,
            fresh=fresh,
        )  # fmt: skip

    command(2, 1, fresh=False)
    command(2, 3, fresh=True)
    with pytest.raises(Killed):
        command(3, 3, fresh=True, kill=True)
    assert command(3, 3, fresh=False).widths == (2, 3)


def test_steps_are_kept_and_see_no_test_images(trained: nn.Module, tmp_path: Path) -> None:
    def opened() -> ImageSet | None:
        raise AssertionError("test images were opened")

    space = WidthSpace.from_model(trained, SIZE, levels=4)
    data = replace(splits(), open_test=opened)
    initial = permuted_on(trained, space, data, device=CPU)
    config = stage_config(settings(epochs=3), 3)

    def narrowed() -> nn.Module:
        return shrink(
            tiny(), space, initial, [2, 3], data, config, tmp_path, steps=3, model_ref=REF, teacher=trained,
            device=CPU,
        )  # fmt: skip

    network = narrowed()
    before_last = stage_widths(space, space.full, [2, 3], 3)[1]
    assert stored_units(space.plan, network) == before_last.tolist()
    results = [tmp_path / f"step-{index}" / "result.json" for index in (1, 2)]
    assert [json.loads(path.read_text())["test_metric"] for path in results] == [None, None]
    assert not (tmp_path / "step-3").exists()
    written = [path.stat().st_mtime_ns for path in results]
    again = narrowed()
    assert [path.stat().st_mtime_ns for path in results] == written
    for one, other in zip(network.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
