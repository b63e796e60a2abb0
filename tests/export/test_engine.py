"""Engines from ONNX files and device profiles. Building needs tensorrt_rtx, but no GPU."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from bcnet_deploy.devices import load_device
from bcnet_deploy.errors import EngineError, ExportError
from bcnet_deploy.export import ModelMetadata, build_engine, export_onnx
from bcnet_deploy.export import metadata as meta
from bcnet_deploy.runtime.engine_file import read_engine, read_head
from bcnet_deploy.runtime.ort import OnnxRuntime, OrtRunner
from bcnet_deploy.runtime.registry import find_runtime
from bcnet_deploy.runtime.trt_build import find_flavour
from tests.export.nets import pictures, small

SIZE = (3, 12, 12)
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FP32, and INT8 for both runtimes, of one network."""
    path = tmp_path_factory.mktemp("onnx")
    net, images = small(), pictures()
    described = ModelMetadata(widths={"stem.0": 8}, class_names=("a", "b", "c", "d", "e"))
    export_onnx(net, path / "fp32.onnx", SIZE, parity_inputs=images, metadata=described)
    export_onnx(net, path / "dynamic.onnx", SIZE, parity_inputs=images, batch=None)
    for target in ("ort", "trt"):
        export_onnx(
            net, path / f"int8-{target}.onnx", SIZE, parity_inputs=images, precision="int8", target=target,  # type: ignore[arg-type]
            minimum_top1=0.5,
        )  # fmt: skip
    return path


@pytest.mark.parametrize(
    ("source", "device", "precision", "capability"),
    [
        ("fp32", "t4", "fp16", "7.5"),
        ("fp32", "rtx-4090", "fp32", "8.9"),
        ("dynamic", "a10", "fp16", "8.6"),
        ("int8-trt", "t4", "int8", "7.5"),
        ("int8-trt", "l4", "int8", "8.9"),
    ],
)
def test_engines_for_gpus_that_are_not_here(
    folder: Path, tmp_path: Path, source: str, device: str, precision: str, capability: str
) -> None:
    path = tmp_path / "n.engine"
    result = build_engine(folder / f"{source}.onnx", path, device, precision)  # type: ignore[arg-type]
    plan, info = read_engine(path)
    assert info == result.info
    assert (info.flavour, info.capability, info.precision) == ("tensorrt_rtx", capability, precision)
    assert info.version == find_flavour("tensorrt_rtx").version
    assert info.onnx_sha256 == meta.sha256(folder / f"{source}.onnx")
    assert info.engine_sha256 == meta.sha256(path)
    assert info.input_size == SIZE
    assert info.batch == ((1, 8, 32) if source == "dynamic" else (1, 1, 1))
    assert any(name.endswith("/Conv") for name in info.nodes)
    if source == "fp32":
        assert info.network["widths"] == {"stem.0": 8}
    head = read_head(plan)
    assert head is not None
    assert head.capabilities == (capability,)


def test_lower_precision_makes_smaller_engines(tmp_path: Path) -> None:
    # Weights of 4.7 MB, beside which kernels do not count.
    heavy = nn.Sequential(nn.Conv2d(3, 256, 3), nn.ReLU(), nn.Conv2d(256, 512, 3)).eval()
    export_onnx(heavy, tmp_path / "n.onnx", SIZE, parity_inputs=None)
    sizes = [
        build_engine(tmp_path / "n.onnx", tmp_path / "n.engine", "rtx-4090", precision).info.size_bytes  # type: ignore[arg-type]
        for precision in ("fp32", "fp16")
    ]
    assert sizes[0] > 4.7e6
    assert sizes[1] < 0.75 * sizes[0]


@pytest.mark.parametrize(
    ("source", "device", "precision", "error", "message"),
    [
        ("fp32", "t4", "fp32", EngineError, r"no FP32.*7\.5.*--precision fp16"),
        ("fp32", "h100", "fp16", EngineError, r"not 9\.0"),
        ("fp32", "jetson-orin", "fp16", EngineError, r"not 8\.7"),
        ("fp32", "t4", "int8", ExportError, "precision fp32, int8 was asked for.*calibrates"),
        ("int8-ort", "t4", "int8", ExportError, "quantised for ONNX Runtime"),
        ("int8-trt", "a10", "fp16", ExportError, "precision int8, fp16 was asked for"),
        ("missing", "a10", "fp16", ExportError, "cannot read"),
    ],
)
def test_refusals(
    folder: Path, tmp_path: Path, source: str, device: str, precision: str, error: type, message: str
) -> None:
    path = tmp_path / "n.engine"
    path.write_bytes(b"former")
    with pytest.raises(error, match=message):
        build_engine(folder / f"{source}.onnx", path, device, precision)  # type: ignore[arg-type]
    assert path.read_bytes() == b"former"
    assert [entry.name for entry in tmp_path.iterdir()] == ["n.engine"]


def test_a_cpu_has_no_tensorrt_engine(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="'cpu' is no GPU"):
        build_engine(folder / "fp32.onnx", tmp_path / "n.engine", "cpu", runtime=find_runtime("tensorrt"))
    assert not list(tmp_path.iterdir())


def test_what_is_no_onnx_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "n.onnx").write_bytes(b"\xff\xfe nothing")
    with pytest.raises(ExportError, match="no.*ONNX file"):
        build_engine(tmp_path / "n.onnx", tmp_path / "n.engine", "a10", "fp16")


def test_a_precision_that_the_device_lacks() -> None:
    device = load_device("t4")
    without = device.replace(peak_tflops={"fp16": device.peak_tflops["fp16"]})
    with pytest.raises(EngineError, match="has no INT8; its profile lists fp16"):
        find_runtime("tensorrt").check_engine(without, "int8")


def test_a_dynamic_engine_is_compared_in_batches_that_it_takes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 70 images an engine for 1 to 32 at once gets 32, and nothing is left where it refuses them."""
    inputs = pictures(70)
    given: list[int] = []
    right = OrtRunner._infer

    def counted(self: OrtRunner, feeds: Any) -> Any:
        given.append(len(next(iter(feeds.values()))))
        if given[-1] > limit:
            raise EngineError("too many")
        return right(self, feeds)

    monkeypatch.setattr(OrtRunner, "_infer", counted)
    onnx = export_onnx(small(), tmp_path / "n.onnx", (3, 12, 12), batch=None, parity_inputs=None).path
    build = partial(
        build_engine, onnx, tmp_path / "n.ort", load_device("cpu"), "fp32", parity_inputs=inputs,
        runtime=OnnxRuntime(),
    )  # fmt: skip
    limit = 32
    built = build()
    assert built.parity is not None and built.parity.passed and given == [32] * 3
    limit = 8
    for file in tmp_path.glob("n.ort*"):
        file.unlink()
    with pytest.raises(EngineError, match="too many"):
        build()
    assert [path.name for path in tmp_path.iterdir()] == ["n.onnx"]
