"""From a run directory's supernet to a final network, and the test images in between."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bcnet_deploy.errors import CheckpointError, DataError, MissingStepError
from bcnet_deploy.files import read_rows
from bcnet_deploy.models.ref import ModelRef
from bcnet_deploy.nn import load_subnet
from bcnet_deploy.run.directory import Given, RunConfig, RunDir
from bcnet_deploy.space import WidthSpace
from bcnet_deploy.train import load_result, retrain, train_supernet
from bcnet_deploy.train.retrain import reinitialise
from tests.train.helpers import SIZE, Opened, make_supernet, settings, splits, tiny

REF = ModelRef("tests.train.helpers:tiny", num_classes=4, input_size=SIZE, levels=4)


def test_the_supernet_comes_back_as_it_was_trained(tmp_path: Path) -> None:
    run, opened = RunDir(tmp_path), Opened()
    run.save(RunConfig(model=REF))
    with pytest.raises(MissingStepError, match="no supernet has been trained"):
        run.supernet()
    supernet = make_supernet()
    result = train_supernet(supernet, splits(opened), settings(epochs=2, ema_decay=0.9), run.train)
    assert opened.times == 0 and set(result.val_top1) == {"full", "half", "narrowest"} and result.steps == 8
    loaded = run.supernet()
    # The averaged weights are saved; those of the last step are in the supernet and the checkpoint.
    live = dict(supernet.named_parameters())
    assert all(p.shape == live[name].shape for name, p in loaded.named_parameters())
    assert any(not torch.equal(p, live[name]) for name, p in loaded.named_parameters())
    with pytest.raises(CheckpointError, match="the run's model is now Sequential at 1x8x8 with other layers"):
        RunDir(tmp_path, Given(model=tiny(norm=False))).supernet()


def test_looking_at_held_out_images_does_not_disturb_a_supernet(tmp_path: Path) -> None:
    weights, curves = [], []
    for every in (0, 0.75):
        run = tmp_path / str(every)
        supernet = make_supernet(dropout=0.3)
        result = train_supernet(supernet, splits(), settings(epochs=2, evaluate_every=every), run)
        weights.append(supernet.state_dict())
        curves.append([row for row in read_rows(run / "curves.jsonl") if "val_top1_full" in row])
        assert {f"val_top1_{name}": value for name, value in result.val_top1.items()} == {
            key: value for key, value in curves[-1][-1].items() if key.startswith("val_top1")
        }
    assert all(torch.equal(a, b) for a, b in zip(weights[0].values(), weights[1].values(), strict=True))
    assert [[row["epoch"] for row in rows] for rows in curves] == [[2.0], [0.75, 1.5, 2.0]]


def test_retraining_looks_at_the_test_images_once_and_last(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, opened = tiny(), Opened()
    space = WidthSpace.from_model(model, SIZE, levels=4)
    config, widths = settings(epochs=12, evaluate_every=3, label_smoothing=0.1), np.array([4, 9])
    seen: list[int] = []
    result = retrain(
        model, space, widths, splits(opened), config, tmp_path, model_ref=REF, device=torch.device("cpu"),
        progress=lambda done, note: seen.append(opened.times),
    )  # fmt: skip
    assert set(seen) == {0} and opened.times == 1
    assert result.widths == (4, 9) and result.macs == int(space.macs(widths)[0])
    assert result.test_top1 is not None and result.test_top1 > 60 and result.test_images == 64
    assert load_result(tmp_path) == result
    held_out = [row for row in read_rows(tmp_path / "curves.jsonl") if "val_top1" in row]
    assert len(held_out) == 4 and held_out[-1]["val_top1"] == result.val_top1
    again = retrain(
        model, space, widths, splits(opened), config, tmp_path, model_ref=REF, device=torch.device("cpu")
    )
    assert again == result and opened.times == 1
    net, info = load_subnet(tmp_path, model)
    assert info["extra"]["mean"] == [0.3] and sum(p.numel() for p in net.parameters()) == result.params


def test_starting_anew_takes_no_former_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    supernet, run, config = make_supernet(), RunDir(tmp_path), settings(epochs=1)
    folder = run.retrained("found")
    train_supernet(supernet, splits(), config, run.train)
    retrain(tiny(), supernet.space, [4, 9], splits(), config, folder, model_ref=REF)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bcnet_deploy.train.trainer.Trainer._advance", killed)
    with pytest.raises(KeyboardInterrupt):
        train_supernet(make_supernet(), splits(), config, run.train, fresh=True)
    with pytest.raises(MissingStepError, match="bcnet-deploy train"):
        run.supernet()
    for fresh in (True, False):
        with pytest.raises(KeyboardInterrupt):
            retrain(tiny(), supernet.space, [4, 9], splits(), config, folder, model_ref=REF, fresh=fresh)


def test_inherited_weights_start_from_the_left_slice(tmp_path: Path) -> None:
    supernet = make_supernet(min_level=1)
    config = settings(epochs=1, learning_rate=1e-9, weight_decay=0.0)
    retrain(
        tiny(), supernet.space, [4, 6], splits(), config, tmp_path, model_ref=REF, initial=supernet,
        teacher=supernet.extract([8, 12]), device=torch.device("cpu"),
    )  # fmt: skip
    net, _ = load_subnet(tmp_path, tiny())
    for ours, theirs in zip(net.parameters(), supernet.extract([4, 6]).parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_new_weights_have_the_variance_of_their_own_fan_out() -> None:
    net = torch.nn.Sequential(
        torch.nn.Conv2d(64, 128, 3), torch.nn.Conv2d(128, 128, 3, groups=128), torch.nn.BatchNorm2d(128)
    )
    reinitialise(net, torch.Generator().manual_seed(0))
    assert float(net[0].weight.detach().std()) == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)
    assert float(net[1].weight.detach().std()) == pytest.approx((2 / 9) ** 0.5, rel=0.1)
    other = torch.nn.Sequential(torch.nn.Conv2d(64, 128, 3))
    reinitialise(other, torch.Generator().manual_seed(0))
    assert torch.equal(other[0].weight, net[0].weight)


def test_data_of_another_size_is_refused(tmp_path: Path) -> None:
    model = tiny()
    space = WidthSpace.from_model(model, (1, 12, 12), levels=4)
    with pytest.raises(DataError, match="the width space is for"):
        retrain(model, space, space.full, splits(), settings(), tmp_path, model_ref=REF)
