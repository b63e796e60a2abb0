"""Layout rules of layers: convolution, normalisation, matrix products, pooling."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from bcnet_deploy.space.axes import (
    Layout,
    fixed,
    freeze,
    fresh,
    in_granules,
    joined,
    partition,
    scaled,
    unify,
)
from bcnet_deploy.space.capture import TRACE_BATCH, Call, Value
from bcnet_deploy.space.layouts import FEW_GROUPS, Dims, Layouts, freeze_value, meet, where


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
    places: Dims = [_slid_over(call, i, layout) for i, layout in enumerate(layouts.of(x)[2:])]
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
    layouts.set(call.outputs[0], [None, out, *places])


def _slid_over(call: Call, i: int, layout: Layout | None) -> Layout | None:
    """A dimension that the kernel slides over; it may vary where the kernel keeps its size."""
    if layout is None:
        return None
    kernel = call.args[1].shape[2 + i]
    stride, padding, dilation = (call.args[k][i] for k in (3, 4, 5))
    if not call.args[6] and stride == 1 and 2 * padding == dilation * (kernel - 1):
        return layout
    freeze(layout, f"{where(call)} slides over it")
    return None


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
    if groups <= FEW_GROUPS and call.args[0].shape[1] > groups:
        inside = partition(channels, groups, f"{reason} has {groups} groups of equal width")[0]
        if transposed:
            # weight: (in, out / groups, ...)
            unify(w_in or per_group, channels, reason)
            return None if w_out is None else joined([w_out] * groups)
        unify(w_in or per_group, inside, reason)
        if w_out is not None:
            partition(w_out, groups, f"{reason} has {groups} groups of equal width")
        return w_out
    reason = f"{reason} keeps whole groups, which other channels do not allow"
    if transposed:
        # weight: (in, out / groups, ...)
        unify(w_in or per_group, channels, reason)
        if w_out is not None:
            freeze(w_out, f"{where(call)} keeps whole groups")
    else:
        # weight: (out, in / groups, ...)
        if w_in is not None:
            freeze(w_in, f"{where(call)} keeps whole groups")
    kept = in_granules(channels, groups, reason)
    out = scaled(kept, out_channels // groups)
    if not transposed and w_out is not None:
        unify(w_out, out, reason)
    if layouts.is_a(call, nn.modules.conv._ConvNd):
        layouts.attribute(call, "groups", kept)
    else:
        layouts.follow(call, groups, kept)
    return out


def batch_norm(layouts: Layouts, call: Call) -> None:
    x = call.inputs[0]
    channels = layouts.of(x)[1]
    for argument in call.args[1:5]:
        if isinstance(argument, Value):
            meet(layouts, layouts.of(argument)[0], channels, where(call))
    if layouts.is_a(call, nn.modules.instancenorm._InstanceNorm):
        # PyTorch folds the batch into the channels; each image's channels are decided alike.
        each = None if channels is None else partition(channels, TRACE_BATCH, where(call))[0]
        layouts.attribute(call, "num_features", each)
    elif layouts.is_a(call, nn.modules.batchnorm._NormBase):
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
    _normalized_shape(layouts, call, nn.LayerNorm, dims[-normalized:], call.args[1])
    layouts.set(call.outputs[0], list(dims))
    for output in call.outputs[1:]:
        layouts.set(
            output, [layout if size > 1 else None for layout, size in zip(dims, output.shape, strict=False)]
        )


def _normalized_shape(layouts: Layouts, call: Call, kind: type, dims: Dims, sizes: Sequence[int]) -> None:
    """Let the sizes that a norm over the last dimensions was given follow them."""
    if layouts.is_a(call, kind):
        layouts.attributes[call.module, "normalized_shape"] = [
            fixed(size, where(call)) if layout is None else layout
            for layout, size in zip(dims, sizes, strict=True)
        ]
    else:
        for layout, size in zip(dims, sizes, strict=True):
            layouts.follow(call, size, layout)


def rms_norm(layouts: Layouts, call: Call) -> None:
    """The first of the element-wise operators that PyTorch makes of it, the square."""
    dims = layouts.of(call.args[0])
    sizes = call.given
    _normalized_shape(layouts, call, nn.RMSNorm, dims[len(dims) - len(sizes) :], sizes)
    layouts.set(call.outputs[0], list(dims))


def group_norm(layouts: Layouts, call: Call) -> None:
    x, weight, bias, groups = call.args[0], call.args[1], call.args[2], int(call.args[6])
    channels = layouts.of(x)[1]
    kept: Layout | None = None
    if channels is not None and groups > 1:
        if layouts.is_a(call, nn.GroupNorm):
            kept = in_granules(channels, groups, where(call))
            layouts.attribute(call, "num_groups", kept)
        else:
            partition(channels, groups, f"{where(call)} has {groups} groups of equal width")
    if layouts.is_a(call, nn.GroupNorm):
        layouts.attribute(call, "num_channels", channels)
    for argument in (weight, bias):
        if isinstance(argument, Value):
            meet(layouts, channels, layouts.of(argument)[0], where(call))
    layouts.set(call.outputs[0], list(layouts.of(x)))
    for statistics in call.outputs[1:]:
        layouts.set(statistics, [None, kept])


def weight_norm(layouts: Layouts, call: Call) -> None:
    """Weight and magnitude: the weight keeps its slices, and the norm runs over what is kept of it."""
    weight, magnitude, axis = call.args[0], call.args[1], int(call.args[2] or 0)
    dims, own = layouts.of(weight), layouts.of(magnitude)
    meet(layouts, dims[axis], own[axis], where(call))
    layouts.set(call.outputs[0], list(dims))
    for output in call.outputs[1:]:
        layouts.set(output, list(own))


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
    """Products of two activations, (b, m, k) x (b, k, n): what is summed over is kept alike in both."""
    left, right = (call.args[1], call.args[2]) if call.op == "baddbmm" else call.args[:2]
    if (right.base or right).parameter is not None:
        matmul(layouts, call)
        return
    reason = f"{where(call)} multiplies activations with one another (attention)"
    a, b = layouts.of(left), layouts.of(right)
    meet(layouts, a[2], b[1], reason)
    out: Dims = [meet(layouts, a[0], b[0], reason), a[1], b[2]]
    if call.op == "baddbmm":
        freeze_value(layouts, call.args[0], reason)
        for layout in out:
            if layout is not None:
                freeze(layout, reason)
    layouts.set(call.outputs[0], out)


def attention(layouts: Layouts, call: Call) -> None:
    """Queries (..., m, d), keys (..., n, d), values (..., n, e) -> (..., m, e); d and e may vary."""
    reason = f"{where(call)} is attention"
    query, key, value = (layouts.of(given) for given in call.args[:3])
    for own, other in ((query[-1], key[-1]), (key[-2], value[-2])):
        meet(layouts, own, other, reason)
    outer: Dims = [
        meet(layouts, meet(layouts, q, k, reason), v, reason)
        for q, k, v in zip(query[:-2], key[:-2], value[:-2], strict=True)
    ]
    for given in call.inputs:
        if given not in call.args[:3]:  # a mask or bias
            freeze_value(layouts, given, reason)
    shape = call.args[0].shape
    for output in call.outputs:
        if output.shape == (*shape[:-1], call.args[2].shape[-1]):
            layouts.set(output, [*outer, query[-2], value[-1]])
        elif output.shape == shape[:-1]:
            layouts.set(output, [*outer, query[-2]])
        else:
            layouts.set(output, [None] * len(output.shape))


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


def fractional_pool(layouts: Layouts, call: Call) -> None:
    """Its random numbers are drawn for each channel."""
    samples = layouts.of(call.argument("random_samples"))
    meet(layouts, layouts.of(call.args[0])[-3], samples[-2], where(call))
    spatial(layouts, call)


def unpool(layouts: Layouts, call: Call) -> None:
    """The inverse of max pooling, with the indices that pooling gave."""
    x, indices = layouts.of(call.args[0]), layouts.of(call.args[1])
    for layout, own in zip(x[:-2], indices[:-2], strict=True):
        meet(layouts, layout, own, where(call))
    spatial(layouts, call)


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


def im2col(layouts: Layouts, call: Call) -> None:
    """Patches: each channel becomes as many consecutive ones as the kernel has places."""
    x, output = call.args[0], call.outputs[0]
    channels = layouts.of(x)[-3]
    kept = None if channels is None else scaled(channels, output.shape[-2] // x.shape[-3])
    layouts.set(output, [*layouts.of(x)[:-3], kept, None])


def col2im(layouts: Layouts, call: Call) -> None:
    """Patches put together again."""
    x, output = call.args[0], call.outputs[0]
    channels = layouts.of(x)[-2]
    kept = None if channels is None else in_granules(channels, output.shape[-3], where(call))
    layouts.set(output, [*layouts.of(x)[:-2], kept, None, None])
