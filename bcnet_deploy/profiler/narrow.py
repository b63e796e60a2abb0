"""Narrower ONNX networks cut from one export, in milliseconds instead of seconds.

Exporting each sampled network would take most of a profile's budget. The export of the full network
keeps the parameters' names, so the width space's own slicing plan says which part of each initializer
a narrower network keeps. The first network is checked against the one that is extracted and exported
from PyTorch; a model on which cutting fails is extracted and exported each time, slowly but surely.
A runtime that wants another precision converts the full network once, and the converted one is cut.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bcnet_deploy.errors import EngineError
from bcnet_deploy.export.onnx import trace
from bcnet_deploy.export.parity import outputs_of_torch
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
        prepare: an FP32 network in the form that is measured; the network itself if not given.

    Attributes:
        exported: the full network's ONNX graph, in FP32.
        fast: whether narrower networks are cut from it; ``reason`` says why not.

    Raises:
        ExportError: the model cannot be exported or converted at all.
    """

    def __init__(
        self,
        model: nn.Module,
        space: WidthSpace,
        *,
        batch: int = 1,
        prepare: Callable[[onnx.ModelProto], onnx.ModelProto] = lambda network: network,
    ) -> None:
        self.model = model
        self.space = space
        self.batch = batch
        self.prepare = prepare
        self.exported, _ = trace(model, space.input_size, batch=batch)
        self.reason = ""
        self._cut: Callable[[Widths], bytes] | None = None
        prepared = prepare(self.exported)
        # An export of other widths tells which numbers in the graph follow them; most graphs do not need it.
        for make_other in (lambda: None, self._other):
            try:
                other = make_other()
                cut = _Cutter(self.exported, self.exported, space, other)
                self._verify(cut, np.random.default_rng(0))
                same = prepared is self.exported
                self._cut = cut if same else _Cutter(self.exported, prepared, space, other)
                self.reason = ""
                break
            except (EngineError, LookupError, ValueError) as error:
                self.reason = f"{type(error).__name__}: {error}"

    @property
    def fast(self) -> bool:
        return self._cut is not None

    def __call__(self, widths: npt.ArrayLike) -> bytes:
        """The network of one width vector (L,), as serialised ONNX."""
        vector = self.space.check(widths)[0]
        return self._cut(vector) if self._cut is not None else self._export(vector)

    def _export(self, widths: Widths) -> bytes:
        exported, _ = trace(self.space.extract(self.model, widths), self.space.input_size, batch=self.batch)
        return bytes(self.prepare(exported).SerializeToString())

    def _other(self) -> onnx.ModelProto:
        """The export of a network in which every variable is narrower, where it can be."""
        half = [max(v.lowest, v.channels // v.step // 2 * v.step) for v in self.space.variables]
        return trace(self.space.extract(self.model, half), self.space.input_size, batch=self.batch)[0]

    def _verify(self, cut: _Cutter, rng: np.random.Generator) -> None:
        """Compare one cut network with the extracted module itself."""
        widths = self.space.random(1, rng)[0]
        image = rng.standard_normal((self.batch, *self.space.input_size)).astype(np.float32)
        with OrtRunner(cut(widths)) as runner:
            (name,) = (info.name for info in runner.inputs)
            results = runner.infer({name: image})
        expected = outputs_of_torch(self.space.extract(self.model, widths), image)
        for name, own in expected.items():
            scale = float(np.abs(own).max()) or 1.0
            found = results.get(name, np.empty(0))
            if found.shape != own.shape or float(np.abs(found - own).max()) > 1e-3 * scale:
                raise ValueError(f"a cut network computes something else than the extracted one ({name})")


class _Cutter:
    """Cuts initializers, group counts and shape constants of the full graph.

    Args:
        exported: the FP32 graph, which says what belongs to which parameter.
        prepared: the graph that is cut: the same, or a conversion that keeps node and parameter names.
        space: the width space.
        other: an export at other widths; None: what follows widths in a Reshape is guessed.
    """

    def __init__(
        self,
        exported: onnx.ModelProto,
        prepared: onnx.ModelProto,
        space: WidthSpace,
        other: onnx.ModelProto | None = None,
    ) -> None:
        import onnx
        from onnx import numpy_helper

        self.space = space
        self.skeleton = onnx.ModelProto()
        self.skeleton.CopyFrom(prepared)
        graph = self.skeleton.graph
        del graph.initializer[:]
        del graph.value_info[:]
        plans, grouped = _plans(exported, space)
        arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in prepared.graph.initializer}
        shapes = _shapes(prepared)
        targets = {} if other is None else _targets(other)
        for node in graph.node:
            if node.op_type == "Reshape" and node.input[1] in arrays:
                own = arrays[node.input[1]]
                if other is None:
                    arrays[node.input[1]] = _free_dimension(own, shapes.get(node.input[0], ()))
                else:
                    arrays[node.input[1]] = _freed_where_other(own, targets[node.name], node.name)
            elif node.op_type in ("DequantizeLinear", "QuantizeLinear"):
                # A quantised parameter, and its scale and zero point by channel, are cut as it was.
                plan = plans.get(node.input[0].removesuffix("_quantized"))
                if plan is not None:
                    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
                    plans[node.input[0]] = plan
                    for name in node.input[1:]:
                        if arrays[name].ndim == 1 and len(arrays[name]) > 1:
                            plans[name] = (plan[axis],)
        self.groups: list[tuple[int, int, Any]] = [
            (position, index, grouped[node.name])
            for position, node in enumerate(graph.node)
            if node.name in grouped
            for index, attribute in enumerate(node.attribute)
            if attribute.name == "group"
        ]
        self.arrays = arrays
        self.plans = {name: plan for name, plan in plans.items() if name in arrays}
        for name, plan in self.plans.items():
            sizes = tuple(sum(segment.positions for segment in segments) for segments in plan)
            if arrays[name].shape != sizes:
                raise ValueError(f"{name} has shape {arrays[name].shape} in ONNX and {sizes} in the space")

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


def _plans(
    exported: onnx.ModelProto, space: WidthSpace
) -> tuple[dict[str, tuple[Segments, ...]], dict[str, Any]]:
    """How each parameter is cut, by its name; and the varying group counts, by the name of the node."""
    arrays = {tensor.name for tensor in exported.graph.initializer}
    plans: dict[str, tuple[Segments, ...]] = {
        name: space.slices[name] for name in arrays if name in space.slices
    }
    groups = {op.weight: op.groups for op in space.ops if op.weight and op.groups is not None}
    grouped = {}
    sizes = {tensor.name: tuple(tensor.dims) for tensor in exported.graph.initializer}
    for node in exported.graph.node:
        if node.op_type == "MatMul" and node.input[1] in arrays and node.input[1] not in plans:
            # A linear layer on tokens: its weight is transposed, and named by the exporter.
            weight = ".".join([*node.name.strip("/").split("/")[:-1], "weight"])
            plan = space.slices.get(weight)
            full = tuple(sum(segment.positions for segment in dims) for dims in plan or ())
            if plan is not None and full[::-1] == sizes[node.input[1]]:
                plans[node.input[1]] = plan[::-1]
        axis = _BIAS_AXIS.get(node.op_type)
        if axis is None or len(node.input) < 2 or node.input[1] not in plans:
            continue
        # A folded batch norm gives a bias to a layer that has none in the module.
        if len(node.input) > 2 and node.input[2] in arrays and node.input[2] not in plans:
            plans[node.input[2]] = (plans[node.input[1]][axis],)
        extent = groups.get(node.input[1])
        if extent is not None and not extent.is_fixed:
            grouped[node.name] = extent
    return plans, grouped


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


def _targets(model: onnx.ModelProto) -> dict[str, npt.NDArray[Any]]:
    """The constant targets of all Reshape nodes, by the node's name."""
    from onnx import numpy_helper

    arrays = {tensor.name: tensor for tensor in model.graph.initializer}
    return {
        node.name: numpy_helper.to_array(arrays[node.input[1]])
        for node in model.graph.node
        if node.op_type == "Reshape" and node.input[1] in arrays
    }


def _freed_where_other(target: npt.NDArray[Any], other: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    """A Reshape target with the one number left to the runtime that is another one at other widths.

    Raises:
        ValueError: several numbers follow widths.
    """
    if target.shape != other.shape:
        raise ValueError(f"{name} has another number of dimensions at other widths")
    differ = np.flatnonzero(target != other)
    if len(differ) > 1 or (len(differ) and (target == -1).any()):
        raise ValueError(f"several dimensions of {name} follow widths")
    freed = target.copy()
    freed[differ] = -1
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
