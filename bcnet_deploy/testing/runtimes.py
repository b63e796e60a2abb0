"""What every runtime must do, as tests: inherit one of two classes in a test module of your own.

:class:`RunnerConformance` is for a runner; it needs the fixture ``make_runner``. :class:`RuntimeConformance`
is for a whole runtime; it needs the fixtures ``runtime`` and ``device``. Both compare with numpy, with the
networks written out below, not with another runtime.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bcnet_deploy.devices import DeviceProfile
from bcnet_deploy.errors import EngineError
from bcnet_deploy.runtime.base import Runner, Runtime
from bcnet_deploy.runtime.engine_file import read_engine, write_sidecar
from bcnet_deploy.runtime.layer_names import module_times

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


def image_weights() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(8)
    return (
        rng.standard_normal((16, 3, 1, 1)).astype(np.float32),
        rng.standard_normal((5, 16)).astype(np.float32),
    )


def image_onnx() -> bytes:
    """A 1x1 convolution, ReLU, global mean and a linear layer for x: (1, 3, 8, 8), named as exporters do."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    kernel, matrix = image_weights()
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "stem.weight"], ["/stem/Conv_output_0"], name="/stem/Conv"),
            helper.make_node("Relu", ["/stem/Conv_output_0"], ["/act/Relu_output_0"], name="/act/Relu"),
            helper.make_node(
                "GlobalAveragePool", ["/act/Relu_output_0"], ["mean"], name="/GlobalAveragePool"
            ),
            helper.make_node("Flatten", ["mean"], ["flat"], name="/Flatten"),
            helper.make_node("Gemm", ["flat", "head.weight"], ["y"], name="/head/Gemm", transB=1),
        ],
        "image",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5])],
        [numpy_helper.from_array(kernel, "stem.weight"), numpy_helper.from_array(matrix, "head.weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def image_outputs(images: np.ndarray) -> np.ndarray:
    """(N, 3, 8, 8) -> (N, 5): :func:`image_onnx` in numpy."""
    kernel, matrix = image_weights()
    features = np.maximum(np.einsum("nchw,kc->nkhw", images, kernel[:, :, 0, 0]), 0)
    return features.mean(axis=(2, 3)) @ matrix.T


def thread_count() -> int:
    return len(list(Path("/proc/self/task").iterdir())) if os.path.isdir("/proc/self/task") else 0


class RunnerConformance:
    """Inherit, and provide the fixture ``make_runner``: keyword arguments of the runner -> a fresh, inactive
    runner of the reference network. ``profiling`` and ``model`` are among the arguments.

    Attributes:
        tolerance: of outputs, absolute and relative.
    """

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


class RuntimeConformance(RunnerConformance):
    """Inherit, and provide the fixtures ``runtime`` and ``device``: a profile of this machine in FP32."""

    @pytest.fixture
    def runtime(self) -> Runtime:
        raise NotImplementedError

    @pytest.fixture
    def device(self) -> DeviceProfile:
        raise NotImplementedError

    @pytest.fixture
    def make_runner(self, runtime: Runtime, device: DeviceProfile) -> MakeRunner:
        def make(model: bytes | None = None, **options: Any) -> Runner:
            return runtime.runner(reference_onnx() if model is None else model, device, **options)

        return make

    @pytest.fixture
    def images(self) -> np.ndarray:
        return np.random.default_rng(4).standard_normal((1, 3, 8, 8)).astype(np.float32)

    def test_is_here_and_says_what_it_is(self, runtime: Runtime, device: DeviceProfile) -> None:
        assert device.run_by().name == runtime.name
        assert device.precision in runtime.precisions[device.kind]
        assert runtime.lacking(device.kind, device.precision) == ""
        described = runtime.describe()
        assert described["runtime"]
        assert set(described) >= {"runtime", "runtime_version"}

    def test_what_it_cannot_do_is_said(self, runtime: Runtime) -> None:
        assert runtime.lacking("toaster")
        for kind in runtime.precisions:
            assert runtime.lacking(kind, "fp7")

    def test_blocks_of_channels_are_whole(self, runtime: Runtime, device: DeviceProfile) -> None:
        for features in ([], ["avx2"], ["avx2", "avx512f"]):
            block, align = runtime.rounding(device, features)
            assert block >= 1 and align >= 1 and block % align == 0

    def test_two_runners_at_once_do_not_mix(
        self, make_runner: MakeRunner, feeds: dict[str, np.ndarray], images: np.ndarray
    ) -> None:
        """The profiler keeps one network loaded while it measures others."""
        with make_runner(threads_sleep=True) as kept:
            before = next(iter(kept.infer(feeds).values()))
            with make_runner(model=image_onnx()) as other:
                result = next(iter(other.infer({"x": images}).values()))
            after = next(iter(kept.infer(feeds).values()))
        np.testing.assert_array_equal(before, after)
        np.testing.assert_allclose(
            np.asarray(result, np.float32), image_outputs(images), atol=20 * self.tolerance, rtol=1e-3
        )

    def test_times_of_nodes_belong_to_modules(self, make_runner: MakeRunner, images: np.ndarray) -> None:
        """Every node's time is kept; the convolution and the linear layer are found among them."""
        import onnx

        with make_runner(model=image_onnx(), profiling=True) as runner:
            nodes = runner.node_times({"x": images}, runs=5, warmup=2)
        graph = [node.name for node in onnx.load_from_string(image_onnx()).graph.node]
        times = module_times(nodes, graph)
        medians = sum(float(np.median(node.durations_us)) for node in nodes) / 1e3
        assert sum(times.values()) == pytest.approx(medians)
        modules = {module for name in times for module in name.split(" + ")}
        assert {"stem", "head"} <= modules

    def test_an_engine_computes_the_network(
        self, runtime: Runtime, device: DeviceProfile, images: np.ndarray, tmp_path: Path
    ) -> None:
        path = tmp_path / f"net{runtime.suffix}"
        if runtime.engine is None:
            with pytest.raises(EngineError, match="no engine files"):
                runtime.check_engine(device, device.precision)
            return
        runtime.check_engine(device, device.precision)
        batch = (1, 1, 1)
        built = runtime.build_engine(image_onnx(), path, device, device.precision, batch=batch)
        info = write_sidecar(path, image_onnx(), built, device, device.precision, batch=batch)
        assert read_engine(path)[1] == info
        assert (info.input_name, info.input_size, info.batch) == ("x", (3, 8, 8), batch)
        with runtime.engine_runner(path, device) as runner:
            result = next(iter(runner.infer({"x": images}).values()))
        np.testing.assert_allclose(
            np.asarray(result, np.float32), image_outputs(images), atol=20 * self.tolerance, rtol=1e-3
        )

    def test_an_engine_of_no_network_leaves_no_file(
        self, runtime: Runtime, device: DeviceProfile, tmp_path: Path
    ) -> None:
        path = tmp_path / f"net{runtime.suffix}"
        with pytest.raises(EngineError):
            runtime.build_engine(b"not a network", path, device, device.precision, batch=(1, 1, 1))
        assert not list(tmp_path.iterdir())
