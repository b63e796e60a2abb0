"""The algebra of channel axes, against positions written out one by one."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bcnet_deploy.space.axes import (
    Axis,
    Block,
    Layout,
    fixed,
    fresh,
    in_granules,
    joined,
    leaves,
    partition,
    resolve,
    scaled,
    size_of,
    unify,
    unscaled,
)


def positions(layout: Layout) -> list[tuple[int, int]]:
    """The (leaf axis, index) behind every position."""
    return [
        (id(block.axis), index)
        for block in resolve(layout)
        for index in range(block.axis.size)
        for _ in range(block.repeat)
    ]


def tied(first: Layout, second: Layout) -> bool:
    return positions(first) == positions(second)


class UnionFind:
    """The oracle: positions joined pairwise, with no notion of axes."""

    def __init__(self) -> None:
        self.parent: dict[object, object] = {}

    def find(self, item: object) -> object:
        while self.parent.setdefault(item, item) != item:
            item = self.parent[item]
        return item

    def union(self, a: object, b: object) -> None:
        self.parent[self.find(a)] = self.find(b)


blocks = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 3)), min_size=1, max_size=4)


@given(blocks, st.integers(1, 4))
def test_scaling_repeats_each_position_and_is_undone(spec: list[tuple[int, int]], factor: int) -> None:
    layout = tuple(Block(Axis(size), repeat) for size, repeat in spec)
    expected = [p for p in positions(layout) for _ in range(factor)]
    assert positions(scaled(layout, factor)) == expected
    undone = unscaled(scaled(layout, factor), factor)
    assert undone is not None and positions(undone) == positions(layout)


@given(blocks, blocks)
def test_unify_ties_every_position_or_freezes(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> None:
    first = tuple(Block(Axis(size), repeat) for size, repeat in a)
    second = tuple(Block(Axis(size), repeat) for size, repeat in b)
    unify(first, second, "test")
    if size_of(first) != size_of(second):
        assert all(axis.reason == "test" for axis in leaves(first) + leaves(second))
    else:
        assert tied(first, second) or all(axis.reason for axis in leaves(first) + leaves(second))


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4), st.lists(st.integers(1, 5), min_size=1, max_size=4)
)
def test_unify_ties_no_more_than_asked(a: list[int], b: list[int]) -> None:
    """Splitting keeps apart what the code allows to differ: as many free decisions as the oracle."""
    b = [*b, max(0, sum(a) - sum(b))] if sum(a) >= sum(b) else b
    a = [*a, max(0, sum(b) - sum(a))] if sum(b) >= sum(a) else a
    a, b = [n for n in a if n], [n for n in b if n]
    first = tuple(Block(Axis(n)) for n in a)
    second = tuple(Block(Axis(n)) for n in b)
    unify(first, second, "test")
    cuts = set(itertools.accumulate(a)) | set(itertools.accumulate(b))
    assert len({id(axis) for axis in leaves(first)}) == len(cuts)
    assert not any(axis.reason for axis in leaves(first))


def test_a_second_meeting_of_reordered_parts_ties_them() -> None:
    a, b = Axis(3), Axis(5)
    unify((Block(a), Block(b)), (Block(b), Block(a)), "test")
    oracle = UnionFind()
    left = [("a", i) for i in range(3)] + [("b", i) for i in range(5)]
    right = [("b", i) for i in range(5)] + [("a", i) for i in range(3)]
    for p, q in zip(left, right, strict=True):
        oracle.union(p, q)
    ours = positions((Block(a), Block(b)))
    for i, j in itertools.combinations(range(8), 2):
        if ours[i] == ours[j]:
            assert oracle.find(left[i]) == oracle.find(left[j])


def test_freezing_spreads_to_whatever_is_tied_later() -> None:
    free, still = fresh(8), fixed(8, "the image")
    unify(free, still, "test")
    assert [axis.reason for axis in leaves(free)] == ["the image"]


@pytest.mark.parametrize(("size", "groups"), [(12, 4), (12, 12), (6, 1)])
def test_granules_are_runs_of_consecutive_channels(size: int, groups: int) -> None:
    channels = fresh(size)
    kept = in_granules(channels, groups, "test")
    (axis,) = leaves(kept)
    assert axis.size == groups
    assert [index for _, index in positions(channels)] == [i // (size // groups) for i in range(size)]


def test_granules_that_do_not_divide_freeze() -> None:
    channels = fresh(10)
    in_granules(channels, 4, "ten in four")
    assert leaves(channels)[0].reason == "ten in four"


def test_halves_of_one_axis_are_decided_alike() -> None:
    whole = fresh(10)
    first, second = partition(whole, 2, "test")
    assert tied(first, second)
    assert positions(whole) == positions(first) * 2


def test_halves_of_a_shuffled_pair_are_as_wide_as_the_axis() -> None:
    axis = Axis(7)
    first, second = partition((Block(axis, 2),), 2, "test")
    assert tied(first, second) and leaves(first) == [axis] and size_of(first) == 7


def test_parts_that_cross_a_boundary_freeze() -> None:
    layout = joined([fresh(3), fresh(5)])
    partition(layout, 2, "uneven")
    assert all(axis.reason == "uneven" for axis in leaves(layout))
