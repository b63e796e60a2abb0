"""A runtime of one's own: ONNX networks in numpy, by the reference evaluator of the ``onnx`` package."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from bcnet_deploy import files
from bcnet_deploy.devices import DeviceProfile
from bcnet_deploy.errors import EngineError
from bcnet_deploy.runtime.base import Array, EngineBuild, Floats, NodeTime, Runner, Runtime, TensorInfo


class NumpyRunner(Runner):
    """An ONNX network in numpy, one operator after the other."""

    def __init__(self, network: bytes) -> None:
        super().__init__("numpy")
        self.network = network
        self.model: Any = None
        self.evaluator: Any = None

    def _activate(self) -> None:
        try:
            self.model = onnx.load_from_string(self.network)
            onnx.checker.check_model(self.model)
            self.evaluator = ReferenceEvaluator(self.model)
        except Exception as error:
            raise EngineError(f"numpy cannot run the network: {type(error).__name__}") from error

    def _deactivate(self) -> None:
        self.model = self.evaluator = None

    def _inputs(self) -> tuple[TensorInfo, ...]:
        return tuple(map(_info, self.model.graph.input))

    def _outputs(self) -> tuple[TensorInfo, ...]:
        return tuple(map(_info, self.model.graph.output))

    def _infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        names = [value.name for value in self.model.graph.output]
        return dict(zip(names, self.evaluator.run(names, dict(feeds)), strict=True))

    def _latencies(self, feeds: Mapping[str, Array], runs: int, warmup: int) -> Floats:
        times = np.array([_seconds(lambda: self._infer(feeds)) for _ in range(warmup + runs)])
        return 1e3 * times[warmup:]

    def _node_times(self, feeds: Mapping[str, Array], runs: int, warmup: int) -> list[NodeTime]:
        """Node by node, each on the outputs of those before it."""
        durations: dict[str, list[float]] = {}
        for _ in range(warmup + runs):
            known = {"": None, **self.evaluator.rt_inits_, **feeds}
            for node, step in zip(self.model.graph.node, self.evaluator.rt_nodes_, strict=True):
                start = time.perf_counter()
                outputs = step.run(*(known[name] for name in node.input))
                durations.setdefault(node.name, []).append(1e6 * (time.perf_counter() - start))
                known.update(zip(node.output, outputs, strict=True))
        return [
            NodeTime(node.name, node.op_type, (), (), tuple(durations[node.name][warmup:]))
            for node in self.model.graph.node
        ]


def _info(value: Any) -> TensorInfo:
    kind = value.type.tensor_type
    shape = tuple(dim.dim_value or -1 for dim in kind.shape.dim)
    return TensorInfo(value.name, shape, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name)


def _seconds(run: Any) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


class NumpyRuntime(Runtime):
    """The runtime: its name, where it runs and in what precision, and how it makes runners."""

    name = "numpy"
    title = "numpy"
    packages = ("numpy",)  # whose version is kept with a latency table
    precisions = {"cpu": ("fp32",)}
    engine = "numpy"  # for 'bcnet-deploy export --engine numpy'
    suffix = ".numpy.onnx"

    def runner(
        self, network: bytes, device: DeviceProfile, *, profiling: bool = False,
        threads_sleep: bool = False, name: str | None = None,
    ) -> Runner:  # fmt: skip
        return NumpyRunner(network)

    def rounding(self, device: DeviceProfile, cpu_features: Any) -> tuple[int, int]:
        return 1, 1  # numpy does not round channels

    def build_engine(
        self, network: bytes, path: Path, device: DeviceProfile, precision: str,
        *, batch: tuple[int, int, int],
    ) -> EngineBuild:  # fmt: skip
        with NumpyRunner(network):
            files.write_bytes(path, network)
        return EngineBuild("numpy", np.__version__, ("loaded by numpy",), loaded=True)

    def engine_runner(self, path: Path, device: DeviceProfile) -> Runner:
        return NumpyRunner(path.read_bytes())
