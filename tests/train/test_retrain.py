"""From a run directory's supernet to a final network, and the test images in between."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn

from bcnet_deploy.errors import CheckpointError, DataError, MissingStepError
from bcnet_deploy.files import read_rows
from bcnet_deploy.models.ref import ModelRef
from bcnet_deploy.nn import Supernet, load_subnet
from bcnet_deploy.run.directory import Given, RunConfig, RunDir
from bcnet_deploy.run.supernets import load_supernet
from bcnet_deploy.space import WidthSpace
from bcnet_deploy.train import load_result, retrain, train_supernet
from bcnet_deploy.train.checkpoint import load_checkpoint
from bcnet_deploy.train.retrain import keep_trained, reinitialise
from tests.train.helpers import SIZE, Opened, images, make_supernet, settings, splits, tiny

CPU = torch.device("cpu")
REF = ModelRef("tests.train.helpers:tiny", num_classes=4, input_size=SIZE, levels=4)


def test_the_supernet_comes_back_as_it_was_trained(tmp_path: Path) -> None:
    run, opened = RunDir(tmp_path), Opened()
    run.save(RunConfig(model=REF))
    with pytest.raises(MissingStepError, match="no supernet has been trained"):
        load_supernet(run)
    supernet = make_supernet()
    result = train_supernet(supernet, splits(opened), settings(epochs=2, ema_decay=0.9), run.train)
    assert opened.times == 0 and set(result.val_top1) == {"full", "half", "narrowest"} and result.steps == 8
    loaded = load_supernet(run)
    # The averaged weights are saved and are the supernet's own; the last step's are in the checkpoint.
    live = dict(supernet.named_parameters())
    assert all(torch.equal(p, live[name]) for name, p in loaded.named_parameters())
    last, _ = load_checkpoint(run.train / "checkpoint.safetensors")
    assert any(not torch.equal(p, last[f"model.{name}"]) for name, p in live.items())
    with pytest.raises(CheckpointError, match="the run's model is now .* at 1x8x8"):
        load_supernet(RunDir(tmp_path, Given(model=tiny(norm=False))))


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
        load_supernet(run)
    for fresh in (True, False):
        with pytest.raises(KeyboardInterrupt):
            retrain(tiny(), supernet.space, [4, 9], splits(), config, folder, model_ref=REF, fresh=fresh)
        left = {path.name for path in folder.iterdir()}
        assert not {"subnet.yaml", "result.json"} & left, "no export takes the former network for this one"


def test_an_original_that_was_begun_anew_takes_no_former_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, config = tiny(), settings(epochs=1)
    space = WidthSpace.from_model(model, SIZE, levels=4)
    keep_trained(model, space, splits(), config, tmp_path, model_ref=REF, device=CPU)
    assert {"subnet.yaml", "result.json"} <= {path.name for path in tmp_path.iterdir()}

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules[keep_trained.__module__], "evaluate_network", killed)
    with pytest.raises(KeyboardInterrupt):
        keep_trained(model, space, splits(), config, tmp_path, model_ref=REF, device=CPU)
    assert not {"subnet.yaml", "result.json"} & {path.name for path in tmp_path.iterdir()}


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


def sobel(channels: int) -> nn.Conv2d:
    """A fixed filter for each channel, each another."""
    fixed = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False).requires_grad_(False)
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    fixed.weight.data = torch.stack([kernel * (n + 1) for n in range(channels)])[:, None]
    return fixed


class Frozen(nn.Module):
    """Convolutions and norms, some of them frozen, and a scale for each channel that is a buffer."""

    def __init__(self, frozen: list[bool]) -> None:
        super().__init__()
        self.first, self.edges, self.norm = nn.Conv2d(1, 8, 3), sobel(8), nn.BatchNorm2d(8)
        self.second, self.last, self.head = nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6), nn.Linear(6, 4)
        self.register_buffer("scale", torch.arange(1.0, 9.0).view(1, 8, 1, 1))
        for norm in (self.norm, self.last):
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                nn.init.uniform_(tensor, 0.1, 0.9)  # type: ignore[arg-type]
        parts = (self.first, self.norm, self.second, self.last, self.head.weight, self.head.bias)
        for part, still in zip(parts, frozen, strict=True):
            part.requires_grad_(not still)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.edges(self.first(x)) * self.scale))
        return self.head(self.last(self.second(x)).mean((2, 3)))


@hypothesis_settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    frozen=st.lists(st.booleans(), min_size=6, max_size=6),
    widths=st.tuples(st.integers(1, 8), st.integers(1, 6)),
)
def test_what_training_does_not_change_stays_and_is_cut_to_its_channels(
    frozen: list[bool], widths: tuple[int, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    torch.manual_seed(0)
    model = Frozen(frozen)
    space = WidthSpace.from_model(model, SIZE, levels=24)
    assert len(space.variables) == 2
    net = space.extract(model, widths)
    own = dict(model.state_dict())

    def kept(name: str, tensor: torch.Tensor) -> bool:
        full = own[name]
        places = tuple(slice(0, n) for n in tensor.shape)
        return torch.equal(tensor, full[places])

    assert all(kept(name, tensor) for name, tensor in net.state_dict().items())
    fixed = {name for name, p in net.named_parameters() if not p.requires_grad} | {"scale"}
    fixed |= {f"norm.running_{k}" for k in ("mean", "var") if frozen[1]}
    fixed |= {f"last.running_{k}" for k in ("mean", "var") if frozen[3]}
    assert "edges.weight" in fixed
    reinitialise(net, torch.Generator().manual_seed(1))
    for name, tensor in net.state_dict().items():
        if name in fixed or name.endswith("num_batches_tracked"):
            assert kept(name, tensor), name
        else:
            assert not kept(name, tensor), name
    if all(frozen):
        return
    folder = tmp_path_factory.mktemp("fixed")
    retrain(
        model,
        space,
        widths,
        splits(),
        settings(epochs=1, ema_decay=0.5),
        folder / "r",
        model_ref=REF,
        device=CPU,
    )
    trained, supernet = load_subnet(folder / "r", model)[0], Supernet(model, space)
    still = {name: own[name].clone() for name in own if name in fixed and "running" not in name}
    train_supernet(supernet, splits(), settings(epochs=0.5, weight_decay=0.1), folder / "s", device=CPU)
    for name, tensor in still.items():
        assert torch.equal(supernet.model.state_dict()[name], tensor), name
        assert kept(name, trained.state_dict()[name]), name


def test_a_fixed_filter_that_is_a_buffer_is_not_drawn_anew() -> None:
    conv = nn.Conv2d(1, 2, 3, bias=False)
    kernel = conv.weight.detach().clone()
    del conv.weight
    conv.register_buffer("weight", kernel.clone())
    reinitialise(nn.Sequential(conv), torch.Generator().manual_seed(0))
    assert torch.equal(conv.weight, kernel)


@pytest.mark.parametrize("batch_size", [16, 32])
def test_a_last_batch_of_one_image_is_no_batch_of_its_own(batch_size: int, tmp_path: Path) -> None:
    """65 = 4 batches of 16 and one image, 33 held-out ones: statistics of single images are none."""

    def net() -> nn.Module:
        body = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return nn.Sequential(body, nn.Linear(8, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 4))

    data = replace(splits(), train=images(65, 1), val=images(33, 2), open_test=lambda: images(17, 3))
    model, config = net(), settings(batch_size=batch_size, epochs=1, accumulation=3, ema_decay=0.9)
    space = WidthSpace.from_model(model, SIZE, levels=4)
    result = train_supernet(Supernet(net(), space), data, config, tmp_path / "s", device=CPU)
    assert result.steps == 65 // batch_size
    retrain(model, space, space.narrowest, data, config, tmp_path / "r", model_ref=REF, device=CPU)


def test_data_of_another_size_is_refused(tmp_path: Path) -> None:
    model = tiny()
    space = WidthSpace.from_model(model, (1, 12, 12), levels=4)
    with pytest.raises(DataError, match="the width space is for"):
        retrain(model, space, space.full, splits(), settings(), tmp_path, model_ref=REF)
