"""Narrower ONNX networks cut from one export, in milliseconds instead of seconds.

Exporting each sampled network would take most of a profile's budget. The export of the full network
keeps the parameters' names, so the width space's own slicing plan says which part of each initializer
a narrower network keeps. The first network is checked against the one that is extracted and exported
from PyTorch; a model on which cutting fails is extracted and exported each time, slowly but surely.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bcnet_deploy.errors import EngineError
from bcnet_deploy.export.onnx import trace
from bcnet_deploy.runtime.ort import OrtRunner

if TYPE_CHECKING:
    import onnx
    from torch import nn

    from bcnet_deploy.space import WidthSpace
    from bcnet_deploy.space.extent import Segments

_BIAS_AXIS = {"Conv": 0, "Gemm": 0, "ConvTranspose": 1}
Widths = npt.NDArray[np.int64]


class NetworkMaker:
    """Serialised ONNX networks of a width space, by width vector.

    Args:
        model: the full network, in evaluation mode.
        space: its width space.
        batch: images at once.

    Attributes:
        exported: the full network's ONNX graph.
        fast: whether narrower networks are cut from it; ``reason`` says why not.

    Raises:
        ExportError: the model cannot be exported at all.
    """

    def __init__(self, model: nn.Module, space: WidthSpace, *, batch: int = 1) -> None:
        self.model = model
        self.space = space
        self.batch = batch
        self.exported, _ = trace(model, space.input_size, batch=batch)
        self.reason = ""
        self._cut: Callable[[Widths], bytes] | None = None
        try:
            self._cut = _Cutter(self.exported, space)
            self._verify(np.random.default_rng(0))
        except (EngineError, LookupError, ValueError) as error:
            self._cut, self.reason = None, f"{type(error).__name__}: {error}"

    @property
    def fast(self) -> bool:
        return self._cut is not None

    def __call__(self, widths: npt.ArrayLike) -> bytes:
        """The network of one width vector (L,), as serialised ONNX."""
        vector = self.space.check(widths)[0]
        return self._cut(vector) if self._cut is not None else self._export(vector)

    def _export(self, widths: Widths) -> bytes:
        exported, _ = trace(self.space.extract(self.model, widths), self.space.input_size, batch=self.batch)
        return bytes(exported.SerializeToString())

    def _verify(self, rng: np.random.Generator) -> None:
        """Compare one cut network with the extracted module itself."""
        import torch

        widths = self.space.random(1, rng)[0]
        assert self._cut is not None
        image = rng.standard_normal((self.batch, *self.space.input_size)).astype(np.float32)
        with OrtRunner(self._cut(widths)) as runner:
            (name,) = (info.name for info in runner.inputs)
            result = next(iter(runner.infer({name: image}).values()))
        with torch.inference_mode():
            expected = self.space.extract(self.model, widths).eval()(torch.from_numpy(image)).numpy()
        scale = float(np.abs(expected).max()) or 1.0
        if result.shape != expected.shape or float(np.abs(result - expected).max()) > 1e-3 * scale:
            raise ValueError("a cut network computes something else than the extracted one")


class _Cutter:
    """Cuts initializers, group counts and shape constants of the full graph."""

    def __init__(self, exported: onnx.ModelProto, space: WidthSpace) -> None:
        import onnx
        from onnx import numpy_helper

        self.space = space
        self.skeleton = onnx.ModelProto()
        self.skeleton.CopyFrom(exported)
        graph = self.skeleton.graph
        del graph.initializer[:]
        del graph.value_info[:]
        arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in exported.graph.initializer}
        plans: dict[str, tuple[Segments, ...]] = {
            name: space.slices[name] for name in arrays if name in space.slices
        }
        groups = {op.weight: op.groups for op in space.ops if op.weight and op.groups is not None}
        self.groups: list[tuple[int, int, Any]] = []
        for position, node in enumerate(graph.node):
            axis = _BIAS_AXIS.get(node.op_type)
            if axis is None or len(node.input) < 2 or node.input[1] not in plans:
                continue
            # A folded batch norm gives a bias to a layer that has none in the module.
            if len(node.input) > 2 and node.input[2] in arrays and node.input[2] not in plans:
                plans[node.input[2]] = (plans[node.input[1]][axis],)
            extent = groups.get(node.input[1])
            for index, attribute in enumerate(node.attribute):
                if attribute.name == "group" and extent is not None and not extent.is_fixed:
                    self.groups.append((position, index, extent))
        shapes = _shapes(exported)
        for node in graph.node:
            if node.op_type == "Reshape" and node.input[1] in arrays:
                arrays[node.input[1]] = _free_dimension(arrays[node.input[1]], shapes.get(node.input[0], ()))
        for name, plan in plans.items():
            sizes = tuple(sum(segment.positions for segment in segments) for segments in plan)
            if arrays[name].shape != sizes:
                raise ValueError(f"{name} has shape {arrays[name].shape} in ONNX and {sizes} in the space")
        self.arrays, self.plans = arrays, plans

    def __call__(self, widths: Widths) -> bytes:
        import onnx
        from onnx import numpy_helper

        units = [int(width) // v.step for width, v in zip(widths, self.space.variables, strict=True)]
        model = onnx.ModelProto()
        model.CopyFrom(self.skeleton)
        for position, index, extent in self.groups:
            model.graph.node[position].attribute[index].i = int(extent(widths)[0])
        for name, array in self.arrays.items():
            plan = self.plans.get(name)
            if plan is not None:
                for axis, segments in enumerate(plan):
                    array = _keep(array, axis, segments, units)
            model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return bytes(model.SerializeToString())


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Inferred shapes of the activations, by name."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    return {
        value.name: tuple(size.dim_value for size in value.type.tensor_type.shape.dim)
        for value in [*graph.value_info, *graph.input, *graph.output]
    }


def _free_dimension(target: npt.NDArray[Any], source: tuple[int, ...]) -> npt.NDArray[Any]:
    """A constant Reshape target with its channel dimension left to the runtime.

    That is the last one before the resolution, which the source has too: (1, 1280) becomes (1, -1), and
    (1, 2, 58, 28, 28) of a channel shuffle (1, 2, -1, 28, 28). The check of the first network catches
    what this does not fit.
    """
    if target.ndim != 1 or target.size == 0 or (target == -1).any():
        return target
    position = len(target) - 1
    while (
        position > 0
        and len(target) - position < len(source)
        and target[position] == source[position - len(target)]
    ):
        position -= 1
    freed = target.copy()
    freed[position] = -1
    return freed


def _keep(array: npt.NDArray[Any], axis: int, segments: Segments, units: list[int]) -> npt.NDArray[Any]:
    """The left slice of each segment along ``axis``."""
    parts, offset = [], 0
    for segment in segments:
        kept = segment.positions if segment.variable < 0 else units[segment.variable] * segment.repeat
        parts.append((offset, offset + kept))
        offset += segment.positions
    cut = [array[(slice(None),) * axis + (slice(start, stop),)] for start, stop in parts]
    return cut[0] if len(cut) == 1 else np.concatenate(cut, axis=axis)
