"""What every runtime must do: one class of tests that each implementation inherits.

A subclass sets the fixtures ``make_runner`` (keyword arguments of its runner -> a fresh, inactive
runner of the reference network) and, where it differs, ``tolerance``.
The oracle is numpy: y = relu(x W + b) written out below, not another runtime.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bcnet_deploy.errors import EngineError
from bcnet_deploy.runtime.base import Runner

MakeRunner = Callable[..., Runner]


def reference_weights() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    return rng.standard_normal((6, 4)).astype(np.float32), rng.standard_normal(4).astype(np.float32)


def reference_onnx() -> bytes:
    """y = relu(x W + b), x: (1, 6), as a serialised ONNX model."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight, bias = reference_weights()
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "W"], ["product"], name="layer.matmul"),
            helper.make_node("Add", ["product", "b"], ["sum"], name="layer.add"),
            helper.make_node("Relu", ["sum"], ["y"], name="layer.relu"),
        ],
        "reference",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(weight, "W"), numpy_helper.from_array(bias, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def thread_count() -> int:
    return len(list(Path("/proc/self/task").iterdir())) if os.path.isdir("/proc/self/task") else 0


class RunnerConformance:
    """Inherit, and provide the ``make_runner`` fixture."""

    tolerance = 1e-5

    @pytest.fixture
    def make_runner(self) -> MakeRunner:
        raise NotImplementedError

    @pytest.fixture
    def feeds(self) -> dict[str, np.ndarray]:
        return {"x": np.random.default_rng(3).standard_normal((1, 6)).astype(np.float32)}

    def test_computes_the_network(self, make_runner: MakeRunner, feeds: dict[str, np.ndarray]) -> None:
        weight, bias = reference_weights()
        with make_runner() as runner:
            (name,) = (info.name for info in runner.outputs)
            result = runner.infer(feeds)[name]
        expected = np.maximum(feeds["x"] @ weight + bias, 0)
        np.testing.assert_allclose(
            np.asarray(result, np.float32), expected, atol=self.tolerance, rtol=self.tolerance
        )

    def test_reports_inputs_and_outputs(self, make_runner: MakeRunner) -> None:
        with make_runner() as runner:
            assert [(info.name, info.shape, info.dtype) for info in runner.inputs] == [
                ("x", (1, 6), "float32")
            ]
            assert [info.shape for info in runner.outputs] == [(1, 4)]

    def test_needs_activation(self, make_runner: MakeRunner, feeds: dict[str, np.ndarray]) -> None:
        runner = make_runner()
        assert not runner.is_active
        for use in (
            lambda: runner.infer(feeds),
            lambda: runner.inputs,
            lambda: runner.latencies(feeds, runs=1),
        ):
            with pytest.raises(EngineError, match="not active"):
                use()

    def test_cannot_be_activated_twice(self, make_runner: MakeRunner) -> None:
        with make_runner() as runner, pytest.raises(EngineError, match="active already"):
            runner.activate()
        assert not runner.is_active

    def test_can_be_activated_again_after_deactivation(
        self, make_runner: MakeRunner, feeds: dict[str, np.ndarray]
    ) -> None:
        runner = make_runner()
        results = []
        for _ in range(2):
            with runner:
                results.append(next(iter(runner.infer(feeds).values())))
            runner.deactivate()  # a second time: allowed
        np.testing.assert_array_equal(results[0], results[1])

    def test_an_exception_deactivates(self, make_runner: MakeRunner) -> None:
        runner = make_runner()
        with pytest.raises(ZeroDivisionError), runner:
            raise ZeroDivisionError
        assert not runner.is_active

    def test_inference_leaves_its_input_alone(
        self, make_runner: MakeRunner, feeds: dict[str, np.ndarray]
    ) -> None:
        before = feeds["x"].copy()
        with make_runner() as runner:
            runner.infer(feeds)
            runner.latencies(feeds, runs=2)
        np.testing.assert_array_equal(before, feeds["x"])

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({}, "takes exactly"),
            ({"y": np.zeros((1, 6), np.float32)}, "takes exactly"),
            ({"x": np.zeros((1, 7), np.float32)}, "shape"),
            ({"x": np.zeros((6,), np.float32)}, "shape"),
            ({"x": np.zeros((1, 6), np.float64)}, "float64"),
        ],
    )
    def test_wrong_feeds_are_named(
        self, make_runner: MakeRunner, wrong: dict[str, np.ndarray], message: str
    ) -> None:
        with make_runner() as runner, pytest.raises(EngineError, match=message):
            runner.infer(wrong)

    def test_latencies_are_positive_milliseconds(
        self, make_runner: MakeRunner, feeds: dict[str, np.ndarray]
    ) -> None:
        with make_runner() as runner:
            times = runner.latencies(feeds, runs=5, warmup=1)
        assert times.shape == (5,)
        assert np.all(times > 0)
        assert np.all(times < 10_000)

    @pytest.mark.parametrize(("runs", "warmup"), [(0, 0), (-1, 2), (1, -1)])
    def test_run_counts_are_checked(
        self, make_runner: MakeRunner, feeds: dict[str, np.ndarray], runs: int, warmup: int
    ) -> None:
        with make_runner() as runner, pytest.raises(EngineError, match="1 or more"):
            runner.latencies(feeds, runs=runs, warmup=warmup)

    def test_node_times_have_one_duration_a_run(
        self, make_runner: MakeRunner, feeds: dict[str, np.ndarray]
    ) -> None:
        with make_runner(profiling=True) as runner:
            nodes = runner.node_times(feeds, runs=3, warmup=2)
        assert nodes
        assert len({node.name for node in nodes}) == len(nodes)
        for node in nodes:
            assert len(node.durations_us) == 3
            assert all(value >= 0 for value in node.durations_us)

    def test_a_model_that_is_none_is_refused(self, make_runner: MakeRunner) -> None:
        runner = make_runner(model=b"not a network")
        with pytest.raises(EngineError):
            runner.activate()
        assert not runner.is_active

    def test_threads_end_with_the_runner(self, make_runner: MakeRunner, feeds: dict[str, np.ndarray]) -> None:
        with make_runner() as runner:  # whatever the runtime keeps for the process is loaded by now
            runner.infer(feeds)
        before = thread_count()
        for _ in range(3):
            with make_runner() as runner:
                runner.infer(feeds)
        assert thread_count() <= before
