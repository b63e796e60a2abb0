"""Which weights a network of a run has, and that its export knows them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bcnet_deploy import files
from bcnet_deploy.models import build_model
from bcnet_deploy.models.ref import ModelRef
from bcnet_deploy.run.directory import RunConfig, RunDir
from bcnet_deploy.run.export import export
from bcnet_deploy.run.settings import ExportSettings
from bcnet_deploy.run.subnets import subnet_of
from bcnet_deploy.run.widths import named
from tests.run.tinynet import MODEL


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run with weights whose first convolution has large filters where its norm has small scales."""
    (tmp_path / "tinynet.py").write_text(MODEL)
    model_name = f"{tmp_path / 'tinynet.py'}:net"
    save_file(weights(model_name), str(tmp_path / "net.safetensors"))
    ref = ModelRef(model_name, num_classes=10, input_size=(1, 16, 16), levels=4)
    run = RunDir(tmp_path / "run")
    run.save(RunConfig(ref.replace(weights=str(tmp_path / "net.safetensors")), data="digits"))
    return run


def weights(name: str, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    model = build_model(name, num_classes=10)
    with torch.no_grad():
        norm, filters = model[1], model[0].weight
        norm.weight.copy_(torch.linspace(0.1, 1.0, 32))
        lengths = filters.flatten(1).norm(dim=1) / torch.linspace(100.0, 1.0, 32)
        filters.copy_(filters / lengths[:, None, None, None])
    return dict(model.state_dict())


@pytest.mark.parametrize(
    ("importance", "kept"), [("bn-scale", slice(16, 32)), ("l2", slice(0, 16)), (None, slice(0, 16))]
)
def test_a_network_has_the_channels_that_the_search_scored(
    run: RunDir, importance: str | None, kept: slice
) -> None:
    space = run.space()
    files.write_yaml(run.widths_file, {"widths": named(space.uniform(0.5), space)})
    if importance is not None:
        run.keep(steps={"search": {"macs": "0.5x", "scores": "pruned", "importance": importance}})
    module = subnet_of(run, "found").module
    assert isinstance(module, nn.Sequential)
    scales = module[1].weight.detach().sort().values
    torch.testing.assert_close(scales, torch.linspace(0.1, 1.0, 32)[kept])


def test_other_weights_in_the_same_file_are_exported_anew(run: RunDir) -> None:
    settings = ExportSettings(network="full")
    assert export(run, settings).ran and not export(run, settings).ran
    before = files.content_hash(run.export / "full.onnx")
    ref = run.load().model
    save_file(weights(ref.name, seed=1), str(ref.weights))
    assert export(run, settings, replace=True).ran
    assert files.content_hash(run.export / "full.onnx") != before
