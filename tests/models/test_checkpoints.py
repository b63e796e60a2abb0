"""Local weights: every format in, every mismatch named, nothing changed unless all fit, no download."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import bcnet_deploy as bd
from bcnet_deploy.models import build_model, load_weights

NAME = "shufflenet_v2_x0_5"


def state(name: str = NAME, **arguments: int) -> dict[str, torch.Tensor]:
    """A state dict whose values are not those of a fresh model."""
    torch.manual_seed(7)
    return build_model(name, **arguments).state_dict()


def assert_equal(model: nn.Module, expected: dict[str, torch.Tensor]) -> None:
    own = model.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("layout", ["plain", "state_dict", "model", "data_parallel", "safetensors"])
def test_layouts_of_checkpoints(tmp_path: Path, layout: str) -> None:
    given = state()
    path = tmp_path / ("w.safetensors" if layout == "safetensors" else "w.pth")
    if layout == "safetensors":
        save_file(given, path)
    elif layout == "data_parallel":
        torch.save({"state_dict": {f"module.{k}": v for k, v in given.items()}, "epoch": 3}, path)
    else:
        torch.save(given if layout == "plain" else {layout: given, "epoch": 3}, path)
    torch.manual_seed(0)
    assert_equal(build_model(NAME, weights=path), given)


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    given = {name: t.half() if t.is_floating_point() else t for name, t in state().items()}
    torch.save(given, tmp_path / "w.pth")
    model = build_model(NAME, weights=tmp_path / "w.pth")
    assert next(model.parameters()).dtype == torch.float32
    assert_equal(model, {name: t.float() if t.is_floating_point() else t for name, t in given.items()})


def test_densenet_names_of_old_files(tmp_path: Path) -> None:
    import re

    given = state("densenet121", num_classes=3)
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name): t for name, t in given.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "w.pth")
    torch.manual_seed(0)
    assert_equal(build_model("densenet121", num_classes=3, weights=tmp_path / "w.pth"), given)


def test_published_inception_file_with_auxiliary_head(tmp_path: Path) -> None:
    """Heads that are only for training are dropped; the input is scaled as the published weights expect."""
    from torchvision.models import Inception_V3_Weights, inception_v3

    full = inception_v3(weights=None, init_weights=False, num_classes=1000)
    path = tmp_path / Path(Inception_V3_Weights.DEFAULT.url).name
    torch.save(full.state_dict(), path)
    model = build_model("inception_v3", weights=path)
    full.transform_input = True
    x = torch.rand(1, 3, 139, 139)
    with torch.no_grad():
        assert torch.equal(model.eval()(x), full.eval()(x))


def changed(**edits: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """The state with tensors replaced, or removed by None; double underscores stand for dots."""
    given = state()
    for key, value in edits.items():
        name = key.replace("__", ".")
        given.pop(name, None)
        if value is not None:
            given[name] = value
    return given


def with_value(value: float) -> torch.Tensor:
    weight = state()["conv5.0.weight"].clone()
    weight.view(-1)[12] = value
    return weight


@pytest.mark.parametrize(
    ("edits", "error", "message"),
    [
        ({"conv5__0__weight": None}, bd.CheckpointError, "no tensor 'conv5.0.weight'"),
        (
            {"fc__weight": torch.zeros(10, 1024)},
            bd.CheckpointError,
            r"'fc.weight' has shape \(10, 1024\).*\(1000, 1024\)",
        ),
        ({"extra__weight": torch.zeros(1)}, bd.CheckpointError, "no tensor 'extra.weight'"),
        ({"conv5__0__weight": with_value(float("nan"))}, bd.NonFiniteWeightError, "'conv5.0.weight'.* 1 NaN"),
        ({"conv5__0__weight": with_value(float("-inf"))}, bd.NonFiniteWeightError, "'conv5.0.weight'"),
    ],
)
def test_a_checkpoint_that_does_not_fit_changes_nothing(
    tmp_path: Path, edits: dict[str, torch.Tensor | None], error: type[bd.BCNetError], message: str
) -> None:
    path = tmp_path / "w.pth"
    torch.save(changed(**edits), path)
    torch.manual_seed(0)
    model = build_model(NAME)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(error, match=message):
        load_weights(model, path)
    assert_equal(model, before)
    with pytest.raises(error, match=message):
        build_model(NAME, weights=path)


class _Unsafe:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("a checkpoint ran code",)


def test_damaged_and_unsafe_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = tmp_path / "good.pth"
    torch.save(state(), good)
    cases: dict[str, bytes] = {
        "empty.pth": b"",
        "text.pth": b"not a checkpoint",
        "cut.pth": good.read_bytes()[: good.stat().st_size // 2],
        "cut.safetensors": b"\xff\xff\xff\xff\x00\x00\x00\x00{",
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(bd.CheckpointError, match=name):
            build_model(NAME, weights=tmp_path / name)
    torch.save({"state_dict": _Unsafe()}, tmp_path / "unsafe.pth")
    with pytest.raises(bd.CheckpointError, match="state_dict"):
        build_model(NAME, weights=tmp_path / "unsafe.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(bd.CheckpointError, match="no named tensors"):
        build_model(NAME, weights=tmp_path / "list.pth")
    with pytest.raises(bd.CheckpointError, match="no checkpoint at"):
        build_model(NAME, weights=tmp_path / "absent.pth")
    assert "ran code" not in capsys.readouterr().out


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty torch hub folder, and no network."""

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a network connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def test_pretrained_only_if_on_disk(hub: Path) -> None:
    from torchvision.models import ShuffleNet_V2_X0_5_Weights

    file = Path(ShuffleNet_V2_X0_5_Weights.DEFAULT.url).name
    with pytest.raises(bd.CheckpointError, match=file):
        build_model(NAME, weights="pretrained")
    given = state()
    torch.save(given, hub / file)
    torch.manual_seed(0)
    assert_equal(build_model(NAME, weights="pretrained"), given)


def test_pretrained_for_other_classes_keeps_a_fresh_classifier(hub: Path) -> None:
    from torchvision.models import ShuffleNet_V2_X0_5_Weights

    given = state()
    torch.save(given, hub / Path(ShuffleNet_V2_X0_5_Weights.DEFAULT.url).name)
    model = build_model(NAME, num_classes=10, weights="pretrained")
    assert model.fc.out_features == 10
    assert_equal(model, {name: t for name, t in given.items() if not name.startswith("fc.")})


def test_pretrained_of_a_network_without_any(hub: Path) -> None:
    with pytest.raises(bd.CheckpointError, match="no pretrained weights for 'demo'"):
        build_model("demo", weights="pretrained")
