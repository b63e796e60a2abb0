"""ONNX Runtime against the conformance class, and what is its own."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bcnet_deploy.devices import DeviceProfile, load_device
from bcnet_deploy.errors import EngineError
from bcnet_deploy.runtime.base import Runner, Runtime
from bcnet_deploy.runtime.ort import OrtRunner, available_providers, check_threads, parse_profile
from bcnet_deploy.runtime.registry import find_runtime
from bcnet_deploy.testing.runtimes import (
    MakeRunner,
    RunnerConformance,
    RuntimeConformance,
    reference_onnx,
    thread_count,
)


class TestOnnxRuntimeOnTheCpu(RuntimeConformance):
    @pytest.fixture
    def runtime(self) -> Runtime:
        return find_runtime("onnxruntime")

    @pytest.fixture
    def device(self) -> DeviceProfile:
        return load_device("cpu-1thread")


@pytest.mark.gpu
@pytest.mark.skipif("cuda" not in available_providers(), reason="this ONNX Runtime has no CUDA provider")
class TestOrtCuda(RunnerConformance):
    tolerance = 1e-3

    @pytest.fixture
    def make_runner(self) -> MakeRunner:
        def make(**options: Any) -> Runner:
            return OrtRunner(**{"model": reference_onnx(), "provider": "cuda", **options})

        return make


def test_a_path_works_and_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(reference_onnx())
    runner = OrtRunner(path)
    assert "net.onnx" in runner.name
    with runner:
        assert runner.inputs[0].name == "x"
    missing = OrtRunner(tmp_path / "absent.onnx")
    with pytest.raises(EngineError, match="refuses the model"):
        missing.activate()


def test_runs_after_the_profile_are_not_profiled() -> None:
    feeds = {"x": np.zeros((1, 6), np.float32)}
    with OrtRunner(reference_onnx(), profiling=True) as runner:
        runner.node_times(feeds, runs=1)
        runner.latencies(feeds, runs=3)
        with pytest.raises(EngineError, match="once"):
            runner.node_times(feeds, runs=1)
    with OrtRunner(reference_onnx()) as runner, pytest.raises(EngineError, match="profiling=True"):
        runner.node_times(feeds, runs=1)


def test_profiles_leave_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for profiled in (True, False):
        with OrtRunner(reference_onnx(), profiling=True) as runner:
            if profiled:
                runner.node_times({"x": np.zeros((1, 6), np.float32)}, runs=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("threads", [0, -2])
def test_threads_must_be_positive(threads: int) -> None:
    with pytest.raises(EngineError, match=f"{threads} threads"):
        OrtRunner(reference_onnx(), threads=threads)


def test_more_threads_than_cores_warns() -> None:
    with pytest.warns(UserWarning, match="threads on"):
        assert check_threads(4096) == 4096


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_threads_are_as_many_as_asked_for() -> None:
    base = thread_count()
    with OrtRunner(reference_onnx(), threads=2):
        assert thread_count() == base + 1  # the calling thread is the other one
    assert thread_count() == base


def test_unknown_provider() -> None:
    with pytest.raises(EngineError, match="unknown ONNX Runtime provider 'tpu'"):
        OrtRunner(reference_onnx(), provider="tpu")


@pytest.mark.skipif("cuda" in available_providers(), reason="the CUDA provider is here")
def test_absent_provider_says_what_to_install() -> None:
    runner = OrtRunner(reference_onnx(), provider="cuda")
    with pytest.raises(EngineError, match="onnxruntime-gpu"):
        runner.activate()


def test_onnxruntime_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert available_providers() == ()
    with pytest.raises(EngineError, match="pip install onnxruntime"):
        OrtRunner(reference_onnx()).activate()


def test_parse_profile_keeps_order_and_drops_warm_up_runs() -> None:
    def event(name: str, duration: int) -> dict[str, Any]:
        args = {
            "op_name": "Conv",
            "input_type_shape": [{"float": [1, 3]}],
            "output_type_shape": [{"float": [1, 4]}],
        }
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": duration, "args": args}

    events = [{"cat": "Session", "name": "model_run", "dur": 9, "args": {}}]
    events += [event("b", 100), event("a", 200), event("b", 1), event("a", 2), event("b", 3), event("a", 4)]
    nodes = parse_profile(json.dumps(events).encode(), skip=1)
    assert [(node.name, node.durations_us) for node in nodes] == [("b", (1.0, 3.0)), ("a", (2.0, 4.0))]
    assert nodes[0].inputs == ((1, 3),)
    assert nodes[0].outputs == ((1, 4),)


@pytest.mark.parametrize("data", [b"[", b"[]", b'[{"cat": "Session", "name": "x"}]'])
def test_a_damaged_profile_is_an_error(data: bytes) -> None:
    with pytest.raises(EngineError):
        parse_profile(data)
