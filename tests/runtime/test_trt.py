"""TensorRT. Building needs the package only; running needs its GPU (marked ``gpu``)."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from bcnet_deploy import files
from bcnet_deploy.errors import EngineError
from bcnet_deploy.runtime import trt_build
from bcnet_deploy.runtime.base import Runner
from bcnet_deploy.runtime.engine_file import EngineInfo, read_head, sidecar_path
from bcnet_deploy.runtime.layer_names import origin
from bcnet_deploy.runtime.trt import TrtRunner, collect_times, parse_layers
from bcnet_deploy.runtime.trt_build import (
    Flavour,
    build_plan,
    capabilities,
    check_target,
    find_flavour,
    installed_flavours,
    is_malformed,
)
from bcnet_deploy.testing.runtimes import MakeRunner, RunnerConformance, reference_onnx, reference_weights
from tests.runtime import fake_tensorrt

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed"
)
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


@needs_rtx
@pytest.mark.parametrize("capability", ["8.0", "8.6", "8.9", "12.0"])
def test_a_plan_for_a_gpu_that_is_not_here(capability: str) -> None:
    flavour = find_flavour("tensorrt_rtx")
    plan = build_plan(reference_onnx(), flavour, capability)
    head = read_head(plan)
    assert head is not None
    assert head.capabilities == (capability,)
    assert head.version == flavour.version
    assert not is_malformed(plan, flavour)
    assert is_malformed(b"x" * 4096, flavour)


@needs_rtx
def test_turing_has_no_fp32_as_tensorrt_itself_says() -> None:
    flavour = find_flavour("tensorrt_rtx")
    with pytest.raises(EngineError, match=r"no FP32 matrix kernels for compute capability 7\.5.*fp16"):
        check_target(flavour, "7.5", "fp32")
    check_target(flavour, "7.5", "fp16")
    with pytest.raises(EngineError, match="FP32 GEMM is not supported"):
        build_plan(reference_onnx(), flavour, "7.5")


@needs_rtx
def test_unknown_compute_capabilities_list_the_known() -> None:
    flavour = find_flavour("tensorrt_rtx")
    assert {"7.5", "8.6", "8.9", "12.0"} <= set(capabilities(flavour))
    with pytest.raises(EngineError, match=r"7\.5, 8\.0.*not 9\.0.*'tensorrt' on the target's host"):
        check_target(flavour, "9.0", "fp16")


@needs_rtx
def test_a_network_that_tensorrt_cannot_read_is_one_line() -> None:
    flavour = find_flavour("tensorrt_rtx")
    graph = helper.make_graph(
        [helper.make_node("Det", ["x"], ["y"], name="odd")], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    with pytest.raises(EngineError, match="does not support operator Det as node 'odd'") as caught:
        build_plan(model.SerializeToString(), flavour, "8.6")
    assert "\n" not in str(caught.value)


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    trt_build._load.cache_clear()
    for name in trt_build.PACKAGES:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    yield
    trt_build._load.cache_clear()


@pytest.mark.usefixtures("nothing_installed")
def test_without_tensorrt_the_message_names_the_package() -> None:
    assert installed_flavours() == ()
    for name, text in ((None, "pip install tensorrt-rtx"), ("tensorrt", "pip install tensorrt'")):
        with pytest.raises(EngineError, match=text) as caught:
            find_flavour(name)
        assert "\n" not in str(caught.value)
    with pytest.raises(EngineError, match="unknown TensorRT flavour 'tensor'"):
        find_flavour("tensor")


def enterprise() -> Flavour:
    """The flavour that builds on the GPU present alone: its module has no list of compute capabilities."""
    return Flavour("tensorrt", "10.9.0", types.SimpleNamespace())


@no_gpu
def test_tensorrt_without_a_gpu_offers_the_ways_on() -> None:
    with pytest.raises(EngineError, match=r"target's host.*tensorrt-rtx"):
        check_target(enterprise(), "7.5", "fp16")


def test_tensorrt_on_another_gpu_says_which_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt_build, "gpu", lambda: ("NVIDIA L4", "8.9"))
    with pytest.raises(EngineError, match=r"NVIDIA L4 of compute capability 8\.9, not for 7\.5"):
        check_target(enterprise(), "7.5", "fp32")
    check_target(enterprise(), "8.9", "fp32")


def write(path: Path, plan: bytes, **changes: Any) -> Path:
    values = {
        "flavour": "tensorrt", "version": "10.9.0", "capability": "8.9", "precision": "fp32",
        "batch": (1, 1, 1), "input_name": "x", "input_size": (1, 1, 6), "onnx_sha256": "",
        "engine_sha256": hashlib.sha256(plan).hexdigest(), "size_bytes": len(plan), **changes,
    }  # fmt: skip
    path.write_bytes(plan)
    files.write_json(sidecar_path(path), EngineInfo(**values).to_dict())
    return path


@needs_rtx
@no_gpu
def test_running_without_a_gpu_says_what_is_needed(tmp_path: Path) -> None:
    flavour = find_flavour("tensorrt_rtx")
    plan = build_plan(reference_onnx(), flavour, "8.6")
    path = write(tmp_path / "n.engine", plan, flavour=flavour.name, version=flavour.version, capability="8.6")
    runner = TrtRunner(path)
    with pytest.raises(EngineError, match=r"CUDA GPU of compute capability 8\.6; there is none"):
        runner.activate()
    assert not runner.is_active


def test_collected_times_are_split_into_runs() -> None:
    records = [("a", 1.0), ("b", 2.0), ("a", 0.5), ("a", 3.0), ("b", 4.0), ("a", 0.5)]
    nodes = collect_times(records, 2, {"a": {"LayerType": "Convolution"}})
    assert [(node.name, node.op, node.durations_us) for node in nodes] == [
        ("a", "Convolution", (1500.0, 3500.0)),
        ("b", "", (2000.0, 4000.0)),
    ]


@pytest.mark.parametrize("records", [[], [("a", 1.0)], [("a", 1.0), ("b", 1.0)]])
def test_times_that_are_no_equal_runs_are_refused(records: list[tuple[str, float]]) -> None:
    with pytest.raises(EngineError):
        collect_times(records, 2, {})


def test_inspector_layers_in_both_forms() -> None:
    assert parse_layers('{"Layers": [{"Name": "a", "Metadata": "m"}, "b"]}') == [
        {"Name": "a", "Metadata": "m"},
        {"Name": "b"},
    ]
    assert parse_layers("no JSON") == []
    assert parse_layers("[]") == []


@pytest.mark.gpu
@pytest.mark.skipif(not installed_flavours(), reason="no TensorRT is installed")
class TestTensorRT(RunnerConformance):
    tolerance = 5e-3  # TF32

    @pytest.fixture
    def make_runner(self, tmp_path: Path) -> MakeRunner:
        present = trt_build.gpu()
        assert present is not None
        found = [f for f in installed_flavours() if not capabilities(f) or present[1] in capabilities(f)]
        if not found:
            pytest.skip(f"no installed TensorRT builds for {present[0]}, compute capability {present[1]}")
        flavour = found[0]
        plan = build_plan(reference_onnx(), flavour, present[1])

        def make(**options: Any) -> Runner:
            data = options.pop("model", plan)
            options.pop("profiling", None)
            path = write(
                tmp_path / "n.engine", data, flavour=flavour.name, version=flavour.version,
                capability=present[1],
            )  # fmt: skip
            return TrtRunner(path, **options)

        return make

    def test_layer_times_map_back_to_the_network(
        self, make_runner: MakeRunner, feeds: dict[str, np.ndarray]
    ) -> None:
        from bcnet_deploy.runtime.layer_names import module_times

        runner = make_runner()
        assert isinstance(runner, TrtRunner)
        with runner:
            nodes = runner.node_times(feeds, runs=3)
        graph = [node.name for node in onnx.load_from_string(reference_onnx()).graph.node]
        totals = module_times(nodes, graph)
        assert sum(value for name, value in totals.items() if name != "(other)") > 0


class TestOnStandIn(RunnerConformance):
    """The runner's own code on a stand-in for TensorRT; what a GPU does is the gpu tests' affair."""

    @pytest.fixture
    def make_runner(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeRunner:
        from bcnet_deploy.runtime import trt

        flavour = Flavour("tensorrt", fake_tensorrt.VERSION, fake_tensorrt)
        monkeypatch.setattr(trt, "find_flavour", lambda name: flavour)
        monkeypatch.setattr(trt, "gpu", lambda: ("Stand-in 1", "8.9"))
        monkeypatch.setattr(trt, "_DEVICE", "cpu")
        monkeypatch.setattr(torch.cuda, "Stream", fake_tensorrt.Stream)
        monkeypatch.setattr(torch.cuda, "Event", fake_tensorrt.Event)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        plan = fake_tensorrt.pack(*reference_weights())

        def make(**options: Any) -> Runner:
            data = options.pop("model", plan)
            options.pop("profiling", None)
            changes = {key: options.pop(key) for key in ("capability", "version") if key in options}
            return TrtRunner(write(tmp_path / "n.engine", data, **changes), **options)

        return make

    def test_fused_and_compiled_layers_map_back(
        self, make_runner: MakeRunner, feeds: dict[str, np.ndarray]
    ) -> None:
        runner = make_runner()
        assert isinstance(runner, TrtRunner)
        with runner:
            nodes = runner.node_times(feeds, runs=3)
        assert [(node.op, node.durations_us) for node in nodes] == [
            ("", (250.0,) * 3), ("gemm", (500.0,) * 3), ("kgen", (125.0,) * 3),
        ]  # fmt: skip
        graph = [node.name for node in onnx.load_from_string(reference_onnx()).graph.node]
        found = [origin(node.name, graph, node.origins) for node in nodes]
        assert [item.kind for item in found] == ["reformat", "layer", "layer"]
        assert [item.nodes for item in found[1:]] == [("layer.matmul", "layer.add"), ("layer.relu",)]

    def test_the_runtime_cache_grows_on_disk(self, make_runner: MakeRunner, tmp_path: Path) -> None:
        for expected in (b"+", b"++"):
            with make_runner():
                pass
            assert (tmp_path / "n.engine.Stand-in-1.cache").read_bytes() == expected
        with make_runner(runtime_cache=tmp_path / "own.cache"):
            pass
        assert (tmp_path / "own.cache").read_bytes() == b"+"

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"capability": "7.5"}, r"built for compute capability 7\.5; Stand-in 1 here has 8\.9"),
            ({"version": "10.8.0"}, r"built by tensorrt 10\.8\.0, installed is 10\.9\.0"),
            ({"model": b"no engine"}, "refuses .*Error Code 4"),
        ],
    )
    def test_engines_of_elsewhere_are_refused(
        self, make_runner: MakeRunner, changes: dict[str, Any], message: str
    ) -> None:
        runner = make_runner(**changes)
        with pytest.raises(EngineError, match=message):
            runner.activate()
        assert not runner.is_active


@needs_rtx
def test_the_stand_in_has_no_name_that_the_package_lacks() -> None:
    module = find_flavour("tensorrt_rtx").module
    for name, value in vars(fake_tensorrt).items():
        if (
            isinstance(value, type)
            and value.__module__ == fake_tensorrt.__name__
            and hasattr(torch.cuda, name)
        ):
            real: Any = getattr(torch.cuda, name)
        elif isinstance(value, type) and value.__module__ == fake_tensorrt.__name__:
            real = getattr(module, name)
        else:
            continue
        own = {"weight", "bias", "shapes", "cache", "at", "entries"}
        members = {member for member in vars(value) if not member.startswith("_")} - own
        assert members <= set(dir(real)), f"{name}: {members - set(dir(real))}"
    assert callable(module.nptype)
