"""A runtime whose node times are known: for tests of everything around the measuring."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx

from bcnet_deploy.runtime.base import Array, Floats, NodeTime, Runner, TensorInfo


class FakeRunner(Runner):
    """Times an ONNX network by a formula: 5 us a node, and blocks of 16 channels of each weight.

    ``slow``: what all times are multiplied by, asked at every timing. ``stamp``: what a profile adds to each
    node. A convolution with an odd number of outputs is two nodes: 1 us of its time is spent in the second.

    Nodes are renamed as ONNX Runtime does it: a convolution and the activation behind it are one node,
    called by the tensor that comes out.
    """

    def __init__(
        self,
        network: bytes,
        profiling: bool,
        *,
        noise: float = 0.0,
        slow: Callable[[], float] = lambda: 1.0,
        stamp: float = 0.0,
        rng: np.random.Generator | None = None,
    ) -> None:
        super().__init__("fake")
        self.network = network
        self.profiling = profiling
        self.noise = noise
        self.slow = slow
        self.stamp = stamp
        self.rng = rng or np.random.default_rng(0)
        self.nodes: list[tuple[str, float]] = []

    def _activate(self) -> None:
        model = onnx.load_from_string(self.network)
        weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
        self.shape = tuple(dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim)
        self.input_name = model.graph.input[0].name
        self.nodes = []
        for node in model.graph.node:
            if (
                node.op_type in ("Relu", "Clip")
                and self.nodes
                and self.nodes[-1][0] == f"{node.input[0]}_nchwc"
            ):
                self.nodes[-1] = (f"{node.output[0]}_nchwc", self.nodes[-1][1])
                continue
            time = 5.0
            for name in node.input:
                dims = weights.get(name, ())
                if len(dims) > 1:
                    time += 0.01 * float(np.prod([-(-size // 16) * 16 for size in dims[:2]]))
            is_conv = node.op_type == "Conv"
            if is_conv and weights[node.input[1]][0] % 2:
                self.nodes.append((f"{node.name}_reorder", 1.0))
                time -= 1.0
            self.nodes.append((f"{node.output[0]}_nchwc" if is_conv else node.name, time))

    def _deactivate(self) -> None:
        self.nodes = []

    def _inputs(self) -> tuple[TensorInfo, ...]:
        return (TensorInfo(self.input_name, self.shape, "float32"),)

    def _outputs(self) -> tuple[TensorInfo, ...]:
        return ()

    def _infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {}

    def _disturbed(self, value: float) -> float:
        return value * (1 + self.noise * abs(float(self.rng.standard_normal())))

    def total_us(self) -> float:
        return 40.0 + sum(time for _, time in self.nodes)

    def _latencies(self, feeds: Mapping[str, Array], runs: int, warmup: int) -> Floats:
        slow = self.slow()
        return np.array([slow * self._disturbed(self.total_us()) / 1e3 for _ in range(runs)])

    def _node_times(self, feeds: Mapping[str, Array], runs: int, warmup: int) -> list[NodeTime]:
        assert self.profiling
        slow = self.slow()
        return [
            NodeTime(name, "", (), (), tuple(slow * self._disturbed(time) + self.stamp for _ in range(runs)))
            for name, time in self.nodes
        ]


def true_ms(network: bytes) -> float:
    """The fake device's latency of a network."""
    runner = FakeRunner(network, False)
    with runner:
        return runner.total_us() / 1e3
