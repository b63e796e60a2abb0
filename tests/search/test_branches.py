"""Networks that share beginnings: how many beginnings there are, and that nothing else is lost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bcnet_deploy as bd
from bcnet_deploy.search.branches import PER_TERM, beginnings, branched
from bcnet_deploy.search.design import drawn
from bcnet_deploy.search.lattice import Lattice
from tests.search.fakes import FakeSpace
from tests.search.test_design import LATTICE, SPACE, Supernet

SEVEN = Lattice(FakeSpace(((8, 16, 24, 32),) * 7).variables)
# The stages of Channel-Bench-Macro's MobileNet.
STAGES = [(0,), (0, 1), (0, 1, 2), (0, 1, 2, 3, 4), (0, 1, 2, 3, 4, 5), tuple(range(7))]


def different(rows: np.ndarray, prefix: tuple[int, ...]) -> int:
    return len(np.unique(rows[:, prefix], axis=0))


def runs(rows: np.ndarray, prefix: tuple[int, ...]) -> int:
    """How often a beginning differs from the one of the row before."""
    return 1 + int((np.diff(rows[:, prefix], axis=0) != 0).any(axis=1).sum())


def test_each_stage_has_four_beginnings_for_each_term_of_its_widths():
    # All of one width and of two with 4 levels; then 4 * (slopes + squares + products).
    expected = [4, 16, 4 * (3 + 3 + 3), 4 * (5 + 5 + 10), 105]
    assert beginnings(SEVEN, 105, STAGES[:-1]) == expected == [4, 16, 36, 80, 105]
    shared, alone = np.zeros(5), np.zeros(5)
    for seed in range(10):
        rows = drawn(SEVEN, 105, np.random.default_rng(seed), STAGES)
        assert rows.shape == (105, 7) and len(np.unique(rows, axis=0)) == 105
        found = [different(rows, stage) for stage in STAGES[:-1]]
        assert all(a <= b for a, b in zip(found, expected, strict=True))
        shared += found
        # Beginnings stand together, as an evaluator meets them in calls of any size.
        assert all(runs(rows, s) <= k for s, k in zip(STAGES, expected, strict=False))
        alone += [different(drawn(SEVEN, 105, np.random.default_rng(seed)), s) for s in STAGES[:-1]]
    assert (shared <= np.array([4, 16, 36, 80, 105]) * 10).all()
    assert (shared[1:4] < [1.1 * 160, 0.8 * alone[2], 0.9 * alone[3]]).all()


def test_sizes_and_levels_are_spread_as_those_drawn_without_regard_to_beginnings():
    sizes, levels = np.zeros(5), np.zeros((7, 4))
    for seed in range(20):
        rows = drawn(SEVEN, 105, np.random.default_rng(seed), STAGES)
        sizes += np.histogram(rows.mean(axis=1) / 3, bins=5, range=(0, 1))[0]
        levels += [np.bincount(column, minlength=4) for column in rows.T]
    assert (sizes > 0.05 * sizes.sum()).all(), sizes
    assert (levels > 0.15 * levels.sum(axis=1, keepdims=True)).all(), levels


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 6), min_size=1, max_size=12),
    count=st.integers(1, 80),
    seed=st.integers(0, 10**6),
    data=st.data(),
)
def test_any_space_and_stages_give_as_many_distinct_networks_as_asked(counts, count, seed, data):
    lattice = Lattice(FakeSpace(tuple(tuple(range(8, 8 + 4 * c, 4)) for c in counts)).variables)
    length = len(counts)
    # Variables in any order, stages that add nothing or everything, and one that forgets the former.
    prefixes = data.draw(st.lists(st.lists(st.integers(0, length - 1), max_size=length), max_size=5))
    rng = np.random.default_rng(seed)
    rows = drawn(lattice, count, rng, prefixes)
    assert len(rows) == min(count, lattice.size) == len(np.unique(rows, axis=0))
    assert (rows >= 0).all() and (rows <= lattice.top).all()
    if lattice.size > count and prefixes:
        tree = branched(lattice, count, np.random.default_rng(seed), prefixes)
        grown = [tuple(sorted(set().union(*prefixes[: i + 1]))) for i in range(len(prefixes))]
        grown = [s for i, s in enumerate(grown) if 0 < len(s) < length and s not in grown[:i]]
        for stage, most in zip(grown, beginnings(lattice, count, grown), strict=True):
            assert runs(tree, stage) <= most


def test_a_space_of_fifty_variables_shares_most_of_its_stages():
    lattice = Lattice(FakeSpace((tuple(range(8, 168, 8)),) * 50).variables)
    stages = [tuple(range(i + 1)) for i in range(50)]
    rows = drawn(lattice, 600, np.random.default_rng(0), stages)
    assert len(np.unique(rows, axis=0)) == 600
    # Drawn layer by layer without a common size: 0.04.
    assert (rows / lattice.top).mean(axis=1).std() > 0.1
    wanted = np.array([PER_TERM * (d * 2 + d * (d - 1) // 2) for d in range(1, 50)])
    found = np.array([different(rows, s) for s in stages[:-1]])
    assert (found <= np.minimum(wanted, 600)).all()
    # Two beginnings may come out alike by chance.
    assert (found >= 0.5 * np.minimum(wanted, 600)).all()


def test_a_search_asks_for_networks_that_begin_alike_one_after_another():
    class Chained(Supernet):
        prefixes = ((0,), (0, 1), (0, 1, 2))

    sharing, other = Chained(4), Supernet(4)
    results = [bd.search(SPACE, one, {"macs": "0.5x"}, 400, 1) for one in (sharing, other)]
    assert results[0].evaluations == results[1].evaluations
    for prefix, share in ((0,), 0.2), ((0, 1), 0.6):
        asked = [runs(LATTICE.nearest(np.array(one.asked)), prefix) for one in (sharing, other)]
        assert asked[0] < share * asked[1]


@pytest.mark.parametrize("prefixes", [(), ((),), ((0, 1, 2, 3, 4),), ((9,), (-1,))])
def test_stages_that_share_nothing_leave_the_draw_as_it_is(prefixes):
    rows = drawn(LATTICE, 50, np.random.default_rng(3), prefixes)
    assert len(np.unique(rows, axis=0)) == 50
