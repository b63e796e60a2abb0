"""What a traced network computes, as operators and tensors whose sizes follow the width variables."""

from __future__ import annotations

import math
from collections.abc import Callable

from bcnet_deploy.space.axes import Layout
from bcnet_deploy.space.capture import TRACE_BATCH, Call, Trace, Value
from bcnet_deploy.space.extent import Extent, constant
from bcnet_deploy.space.layer_rules import attention
from bcnet_deploy.space.layouts import Layouts, unknown
from bcnet_deploy.space.ops import Op, TensorSpec
from bcnet_deploy.space.rules import rule_for

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


def activations_of(trace: Trace) -> set[Value]:
    """Values that depend on the image."""
    found = set(trace.inputs)
    for call in trace.calls:
        if any(value in found for value in call.inputs):
            found.update(value for value in call.outputs if value.parameter is None)
    return found


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
        self._activations = activations_of(trace)
        self._numbers: dict[Value, int] = {}
        self._used: dict[str, int] = {}
        for value in trace.inputs:
            self._number(value)
        for call in trace.calls:
            if not call.outputs or call.outputs[0] not in self._activations:
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
        for layout, size in zip(self.layouts.of(value), value.shape, strict=True):
            if layout is None and not divided and size % TRACE_BATCH == 0:
                shape.append(constant(size // TRACE_BATCH))
                divided = True
            else:
                shape.append(self._extent(layout, size))
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
        elif "pool2d" in call.op:
            kernel = call.args[1]
            attrs["kernel"] = tuple(kernel)
            if call.op != "_adaptive_avg_pool2d" and not call.op.startswith("adaptive"):
                attrs["stride"] = tuple(call.args[2] or kernel)
                attrs["padding"] = tuple(call.args[3])
        elif rule_for(call) is attention:
            kind = "attention"
            # Every query meets every key, then weighs every value; all of them are frozen.
            query, key, value = (v.shape for v in call.args[:3])
            coefficient = math.prod(query[:-1]) // TRACE_BATCH * key[-2] * (query[-1] + value[-1])
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
        c_in = self._extent(self.layouts.of(x)[1], x.shape[1])
        c_out = self._extent(self.layouts.of(out)[1], out.shape[1])
        layout = self.layouts.attributes.get((call.module, "groups"))
        kept = self._extent(layout, groups) if groups > 1 and layout is not None else constant(groups)
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
        left = call.args[0] if call.op == "linear" else call.args[MATMULS[call.op]]
        inner = self._extent(self.layouts.of(left)[-1], left.shape[-1])
        output = call.outputs[0]
        outer = list(self._shape(output))
        facts = {"in_channels": inner, "out_channels": outer[-1]}
        return facts, 1, (*outer, inner)
