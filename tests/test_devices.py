"""Device profiles: the shipped ones, and every way in which a user's own can be wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from bcnet_deploy.devices import (
    DeviceProfile,
    is_shipped,
    known_devices,
    load_device,
    new_profile_text,
    read_profile,
)
from bcnet_deploy.errors import DeviceError, UnknownDeviceError
from bcnet_deploy.lut.estimate import estimate_table
from bcnet_deploy.run.directory import RunDir
from tests.lut.fakes import tiny_space

FIGURES = ("peak_tflops", "bandwidth_gb_s", "launch_overhead_us", "achievable", "channel_granularity")
EXPECTED = {"cpu", "cpu-1thread", "t4", "l4", "a10", "a100", "h100", "jetson-orin", "rtx-4090"}


def t4() -> dict[str, Any]:
    return yaml.safe_load(known_devices()["t4"].read_text())


def write(tmp_path: Path, data: Any) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def test_the_promised_devices_are_shipped() -> None:
    assert set(known_devices()) >= EXPECTED


@pytest.mark.parametrize("name", sorted(known_devices()))
def test_every_shipped_profile_is_valid_and_sourced(name: str) -> None:
    device = load_device(name)
    assert device.name == name
    figures = [*device.peak_tflops.values(), *device.channel_granularity.values()]
    figures += [device.bandwidth_gb_s, device.launch_overhead_us, device.achievable]
    assert all(len(figure.source) > 20 for figure in figures)
    assert (device.threads is None) == (device.kind == "gpu")


@pytest.mark.parametrize(
    # NVIDIA's own table "CUDA GPUs - Compute Capability"
    ("name", "capability"),
    [("t4", "7.5"), ("a100", "8.0"), ("a10", "8.6"), ("jetson-orin", "8.7"), ("l4", "8.9"),
     ("rtx-4090", "8.9"), ("h100", "9.0")],
)  # fmt: skip
def test_compute_capabilities(name: str, capability: str) -> None:
    assert load_device(name).compute_capability == capability


@pytest.mark.parametrize(
    ("name", "driver", "match"),
    [
        ("t4", "Tesla T4", True),
        ("t4", "Quadro T400 4GB", False),
        ("a10", "NVIDIA A10", True),
        ("a10", "NVIDIA A100-SXM4-80GB", False),
        ("a100", "NVIDIA A100-SXM4-80GB", True),
        ("l4", "NVIDIA L40S", False),
        ("rtx-4090", "NVIDIA GeForce RTX 4090", True),
        ("rtx-4090", "NVIDIA GeForce RTX 3090", False),
        ("h100", "NVIDIA H200", False),
        ("jetson-orin", "Orin (nvgpu)", True),
    ],
)
def test_driver_names(name: str, driver: str, match: bool) -> None:
    assert load_device(name).matches(driver) is match


def test_unknown_device_names_the_nearest() -> None:
    with pytest.raises(UnknownDeviceError, match="did you mean 'rtx-4090'"):
        load_device("rtx4090")
    with pytest.raises(UnknownDeviceError, match="cpu-1thread"):
        load_device("zzz")


def test_a_profile_of_ones_own(tmp_path: Path) -> None:
    device = load_device(write(tmp_path, {**t4(), "name": "mine", "batch": 8}))
    assert isinstance(device, DeviceProfile)
    assert (device.name, device.batch) == ("mine", 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, "batch is 0; allowed: from 1 up"),
        ({"batch": 1.5}, "batch is 1.5; allowed: a whole number"),
        ({"threads": 1}, "threads is not a key of a gpu"),
        ({"bandwith": 1}, "unknown key 'bandwith'.*did you mean 'bandwidth_gb_s'"),
        ({"path": "x"}, "unknown key 'path'"),
        ({"kind": "tpu"}, "kind is 'tpu'; allowed: 'cpu', 'gpu' or 'npu'"),
        ({"kind": ["cpu"]}, r"kind is \['cpu'\]"),
        ({"runtime": "tensort"}, "unknown runtime 'tensort'; did you mean 'tensorrt'"),
        ({"runtime": "no_such_module:Own"}, "no Python module 'no_such_module' for the runtime"),
        ({"runtime": "builtins:dict"}, "'builtins:dict' is dict; needed is a subclass of Runtime"),
        ({"precision": "fp8"}, "precision is 'fp8'; allowed: 'fp32'"),
        ({"compute_capability": 7.5}, "compute_capability is 7.5; allowed: text"),
        ({"compute_capability": "7"}, 'compute_capability is .7.; allowed: quoted text such as "7.5"'),
        ({"device_names": "T4"}, "device_names is 'T4'; allowed: a list"),
        ({"device_names": []}, "device_names is missing"),
        ({"name": ""}, "name is ''; allowed: up to 64"),
        ({"name": "../../out/package"}, "name is '../../out/package'; allowed: up to 64"),
        ({"name": ".hidden"}, "name is '.hidden'"),
        ({"name": "a" * 65}, "name is 'a{65}'"),
        ({"name": "a\0b"}, "name is "),
        ({"bandwidth_gb_s": 320}, "bandwidth_gb_s: 320 is int; needed: keys and values"),
        ({"bandwidth_gb_s": {"value": 1}}, "bandwidth_gb_s: key 'source' is missing"),
        (
            {"bandwidth_gb_s": {"value": -1, "source": "x"}},
            "bandwidth_gb_s: value is -1; allowed: from 1e-06 up",
        ),
        ({"bandwidth_gb_s": {"value": 1e-300, "source": "x"}}, "value is 1e-300; allowed: from 1e-06 up"),
        ({"bandwidth_gb_s": {"value": 1e308, "source": "x"}}, r"value is 1e\+308; allowed: up to"),
        ({"bandwidth_gb_s": {"value": 10**400, "source": "x"}}, r"the number 10+\.\.\. is out of range"),
        (
            {"bandwidth_gb_s": {"value": float("nan"), "source": "x"}},
            "the number nan is not finite",
        ),
        (
            {"bandwidth_gb_s": {"value": float("inf"), "source": "x"}},
            "the number inf is not finite",
        ),
        ({"bandwidth_gb_s": {"value": True, "source": "x"}}, "value is True; allowed: a number"),
        ({"bandwidth_gb_s": {"value": 1, "source": " "}}, "source is blank"),
        ({"achievable": {"value": 2, "source": "x"}}, "achievable.value is 2.0; allowed: a share"),
        ({"peak_tflops": {"fp8": {"value": 1, "source": "x"}}}, "peak_tflops.* 'fp32'"),
        ({"channel_granularity": {"fp16": {"value": 0.5, "source": "x"}}}, "whole numbers, 1 to 1024"),
    ],
)
def test_wrong_values_name_the_file_and_the_key(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write(tmp_path, {**t4(), **change})
    with pytest.raises(DeviceError, match=message) as caught:
        read_profile(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("key", ["name", "kind", "device_names", "compute_capability"])
def test_missing_keys_are_named(tmp_path: Path, key: str) -> None:
    data = t4()
    del data[key]
    with pytest.raises(DeviceError, match=key):
        read_profile(write(tmp_path, data))


@pytest.mark.parametrize("key", FIGURES)
def test_only_an_estimate_needs_the_data_sheet(tmp_path: Path, key: str) -> None:
    data = t4()
    del data[key]
    device = read_profile(write(tmp_path, data))
    with pytest.raises(DeviceError, match=f"'t4' has no {key}, which an estimate"):
        estimate_table(tiny_space(), device)


def test_figures_of_another_precision_are_none(tmp_path: Path) -> None:
    data = t4()
    del data["peak_tflops"]["fp16"]
    with pytest.raises(DeviceError, match=r"has no peak_tflops\.fp16, which"):
        read_profile(write(tmp_path, data)).require_figures()


@pytest.mark.parametrize(
    ("kind", "runtime"), [("cpu", "onnxruntime"), ("gpu", "onnxruntime"), ("gpu", "tensorrt")]
)
@pytest.mark.parametrize("name", ["my-board", "123", "yes", "1.5"])
def test_the_template_is_a_profile_that_measures(tmp_path: Path, name: str, kind: str, runtime: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(new_profile_text(name, kind=kind, runtime=runtime))
    device = load_device(path)
    assert (device.name, device.kind, device.runtime) == (name, kind, runtime)
    # With its comments taken away, it is complete for estimates too.
    lines = path.read_text().splitlines()
    path.write_text(
        "\n".join(re.sub(r"^# (?=peak|band|launch|achiev|channel|  )", "", line) for line in lines)
    )
    load_device(path).require_figures()


def test_the_template_refuses_a_name_that_is_a_path() -> None:
    with pytest.raises(DeviceError, match="name is '../x'"):
        new_profile_text("../x")


def test_a_profile_made_in_python_is_kept_and_read_back(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    device = DeviceProfile(
        name="mine", kind="cpu", threads=3, channel_granularity=load_device("cpu").channel_granularity
    )
    run.keep_device(device)
    assert run.device("mine") == device
    assert not is_shipped(device)


@pytest.mark.parametrize("threads", [0, -1, "two", None, 1.5])
def test_a_cpu_states_its_threads(tmp_path: Path, threads: Any) -> None:
    data = yaml.safe_load(known_devices()["cpu"].read_text())
    with pytest.raises(DeviceError, match="threads is "):
        read_profile(write(tmp_path, {**data, "threads": threads}))


@pytest.mark.parametrize("text", ["", "- a list", "just text", "a: [", "\x00"])
def test_files_that_hold_no_profile(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(DeviceError):
        load_device(path)
    with pytest.raises(DeviceError, match="no device profile at"):
        load_device(tmp_path / "absent.yaml")
