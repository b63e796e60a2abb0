"""doctor says what is here, what each device profile can do, and never fails."""

from __future__ import annotations

import json
import platform
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest
import torch
from click.testing import CliRunner

from bcnet_deploy.cli.doctor import judge
from bcnet_deploy.cli.main import cli
from bcnet_deploy.devices import known_devices, load_device
from bcnet_deploy.runtime import machine, ort, trt, trt_build
from bcnet_deploy.runtime.trt_build import Flavour

RTX = Flavour("tensorrt_rtx", "1", SimpleNamespace(ComputeCapability=SimpleNamespace(SM75=0, SM89=0)))
FULL = Flavour("tensorrt", "10", SimpleNamespace())
T4 = ("Tesla T4", "7.5")
A100 = ("NVIDIA A100-SXM4-40GB", "8.0")


@pytest.mark.parametrize(
    ("device", "gpu", "providers", "flavours", "measure", "build", "why"),
    [
        ("cpu", None, ["cpu"], [], True, True, ""),
        ("cpu", None, [], [], False, True, "ONNX Runtime is not installed"),
        ("t4", None, ["cpu"], [], False, False, "no GPU; TensorRT is not installed"),
        ("t4", None, ["cpu"], [RTX], False, True, "no GPU"),
        ("t4", T4, ["cpu"], [FULL], True, True, ""),
        ("t4", A100, ["cpu"], [FULL], False, False, "the GPU of this machine is NVIDIA A100"),
        ("a10", A100, ["cpu"], [FULL], False, False, "the GPU of this machine is NVIDIA A100"),
        ("h100", None, ["cpu"], [RTX], False, False, "not 9.0; install 'tensorrt' on the target's host"),
    ],
)
def test_judgement(
    device: str, gpu: Any, providers: list, flavours: list, measure: bool, build: bool, why: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for module in (trt, trt_build):
        monkeypatch.setattr(module, "gpu", lambda: gpu)
        monkeypatch.setattr(module, "installed_flavours", lambda: tuple(flavours))
    monkeypatch.setattr(machine, "gpu_name", lambda: gpu and gpu[0])
    monkeypatch.setattr(ort, "available_providers", lambda: tuple(providers))
    entry = judge(load_device(device))
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
