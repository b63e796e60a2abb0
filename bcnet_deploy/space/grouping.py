"""From traces to width variables, slicing plans and operators."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn

from bcnet_deploy.errors import BCNetError, UnsupportedModelError
from bcnet_deploy.space.axes import Axis, Layout, freeze, resolve
from bcnet_deploy.space.capture import TRACE_BATCH, Call, Trace, Value, capture
from bcnet_deploy.space.extent import Extent, Segment, Segments, constant, extent_of
from bcnet_deploy.space.layouts import Layouts
from bcnet_deploy.space.ops import FrozenPart, Op, TensorSpec
from bcnet_deploy.space.rules import rule_for

_EXPECTED = ("the image", "model output", "kernel size")
"""Reasons that every network has and nobody needs to be told."""

_KINDS = {
    "convolution": "conv",
    "native_batch_norm": "batch_norm",
    "_native_batch_norm_legit": "batch_norm",
    "_native_batch_norm_legit_no_training": "batch_norm",
    "_batch_norm_no_update": "batch_norm",
    "native_layer_norm": "layer_norm",
    "native_group_norm": "group_norm",
    "max_pool2d_with_indices": "max_pool2d",
    "_adaptive_avg_pool2d": "adaptive_avg_pool2d",
    "_prelu_kernel": "prelu",
    "_softmax": "softmax",
    "_unsafe_view": "view",
    "_reshape_alias": "view",
    "reshape": "view",
    "unsqueeze": "view",
    "t": "transpose",
    "split_with_sizes": "split",
}
_MATMULS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}


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
        ops, tensors = self._operators()
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
            ops=ops,
            tensors=tensors,
            frozen=frozen,
            notes=list(self.notes),
        )

    def _number(self) -> tuple[dict[Axis, int], list[RawVariable], list[list[str]], list[FrozenPart]]:
        index: dict[Axis, int] = {}
        raw: list[RawVariable] = []
        layers: list[list[str]] = []
        frozen: dict[str, str] = {}
        names: set[str] = set()
        for name, layout in self._producers(self.trace):
            blocks = resolve(layout)
            for position, block in enumerate(blocks):
                axis = block.axis
                if axis.reason is None and axis.size == 1:
                    axis.reason = "a single channel or group"
                if axis.reason is not None:
                    if not axis.reason.startswith(_EXPECTED) and axis.size > 1:
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
                for block in resolve(layout):
                    if block.axis not in index and block.axis.reason is None:
                        block.axis.reason = "used in training mode only"
                        frozen.setdefault(name, block.axis.reason)
        return index, raw, layers, [FrozenPart(name, reason) for name, reason in frozen.items()]

    def _producers(self, trace: Trace) -> Iterable[tuple[str, Layout]]:
        """Layers that make channels from weights, with the layout of what they make."""
        activations = _activations(trace)
        for call in trace.calls:
            if call.op == "convolution":
                weight, layout = call.args[1], self.layouts.of(call.outputs[0])[1]
            elif call.op == "linear":
                weight, layout = call.args[1], self.layouts.of(call.outputs[0])[-1]
            elif call.op in _MATMULS and call.args[_MATMULS[call.op] + 1] not in activations:
                weight, layout = call.args[_MATMULS[call.op] + 1], self.layouts.of(call.outputs[0])[-1]
            else:
                continue
            if layout is not None and call.outputs[0] in activations:
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

    # -- operators -----------------------------------------------------------------------------

    def _operators(self) -> tuple[list[Op], list[TensorSpec]]:
        activations = _activations(self.trace)
        numbers: dict[Value, int] = {}
        tensors: list[TensorSpec] = []

        def number(value: Value) -> int:
            if value not in numbers:
                numbers[value] = len(tensors)
                base = value.base
                alias = number(base) if base is not None and base in activations else None
                if alias is not None:
                    numbers[value] = len(tensors)
                tensors.append(TensorSpec(self._shape(value), alias))
            return numbers[value]

        for value in self.trace.inputs:
            number(value)
        ops: list[Op] = []
        used: dict[str, int] = {}
        for call in self.trace.calls:
            if not call.outputs or call.outputs[0] not in activations:
                continue
            inputs = tuple(number(v) for v in dict.fromkeys(call.inputs) if v in activations)
            ops.append(self._operator(call, inputs, number(call.outputs[0]), activations, used))
            for value in call.outputs[1:]:
                if call.op in ("split", "split_with_sizes", "chunk", "unbind"):
                    number(value)
        return ops, tensors

    def _shape(self, value: Value) -> tuple[Extent, ...]:
        """Sizes for a batch of one: the traced batch is divided out of the first dimension that has it."""
        shape: list[Extent] = []
        divided = False
        for layout, size in zip(self.layouts.of(value), value.shape, strict=True):
            if layout is None and not divided and size % TRACE_BATCH == 0:
                shape.append(constant(size // TRACE_BATCH))
                divided = True
            else:
                shape.append(self.extent(layout, size))
        return tuple(shape)

    def _operator(
        self,
        call: Call,
        inputs: tuple[int, ...],
        output: int,
        activations: set[Value],
        used: dict[str, int],
    ) -> Op:
        kind = _KINDS.get(call.op, call.op)
        weight: Value | None = None
        facts: dict[str, Extent] = {}
        attrs: dict[str, object] = {}
        coefficient = 0
        factors: tuple[Extent, ...] = ()
        if call.op == "convolution":
            weight = call.args[1]
            kind, attrs, facts, coefficient, factors = self._convolution(call)
        elif call.op in _MATMULS or call.op == "linear":
            right = call.args[1] if call.op == "linear" else call.args[_MATMULS[call.op] + 1]
            kind = "matmul" if right in activations else "linear"
            weight = right
            facts, coefficient, factors = self._product(call)
        elif "pool2d" in call.op:
            kernel = call.args[1]
            attrs["kernel"] = tuple(kernel)
            if call.op != "_adaptive_avg_pool2d" and not call.op.startswith("adaptive"):
                attrs["stride"] = tuple(call.args[2] or kernel)
                attrs["padding"] = tuple(call.args[3])
        base = call.module if kind in _OWN_NAME and call.module else f"{call.module}.{kind}".lstrip(".")
        used[base] = used.get(base, 0) + 1
        name = base if used[base] == 1 else f"{base}:{used[base]}"
        source = (weight.base or weight) if weight is not None else None
        return Op(
            name=name,
            kind=kind,
            module=call.module,
            inputs=inputs,
            output=output,
            attrs=attrs,
            weight=source.parameter if source is not None else None,
            mac_coefficient=coefficient,
            mac_factors=factors,
            **facts,
        )

    def _convolution(
        self, call: Call
    ) -> tuple[str, dict[str, object], dict[str, Extent], int, tuple[Extent, ...]]:
        x, weight, out = call.args[0], call.args[1], call.outputs[0]
        transposed, groups = bool(call.args[6]), int(call.args[8])
        c_in = self.extent(self.layouts.of(x)[1], x.shape[1])
        c_out = self.extent(self.layouts.of(out)[1], out.shape[1])
        layout = self.layouts.attributes.get((call.module, "groups"))
        kept = self.extent(layout) if groups > 1 and layout is not None else constant(groups)
        positions = x.shape if transposed else out.shape
        coefficient = positions[0] // TRACE_BATCH * math.prod(positions[2:]) * math.prod(weight.shape[2:])
        attrs: dict[str, object] = {
            "kernel": tuple(weight.shape[2:]),
            "stride": tuple(call.args[3]),
            "padding": tuple(call.args[4]),
            "dilation": tuple(call.args[5]),
        }
        if groups == 1:
            factors: tuple[Extent, ...] = (c_in, c_out)
        else:
            # Whole groups are kept, so channels per group are constant on either side.
            coefficient *= x.shape[1] // groups
            factors = (c_out,)
        facts = {"in_channels": c_in, "out_channels": c_out, "groups": kept}
        return "conv_transpose" if transposed else "conv", attrs, facts, coefficient, factors

    def _product(self, call: Call) -> tuple[dict[str, Extent], int, tuple[Extent, ...]]:
        """(..., m, k) x (k, n): every output element takes k multiply-accumulates."""
        left = call.args[0] if call.op == "linear" else call.args[_MATMULS[call.op]]
        inner = self.extent(self.layouts.of(left)[-1], left.shape[-1])
        output = call.outputs[0]
        outer = list(self._shape(output))
        facts = {"in_channels": inner, "out_channels": outer[-1]}
        return facts, 1, (*outer, inner)


_OWN_NAME = {"conv", "conv_transpose", "linear", "batch_norm", "layer_norm", "group_norm"}


def axis_is_free(axis: Axis) -> bool:
    return axis.reason is None and axis.size > 1


def _activations(trace: Trace) -> set[Value]:
    """Values that depend on the image."""
    found = set(trace.inputs)
    for call in trace.calls:
        if any(value in found for value in call.inputs):
            found.update(value for value in call.outputs if value.parameter is None)
    return found


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
    raise UnsupportedModelError(
        f"{name} has no convolution whose width can change"
        + (f" ({reasons})" if reasons else "")
        + "; transformers and attention networks are not supported"
    )
