"""The examples of a runtime and of a device of one's own do what their pages say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from bcnet_deploy.bench import BenchSettings, bench
from bcnet_deploy.devices import load_device
from bcnet_deploy.errors import DeviceError
from bcnet_deploy.export import build_engine, export_onnx
from bcnet_deploy.profiler.profiling import profile
from bcnet_deploy.run.directory import RunDir
from tests.export.nets import pictures, small
from tests.lut.fakes import TinyNet, tiny_space

EXAMPLES = Path(__file__).parents[2] / "examples"
NUMPY = EXAMPLES / "runtime" / "numpy-cpu.yaml"

spec = importlib.util.spec_from_file_location(
    "example_runtime", EXAMPLES / "runtime" / "test_numpy_runtime.py"
)
assert spec is not None and spec.loader is not None
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
TestNumpyRuntime = module.TestNumpyRuntime


def test_a_runtime_from_outside_profiles() -> None:
    torch.manual_seed(0)
    table = profile(TinyNet().eval(), tiny_space(size=32), NUMPY, budget_s=8)
    assert (table.device, table.provenance["runtime"]) == ("numpy-cpu", "numpy")
    assert table.provenance["runtime_version"] == np.__version__
    assert table.differences() == []
    full = [variable.channels for variable in table.network.variables]
    assert table.predict(full)[0] > table.predict(np.ones_like(full))[0] > 0


def test_a_runtime_from_outside_exports_and_benches(tmp_path: Path) -> None:
    size = (3, 12, 12)
    images = pictures(4)
    export_onnx(small(), tmp_path / "net.onnx", size, parity_inputs=images)
    result = build_engine(
        tmp_path / "net.onnx", tmp_path / "net.numpy.onnx", load_device(NUMPY), parity_inputs=images
    )
    assert result.parity is not None and result.parity.passed
    assert result.info.flavour == "numpy"
    settings = BenchSettings(rounds=2, runs=2, warmup=1, batches=(1,))
    found = bench({"net": tmp_path / "net.onnx"}, load_device(NUMPY), settings=settings)
    assert next(iter(found.networks["net"].runtimes)) == "numpy-cpu"  # the device's own comes first
    layers = found.networks["net"].runtimes["numpy-cpu"].layers
    assert any(layer.name.startswith("stem.0") for layer in layers)


def test_the_run_keeps_the_profile_with_its_runtime(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.keep_device(load_device(NUMPY))
    assert run.device("numpy-cpu").run_by().name == "numpy"


def test_a_measured_device_needs_no_data_sheet(tmp_path: Path) -> None:
    board = load_device(EXAMPLES / "device" / "my-board.yaml")
    board.require_here()
    space = tiny_space(size=8)
    with pytest.raises(DeviceError, match="'my-board' has no peak_tflops, bandwidth_gb_s"):
        profile(TinyNet().eval(), space, board, estimate=True)
    estimated = load_device(EXAMPLES / "device" / "my-board-estimated.yaml")
    assert profile(TinyNet().eval(), space, estimated, estimate=True).estimated
