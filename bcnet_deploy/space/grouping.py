"""From traces to width variables, slicing plans and operators."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn

from bcnet_deploy.errors import BCNetError, UnsupportedModelError
from bcnet_deploy.space.axes import Axis, Layout, freeze, resolve
from bcnet_deploy.space.capture import Call, Trace, Value, capture
from bcnet_deploy.space.extent import Extent, Segment, Segments, constant, extent_of
from bcnet_deploy.space.layouts import Layouts
from bcnet_deploy.space.operators import MATMULS, Operators, activations_of
from bcnet_deploy.space.ops import FrozenPart, Op, TensorSpec
from bcnet_deploy.space.rules import rule_for

_EXPECTED = ("the image", "model output", "kernel size")
"""Reasons that every network has and nobody needs to be told."""


@dataclass(frozen=True)
class RawVariable:
    """A width variable before levels are chosen: ``units`` steps of ``step`` channels."""

    name: str
    units: int
    step: int
    layers: tuple[str, ...]


@dataclass
class Grouping:
    """The result of the analysis; everything but the traces is plain data."""

    variables: list[RawVariable]
    slices: dict[str, tuple[Segments, ...]]
    attributes: dict[tuple[str, str], Segments | tuple[Segments, ...]]
    ops: list[Op]
    tensors: list[TensorSpec]
    frozen: list[FrozenPart]
    notes: list[str] = field(default_factory=list)


class Grouper:
    """Applies the operator rules to the traces of one model and reads off the variables.

    Args:
        model: the model, unchanged.
        input_size: (channels, height, width).

    Raises:
        UnsupportedModelError, InputSizeError: see :func:`capture`.
    """

    def __init__(self, model: nn.Module, input_size: tuple[int, ...]) -> None:
        self.model = model
        self.input_size = input_size
        self.notes: list[str] = []
        types = {path: type(module) for path, module in model.named_modules()}
        self.layouts = Layouts(lambda path: types.get(path, object))
        self.trace = capture(model, input_size)
        self.training_trace = self._training_trace()
        for trace in filter(None, (self.trace, self.training_trace)):
            self.layouts.activations |= activations_of(trace)
            for call in trace.calls:
                rule_for(call)(self.layouts, call)
            for value in trace.outputs:
                self._freeze(value, "model output")

    def _training_trace(self) -> Trace | None:
        """Auxiliary heads exist in training mode only, and must fit the widths as well."""
        try:
            return capture(self.model, self.input_size, training=True)
        except BCNetError as error:
            self.notes.append(f"training mode could not be traced and may not run at every width: {error}")
            return None

    def _freeze(self, value: Value, reason: str) -> None:
        for layout in self.layouts.of(value):
            if layout is not None:
                freeze(layout, reason)

    def freeze_inputs(self, call: Call, reason: str) -> bool:
        """Freeze what still varies in the inputs of a call; False if nothing does."""
        varying = [
            layout
            for value in call.inputs
            if value.parameter is None
            for layout in self.layouts.of(value)
            if layout is not None and any(axis_is_free(leaf.axis) for leaf in resolve(layout))
        ]
        for layout in varying:
            freeze(layout, reason)
        return bool(varying)

    def freeze_axis_of(self, axis: Axis, reason: str) -> None:
        if axis.reason is None:
            axis.reason = reason

    # -- variables -----------------------------------------------------------------------------

    def group(self) -> Grouping:
        """Number the free axes by first appearance and express every size through them."""
        index, raw, axes_layers, frozen = self._number()
        steps = tuple(variable.step for variable in raw)
        self._index, self._steps = index, steps
        self.axes = list(index)
        variables = [
            RawVariable(v.name, v.units, v.step, tuple(dict.fromkeys(axes_layers[i])))
            for i, v in enumerate(raw)
        ]
        operators = Operators(self.trace, self.layouts, self.extent)
        return Grouping(
            variables=variables,
            slices={
                name: tuple(
                    self.segments(layout, size) for layout, size in zip(dims, value.shape, strict=True)
                )
                for name, value in self.trace.parameters.items()
                for dims in (self.layouts.of(value),)
            },
            attributes={
                **{key: self.segments(layout) for key, layout in self.layouts.attributes.items()},
                **{
                    (path, "normalized_shape"): tuple(
                        self.segments(None, item) if isinstance(item, int) else self.segments(item)
                        for item in shape
                    )
                    for path, shape in self.layouts.normalized_shapes.items()
                },
            },
            ops=operators.ops,
            tensors=operators.tensors,
            frozen=frozen,
            notes=[*self.notes, *operators.notes],
        )

    def _number(self) -> tuple[dict[Axis, int], list[RawVariable], list[list[str]], list[FrozenPart]]:
        index: dict[Axis, int] = {}
        raw: list[RawVariable] = []
        layers: list[list[str]] = []
        frozen: dict[str, str] = {}
        names: set[str] = set()
        for name, layout in self._producers(self.trace):
            if layout is None:
                frozen.setdefault(name, "its weight is computed in a way that no rule covers")
                continue
            blocks = resolve(layout)
            for position, block in enumerate(blocks):
                axis = block.axis
                if axis.reason is None and axis.size == 1:
                    axis.reason = "a single channel" if block.repeat == 1 else "its channels form one group"
                if axis.reason is not None:
                    if not axis.reason.startswith(_EXPECTED) and block.size > 1:
                        frozen.setdefault(name, axis.reason)
                    continue
                if axis not in index:
                    own = name if len(blocks) == 1 else f"{name}[{position}]"
                    while own in names:
                        own += "'"
                    names.add(own)
                    index[axis] = len(raw)
                    raw.append(RawVariable(own, axis.size, block.repeat, ()))
                    layers.append([])
                layers[index[axis]].append(name)
        if self.training_trace is not None:
            for name, layout in self._producers(self.training_trace):
                for block in resolve(layout or ()):
                    if block.axis not in index and block.axis.reason is None:
                        block.axis.reason = "used in training mode only"
                        frozen.setdefault(name, block.axis.reason)
        return index, raw, layers, [FrozenPart(name, reason) for name, reason in frozen.items()]

    def _producers(self, trace: Trace) -> Iterable[tuple[str, Layout | None]]:
        """Layers that make channels from weights, with the layout of what they make."""
        activations = activations_of(trace)
        for call in trace.calls:
            if call.op == "convolution":
                weight, layout = call.args[1], self.layouts.of(call.outputs[0])[1]
            elif call.op == "linear":
                weight, layout = call.args[1], self.layouts.of(call.outputs[0])[-1]
            elif call.op in MATMULS and call.args[MATMULS[call.op] + 1] not in activations:
                weight, layout = call.args[MATMULS[call.op] + 1], self.layouts.of(call.outputs[0])[-1]
            else:
                continue
            if call.outputs[0] in activations:
                yield self._layer_name(call, weight), layout

    def _layer_name(self, call: Call, weight: Value) -> str:
        source = weight.base or weight
        if source.parameter is not None:
            owner, _, key = source.parameter.rpartition(".")
            return owner if key == "weight" and owner else source.parameter
        return call.module or call.op

    # -- sizes ---------------------------------------------------------------------------------

    def segments(self, layout: Layout | None, size: int = 0) -> Segments:
        """A layout as plain data; neighbours that are always kept are merged."""
        if layout is None:
            return (Segment(-1, size),)
        result: list[Segment] = []
        for block in resolve(layout):
            variable = self._index.get(block.axis, -1)
            if variable >= 0:
                result.append(Segment(variable, block.axis.size, block.repeat))
            elif result and result[-1].variable < 0:
                result[-1] = Segment(-1, result[-1].size + block.size)
            else:
                result.append(Segment(-1, block.size))
        return tuple(result)

    def extent(self, layout: Layout | None, size: int = 0) -> Extent:
        return constant(size) if layout is None else extent_of(self.segments(layout), self._steps)


def axis_is_free(axis: Axis) -> bool:
    return axis.reason is None and axis.size > 1


def require_cnn(grouping: Grouping, model: nn.Module) -> None:
    """Refuse what has no convolution whose width could be chosen.

    Raises:
        UnsupportedModelError: naming the model and, if channels were frozen, the first reason.
    """
    convolutions = [op for op in grouping.ops if op.kind in ("conv", "conv_transpose")]
    free = [op for op in convolutions if op.out_channels is not None and not op.out_channels.is_fixed]
    if free:
        return
    name = type(model).__name__
    if not convolutions:
        raise UnsupportedModelError(f"{name} has no convolution; bcnet-deploy chooses widths of CNNs")
    reasons = "; ".join(f"{part.name}: {part.reason}" for part in grouping.frozen[:3])
    attention = any(op.kind == "matmul" or "attention" in op.kind for op in grouping.ops)
    raise UnsupportedModelError(
        f"{name} has no convolution whose width can change"
        + (f" ({reasons})" if reasons else "")
        + ("; transformers and attention networks are not supported" if attention else "")
    )
