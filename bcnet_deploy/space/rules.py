"""How each operator relates the channel layouts of its inputs, parameters and outputs.

One function an operator family; what no rule covers is frozen by name. Dimensions that can never
depend on widths (batch, height, width) carry ``None``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn

from bcnet_deploy.space.axes import (
    Axis,
    Block,
    Layout,
    fixed,
    freeze,
    fresh,
    in_granules,
    joined,
    partition,
    resolve,
    scaled,
    size_of,
    unify,
    unscaled,
)
from bcnet_deploy.space.capture import Call, Value

Dims = list[Layout | None]


class Layouts:
    """The layout of every dimension of every value of a trace."""

    def __init__(self, module_type: Callable[[str], type]) -> None:
        self._of: dict[int, Dims] = {}
        self._parameters: dict[str, Dims] = {}
        self._module_type = module_type
        self.attributes: dict[tuple[str, str], Layout] = {}
        """Integer attributes of modules that follow widths: (module path, name) -> layout."""
        self.normalized_shapes: dict[str, tuple[Layout | int, ...]] = {}
        """The shape attribute of layer norms, by module path."""

    def of(self, value: Value) -> Dims:
        if value.parameter is not None:
            return self.parameter(value.parameter, value.shape)
        return self._of.setdefault(id(value), [None] * len(value.shape))

    def set(self, value: Value, dims: Dims) -> None:
        assert len(dims) == len(value.shape), (dims, value.shape)
        if value.parameter is None:
            self._of[id(value)] = dims

    def parameter(self, name: str, shape: tuple[int, ...]) -> Dims:
        """Shared by all traces of a model, so that train and eval mode agree on one slicing."""
        return self._parameters.setdefault(name, [fresh(size) for size in shape])

    def is_a(self, call: Call, kind: type) -> bool:
        """Whether the innermost module that makes this call is a ``kind``."""
        return issubclass(self._module_type(call.module), kind)

    def attribute(self, call: Call, name: str, layout: Layout | None) -> None:
        if layout is not None:
            self.attributes[call.module, name] = layout


def where(call: Call) -> str:
    return f"{call.op} in {call.module or 'the model'}"


def meet(layouts: Layouts, first: Layout | None, second: Layout | None, reason: str) -> Layout | None:
    """The layout of a dimension in which two operands are combined element by element."""
    if first is None or second is None:
        for layout in (first, second):
            if layout is not None:
                freeze(layout, reason)
        return first or second
    unify(first, second, reason)
    return first


def _freeze_value(layouts: Layouts, value: Value, reason: str) -> None:
    for layout in layouts.of(value):
        if layout is not None:
            freeze(layout, reason)


# -- element by element ------------------------------------------------------------------------


def pointwise(layouts: Layouts, call: Call) -> None:
    for output in call.outputs:
        dims: Dims = [None] * len(output.shape)
        seen = [False] * len(dims)
        for value in call.inputs:
            offset = len(dims) - len(value.shape)
            if offset < 0:
                _freeze_value(layouts, value, f"{where(call)} drops dimensions")
                continue
            for i, layout in enumerate(layouts.of(value)):
                j = offset + i
                if value.shape[i] != output.shape[j] or (value.shape[i] == 1 and layout is None):
                    continue
                if seen[j]:
                    dims[j] = meet(layouts, dims[j], layout, f"{where(call)} meets a fixed size")
                else:
                    dims[j], seen[j] = layout, True
        layouts.set(output, dims)


def same_as_first(layouts: Layouts, call: Call) -> None:
    """Softmax, cumulative sums: one tensor in, the same shape out."""
    for output in call.outputs:
        layouts.set(output, list(layouts.of(call.inputs[0])))


def created(layouts: Layouts, call: Call) -> None:
    """A tensor made from sizes alone: it may follow any width; a trial shows whether it does."""
    for output in call.outputs:
        layouts.set(output, [fresh(size) if size > 1 else None for size in output.shape])


# -- layers ------------------------------------------------------------------------------------


def convolution(layouts: Layouts, call: Call) -> None:
    x, weight, bias = call.args[0], call.args[1], call.args[2]
    transposed, groups = bool(call.args[6]), int(call.args[8])
    reason = where(call)
    kernel = layouts.of(weight)
    for layout in kernel[2:]:
        if layout is not None:
            freeze(layout, "kernel size")
    w_in, w_out = (kernel[0], kernel[1]) if transposed else (kernel[1], kernel[0])
    channels = layouts.of(x)[1]
    for layout in layouts.of(x)[2:]:
        if layout is not None:
            freeze(layout, f"{reason} slides over it")
    out_channels = call.outputs[0].shape[1]
    if groups == 1:
        meet(layouts, channels, w_in, "the image" if channels is None else reason)
        out = w_out
    else:
        out = _grouped(layouts, call, channels, w_in, w_out, groups, transposed, out_channels)
    if bias is not None:
        meet(layouts, layouts.of(bias)[0], out, reason)
    if layouts.is_a(call, nn.modules.conv._ConvNd):
        layouts.attribute(call, "in_channels", channels)
        layouts.attribute(call, "out_channels", out)
    layouts.set(call.outputs[0], [None, out] + [None] * (len(call.outputs[0].shape) - 2))


def _grouped(
    layouts: Layouts,
    call: Call,
    channels: Layout | None,
    w_in: Layout | None,
    w_out: Layout | None,
    groups: int,
    transposed: bool,
    out_channels: int,
) -> Layout | None:
    """Whole groups are kept: input and output move together, by channels per group."""
    reason = where(call)
    if channels is None:
        for layout in (w_in, w_out):
            if layout is not None:
                freeze(layout, f"{reason} groups fixed channels")
        return w_out
    per_group = fresh(1)
    if transposed:
        # weight: (in, out / groups, ...)
        unify(w_in or per_group, channels, reason)
        if w_out is not None:
            freeze(w_out, f"{reason} keeps whole groups")
    else:
        # weight: (out, in / groups, ...)
        if w_in is not None:
            freeze(w_in, f"{reason} keeps whole groups")
    kept = in_granules(channels, groups, reason)
    out = scaled(kept, out_channels // groups)
    if not transposed and w_out is not None:
        unify(w_out, out, reason)
    if layouts.is_a(call, nn.modules.conv._ConvNd):
        layouts.attribute(call, "groups", kept)
    return out


def batch_norm(layouts: Layouts, call: Call) -> None:
    x = call.inputs[0]
    channels = layouts.of(x)[1]
    for argument in call.args[1:5]:
        if isinstance(argument, Value):
            meet(layouts, layouts.of(argument)[0], channels, where(call))
    if layouts.is_a(call, nn.modules.batchnorm._NormBase):
        layouts.attribute(call, "num_features", channels)
    for output in call.outputs:
        if output.shape == x.shape:
            layouts.set(output, list(layouts.of(x)))
        elif len(output.shape) == 1 and output.shape[0] == x.shape[1]:
            layouts.set(output, [channels])


def layer_norm(layouts: Layouts, call: Call) -> None:
    x, normalized = call.args[0], len(call.args[1])
    dims = layouts.of(x)
    for argument in call.args[2:4]:
        if isinstance(argument, Value):
            for own, layout in zip(layouts.of(argument), dims[-normalized:], strict=True):
                meet(layouts, layout, own, where(call))
    if layouts.is_a(call, nn.LayerNorm):
        layouts.normalized_shapes[call.module] = tuple(
            size if layout is None else layout
            for layout, size in zip(dims[-normalized:], call.args[1], strict=True)
        )
    layouts.set(call.outputs[0], list(dims))
    for output in call.outputs[1:]:
        layouts.set(
            output, [layout if size > 1 else None for layout, size in zip(dims, output.shape, strict=False)]
        )


def group_norm(layouts: Layouts, call: Call) -> None:
    x, weight, bias, groups = call.args[0], call.args[1], call.args[2], int(call.args[6])
    channels = layouts.of(x)[1]
    if channels is not None and not layouts.is_a(call, nn.GroupNorm):
        freeze(channels, f"{where(call)} is a function call with a fixed number of groups")
    elif channels is not None:
        if groups > 1:
            layouts.attribute(call, "num_groups", in_granules(channels, groups, where(call)))
        layouts.attribute(call, "num_channels", channels)
    for argument in (weight, bias):
        if isinstance(argument, Value):
            meet(layouts, channels, layouts.of(argument)[0], where(call))
    layouts.set(call.outputs[0], list(layouts.of(x)))


def matmul(layouts: Layouts, call: Call) -> None:
    """Products with a weight: (..., m, k) x (..., k, n); the weight's leading dimensions are broadcast."""
    left, right = (call.args[1], call.args[2]) if call.op in ("addmm", "baddbmm") else call.args[:2]
    a, b = layouts.of(left), layouts.of(right)
    reason = where(call)
    meet(layouts, a[-1], b[-2], "the image" if a[-1] is None else reason)
    out: Dims = [*a[:-1], b[-1]]
    if call.op in ("addmm", "baddbmm"):
        bias = call.args[0]
        own = layouts.of(bias)
        for layout, size, target, full in zip(
            reversed(own), reversed(bias.shape), reversed(out), reversed(call.outputs[0].shape), strict=False
        ):
            if size == full and size > 1:
                meet(layouts, target, layout, reason)
    _linear_attributes(layouts, call, a[-1], b[-1])
    layouts.set(call.outputs[0], out)


def batched_matmul(layouts: Layouts, call: Call) -> None:
    """Products of two activations (attention): the code around them fixes the sizes of heads."""
    right = call.args[2] if call.op == "baddbmm" else call.args[1]
    if (right.base or right).parameter is not None:
        matmul(layouts, call)
        return
    for value in call.inputs:
        _freeze_value(layouts, value, f"{where(call)} multiplies activations with one another (attention)")
    layouts.set(call.outputs[0], [None] * len(call.outputs[0].shape))


def linear(layouts: Layouts, call: Call) -> None:
    x, weight, bias = call.args[0], call.args[1], call.args[2]
    out, inside = layouts.of(weight)
    dims = layouts.of(x)
    meet(layouts, dims[-1], inside, "the image" if dims[-1] is None else where(call))
    if isinstance(bias, Value):
        meet(layouts, out, layouts.of(bias)[0], where(call))
    _linear_attributes(layouts, call, dims[-1], out)
    layouts.set(call.outputs[0], [*dims[:-1], out])


def _linear_attributes(layouts: Layouts, call: Call, inside: Layout | None, out: Layout | None) -> None:
    if layouts.is_a(call, nn.Linear):
        layouts.attribute(call, "in_features", inside)
        layouts.attribute(call, "out_features", out)


def spatial(layouts: Layouts, call: Call) -> None:
    """Pooling, resizing, padding of height and width: the leading dimensions stay."""
    x = call.inputs[0]
    dims = layouts.of(x)
    for output in call.outputs:
        kept: Dims = []
        for i, layout in enumerate(dims):
            if i >= len(dims) - 2 or x.shape[i] != output.shape[i]:
                if layout is not None:
                    freeze(layout, f"{where(call)} works across it")
                layout = None
            kept.append(layout)
        layouts.set(output, kept)


def constant_pad(layouts: Layouts, call: Call) -> None:
    x, pads = call.args[0], call.args[1]
    dims = list(layouts.of(x))
    for i, layout in enumerate(dims):
        k = 2 * (len(dims) - 1 - i)
        if layout is not None and k < len(pads) and (pads[k] or pads[k + 1]):
            before, after = int(pads[k]), int(pads[k + 1])
            reason = f"{where(call)} pads channels"
            if min(before, after) < 0:
                freeze(layout, reason)
                dims[i] = fixed(call.outputs[0].shape[i], reason)
                continue
            sides = [fixed(before, reason)] if before else []
            tail = [fixed(after, reason)] if after else []
            dims[i] = joined([*sides, layout, *tail])
    layouts.set(call.outputs[0], dims)


def pixel_shuffle(layouts: Layouts, call: Call) -> None:
    x, output = call.args[0], call.outputs[0]
    dims = list(layouts.of(x))
    channels = dims[1]
    if channels is not None:
        dims[1] = in_granules(channels, output.shape[1], where(call))
    layouts.set(output, dims)


def pixel_unshuffle(layouts: Layouts, call: Call) -> None:
    x, output = call.args[0], call.outputs[0]
    dims = list(layouts.of(x))
    if dims[1] is not None:
        dims[1] = scaled(dims[1], output.shape[1] // x.shape[1])
    layouts.set(output, dims)


# -- reductions --------------------------------------------------------------------------------


def reduction(layouts: Layouts, call: Call) -> None:
    x = call.inputs[0]
    dims = layouts.of(x)
    axes: Iterable[int] | None = next(
        (a for a in call.args[1:] if isinstance(a, (list, tuple)) and all(isinstance(i, int) for i in a)),
        None,
    )
    if axes is None:
        axes = [call.args[1]] if len(call.args) > 1 and type(call.args[1]) is int else range(len(dims))
    reduced = {int(axis) % len(dims) for axis in axes} if dims else set()
    if not reduced:
        reduced = set(range(len(dims)))
    for output in call.outputs:
        if len(output.shape) == len(dims):
            layouts.set(output, [None if i in reduced else layout for i, layout in enumerate(dims)])
        elif len(output.shape) == len(dims) - len(reduced):
            layouts.set(output, [layout for i, layout in enumerate(dims) if i not in reduced])


# -- shapes ------------------------------------------------------------------------------------


def permute(layouts: Layouts, call: Call) -> None:
    x = call.args[0]
    dims = layouts.of(x)
    order = list(range(len(dims)))
    if call.op == "permute":
        order = [int(i) % len(dims) for i in call.args[1]]
    elif call.op == "transpose":
        i, j = (int(k) % len(dims) for k in call.args[1:3])
        order[i], order[j] = order[j], order[i]
    elif len(dims) == 2:
        order.reverse()
    layouts.set(call.outputs[0], [dims[i] for i in order])


def expand(layouts: Layouts, call: Call) -> None:
    x, output = call.args[0], call.outputs[0]
    dims = layouts.of(x)
    offset = len(output.shape) - len(dims)
    out: Dims = []
    for j, size in enumerate(output.shape):
        i = j - offset
        if i >= 0 and x.shape[i] == size:
            out.append(dims[i])
        else:
            # A broadcast dimension follows whatever it meets.
            out.append(fresh(size) if size > 1 else None)
    layouts.set(output, out)


def repeat(layouts: Layouts, call: Call) -> None:
    x, output, times = call.args[0], call.outputs[0], call.args[1]
    dims: Dims = [*[None] * (len(output.shape) - len(x.shape)), *layouts.of(x)]
    layouts.set(
        output,
        [
            None if layout is None else joined([layout] * int(n))
            for layout, n in zip(dims, times, strict=True)
        ],
    )


def view(layouts: Layouts, call: Call) -> None:
    """Reshaping: match runs of input dimensions with runs of output dimensions of equal product."""
    x, output = call.inputs[0], call.outputs[0]
    dims = layouts.of(x)
    out: Dims = [None] * len(output.shape)
    i = j = 0
    while i < len(x.shape) or j < len(output.shape):
        start_i, start_j = i, j
        left = right = 1
        if i < len(x.shape):
            left, i = x.shape[i], i + 1
        if j < len(output.shape):
            right, j = output.shape[j], j + 1
        while left != right:
            if left < right and i < len(x.shape):
                left, i = left * x.shape[i], i + 1
            elif right < left and j < len(output.shape):
                right, j = right * output.shape[j], j + 1
            else:
                break
        _regroup(call, dims, x.shape, out, output.shape, range(start_i, i), range(start_j, j))
    layouts.set(output, out)


def _regroup(
    call: Call,
    dims: Dims,
    shape: tuple[int, ...],
    out: Dims,
    out_shape: tuple[int, ...],
    source: range,
    target: range,
) -> None:
    reason = f"{where(call)} reshapes it"
    sources = [i for i in source if shape[i] > 1]
    targets = [j for j in target if out_shape[j] > 1]
    labelled = [i for i in sources if dims[i] is not None]
    if not labelled:
        return
    if len(labelled) > 1:
        for i in labelled:
            freeze(dims[i] or (), reason)
        return
    (index,) = labelled
    layout = dims[index]
    assert layout is not None
    before = math.prod(shape[i] for i in sources if i < index)
    after = math.prod(shape[i] for i in sources if i > index)
    merged = joined([scaled(layout, after)] * before)
    if len(targets) == 1:
        out[targets[0]] = merged
        return
    _split(merged, [out_shape[j] for j in targets], targets, out, reason)


def _split(merged: Layout, sizes: list[int], targets: list[int], out: Dims, reason: str) -> None:
    """One dimension becomes several: find which of them can carry the channels."""
    inner = math.prod(sizes[1:])
    outer = unscaled(merged, inner)
    if outer is not None:
        out[targets[0]] = outer
        return
    parts = partition(merged, sizes[0], reason)
    if len(sizes) == 2:
        out[targets[1]] = parts[0]
    else:
        _split(parts[0], sizes[1:], targets[1:], out, reason)


def squeeze(layouts: Layouts, call: Call) -> None:
    x, output = call.args[0], call.outputs[0]
    dims = layouts.of(x)
    wide = [layout for layout, size in zip(dims, x.shape, strict=True) if size > 1]
    slots = [j for j, size in enumerate(output.shape) if size > 1]
    out: Dims = [None] * len(output.shape)
    for j, layout in zip(slots, wide, strict=True):
        out[j] = layout
    layouts.set(output, out)


# -- joining and cutting -----------------------------------------------------------------------


def cat(layouts: Layouts, call: Call) -> None:
    values = [v for v in call.args[0] if math.prod(v.shape) > 0]
    output = call.outputs[0]
    axis = int(call.args[1] or 0) % len(output.shape)
    out: Dims = list(layouts.of(values[0]))
    for value in values[1:]:
        for i, layout in enumerate(layouts.of(value)):
            if i != axis and value.shape[i] > 1:
                out[i] = meet(layouts, out[i], layout, where(call))
    parts = [layouts.of(value)[axis] for value in values]
    if any(part is not None for part in parts):
        reason = f"{where(call)} joins it to other channels of fixed size"
        out[axis] = joined(
            [
                part if part is not None else fixed(value.shape[axis], reason)
                for part, value in zip(parts, values, strict=True)
            ]
        )
    layouts.set(output, out)


def stack(layouts: Layouts, call: Call) -> None:
    values, output = call.args[0], call.outputs[0]
    axis = int(call.args[1] or 0) % len(output.shape)
    dims: Dims = list(layouts.of(values[0]))
    for value in values[1:]:
        for i, layout in enumerate(layouts.of(value)):
            if value.shape[i] > 1:
                dims[i] = meet(layouts, dims[i], layout, where(call))
    dims.insert(axis, None)
    layouts.set(output, dims)


def split(layouts: Layouts, call: Call) -> None:
    x = call.args[0]
    axis = int(call.args[2] or 0) % len(x.shape)
    dims = layouts.of(x)
    layout = dims[axis]
    sizes = [output.shape[axis] for output in call.outputs]
    parts: list[Layout | None] = [None] * len(sizes)
    if layout is not None:
        reason = f"{where(call)} cuts it in parts of sizes {sizes}"
        if len(set(sizes)) == 1:
            parts = list(partition(layout, len(sizes), reason))
        else:
            freeze(layout, reason)
            parts = [fixed(size, reason) for size in sizes]
    for output, part in zip(call.outputs, parts, strict=True):
        layouts.set(output, [part if i == axis else other for i, other in enumerate(dims)])


def slice_(layouts: Layouts, call: Call) -> None:
    x, output = call.args[0], call.outputs[0]
    axis = int(call.args[1] or 0) % len(x.shape)
    dims = list(layouts.of(x))
    layout, total, size = dims[axis], x.shape[axis], output.shape[axis]
    if layout is not None and size != total:
        start = int(call.args[2] or 0)
        step = int(call.args[4]) if len(call.args) > 4 and call.args[4] else 1
        reason = f"{where(call)} takes {size} of {total} channels"
        start = start + total if start < 0 else start
        if step == 1 and size and total % size == 0 and start % size == 0:
            dims[axis] = partition(layout, total // size, reason)[start // size]
        else:
            freeze(layout, reason)
            dims[axis] = fixed(size, reason)
    layouts.set(output, dims)


def select(layouts: Layouts, call: Call) -> None:
    """select, unbind, one index of a dimension: the dimension must not be a width."""
    x = call.args[0]
    axis = int(call.args[1] or 0) % len(x.shape)
    dims = list(layouts.of(x))
    layout = dims.pop(axis)
    if layout is not None:
        freeze(layout, f"{where(call)} takes single channels")
    for output in call.outputs:
        layouts.set(output, list(dims))


def glu(layouts: Layouts, call: Call) -> None:
    """First half times the sigmoid of the second."""
    x, output = call.args[0], call.outputs[0]
    axis = int(call.args[1] if call.args[1] is not None else -1) % len(x.shape)
    dims = list(layouts.of(x))
    layout = dims[axis]
    if layout is not None:
        dims[axis] = partition(layout, 2, where(call))[0]
    layouts.set(output, dims)


def as_strided(layouts: Layouts, call: Call) -> None:
    """PyTorch's pooling uses it to change memory order; any other use is opaque."""
    x, output = call.args[0], call.outputs[0]
    if output.shape == x.shape and not call.args[3]:
        layouts.set(output, list(layouts.of(x)))
    else:
        unknown(layouts, call)


def flip_or_roll(layouts: Layouts, call: Call) -> None:
    x = call.args[0]
    axes = call.args[2] if call.op == "roll" else call.args[1]
    dims = layouts.of(x)
    for axis in axes or range(len(dims)):
        layout = dims[int(axis) % len(dims)]
        if layout is not None:
            freeze(layout, f"{where(call)} reorders channels")
    layouts.set(call.outputs[0], list(dims))


def unknown(layouts: Layouts, call: Call) -> None:
    reason = f"no rule for operator {call.op} (in {call.module or 'the model'})"
    for value in call.inputs:
        _freeze_value(layouts, value, reason)
    for output in call.outputs:
        layouts.set(output, [None] * len(output.shape))


def nothing(layouts: Layouts, call: Call) -> None:
    """No tensor comes of it."""


Rule = Callable[[Layouts, Call], None]


_NAMES: dict[Rule, str] = {
    # Beside what is element-wise by nature: activations that do not carry PyTorch's tag.
    pointwise: """
        copy clone _to_copy detach alias dropout fill where zeros_like ones_like empty_like full_like
        rand_like randn_like bernoulli lift_fresh _prelu_kernel native_dropout uniform normal zero
        hardswish hardsigmoid hardtanh mish silu gelu elu celu selu softplus leaky_relu
        rrelu_with_noise threshold log_sigmoid_forward softshrink hardshrink relu relu6 clamp addcmul
        addcdiv lerp _fused_dropout""",
    same_as_first: "_softmax _log_softmax softmax log_softmax cumsum",
    created: """
        zeros ones empty full rand randn arange scalar_tensor new_zeros new_ones new_empty new_full
        empty_strided new_empty_strided""",
    convolution: "convolution",
    batch_norm: """
        native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training
        _batch_norm_with_update _batch_norm_no_update cudnn_batch_norm""",
    layer_norm: "native_layer_norm",
    group_norm: "native_group_norm",
    matmul: "mm addmm",
    batched_matmul: "bmm baddbmm",
    linear: "linear",
    spatial: """
        max_pool2d_with_indices avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d
        upsample_nearest2d upsample_bilinear2d upsample_bicubic2d _upsample_nearest_exact2d
        _upsample_bilinear2d_aa _upsample_bicubic2d_aa reflection_pad2d replication_pad2d max_pool2d
        adaptive_avg_pool2d fractional_max_pool2d""",
    constant_pad: "constant_pad_nd",
    pixel_shuffle: "pixel_shuffle",
    pixel_unshuffle: "pixel_unshuffle",
    reduction: """
        mean sum amax amin max min var std var_mean std_mean argmax argmin prod norm
        linalg_vector_norm logsumexp any all""",
    permute: "permute transpose t",
    expand: "expand",
    repeat: "repeat",
    view: "view _unsafe_view reshape _reshape_alias unsqueeze unflatten flatten",
    squeeze: "squeeze",
    cat: "cat",
    stack: "stack",
    split: "split split_with_sizes chunk",
    slice_: "slice",
    select: "select unbind",
    flip_or_roll: "flip roll",
    glu: "glu",
    as_strided: "as_strided",
}
_RULES = {name: rule for rule, names in _NAMES.items() for name in names.split()}


def rule_for(call: Call) -> Rule:
    """The rule of an operator; element-wise operators are known by PyTorch's own tag."""
    rule = _RULES.get(call.op)
    if rule is not None:
        return rule
    if not call.outputs:
        # A question about a tensor (its device, say); answers that depend on values cannot be traced.
        return nothing
    return pointwise if torch.Tag.pointwise in call.func.tags else unknown


__all__ = ["Axis", "Block", "Dims", "Layouts", "resolve", "rule_for", "size_of", "where"]
