"""Layout rules of operators that reshape, join, cut, reduce or work element by element."""

from __future__ import annotations

import math
from collections.abc import Iterable

from bcnet_deploy.space.axes import (
    Layout,
    fixed,
    freeze,
    fresh,
    in_granules,
    joined,
    leaves,
    partition,
    scaled,
    settled,
    size_of,
    unify,
    unscaled,
)
from bcnet_deploy.space.capture import Call
from bcnet_deploy.space.layouts import FEW_GROUPS, Dims, Layouts, freeze_value, meet, unknown, where
from bcnet_deploy.space.questions import Size

# -- element by element ------------------------------------------------------------------------


def pointwise(layouts: Layouts, call: Call) -> None:
    for output in call.outputs:
        dims: Dims = [None] * len(output.shape)
        seen = [False] * len(dims)
        for value in call.inputs:
            offset = len(dims) - len(value.shape)
            if offset < 0:
                freeze_value(layouts, value, f"{where(call)} drops dimensions")
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
        dims: Dims = [fresh(size) if size > 1 else None for size in output.shape]
        layouts.as_given(call, dims, range(len(dims)))
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
    new = []
    for j, size in enumerate(output.shape):
        i = j - offset
        if i >= 0 and x.shape[i] == size:
            out.append(dims[i])
        else:
            # A broadcast dimension follows whatever it meets.
            out.append(fresh(size) if size > 1 else None)
            new.append(j)
    layouts.as_given(call, out, new)
    layouts.set(output, out)


def repeat(layouts: Layouts, call: Call) -> None:
    x, output, times = call.args[0], call.outputs[0], call.args[1]
    dims: Dims = [*[None] * (len(output.shape) - len(x.shape)), *layouts.of(x)]
    given = call.given if [int(n) for n in call.given] == [int(n) for n in times] else times
    out: Dims = []
    for layout, count in zip(dims, given, strict=True):
        if layout is None or int(count) == 1:
            out.append(layout)
        elif isinstance(count, Size) and (x.parameter is not None or size_of(layout) == 1):
            # One filter for each channel of something else: how often follows widths, the filter does not.
            freeze(layout, f"{where(call)} repeats it")
            out.append(_as_often(layouts, count, size_of(layout)))
        else:
            out.append(joined([layout] * int(count)))
    layouts.set(output, out)


def _as_often(layouts: Layouts, count: Size, size: int) -> Layout | None:
    """``size`` positions for each of ``count``, a number that the code took from a dimension or attribute."""
    if count.formula[0] == "size":
        known = layouts.of(count.formula[1])[count.formula[2]]
        return None if known is None else scaled(known, size)
    each = fresh(int(count))
    layouts.follow_size(count, each)
    return scaled(each, size)


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
        _regroup(layouts, call, dims, x.shape, out, output.shape, range(start_i, i), range(start_j, j))
    layouts.as_given(call, out)
    layouts.set(output, out)


def _regroup(
    layouts: Layouts,
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
    labelled = {i: layout for i in sources if (layout := dims[i]) is not None}
    if not labelled:
        return
    free = [i for i, layout in labelled.items() if any(axis.reason is None for axis in leaves(layout))]
    if len(free) > 1:
        # Of weights (out, in, height, width) the first of those joined varies, the rest is kernel size.
        of_weights = call.outputs[0] not in layouts.activations
        for i in free[1:] if of_weights else free:
            freeze(labelled[i], reason)
        if not of_weights:
            return
    if not free:
        kept = next(axis.reason for layout in labelled.values() for axis in leaves(layout))
        for j in targets:
            out[j] = fixed(out_shape[j], kept or reason)
        return
    index = free[0]
    for j in targets if min(len(sources), len(targets)) > 1 else ():
        # Channels in another place among others: in which order they come there is nobody's concern.
        if out_shape[j] == shape[index] and layouts.from_channels(call, j):
            out[j] = labelled[index]
            return
    before = math.prod(shape[i] for i in sources if i < index)
    after = math.prod(shape[i] for i in sources if i > index)
    merged = joined([scaled(labelled[index], after)] * before)
    if len(targets) == 1:
        out[targets[0]] = merged
        return
    first = targets[0]
    # Heads of tokens (N, places, heads, width) stay, and get narrower.
    many = len(targets) == 2 and targets[-1] < len(out_shape) - 1 and out_shape[first] > FEW_GROUPS
    if (many and layouts.from_attribute(call, first)) or layouts.is_number_of(call, first, targets[1:]):
        # A number of groups that can follow: whole ones are kept, as by grouped convolutions.
        out[first] = in_granules(merged, out_shape[first], reason)
    else:
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
        own = [fresh(size) for size in sizes]
        if call.function.startswith("split") and _list_of(call.given[: len(sizes)], sizes):
            # The sizes are a list of the module's, which can follow.
            unify(layout, joined(own), reason)
            for given, own_part in zip(call.given, own, strict=False):
                layouts.follow_size(given, own_part)
            parts = list(own)
        elif len(set(sizes)) == 1:
            parts = list(partition(layout, len(sizes), reason))
            if call.function.startswith("split"):
                layouts.follow(call, sizes[0], parts[0])
        else:
            freeze(layout, reason)
            parts = [fixed(size, reason) for size in sizes]
    for output, part in zip(call.outputs, parts, strict=True):
        layouts.set(output, [part if i == axis else other for i, other in enumerate(dims)])


def _list_of(given: tuple[int, ...], sizes: list[int]) -> bool:
    """Whether the code gave these sizes as the items of one attribute."""
    origins = [size.formula for size in given if isinstance(size, Size)]
    if [int(size) for size in given] != sizes or len(origins) != len(sizes):
        return False
    return origins == [(*origins[0][:3], i) for i in range(len(sizes))]


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
        if (kept := settled(layout)) is not None:
            dims[axis] = fixed(size, kept)
        elif step == 1 and size > 1 and total % size == 0 and start % size == 0:
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


def nothing(layouts: Layouts, call: Call) -> None:
    """No tensor comes of it."""
