"""OpenVINO against the conformance class, and what is its own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bcnet_deploy.devices import DeviceProfile, load_device
from bcnet_deploy.errors import DeviceError, EngineError, ExportError
from bcnet_deploy.export import build_engine, engine, export_onnx
from bcnet_deploy.export.onnx import trace
from bcnet_deploy.lut.layers import layers_of
from bcnet_deploy.profiler.layer_map import LayerMap
from bcnet_deploy.runtime import machine, openvino
from bcnet_deploy.runtime.base import Runtime
from bcnet_deploy.runtime.openvino import OpenVinoRunner, undisturbed_means
from bcnet_deploy.runtime.registry import find_runtime
from bcnet_deploy.testing.runtimes import RuntimeConformance, image_onnx, image_outputs, reference_onnx
from tests.export.nets import pictures, small
from tests.lut.fakes import TinyNet, tiny_space

here = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")
bf16_here = pytest.mark.skipif(
    bool(find_runtime("openvino").lacking("cpu", "bf16")), reason="this CPU has no BF16, or no openvino"
)


@here
class TestOpenVino(RuntimeConformance):
    @pytest.fixture
    def runtime(self) -> Runtime:
        return find_runtime("openvino")

    @pytest.fixture
    def device(self) -> DeviceProfile:
        return load_device("cpu-openvino")


@bf16_here
class TestOpenVinoInBF16(TestOpenVino):
    tolerance = 0.03  # eight bits of mantissa

    @pytest.fixture
    def device(self) -> DeviceProfile:
        return load_device("cpu-openvino-bf16")


@bf16_here
def test_the_precision_is_the_one_that_was_asked_for() -> None:
    images = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    exact = image_outputs(images)
    errors = {}
    for precision in ("fp32", "bf16"):
        with OpenVinoRunner(image_onnx(), precision=precision) as runner:
            errors[precision] = np.abs(runner.infer({"x": images})["y"] - exact).max() / np.abs(exact).max()
    assert errors["fp32"] < 1e-5
    assert 1e-4 < errors["bf16"] < 2e-2


def test_means_are_of_the_runs_that_nothing_disturbed() -> None:
    """Known times of 40 nodes, counted as OpenVINO does: the mean of all runs, in whole microseconds."""
    rng = np.random.default_rng(0)
    true = rng.uniform(0.5, 90.0, 40)
    runs = true * rng.uniform(0.99, 1.01, (20, 1))
    runs[9:11] *= 1.5  # a neighbour, in the third block
    done = [2, 5, 8, 11, 14, 17, 20]
    counters = [
        {f"n{index}": float(mean) for index, mean in enumerate(np.floor(runs[:count].mean(axis=0)))}
        for count in done
    ]
    del counters[0]["n3"]  # too short to be counted yet
    means = undisturbed_means(done, counters)
    assert set(means) == {f"n{index}" for index in range(40)}
    error = np.array([means[f"n{index}"] for index in range(40)]) - true
    # Two cuts of at most one microsecond, weighed by the runs before them: (20 + 8 + 11 + 2) / 15.
    assert np.abs(error).max() < 2.8
    assert abs(error.mean()) < 1.0
    assert np.abs(np.floor(runs.mean(axis=0)) - true).sum() > 2 * np.abs(error).sum()


@here
def test_latencies_hold_nothing_of_what_counting_costs() -> None:
    """Counters cannot be turned off: they are kept by a copy of the network, and by that alone."""
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)}
    with OpenVinoRunner(image_onnx(), profiling=True) as runner:
        nodes = runner.node_times(feeds, runs=9, warmup=1)
        assert str(runner._compiled.get_property("PERF_COUNT")) in ("NO", "False")
        assert all(len(node.durations_us) == 9 for node in nodes)
        executed = {op.get_friendly_name() for op in runner._compiled.get_runtime_model().get_ordered_ops()}
        assert nodes and {node.name for node in nodes} <= executed


@here
def test_profiling_must_be_asked_for() -> None:
    with OpenVinoRunner(reference_onnx()) as runner, pytest.raises(EngineError, match="profiling=True"):
        runner.node_times({"x": np.zeros((1, 6), np.float32)}, runs=1)


@here
@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=bf16_here)])
def test_every_node_belongs_to_a_layer(precision: str) -> None:
    """Fused activations, additions and conversions: each convolution has time, and none is lost."""
    model, space = TinyNet().eval(), tiny_space(size=16)
    exported, _ = trace(model, space.input_size, batch=1)
    layers = layers_of(space)
    layer_map = LayerMap(exported, space, layers)
    with OpenVinoRunner(exported.SerializeToString(), precision=precision, profiling=True) as runner:
        nodes = runner.node_times(runner.random_feeds(np.random.default_rng(0)), runs=4)
    assert layer_map.layer_times(nodes).sum() == pytest.approx(sum(sum(node.durations_us) for node in nodes))
    counts = layer_map.node_counts(nodes)
    for layer, count in zip(layers, counts, strict=True):
        if layer.key.startswith(("conv", "linear")):
            assert count >= 1, layer.name


@here
def test_an_ir_is_exported_with_parity_and_replaced_as_a_whole(tmp_path: Path) -> None:
    images, path = pictures(4), tmp_path / "net.xml"
    export_onnx(small(), tmp_path / "net.onnx", (3, 12, 12), parity_inputs=images)
    device = load_device("cpu-openvino")
    for _ in range(2):
        result = build_engine(tmp_path / "net.onnx", path, device, parity_inputs=images)
        assert result.parity is not None and result.parity.passed and result.parity.tolerance == 1e-4
    written = {"net.onnx", *(file.name for file in find_runtime("openvino").engine_files(path))}
    assert {file.name for file in tmp_path.iterdir()} == written == {
        "net.onnx", "net.xml", "net.bin", "net.xml.json",
    }  # fmt: skip
    find_runtime("openvino").engine_runner(path, device)
    weights = path.with_suffix(".bin").read_bytes()
    path.with_suffix(".bin").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))  # of another network
    with pytest.raises(
        EngineError, match=r"net.bin is missing, or not what was built .*build the engine again"
    ):
        find_runtime("openvino").engine_runner(path, device)


@here
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda text: text.replace('version="11"', 'version="7"', 1),
            "is an IR of version 7; OpenVINO reads",
        ),
        (lambda text: "<html></html>", "is no IR; OpenVINO reads versions 10 and 11: export it again"),
        (lambda text: text[: len(text) // 2], "refuses the model"),
    ],
)
def test_an_ir_of_another_version_or_none_at_all(
    change: Callable[[str], str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One line, and nothing of the frameworks that OpenVINO tries instead."""
    export_onnx(small(), tmp_path / "net.onnx", (3, 12, 12), parity_inputs=None)
    path, device = tmp_path / "net.xml", load_device("cpu-openvino")
    build_engine(tmp_path / "net.onnx", path, device)
    path.write_text(change(path.read_text()))
    path.with_name("net.xml.json").unlink()
    capfd.readouterr()
    with pytest.raises(EngineError, match=message):
        find_runtime("openvino").engine_runner(path, device).activate()
    assert capfd.readouterr().err == ""


@here
def test_an_engine_that_computes_something_else_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_onnx(small(), tmp_path / "net.onnx", (3, 12, 12), parity_inputs=None)
    wrong = lambda network, inputs, **more: {"logits": np.ones((len(inputs), 5), np.float32)}  # noqa: E731
    monkeypatch.setattr(engine, "outputs_of_onnx", wrong)
    with pytest.raises(ExportError, match="computes something else"):
        build_engine(
            tmp_path / "net.onnx",
            tmp_path / "net.xml",
            load_device("cpu-openvino"),
            parity_inputs=pictures(4),
        )
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


@here
@pytest.mark.parametrize("kind", ["gpu", "npu"])
def test_a_device_that_openvino_does_not_find(kind: str) -> None:
    if find_runtime("openvino").device_name(kind) is not None:
        pytest.skip("it is here")
    device = DeviceProfile(
        name="arc",
        kind=kind,
        runtime="openvino",
        precision="fp16",
        device_names=("Arc",),  # type: ignore[arg-type]
    )
    with pytest.raises(DeviceError, match=f"no {kind.upper()}"):
        device.require_here()


@here
@pytest.mark.parametrize(
    ("name", "flags", "reason"),
    [
        ("cpu-openvino-bf16", {"avx2", "avx512f"}, r"no instructions for BF16 \(avx512_bf16 or amx_bf16\)"),
        (
            "cpu-openvino-int8",
            {"avx2", "avx512f"},
            r"no instructions for INT8 \(avx512_vnni, avx_vnni or amx_int8\)",
        ),
        ("cpu-int8", {"avx2"}, "no instructions for INT8"),
        ("cpu-openvino-bf16", {"avx2", "amx_bf16"}, ""),
        ("cpu-openvino-int8", {"avx2", "avx_vnni"}, ""),
        ("cpu-openvino", {"avx2"}, ""),
    ],
)
def test_a_precision_that_the_cpu_lacks_is_named(
    name: str, flags: set[str], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "cpu_flags", lambda: frozenset(flags))
    monkeypatch.setattr(openvino, "cpu_flags", lambda: frozenset(flags))
    device = load_device(name)
    if reason:
        with pytest.raises(DeviceError, match=reason):
            device.require_here()
    else:
        device.require_here()


def test_openvino_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(EngineError, match="pip install openvino"):
        OpenVinoRunner(reference_onnx()).activate()
    monkeypatch.setattr(machine, "package_version", lambda package: None)
    assert "pip install openvino" in find_runtime("openvino").lacking("cpu")


@here
def test_nothing_is_sent_or_written_elsewhere_when_it_is_loaded(tmp_path: Path) -> None:
    """OpenVINO's telemetry begins with a file in the user's home."""
    code = (
        "import sys; from bcnet_deploy.runtime import openvino; openvino._openvino()\n"
        "assert 'openvino_telemetry' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
