"""Sub-networks on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import bcnet_deploy as bd
from bcnet_deploy.models.ref import ModelRef
from bcnet_deploy.nn import load_subnet, save_subnet
from tests.space import cases
from tests.space.test_operators import SIZE, network

REF = ModelRef("tests.space.cases:net", input_size=SIZE, levels=6)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, torch.nn.Module]:
    model = network(cases.Dense).float()
    space = bd.WidthSpace.from_model(model, SIZE, levels=6)
    widths = space.random(1, np.random.default_rng(0))[0]
    subnet = space.extract(model, widths, "right")
    save_subnet(tmp_path, subnet, widths, space, REF, extra={"note": "kept"})
    return tmp_path, subnet


def test_rebuilt_from_two_files_alone(saved: tuple[Path, torch.nn.Module]) -> None:
    folder, subnet = saved
    assert sorted(p.name for p in folder.iterdir()) == ["subnet.yaml", "weights.safetensors"]
    again, info = load_subnet(folder, network(cases.Dense).float())
    x = torch.randn(2, *SIZE)
    torch.testing.assert_close(again.eval()(x), subnet.eval()(x), rtol=0, atol=0)
    assert info["extra"] == {"note": "kept"} and info["model"]["input_size"] == [3, 8, 8]
    assert info["params"] == sum(p.numel() for p in subnet.parameters())


def test_another_model_is_refused(saved: tuple[Path, torch.nn.Module]) -> None:
    with pytest.raises(bd.CheckpointError, match="another network"):
        load_subnet(saved[0], network(cases.Residual).float())


def test_weights_of_other_widths_are_refused(saved: tuple[Path, torch.nn.Module]) -> None:
    path = saved[0] / "subnet.yaml"
    data = yaml.safe_load(path.read_text())
    data["widths"]["stem.0"] = 12 if data["widths"]["stem.0"] != 12 else 10
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(bd.CheckpointError, match="stem.0.weight has shape"):
        load_subnet(saved[0], network(cases.Dense).float())


@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_damaged_files_are_named(saved: tuple[Path, torch.nn.Module], damage: str) -> None:
    path = saved[0] / "weights.safetensors"
    path.unlink() if damage == "missing" else path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(bd.CheckpointError, match="weights.safetensors"):
        load_subnet(saved[0], network(cases.Dense).float())
    (saved[0] / "subnet.yaml").write_text("format: 1\nmodel: {name: x\n")
    with pytest.raises(bd.CheckpointError, match="not valid YAML at line"):
        load_subnet(saved[0], network(cases.Dense).float())
