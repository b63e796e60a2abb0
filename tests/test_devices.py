"""Device profiles: the shipped ones, and every way in which a user's own can be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from bcnet_deploy.devices import DeviceProfile, known_devices, load_device, read_profile
from bcnet_deploy.errors import DeviceError, UnknownDeviceError

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
    assert load_device(name).matches_gpu(driver) is match


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
        ({"batch": 0}, "batch must be a whole number"),
        ({"batch": 1.5}, "batch must be a whole number"),
        ({"threads": 1}, "unknown key 'threads'"),
        ({"bandwith": 1}, "unknown key 'bandwith'.*did you mean 'bandwidth_gb_s'"),
        ({"kind": "tpu"}, "kind must be one of"),
        ({"runtime": "tflite"}, "runtime must be one of"),
        ({"precision": "fp8"}, "precision must be one of"),
        ({"compute_capability": 7.5}, "compute_capability must be quoted"),
        ({"device_names": "T4"}, "device_names must be a list"),
        ({"device_names": []}, "device_names must be a list"),
        ({"name": ""}, "name must be text"),
        ({"bandwidth_gb_s": 320}, "bandwidth_gb_s must have exactly"),
        ({"bandwidth_gb_s": {"value": -1, "source": "x"}}, "bandwidth_gb_s.value must be a positive"),
        (
            {"bandwidth_gb_s": {"value": float("nan"), "source": "x"}},
            "bandwidth_gb_s.value must be a positive",
        ),
        (
            {"bandwidth_gb_s": {"value": float("inf"), "source": "x"}},
            "bandwidth_gb_s.value must be a positive",
        ),
        ({"bandwidth_gb_s": {"value": True, "source": "x"}}, "bandwidth_gb_s.value must be a positive"),
        ({"bandwidth_gb_s": {"value": 1, "source": " "}}, "bandwidth_gb_s.source must say"),
        ({"achievable": {"value": 2, "source": "x"}}, "achievable is a share"),
        ({"peak_tflops": {}}, "peak_tflops has figures by precision"),
        ({"peak_tflops": {"fp8": {"value": 1, "source": "x"}}}, "peak_tflops has figures by precision"),
        ({"peak_tflops": {"fp32": {"value": 1, "source": "x"}}}, "peak_tflops lacks .* 'fp16'"),
    ],
)
def test_wrong_values_name_the_file_and_the_key(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write(tmp_path, {**t4(), **change})
    with pytest.raises(DeviceError, match=message) as caught:
        read_profile(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("key", sorted(t4()))
def test_missing_keys_are_named(tmp_path: Path, key: str) -> None:
    data = t4()
    del data[key]
    with pytest.raises(DeviceError, match=key):
        read_profile(write(tmp_path, data))


@pytest.mark.parametrize("threads", [0, -1, "two", None])
def test_a_cpu_states_its_threads(tmp_path: Path, threads: Any) -> None:
    data = yaml.safe_load(known_devices()["cpu"].read_text())
    with pytest.raises(DeviceError, match="threads must be a whole number of 1 or more"):
        read_profile(write(tmp_path, {**data, "threads": threads}))


@pytest.mark.parametrize("text", ["", "- a list", "just text", "a: [", "\x00"])
def test_files_that_hold_no_profile(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(DeviceError):
        load_device(path)
    with pytest.raises(DeviceError, match="no device profile at"):
        load_device(tmp_path / "absent.yaml")
