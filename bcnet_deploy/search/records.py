"""Loss records of a supernet's training, and E(l, c): what a choice of a layer does to the loss.

Two estimators of E. :func:`best_means` is BCNet's (CVPR 2021, section 3.4): means over the best records. A
record is the loss of one batch, at one moment of the training: the lowest losses are those of easy batches
near the end, and among them the widths hardly matter. :func:`additive_effects` takes all the records,
divides out the moment, and fits one effect a choice. By cross-validation on the records of supernets
(docs/search.md) the former hardly foretells the losses of records left out, the latter does.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from bcnet_deploy import files
from bcnet_deploy.errors import DataError
from bcnet_deploy.search.lattice import Float, Int64, Lattice

WINDOW = 101
"""Neighbouring records whose mean is the moment's; 25 to 401 give the same within the noise."""
_RIDGE = 10.0
"""Records' worth of the belief that a choice has no effect; 1 to 1000 give the same within the noise."""


@dataclass(frozen=True)
class Records:
    """Losses of sampled networks, in the order of training.

    Attributes:
        widths: (R, L) channels.
        loss: (R,)
        reference: (R,) loss of the full width on the same batch, where every record has one.
    """

    widths: Int64
    loss: Float
    reference: Float | None = None

    def __len__(self) -> int:
        return len(self.loss)

    @classmethod
    def of(cls, given: Any, lattice: Lattice) -> Records:
        """From records, (widths, loss) arrays, mappings with these keys, or a ``records.jsonl`` path.

        Raises:
            DataError: unreadable, of another number of layers, or without any finite loss.
        """
        reference: Float | None = None
        if isinstance(given, cls):
            widths, loss, reference = given.widths, given.loss, given.reference
        elif isinstance(given, (str, Path)):
            return _read_records(given, lattice)
        elif isinstance(given, tuple) and len(given) == 2:
            widths, loss = np.asarray(given[0]), np.asarray(given[1], dtype=np.float64)
        elif isinstance(given, Iterable):
            rows = list(given)
            try:
                widths = np.array([row["widths"] for row in rows])
                loss = np.array([row["loss"] for row in rows], dtype=np.float64)
                reference = _references(row.get("reference") for row in rows)
            except (TypeError, KeyError, ValueError) as error:
                raise DataError(
                    "loss records are mappings with 'widths' (one channel count a variable) and 'loss'; "
                    f"cannot read them: {error!r}"
                ) from error
        else:
            raise DataError(
                f"cannot read loss records from {type(given).__name__}; give a records.jsonl path"
            )
        if widths.ndim != 2 or widths.shape[1] != lattice.length or loss.shape != (len(widths),):
            raise DataError(
                f"loss records have widths of shape {widths.shape} and losses of shape {loss.shape}; this "
                f"space has {lattice.length} variables: were they written for another space?"
            )
        finite = np.isfinite(loss)
        if not finite.any():
            raise DataError("no loss record is finite; train the supernet again")
        kept = None if reference is None else reference[finite]
        return cls(widths[finite].astype(np.int64), loss[finite], kept)


_REMEDY = (
    "search without the records (--no-prior, or records=None), or train again ('bcnet-deploy train --fresh')"
)


def _read_records(path: str | Path, lattice: Lattice) -> Records:
    """The records of a ``records.jsonl``. Raises :class:`DataError` naming file, line and what helps."""
    rows: list[tuple[list[int], float, float | None]] = []
    for number, row in files.read_json_lines(path, DataError, "loss records", _REMEDY):
        with files.malformed(f"{path}, line {number}", DataError, _REMEDY):
            files.check_figures(row)
            rows.append(_record(row, lattice))
    if not rows:
        raise DataError(f"{path} holds no loss record; {_REMEDY}")
    widths, losses, references = zip(*rows, strict=True)
    try:
        return Records.of(Records(np.array(widths), np.array(losses), _references(references)), lattice)
    except DataError as error:
        raise DataError(f"{path}: {error}; {_REMEDY}") from error


def _references(values: Iterable[float | None]) -> Float | None:
    """(R,) where all records have one, else None: a log may begin before references were kept."""
    found = list(values)
    return None if any(value is None for value in found) else np.array(found, dtype=np.float64)


def _record(row: dict[str, Any], lattice: Lattice) -> tuple[list[int], float, float | None]:
    """One line's content; raises what :func:`bcnet_deploy.files.malformed` takes."""
    widths, loss = row["widths"], row["loss"]
    if not isinstance(widths, list) or not all(type(w) is int and 0 < w < 2**31 for w in widths):
        raise ValueError(f"widths are {reprlib.repr(widths)}, not a list of channel counts")
    if len(widths) != lattice.length:
        raise ValueError(
            f"it has {len(widths)} widths, this space has {lattice.length} variables: "
            "another model's records?"
        )
    reference = row.get("reference")
    return widths, float(loss), None if reference is None else float(reference)


Estimator = Callable[[Records, Lattice], tuple[Float, ...]]
"""(records, lattice) -> for each layer E, (choices,)."""


def additive_effects(records: Records, lattice: Lattice) -> tuple[Float, ...]:
    """Ridge regression of the records' relative losses on one indicator a choice.

    Widths between two choices count for the nearest. A choice that no record used takes the largest effect.

    Returns:
        for each layer (choices,) effects: differences of log loss, or of loss.
    """
    indices, relative = lattice.nearest(records.widths), relative_losses(records)
    starts = np.concatenate([[0], np.cumsum(lattice.counts)])
    total = int(starts[-1])
    columns = indices + starts[:-1]
    used = np.bincount(columns.ravel(), minlength=total)
    rows = np.arange(0, columns.size + 1, lattice.length)
    indicators = csr_array((np.ones(columns.size), columns.ravel(), rows), shape=(len(columns), total))
    gram = (indicators.T @ indicators).toarray()
    effects = np.linalg.solve(gram + _RIDGE * np.eye(total), indicators.T @ relative)
    effects = np.where(used > 0, effects, effects[used > 0].max())
    return tuple(np.split(effects, starts[1:-1]))


def relative_losses(records: Records) -> Float:
    """(R,) losses without what is not the widths': the moment of the training and, where known, the batch.

    log(loss) minus its mean over :data:`WINDOW` neighbouring records; plain differences where a loss is not
    positive. Where the records have the full width's loss on the same batch, the part that goes with it is
    taken out by least squares: the two are correlated (0.84 on CIFAR-10, batches of 32), not equal.
    """
    loss = _off_the_moment(records.loss)
    if records.reference is None:
        return loss
    batch = _off_the_moment(records.reference)
    power = float(batch @ batch)
    return loss - float(loss @ batch) / power * batch if power > 0 else loss


def _off_the_moment(loss: Float) -> Float:
    values = np.asarray(loss, dtype=np.float64)
    level = np.log(values) if float(values.min()) > 0 else values
    return level - _moving_mean(level, WINDOW)


def best_means(records: Records, lattice: Lattice, best: int = 100) -> tuple[Float, ...]:
    """BCNet's: for each layer the mean loss by choice, over the ``best`` records of least loss.

    Widths between two choices count for the nearest. A choice that no such record used takes the
    largest mean seen.
    """
    order = np.argsort(records.loss, kind="stable")[:best]
    indices, loss = lattice.nearest(records.widths[order]), records.loss[order]
    tables = []
    for column, count in enumerate(lattice.counts):
        used = np.bincount(indices[:, column], minlength=count)
        total = np.bincount(indices[:, column], weights=loss, minlength=count)
        tables.append(np.where(used > 0, total / np.maximum(used, 1), -np.inf))
    largest = max(float(t.max()) for t in tables)
    return tuple(np.where(np.isinf(t), largest, t) for t in tables)


def _moving_mean(values: Float, window: int) -> Float:
    """(R,) mean of the ``window`` nearest in order, of fewer at the ends."""
    half = min(window, len(values)) // 2
    sums = np.concatenate([[0.0], np.cumsum(values)])
    place = np.arange(len(values))
    low, high = np.maximum(place - half, 0), np.minimum(place + half + 1, len(values))
    return np.asarray((sums[high] - sums[low]) / (high - low))
