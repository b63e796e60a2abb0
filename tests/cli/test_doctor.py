"""doctor says what is here, what each device profile can do, and never fails."""

from __future__ import annotations

import json
import platform
from typing import Any

import onnxruntime
import pytest
import torch
from click.testing import CliRunner

from bcnet_deploy.cli.doctor import judge
from bcnet_deploy.cli.main import cli
from bcnet_deploy.devices import known_devices, load_device

RTX = {"name": "tensorrt_rtx", "version": "1", "capabilities": ["7.5", "8.9"]}
FULL: dict[str, Any] = {"name": "tensorrt", "version": "10", "capabilities": []}
T4 = {"name": "Tesla T4", "capability": "7.5"}
A100 = {"name": "NVIDIA A100-SXM4-40GB", "capability": "8.0"}


@pytest.mark.parametrize(
    ("device", "gpus", "providers", "flavours", "measure", "build", "why"),
    [
        ("cpu", [], ["cpu"], [], True, False, ""),
        ("cpu", [], [], [], False, False, "ONNX Runtime is not installed"),
        ("t4", [], ["cpu"], [], False, False, "no such GPU here; TensorRT is not installed"),
        ("t4", [], ["cpu"], [RTX], False, True, "no such GPU here"),
        ("t4", [T4], ["cpu"], [FULL], True, True, ""),
        ("t4", [A100], ["cpu"], [FULL], False, False, "no such GPU here (found NVIDIA A100"),
        ("a10", [A100], ["cpu"], [FULL], False, False, "no such GPU here"),
        ("h100", [], ["cpu"], [RTX], False, False, "9.0 are built on its own host"),
    ],
)
def test_judgement(
    device: str, gpus: list, providers: list, flavours: list, measure: bool, build: bool, why: str
) -> None:
    entry = judge(load_device(device), gpus, providers, flavours)
    assert (entry["measure"], entry["build"]) == (measure, build)
    assert why in entry["why"] if why else entry["why"] == ""


def test_json_names_versions_and_every_profile() -> None:
    result = CliRunner().invoke(cli, ["doctor", "--json"])
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["python"] == platform.python_version()
    assert data["packages"]["onnxruntime"] == onnxruntime.__version__
    assert data["packages"]["torch"] == torch.__version__.split("+")[0]
    assert set(data["devices"]) == set(known_devices())
    assert data["devices"]["cpu"]["measure"]
    assert data["cpu"]["cores"] >= 1
    assert bool(data["gpus"]) == torch.cuda.is_available()


def test_people_see_processor_runtimes_and_profiles() -> None:
    result = CliRunner().invoke(cli, ["doctor"])
    assert result.exit_code == 0, result.output
    for text in ("CPU:", "GPU:", "ONNX Runtime providers: cpu", "jetson-orin"):
        assert text in result.output
