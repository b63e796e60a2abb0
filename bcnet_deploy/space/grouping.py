"""From traces to width variables, slicing plans and operators."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from torch import nn

from bcnet_deploy.errors import BCNetError, UnsupportedModelError
from bcnet_deploy.space.axes import Axis, Layout, fixed, freeze, joined, resolve, size_of
from bcnet_deploy.space.capture import TRACE_BATCH, Call, Trace, Value, capture
from bcnet_deploy.space.extent import Extent, Segment, Segments, SlicePlan, constant, extent_of
from bcnet_deploy.space.graph import FrozenPart, Op, TensorSpec
from bcnet_deploy.space.layer_rules import attention
from bcnet_deploy.space.layouts import Layouts, unknown
from bcnet_deploy.space.patching import tensor_places
from bcnet_deploy.space.rules import rule_for

_EXPECTED = ("the image", "model output", "kernel size")
"""Reasons that every network has and nobody needs to be told."""


@dataclass(frozen=True)
class RawVariable:
    """A width variable before levels are chosen: ``lowest`` to ``units`` steps of ``step`` channels."""

    name: str
    units: int
    step: int
    layers: tuple[str, ...]
    lowest: int = 1


@dataclass
class Grouping:
    """The result of the analysis; everything but the traces is plain data."""

    variables: list[RawVariable]
    plan: SlicePlan
    parameter_names: frozenset[str]
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
        self.layouts = Layouts(dict(model.named_modules()))
        self.lowest: dict[Axis, int] = {}
        """Least units of axes at which the code runs, where that is more than one."""
        self.trace = capture(model, input_size)
        self.training_trace = self._training_trace()
        for trace in filter(None, (self.trace, self.training_trace)):
            self.layouts.activations |= trace.activations
            for call in trace.calls:
                self._apply(call)
            for value in trace.outputs:
                self._freeze(value, "model output")

    def _apply(self, call: Call) -> None:
        try:
            rule_for(call)(self.layouts, call)
        except (AssertionError, AttributeError, LookupError, TypeError, ValueError):
            # A signature of the operator that its rule was not written for.
            unknown(self.layouts, call)

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

    def inputs_of(self, call: Call) -> set[Axis]:
        """The axes that still vary in the activations that flow into a call."""
        return {
            leaf.axis
            for value in call.inputs
            if value.parameter is None
            for layout in self.layouts.of(value)
            if layout is not None
            for leaf in resolve(layout)
            if axis_is_free(leaf.axis)
        }

    # -- variables -----------------------------------------------------------------------------

    def group(self) -> Grouping:
        """Number the free axes by first appearance and express every size through them."""
        index, raw, axes_layers, frozen = self._number()
        steps = tuple(variable.step for variable in raw)
        self._index, self._steps = index, steps
        self.axes = list(index)
        variables = [replace(v, layers=tuple(dict.fromkeys(axes_layers[i]))) for i, v in enumerate(raw)]
        operators = Operators(self.trace, self.layouts, self.extent)
        return Grouping(
            variables=variables,
            plan=SlicePlan(
                model_name=type(self.model).__name__,
                units=tuple(variable.units for variable in raw),
                tensors={
                    name: tuple(
                        self.segments(layout, size)
                        for layout, size in zip(self.layouts.of(value), value.shape, strict=True)
                    )
                    for name, value in self.trace.parameters.items()
                },
                attributes={
                    key: self.segments(item)
                    if isinstance(item, tuple)
                    else [self.segments(part) for part in item]
                    for key, item in self.layouts.attributes.items()
                },
            ),
            parameter_names=frozenset(
                name for name, places in tensor_places(self.model).items() if places[0].is_parameter
            ),
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
            if len(blocks) > 1 and all(block.size == 1 for block in blocks):
                frozen.setdefault(name, blocks[0].axis.reason or "it meets single channels one by one")
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
                    raw.append(RawVariable(own, axis.size, block.repeat, (), self.lowest.get(axis, 1)))
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
        activations = trace.activations
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


# -- operators ----------------------------------------------------------------------------------

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
MATMULS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}
"""Position of the left operand of matrix products."""

_OWN_NAME = {"conv", "conv_transpose", "linear", "batch_norm", "layer_norm", "group_norm"}
"""Kinds that are named after the module alone."""


def _share(layout: Layout | None, count: int) -> Layout | None:
    """The first of ``count`` equal parts of a layout."""
    if layout is None or count == 1:
        return layout
    blocks = resolve(layout)
    if len(blocks) % count:
        return fixed(size_of(layout) // count, "parts of one run of channels")
    return blocks[: len(blocks) // count]


def _of_one_image(layout: Layout) -> Layout | None:
    """The part of a first dimension that is one image's, where it holds each image's channels alike."""
    blocks = [(block.axis, block.repeat) for block in resolve(layout)]
    count = len(blocks) // TRACE_BATCH
    return resolve(layout)[:count] if count and blocks == blocks[:count] * TRACE_BATCH else None


def multiply_accumulates(trace: Trace, shape_of: Callable[[Value], tuple[int, ...]]) -> int:
    """Of all convolutions and matrix products of a trace, where its values have these shapes."""
    total = 0
    for call in trace.calls:
        if call.op == "convolution":
            # Every position of the output, or of the input where transposed, meets a filter.
            x = shape_of(call.args[0] if call.args[6] else call.outputs[0])
            weight = shape_of(call.args[1])
            total += math.prod(x) * math.prod(weight[1:])
        elif call.op in MATMULS or call.op == "linear":
            left = shape_of(call.args[MATMULS.get(call.op, 0)])
            total += math.prod(shape_of(call.outputs[0])) * left[-1]
    return total


class Operators:
    """The operators of a trace that work on activations.

    Args:
        trace: in evaluation mode.
        layouts: of all its values.
        extent: size of a dimension from its layout, or from its number where it has none.

    Attributes:
        ops, tensors: see :class:`WidthSpace`.
        notes: products that are not counted, a sentence each.
    """

    def __init__(
        self, trace: Trace, layouts: Layouts, extent: Callable[[Layout | None, int], Extent]
    ) -> None:
        self.layouts = layouts
        self._extent = extent
        self.ops: list[Op] = []
        self.tensors: list[TensorSpec] = []
        self.notes: list[str] = []
        self._activations = trace.activations
        self._numbers: dict[Value, int] = {}
        self._used: dict[str, int] = {}
        for value in trace.inputs:
            self._number(value)
        for call in trace.calls:
            if not call.outputs or call.outputs[0] not in self._activations:
                if call.op in ("convolution", "linear", *MATMULS):
                    self.notes.append(
                        f"multiply-accumulates of {call.op} in {call.module or 'the model'} are not counted: "
                        "its result does not depend on the image"
                    )
                continue
            inputs = tuple(self._number(v) for v in dict.fromkeys(call.inputs) if v in self._activations)
            self.ops.append(self._operator(call, inputs, self._number(call.outputs[0])))
            for value in call.outputs[1:]:
                if call.op in ("split", "split_with_sizes", "chunk", "unbind"):
                    self._number(value)

    def _number(self, value: Value) -> int:
        if value not in self._numbers:
            base = value.base
            alias = self._number(base) if base is not None and base in self._activations else None
            self._numbers[value] = len(self.tensors)
            self.tensors.append(TensorSpec(self._shape(value), alias))
        return self._numbers[value]

    def _shape(self, value: Value) -> tuple[Extent, ...]:
        """Sizes for a batch of one: the traced batch is divided out of the first dimension that has it."""
        shape: list[Extent] = []
        divided = False
        for axis, (layout, size) in enumerate(zip(self.layouts.of(value), value.shape, strict=True)):
            extent = self._extent(layout, size)
            if axis == 0 and layout is not None and (each := _of_one_image(layout)) is not None:
                # Rows of all images, one image's channels after another's.
                extent, divided = self._extent(each, size // TRACE_BATCH), True
            # A constant of the batch's size leaves its first dimension frozen where the two meet.
            may_be_batch = layout is None or (axis == 0 and extent.is_fixed)
            if may_be_batch and not divided and size % TRACE_BATCH == 0:
                extent = constant(size // TRACE_BATCH)
                divided = True
            shape.append(extent)
        return tuple(shape)

    def _operator(self, call: Call, inputs: tuple[int, ...], output: int) -> Op:
        kind = _KINDS.get(call.op, call.op)
        weight: Value | None = None
        facts: dict[str, Extent] = {}
        attrs: dict[str, object] = {}
        coefficient = 0
        factors: tuple[Extent, ...] = ()
        if call.op == "convolution":
            weight = call.args[1]
            kind, attrs, facts, coefficient, factors = self._convolution(call)
        elif call.op in MATMULS or call.op == "linear":
            right = call.args[1] if call.op == "linear" else call.args[MATMULS[call.op] + 1]
            kind = "matmul" if right in self._activations else "linear"
            weight = right
            facts, coefficient, factors = self._product(call)
            if kind == "matmul" and call.op in ("mm", "addmm"):
                self.notes.append(
                    f"multiply-accumulates of {call.op} in {call.module or 'the model'} are not counted as "
                    "of one image: it multiplies the images of a batch with one another"
                )
        elif "pool2d" in call.op:
            kernel = call.argument("kernel_size") or call.argument("output_size")
            attrs["kernel"] = tuple(kernel)
            if call.argument("padding") is not None:
                attrs["stride"] = tuple(call.argument("stride") or kernel)
                attrs["padding"] = tuple(call.argument("padding"))
        elif rule_for(call) is attention:
            kind = "attention"
            coefficient, factors = self._attention(call)
        elif rule_for(call) is unknown and any(v.parameter and len(v.shape) > 1 for v in call.inputs):
            self.notes.append(
                f"multiply-accumulates of {call.op} in {call.module or 'the model'} are not counted"
            )
        base = call.module if kind in _OWN_NAME and call.module else f"{call.module}.{kind}".lstrip(".")
        self._used[base] = self._used.get(base, 0) + 1
        name = base if self._used[base] == 1 else f"{base}:{self._used[base]}"
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
        slid = x if transposed else out
        # Weights that depend on the image: its channels are beside those of the next image, in groups.
        images = 1 if slid.shape[0] % TRACE_BATCH == 0 else TRACE_BATCH
        c_in, c_out = (
            self._extent(_share(self.layouts.of(value)[1], images), value.shape[1] // images)
            for value in (x, out)
        )
        layout = self.layouts.attributes.get((call.module, "groups"))
        kept = self._extent(layout, groups) if groups > 1 and isinstance(layout, tuple) else constant(groups)
        coefficient = max(1, slid.shape[0] // TRACE_BATCH) * math.prod(weight.shape[2:])
        places = []
        for own, size in zip(self.layouts.of(slid)[2:], slid.shape[2:], strict=True):
            if own is None:
                coefficient *= size
            else:
                places.append(self._extent(own, size))
        attrs: dict[str, object] = {
            "kernel": tuple(weight.shape[2:]),
            "stride": tuple(call.args[3]),
            "padding": tuple(call.args[4]),
            "dilation": tuple(call.args[5]),
        }
        # Channels per group: of the input, or where transposed of the output.
        each = self._extent(self.layouts.of(weight)[1], weight.shape[1])
        if groups == 1:
            factors: tuple[Extent, ...] = (c_in, c_out, *places)
        elif each.is_fixed:
            coefficient *= each.const
            factors = (c_in if transposed else c_out, *places)
        else:
            factors = (c_in if transposed else c_out, each, *places)
        facts = {"in_channels": c_in, "out_channels": c_out, "groups": kept}
        return "conv_transpose" if transposed else "conv", attrs, facts, coefficient, factors

    def _attention(self, call: Call) -> tuple[int, tuple[Extent, ...]]:
        """Every query meets every key, then weighs every value."""
        query, key, value = call.args[:3]
        inner, outer = (
            layout if layout is not None else fixed(size, "")
            for layout, size in (
                (self.layouts.of(query)[-1], query.shape[-1]), (self.layouts.of(value)[-1], value.shape[-1]),
            )
        )  # fmt: skip
        return 1, (
            *self._shape(query)[:-1],
            self._extent(self.layouts.of(key)[-2], key.shape[-2]),
            self._extent(joined([inner, outer]), query.shape[-1] + value.shape[-1]),
        )

    def _product(self, call: Call) -> tuple[dict[str, Extent], int, tuple[Extent, ...]]:
        """(..., m, k) x (k, n): every output element takes k multiply-accumulates."""
        left = call.args[0] if call.op == "linear" else call.args[MATMULS[call.op]]
        inner = self._extent(self.layouts.of(left)[-1], left.shape[-1])
        output = call.outputs[0]
        outer = list(self._shape(output))
        facts = {"in_channels": inner, "out_channels": outer[-1]}
        return facts, 1, (*outer, inner)
