"""What was measured: for each kind of layer, its time at some channel counts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bcnet_deploy.errors import TableError

Int64 = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Entries:
    """The measurements of one key, one row a combination of channel counts, ascending.

    Attributes:
        dims: (n, D) channel counts, distinct rows.
        count: (n,) measurements behind each row.
        median_us: (n,) microseconds.
        spread_us: (n,) half of the interquartile range; 0 for a single measurement.
    """

    dims: Int64
    count: Int64
    median_us: Floats
    spread_us: Floats

    def __len__(self) -> int:
        return len(self.dims)

    @property
    def low(self) -> Int64:
        """(D,) smallest measured channel counts."""
        return np.asarray(self.dims.min(axis=0))

    @property
    def high(self) -> Int64:
        """(D,) largest measured channel counts."""
        return np.asarray(self.dims.max(axis=0))

    def covers(self, dims: Int64) -> npt.NDArray[np.bool_]:
        """(n, D) -> (n,) whether each is within the measured range of every channel count."""
        return np.asarray(((dims >= self.low) & (dims <= self.high)).all(axis=1))

    @classmethod
    def from_samples(cls, dims: Int64, times_us: Floats) -> Entries:
        """Rows of repeated measurements, in any order, summarised."""
        unique, inverse, count = np.unique(dims, axis=0, return_inverse=True, return_counts=True)
        order = np.lexsort((times_us, inverse.ravel()))
        groups = np.split(times_us[order], np.cumsum(count)[:-1])
        quartiles = np.array([np.quantile(group, (0.25, 0.5, 0.75)) for group in groups]).reshape(-1, 3)
        return cls(unique, count.astype(np.int64), quartiles[:, 1], (quartiles[:, 2] - quartiles[:, 0]) / 2)

    def without(self, dims: Int64) -> Entries | None:
        """The rows that are not in ``dims``; None when there are none."""
        known = set(map(tuple, dims.tolist()))
        rows = np.array([tuple(row) not in known for row in self.dims.tolist()])
        if not rows.any():
            return None
        return Entries(self.dims[rows], self.count[rows], self.median_us[rows], self.spread_us[rows])

    def slowed(self, factor: float) -> Entries:
        """The same with every time multiplied by ``factor``."""
        return Entries(self.dims, self.count, self.median_us * factor, self.spread_us * factor)

    def merged(self, other: Entries | None) -> Entries:
        """Both together; a row that both have keeps the count-weighted mean of the medians."""
        if other is None:
            return self
        dims = np.concatenate([self.dims, other.dims])
        unique, inverse = np.unique(dims, axis=0, return_inverse=True)
        inverse = inverse.ravel()
        count = np.concatenate([self.count, other.count])
        total = np.bincount(inverse, count)

        def mean(left: Floats, right: Floats) -> Floats:
            return np.asarray(np.bincount(inverse, np.concatenate([left, right]) * count) / total)

        return Entries(
            unique,
            total.astype(np.int64),
            mean(self.median_us, other.median_us),
            mean(self.spread_us, other.spread_us),
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "dims": self.dims.tolist(),
            "count": self.count.tolist(),
            "median_us": [round(float(value), 2) for value in self.median_us],
            "spread_us": [round(float(value), 2) for value in self.spread_us],
        }

    @classmethod
    def from_dict(cls, data: Any, where: str) -> Entries:
        """Read and check. Raises :class:`TableError` naming ``where`` and the key at fault."""
        columns = ("dims", "count", "median_us", "spread_us")
        require_keys(data, columns, where)
        dims, count = (whole_numbers(data[name], f"{where}.{name}", minimum=1) for name in columns[:2])
        median, spread = (non_negative(data[name], f"{where}.{name}") for name in columns[2:])
        if dims.ndim != 2 or not len(dims) == len(count) == len(median) == len(spread) > 0:
            raise TableError(
                f"{where}: dims, count, median_us and spread_us must have one row each, and some"
            )
        if len(np.unique(dims, axis=0)) != len(dims):
            raise TableError(f"{where}.dims has a row twice; merge its measurements, or remove one")
        for name, largest, values in (("dims", 2**24, dims), ("median_us", 1e10, median)):
            if values.max() > largest:
                raise TableError(f"{where}.{name} holds {values.max():g}; allowed: up to {largest:g}")
        return cls(dims, count, median, spread)


def require_keys(data: Any, keys: Iterable[str], where: str) -> None:
    """Raises :class:`TableError` unless ``data`` is a mapping that has ``keys``."""
    if not isinstance(data, dict):
        raise TableError(f"{where} must be a mapping; given {type(data).__name__}")
    missing = [key for key in keys if key not in data]
    if missing:
        raise TableError(f"{where} lacks the key {missing[0]!r}; it was edited by hand or is damaged")


def whole_numbers(data: Any, where: str, *, minimum: int) -> Int64:
    """Raises :class:`TableError` unless ``data`` is a regular list of whole numbers from ``minimum``."""
    array = _array(data, where)
    if array.size and (array.dtype.kind not in "iu" or array.min() < minimum):
        raise TableError(f"{where} must hold whole numbers of {minimum} or more")
    return array.astype(np.int64)


def finite(data: Any, where: str) -> Floats:
    """Raises :class:`TableError` unless ``data`` is a regular list of finite numbers."""
    array = _array(data, where)
    if array.size and (array.dtype.kind not in "iuf" or not np.isfinite(array).all()):
        raise TableError(f"{where} must hold finite numbers")
    return array.astype(np.float64)


def non_negative(data: Any, where: str) -> Floats:
    """Raises :class:`TableError` unless ``data`` is a regular list of finite numbers from 0."""
    array = finite(data, where)
    if array.size and array.min() < 0:
        raise TableError(f"{where} must not be negative; given {array.min()}")
    return array


def _array(data: Any, where: str) -> npt.NDArray[Any]:
    try:
        return np.asarray(data if isinstance(data, list) else [data])
    except ValueError as error:
        raise TableError(f"{where} has rows of different lengths") from error
