"""From a runtime's nodes back to our layers.

Runtimes fuse, rename and insert nodes. Three rules, tried in order, account for every microsecond of a
profile: a node that is known by its name, or by the name of the tensor it makes; a layout conversion
before its consumer belongs to that; anything else to the layer that ran just before it.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bcnet_deploy.lut.layers import Layer
from bcnet_deploy.runtime.base import NodeTime
from bcnet_deploy.runtime.layer_names import module_of

if TYPE_CHECKING:
    import onnx

    from bcnet_deploy.space import WidthSpace

_POOLS = {"mean", "adaptive_avg_pool2d", "avg_pool2d"}
_VIEWS = {"view", "flatten", "reshape"}
_KINDS = {
    "Add": {"add"},
    "AveragePool": _POOLS,
    "BatchNormalization": {"batch_norm"},
    "Clip": {"hardtanh", "relu6", "clamp"},
    "Concat": {"cat"},
    "Flatten": _VIEWS,
    "GlobalAveragePool": _POOLS,
    "HardSigmoid": {"hardsigmoid"},
    "HardSwish": {"hardswish"},
    "LayerNormalization": {"layer_norm"},
    "MaxPool": {"max_pool2d"},
    "Mul": {"mul", "silu", "hardswish"},
    "ReduceMean": _POOLS,
    "Relu": {"relu"},
    "Reshape": _VIEWS,
    "Sigmoid": {"sigmoid", "silu"},
    "Transpose": {"permute", "transpose"},
}


class LayerMap:
    """Which layer each node of an exported network, and of a runtime's profile of it, belongs to."""

    def __init__(self, exported: onnx.ModelProto, space: WidthSpace, layers: Sequence[Layer]) -> None:
        index_of_op = {name: index for index, layer in enumerate(layers) for name in layer.ops}
        # A module that is called twice has one weight and a layer for each call, in this order.
        by_weight: dict[str, deque[int]] = defaultdict(deque)
        for op in space.ops:
            if op.weight and op.name in index_of_op:
                by_weight[op.weight].append(index_of_op[op.name])
        waiting: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for op in space.ops:
            if op.name in index_of_op:
                waiting[op.module].append((op.kind, index_of_op[op.name]))
        self.count = len(layers)
        self.names: dict[str, int] = {}
        self.tensors: dict[str, int] = {}
        for node in exported.graph.node:
            calls = next((by_weight[name] for name in node.input if name in by_weight), None)
            index = None if calls is None else calls.popleft() if len(calls) > 1 else calls[0]
            if index is None:
                index = _take(waiting[module_of(node.name)], _KINDS.get(node.op_type, set()))
            if index is None:
                index = next((self.tensors[name] for name in node.input if name in self.tensors), 0)
            self.names[node.name] = index
            for name in node.output:
                self.tensors[name] = index
        self._known: dict[str, int | None] = {}

    def find(self, name: str) -> int | None:
        """The layer of a runtime node's name, or None."""
        if name not in self._known:
            self._known[name] = self._find(name)
        return self._known[name]

    def _find(self, name: str) -> int | None:
        for table in (self.names, self.tensors):
            for candidate in (name, name.removesuffix("_nchwc")):
                if candidate in table:
                    return table[candidate]
        within = [known for known in self.names if known and known in name]
        return self.names[max(within, key=len)] if within else None

    def layer_times(self, nodes: Sequence[NodeTime]) -> npt.NDArray[np.float64]:
        """Microseconds of each layer in each profiled run: (runs, layers). Nothing is lost."""
        runs = min(len(node.durations_us) for node in nodes)
        times = np.zeros((runs, self.count))
        for node, index in zip(nodes, self._places(nodes), strict=True):
            times[:, index] += node.durations_us[-runs:]
        return times

    def node_counts(self, nodes: Sequence[NodeTime]) -> npt.NDArray[np.int64]:
        """(layers,) how many of the nodes belong to each layer."""
        return np.bincount(self._places(nodes), minlength=self.count)

    def _places(self, nodes: Sequence[NodeTime]) -> list[int]:
        """The layer of each node."""
        found = [
            next(
                (index for name in (node.name, *node.origins) if (index := self.find(name)) is not None), None
            )
            for node in nodes
        ]
        places = []
        for position, node in enumerate(nodes):
            index = found[position]
            if index is None:
                ahead = (i for i in found[position + 1 :] if i is not None)
                behind = (i for i in reversed(found[:position]) if i is not None)
                first, second = (ahead, behind) if node.op == "ReorderInput" else (behind, ahead)
                index = next(first, next(second, 0))
            places.append(index)
        return places


def _take(waiting: list[tuple[str, int]], kinds: set[str]) -> int | None:
    """The first operator of one of ``kinds``; it and those before it of the kind are used up in order."""
    for position, (kind, index) in enumerate(waiting):
        if kind in kinds:
            if kind not in ("silu", "hardswish", "view"):  # these become several nodes
                del waiting[position]
            return index
    return None
