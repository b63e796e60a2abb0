"""Width vectors as small integers: the index of each variable's choice."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]


class Variable(Protocol):
    """What the search needs of a width variable."""

    @property
    def name(self) -> str: ...
    @property
    def channels(self) -> int: ...
    @property
    def choices(self) -> tuple[int, ...]: ...


class Space(Protocol):
    """What the search needs of a width space; :class:`bcnet_deploy.WidthSpace` is one."""

    @property
    def variables(self) -> Sequence[Any]: ...
    def macs(self, widths: Any) -> Any: ...
    def params(self, widths: Any) -> Any: ...


class Lattice:
    """The choices of a space, and the way between widths (N, L) and choice indices (N, L).

    Attributes:
        names: of the variables.
        choices: ascending widths, one array a variable.
        counts: (L,) number of choices.
        top: (L,) index of the widest choice.
    """

    def __init__(self, variables: Sequence[Variable]) -> None:
        self.names = tuple(v.name for v in variables)
        self.choices = tuple(np.asarray(v.choices, dtype=np.int64) for v in variables)
        self.counts: Int64 = np.array([len(c) for c in self.choices], dtype=np.int64)
        self.top: Int64 = self.counts - 1
        widest = int(self.counts.max()) if len(self.counts) else 1
        # Rows are padded with the widest choice, so that one gather serves all variables.
        self._padded = np.stack([np.pad(c, (0, widest - len(c)), mode="edge") for c in self.choices])
        self._columns = np.arange(len(self.counts))

    @property
    def size(self) -> int:
        """Number of vectors."""
        return math.prod(int(c) for c in self.counts)

    @property
    def length(self) -> int:
        return len(self.counts)

    @property
    def narrowest(self) -> Int64:
        """(L,) indices of the narrowest network."""
        return np.zeros(self.length, dtype=np.int64)

    def widths(self, indices: npt.ArrayLike) -> Int64:
        """(N, L) or (L,) indices -> widths of the same shape."""
        array = np.asarray(indices, dtype=np.int64)
        return np.asarray(self._padded[self._columns, array])

    def nearest(self, widths: npt.ArrayLike) -> Int64:
        """(N, L) or (L,) widths -> indices of the nearest choices, the narrower where two are as near."""
        array = np.asarray(widths, dtype=np.float64)
        columns = [
            np.abs(array[..., i, None] - choices).argmin(axis=-1) for i, choices in enumerate(self.choices)
        ]
        return np.stack(columns, axis=-1).astype(np.int64)

    def random(self, n: int, rng: np.random.Generator) -> Int64:
        """(n, L) indices, uniform and independent."""
        return rng.integers(0, self.counts, size=(n, self.length))

    def all(self) -> Int64:
        """(size, L) every vector, in lexicographic order. For small spaces."""
        return np.stack(np.unravel_index(np.arange(self.size), tuple(self.counts)), axis=1).astype(np.int64)

    def blocks(self, block: int = 1 << 15) -> Iterator[Int64]:
        """Every vector in lexicographic order, at most ``block`` at a time."""
        for start in range(0, self.size, block):
            flat = np.arange(start, min(start + block, self.size))
            yield np.stack(np.unravel_index(flat, tuple(self.counts)), axis=1).astype(np.int64)

    def scaled(self, indices: Int64) -> Float:
        """(N, L) indices -> (N, L) in 0..1: the logarithm of the width between narrowest and widest.

        Accuracy answers to doublings of a width rather than to added channels.
        """
        low = np.log(self._padded[:, 0].astype(np.float64))
        high = np.log(self._padded[:, -1].astype(np.float64))
        span = np.where(high > low, high - low, 1.0)
        return np.asarray((np.log(self.widths(indices).astype(np.float64)) - low) / span)


def keys(vectors: npt.ArrayLike) -> list[bytes]:
    """One hashable key for each row of an integer array."""
    return [row.tobytes() for row in np.ascontiguousarray(vectors, dtype=np.int64)]


def distinct(rows: Int64) -> Int64:
    """(n, L) each of the rows once, where it comes first."""
    _, first = np.unique(rows, axis=0, return_index=True)
    return rows[np.sort(first)]


def uniform_ladder(lattice: Lattice) -> Int64:
    """(n, L) the distinct uniformly scaled vectors, narrowest first."""
    full = np.array([c[-1] for c in lattice.choices], dtype=np.float64)
    shares = np.unique(np.concatenate([c / c[-1] for c in lattice.choices]))
    vectors = lattice.nearest(shares[:, None] * full[None])
    return np.unique(vectors, axis=0)
