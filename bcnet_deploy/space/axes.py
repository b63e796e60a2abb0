"""Which channels of which tensors must be kept together: an algebra of channel axes.

A tensor dimension that depends on widths carries a *layout*: a sequence of blocks, each an axis
whose every index stands for ``repeat`` consecutive positions. Flattening ``C x 7 x 7`` turns the
block ``(C, 1)`` into ``(C, 49)``; concatenation joins sequences. Two dimensions that meet (at an
addition, say) are unified: their axes become one, split where only boundaries agree, or coarsened
where repeats differ. What cannot be reconciled is frozen with a reason, never guessed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(eq=False)
class Axis:
    """A run of channels kept or dropped by one decision.

    Attributes:
        size: number of indices at full width.
        parts: once the axis is known to be made of other axes, those; it then stands for them.
        reason: why the axis must stay at full width, or None while it may be sliced.
    """

    size: int
    parts: tuple[Block, ...] | None = None
    reason: str | None = field(default=None)


@dataclass(frozen=True, eq=False)
class Block:
    """``repeat`` consecutive positions for each index of ``axis``."""

    axis: Axis
    repeat: int = 1

    @property
    def size(self) -> int:
        return self.axis.size * self.repeat


Layout = tuple[Block, ...]


def fresh(size: int) -> Layout:
    """The layout of a dimension about which nothing is known yet."""
    return (Block(Axis(size)),)


def fixed(size: int, reason: str) -> Layout:
    """The layout of a dimension that never changes."""
    return (Block(Axis(size, reason=reason)),)


def size_of(layout: Layout) -> int:
    return sum(block.size for block in layout)


def same_size(first: Layout, second: Layout) -> bool:
    """Whether two layouts have as many positions as each other at all widths, in whichever order."""
    counts: Counter[Axis] = Counter()
    for layout, sign in ((first, 1), (second, -1)):
        for block in resolve(layout):
            counts[block.axis] += sign * block.repeat
    return not any(counts.values())


def resolve(layout: Layout) -> Layout:
    """The same layout in terms of leaf axes."""
    if all(block.axis.parts is None for block in layout):
        return layout
    leaves: list[Block] = []
    for block in layout:
        if block.axis.parts is None:
            leaves.append(block)
            continue
        block.axis.parts = resolve(block.axis.parts)
        leaves.extend(Block(part.axis, part.repeat * block.repeat) for part in block.axis.parts)
    return tuple(leaves)


def leaves(layout: Layout) -> list[Axis]:
    return [block.axis for block in resolve(layout)]


def freeze(layout: Layout, reason: str) -> None:
    """Keep every channel of ``layout`` at full width. The first reason given stays."""
    for axis in leaves(layout):
        if axis.reason is None:
            axis.reason = reason


def _become(axis: Axis, parts: Layout) -> None:
    axis.parts = parts
    if axis.reason is not None:
        freeze(parts, axis.reason)


def settled(layout: Layout) -> str | None:
    """Why no channel of a layout can go, or None while one may."""
    reasons = [axis.reason or ("a single channel" if axis.size == 1 else None) for axis in leaves(layout)]
    return None if None in reasons else reasons[0]


def unify(first: Layout, second: Layout, reason: str) -> None:
    """Require that the same positions be kept in both layouts.

    Where no common structure exists both are frozen, with ``reason``.
    """
    if size_of(first) != size_of(second):
        freeze(first, reason)
        freeze(second, reason)
        return
    # Each round ties, splits or coarsens one axis; sizes only shrink, so the bound is generous.
    for _ in range(8 * (size_of(first) + 2)):
        left, right = resolve(first), resolve(second)
        if _adopt(left, right) or _adopt(right, left):
            return
        position = next(
            (
                i
                for i, (a, b) in enumerate(zip(left, right, strict=False))
                if a.axis is not b.axis or a.repeat != b.repeat
            ),
            None,
        )
        if position is None:
            return
        if not _reconcile(left[position], right[position]):
            break
    freeze(first, reason)
    freeze(second, reason)


def _adopt(single: Layout, other: Layout) -> bool:
    """The common case, a new axis that meets a known layout: it takes that layout as a whole."""
    if len(single) != 1 or single[0].repeat != 1:
        return False
    axis = single[0].axis
    if any(block.axis is axis for block in other):
        return len(other) == 1 and other[0].repeat == 1
    _become(axis, other)
    return True


def _reconcile(first: Block, second: Block) -> bool:
    """Bring two blocks that start at the same position one step nearer; False if impossible."""
    if first.size == second.size:
        if first.axis is second.axis:
            return False
        granule = math.lcm(first.repeat, second.repeat)
        if first.size % granule:
            return False
        common = Axis(first.size // granule)
        _become(first.axis, (Block(common, granule // first.repeat),))
        _become(second.axis, (Block(common, granule // second.repeat),))
        return True
    longer, shorter = (first, second) if first.size > second.size else (second, first)
    if shorter.size % longer.repeat:
        return False
    head = shorter.size // longer.repeat
    _become(longer.axis, (Block(Axis(head)), Block(Axis(longer.axis.size - head))))
    return True


def partition(layout: Layout, count: int, reason: str) -> list[Layout]:
    """``count`` equal parts of a layout, each part's channels decided alike (chunk, shuffle).

    The code that splits a tensor in equal parts needs parts of equal width at every width. A block
    that repeats each index ``count`` times (the result of a channel shuffle) is cut by position:
    each part is as wide as the axis itself, at every width.
    """
    total = size_of(layout)
    blocks = resolve(layout)
    if total % count == 0:
        part = total // count
        runs = _runs(blocks, part)
        if runs is not None:
            for run in runs[1:]:
                unify(runs[0], run, reason)
            return [runs[0]] * count
        if len(blocks) == 1:
            (block,) = blocks
            if block.repeat % count == 0:
                return [(Block(block.axis, block.repeat // count),)] * count
            if block.axis.size % count == 0:
                common = Axis(block.axis.size // count)
                _become(block.axis, (Block(common),) * count)
                return [(Block(common, block.repeat),)] * count
    freeze(layout, reason)
    return [fixed(total // count, reason)] * count


def _runs(blocks: Layout, part: int) -> list[Layout] | None:
    """The blocks cut into runs of ``part`` positions, or None if a block crosses a boundary."""
    runs: list[Layout] = []
    current: list[Block] = []
    filled = 0
    for block in blocks:
        current.append(block)
        filled += block.size
        if filled == part:
            runs.append(tuple(current))
            current, filled = [], 0
        elif filled > part:
            return None
    return runs


def in_granules(layout: Layout, granules: int, reason: str) -> Layout:
    """Slice ``layout`` in ``granules`` equal runs of consecutive channels; the axis of the granules."""
    total = size_of(layout)
    axis = Axis(granules)
    if total % granules:
        freeze(layout, reason)
        return fixed(granules, reason)
    unify((Block(axis, total // granules),), layout, reason)
    return (Block(axis),)


def scaled(layout: Layout, factor: int) -> Layout:
    """Each position repeated ``factor`` times in place (flattening of inner dimensions)."""
    return tuple(Block(block.axis, block.repeat * factor) for block in layout)


def unscaled(layout: Layout, factor: int) -> Layout | None:
    """The inverse of :func:`scaled`, or None where a repeat is not a multiple of ``factor``."""
    blocks = resolve(layout)
    if any(block.repeat % factor for block in blocks):
        return None
    return tuple(Block(block.axis, block.repeat // factor) for block in blocks)


def joined(layouts: Sequence[Layout]) -> Layout:
    """Concatenation."""
    return tuple(block for layout in layouts for block in layout)
