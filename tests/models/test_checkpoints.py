"""Local weights: every format in, every mismatch named, nothing changed unless all fit, no download."""

from __future__ import annotations

import argparse
import os
import socket
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import bcnet_deploy as bd
from bcnet_deploy.errors import CheckpointError
from bcnet_deploy.models import build_model, load_weights
from bcnet_deploy.models.checkpoints import read_state_dict, timm_file

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


EMA = ["model_ema", "state_dict_ema"]


@pytest.mark.parametrize("key", EMA)
def test_averaged_weights_are_preferred(tmp_path: Path, key: str) -> None:
    """As torchvision's and timm's training scripts save them."""
    given = state()
    last = {name: torch.zeros_like(tensor) for name, tensor in given.items()}
    averaged = {"n_averaged": torch.tensor(3), **{f"module.{k}": v for k, v in given.items()}}
    torch.save({"model": last, "state_dict": last, key: averaged, "epoch": 3}, tmp_path / "w.pth")
    assert_equal(build_model(NAME, weights=tmp_path / "w.pth"), given)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "model.", "_orig_mod.module."])
def test_prefixes_of_wrappers(tmp_path: Path, prefix: str) -> None:
    given = state()
    torch.save({f"{prefix}{k}": v for k, v in given.items()}, tmp_path / "w.pt")
    assert_equal(build_model(NAME, weights=tmp_path / "w.pt"), given)


def test_a_models_own_prefix_stays() -> None:
    """A wrapper's module is called ``model`` in the user's network, too."""
    wrapped = nn.Sequential()
    wrapped.add_module("model", nn.Linear(2, 3))
    given = {"model.weight": torch.ones(3, 2), "model.bias": torch.zeros(3)}
    load_weights(wrapped, given)
    assert_equal(wrapped, given)


def test_what_scripts_save_beside_the_weights(tmp_path: Path) -> None:
    given = state()
    beside = {
        "args": argparse.Namespace(lr=0.1, name="x"), "best": np.float64(0.5), "epoch": np.int64(3),
        "curve": np.zeros(3, np.float32),
    }  # fmt: skip
    torch.save({"state_dict": given, **beside}, tmp_path / "w.pth")
    assert_equal(build_model(NAME, weights=tmp_path / "w.pth"), given)


def test_a_module_or_named_tensors() -> None:
    given = state()
    torch.manual_seed(0)
    source, model = build_model(NAME), build_model(NAME)
    load_weights(source, given)
    load_weights(model, source)
    assert_equal(model, given)


@pytest.mark.parametrize("name", [NAME, "squeezenet1_1", "mobilenet_v3_small"])
def test_another_number_of_classes_is_said_and_replaced_when_asked(name: str) -> None:
    given = state(name)
    model = build_model(name, num_classes=7)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(
        bd.CheckpointError, match=r"for 1000 classes .* one for 7; .*num_classes=1000.*--new-h"
    ):
        load_weights(model, given)
    assert_equal(model, before)
    load_weights(model, given, new_head=True)
    kept = [key for key, tensor in given.items() if tensor.shape != before[key].shape]
    assert len(kept) == 2
    assert_equal(model, {key: before[key] if key in kept else given[key] for key in given})


def test_every_kind_of_mismatch_is_named() -> None:
    given = {**state(), "a.weight": torch.zeros(1), "fc.weight": torch.zeros(1000, 3)}
    del given["conv5.0.weight"], given["conv1.0.weight"]
    for new_head in (False, True):
        with pytest.raises(bd.CheckpointError) as caught:
            load_weights(build_model(NAME), given, new_head=new_head)
        assert str(caught.value) == (
            "the state_dict is of another model than the model: it has no tensor 'conv1.0.weight', "
            "'conv5.0.weight'; the model has no tensor 'a.weight'; tensor 'fc.weight' has shape (1000, 3), "
            "needed is (1000, 1024)"
        )


def test_another_architecture_is_no_other_head(tmp_path: Path) -> None:
    torch.save(state("resnet18"), tmp_path / "r18.pth")
    with pytest.raises(bd.CheckpointError, match=r"r18.pth is of another model.* and \d+ more"):
        load_weights(build_model("resnet34"), tmp_path / "r18.pth", new_head=True)
    with pytest.raises(bd.CheckpointError, match="shape"):
        load_weights(build_model("mobilenet_v2_1.5x"), state("mobilenet_v2"), new_head=True)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # of torch's old tensors
def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    plain = nn.Sequential(nn.Linear(4, 4))
    # As torch.ao's dynamic quantisation names them, whose weights are packed in no tensor.
    dynamic = {
        "0.scale": torch.tensor(1.0), "0.zero_point": torch.tensor(0),
        "0._packed_params.dtype": torch.qint8, "0._packed_params._packed_params": (None, None),
    }  # fmt: skip
    static = {
        "0.weight": torch.quantize_per_tensor(torch.randn(4, 4), 0.1, 0, torch.qint8),
        "0.bias": torch.zeros(4),
    }
    for name, tensors in {"dynamic": dynamic, "static": static}.items():
        torch.save(tensors, tmp_path / f"{name}.pth")
        with pytest.raises(bd.CheckpointError, match=rf"{name}.pth is quantised \(tensor '0\."):
            load_weights(plain, tmp_path / f"{name}.pth")
    integers = {"0.weight": torch.zeros(4, 4, dtype=torch.int8), "0.bias": torch.zeros(4)}
    with pytest.raises(bd.CheckpointError, match="'0.weight' .* holds int8"):
        load_weights(plain, integers)


def test_a_whole_pickled_model_is_refused_by_name(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "w.pth")
    with pytest.raises(bd.CheckpointError, match=r"torch.nn.modules.linear.Linear.*save its state_dict\(\)"):
        load_weights(nn.Linear(2, 2), tmp_path / "w.pth")
    torch.save({"weight": torch.zeros(2, 2), "epoch": 3}, tmp_path / "mixed.pth")
    with pytest.raises(bd.CheckpointError, match="entry 'epoch' is of type int"):
        load_weights(nn.Linear(2, 2), tmp_path / "mixed.pth")


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


@pytest.mark.parametrize("zipped", [True, False])
def test_a_name_of_a_million_letters_costs_no_time(tmp_path: Path, zipped: bool) -> None:
    """Torch's own message of it would be searched for a quarter of an hour."""
    path = tmp_path / "w.pth"
    torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=zipped)
    name, long = b"torch._utils", b"torch._utils" + b"[" * 10**6
    if zipped:
        with zipfile.ZipFile(path) as archive:
            parts = {part: archive.read(part) for part in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for part, content in parts.items():
                archive.writestr(part, content.replace(name, long, 1))
    else:
        path.write_bytes(path.read_bytes().replace(name, long, 1))
    began = time.process_time()
    with pytest.raises(CheckpointError, match="holds a word of 10000"):
        read_state_dict(path)
    assert time.process_time() - began < 5
    torch.save({"a": torch.zeros(2), "config": "word " * 10_000}, path)
    with pytest.raises(CheckpointError, match="entry 'config' is of type str"):
        read_state_dict(path)  # a long text is read


@pytest.mark.parametrize("name", ["pipe.pth", "pipe.safetensors"])
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(bd.CheckpointError, match="a pipe, socket or device"):
        build_model(NAME, weights=tmp_path / name)
    with pytest.raises(bd.CheckpointError, match="it is a folder"):
        build_model(NAME, weights=tmp_path)
    with pytest.raises(bd.CheckpointError, match="cannot read checkpoint"):
        build_model(NAME, weights="9" * 5000)


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


def test_pretrained_from_timms_caches(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First the Hugging Face hub's cache, laid out as its client does, then torch's hub folder."""
    timm = pytest.importorskip("timm")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub / "hf"))
    model = timm.create_model("mobilenetv3_small_050")
    with pytest.raises(bd.CheckpointError, match="mobilenetv3_small_050.* are not on this disk"):
        timm_file(model)
    assert timm_file(nn.Linear(2, 2)) is None
    old = hub / Path(model.pretrained_cfg["url"]).name
    old.touch()
    assert timm_file(model) == old
    repository = hub / "hf" / f"models--{model.pretrained_cfg['hf_hub_id'].replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    file = repository / "snapshots" / "abc" / "model.safetensors"
    file.parent.mkdir(parents=True)
    save_file(model.state_dict(), file)
    assert timm_file(model) == file
    load_weights(timm.create_model("mobilenetv3_small_050"), file)


def test_pretrained_of_a_network_without_any(hub: Path) -> None:
    with pytest.raises(bd.CheckpointError, match="no pretrained weights for 'demo'"):
        build_model("demo", weights="pretrained")
