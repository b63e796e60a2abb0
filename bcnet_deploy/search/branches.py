"""Networks that share how they begin, so that what they share is run once.

An evaluator that keeps the activations of a network's first stages for the next network runs a stage once for
all networks of a call that agree in the widths it depends on. Networks drawn independently agree in next to
none. Here they are the leaves of a tree: a stage has :data:`PER_TERM` different beginnings for each term of a
regression on the widths it depends on, which is what tells these terms apart, and no more than that. Later
stages, of more variables, have more; each network has an end of its own.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

import numpy as np
from scipy.special import betaincinv

from bcnet_deploy.search.lattice import Int64, Lattice, distinct

PER_TERM = 4
"""Different beginnings of a stage for each term of a regression on its widths."""
CONCENTRATION = 4.0
"""Of the widths of one network around its size: 0 is narrowest or full alone, infinity is uniform scaling."""
_MIXED = 2.0
"""How far beginnings of one size get ends of another: 0 not at all, infinity without regard to size."""
_STRATA = 4
"""So many neighbours in the tree take different parts of the distribution of a width."""
_ATTEMPTS = 8

Prefixes = Sequence[Sequence[int]]
"""Variables that each shared stage depends on; those of a stage are among those of the next one."""


def branched(lattice: Lattice, count: int, rng: np.random.Generator, prefixes: Prefixes) -> Int64:
    """(n, L) distinct choice indices of all sizes, networks that begin alike side by side; n <= ``count``."""
    stages = _growing(prefixes, lattice.length)
    numbers = beginnings(lattice, count, stages)
    leaves = count
    for _ in range(_ATTEMPTS):
        rows = distinct(_tree(lattice, leaves, rng, stages, numbers))
        if len(rows) >= count:
            break
        leaves += max(count - len(rows), count // 20, 1)
    return np.asarray(rows[np.sort(rng.permutation(len(rows))[:count])])


def _growing(prefixes: Prefixes, length: int) -> list[tuple[int, ...]]:
    """The stages that depend on more than those before, and not on everything."""
    stages: list[tuple[int, ...]] = []
    known: set[int] = set()
    for prefix in prefixes:
        grown = known | {v for v in prefix if 0 <= v < length}
        if len(known) < len(grown) < length:
            stages.append(tuple(sorted(grown)))
        known = grown
    return stages


def beginnings(lattice: Lattice, count: int, stages: Prefixes) -> list[int]:
    """Number of different beginnings of each stage, for so many networks."""
    numbers: list[int] = []
    before: set[int] = set()
    for stage in stages:
        slopes = len(stage)
        wanted = PER_TERM * (slopes + slopes + slopes * (slopes - 1) // 2)  # squares, products
        # Where few ends are left, few beginnings make too few networks.
        others = math.prod(int(c) for v, c in enumerate(lattice.counts) if v not in stage)
        wanted = max(wanted, -(-2 * count // others))
        possible = math.prod(int(lattice.counts[v]) for v in stage if v not in before)
        last = numbers[-1] if numbers else 1
        numbers.append(max(min(wanted, last * possible, count), last))
        before |= set(stage)
    return numbers


def _tree(
    lattice: Lattice, leaves: int, rng: np.random.Generator, stages: Prefixes, numbers: Sequence[int]
) -> Int64:
    """(leaves, L): a block of leaves has one beginning, and is cut into blocks of the next stage."""
    rows = np.zeros((leaves, lattice.length), dtype=np.int64)
    near = (np.arange(leaves) + rng.random(leaves)) / leaves
    starts, drawn = [0], set[int]()
    for stage, number in zip([*stages, range(lattice.length)], [*numbers, leaves], strict=True):
        starts = _cut(starts, leaves, number, rng)
        lengths = np.diff([*starts, leaves])
        blocks = len(starts)
        size = near[np.array(starts) + (rng.random(blocks) * lengths).astype(np.int64)]
        rank = np.argsort(np.argsort(size + _MIXED * rng.random(blocks)))
        size = (rank + rng.random(blocks)) / blocks
        for variable in sorted(set(stage) - drawn):
            strata = [rng.permutation(_STRATA) for _ in range(-(-blocks // _STRATA))]
            part = (np.concatenate(strata)[:blocks] + rng.random(blocks)) / _STRATA
            share = betaincinv(CONCENTRATION * size + 1e-3, CONCENTRATION * (1 - size) + 1e-3, part)
            top = int(lattice.top[variable])
            chosen = np.minimum((share * (top + 1)).astype(np.int64), top)
            rows[:, variable] = np.repeat(chosen, lengths)
        drawn |= set(stage)
    return rows


def _cut(starts: Sequence[int], end: int, number: int, rng: np.random.Generator) -> list[int]:
    """Starts of so many blocks: the longest one is halved until there are enough."""
    queue = [
        (start - stop, float(rng.random()), start)
        for start, stop in zip(starts, [*starts[1:], end], strict=True)
    ]
    heapq.heapify(queue)
    while len(queue) < min(number, end):
        negative, _, start = heapq.heappop(queue)
        half = -negative // 2
        heapq.heappush(queue, (-half, float(rng.random()), start))
        heapq.heappush(queue, (negative + half, float(rng.random()), start + half))
    return sorted(start for _, _, start in queue)
