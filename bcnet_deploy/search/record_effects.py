"""E(l, c): what a choice of a layer does to the loss, from the supernet's loss records.

Two estimators. :func:`best_means` is BCNet's (CVPR 2021, section 3.4): means over the best records. A
record is the loss of one batch, at one moment of the training: the lowest losses are those of easy batches
near the end, and among them the widths hardly matter. :func:`additive_effects` takes all the records,
divides out the moment, and fits one effect a choice. By cross-validation on the records of supernets
(docs/search.md) the former hardly foretells the losses of records left out, the latter does.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.sparse import csr_array

from bcnet_deploy.search.grid import Float, Grid
from bcnet_deploy.search.records import Records

WINDOW = 101
"""Neighbouring records whose mean is the moment's; 25 to 401 give the same within the noise."""
_RIDGE = 10.0
"""Records' worth of the belief that a choice has no effect; 1 to 1000 give the same within the noise."""


Estimator = Callable[[Records, Grid], tuple[Float, ...]]
"""(records, grid) -> for each layer E, (choices,)."""


def additive_effects(records: Records, grid: Grid) -> tuple[Float, ...]:
    """Ridge regression of the records' relative losses on one indicator a choice.

    Widths between two choices count for the nearest. A choice that no record used takes the largest effect.

    Returns:
        for each layer (choices,) effects: differences of log loss, or of loss.
    """
    indices, relative = grid.nearest(records.widths), relative_losses(records)
    starts = np.concatenate([[0], np.cumsum(grid.counts)])
    total = int(starts[-1])
    columns = indices + starts[:-1]
    used = np.bincount(columns.ravel(), minlength=total)
    rows = np.arange(0, columns.size + 1, grid.length)
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


def best_means(records: Records, grid: Grid, best: int = 100) -> tuple[Float, ...]:
    """BCNet's: for each layer the mean loss by choice, over the ``best`` records of least loss.

    Widths between two choices count for the nearest. A choice that no such record used takes the
    largest mean seen.
    """
    order = np.argsort(records.loss, kind="stable")[:best]
    indices, loss = grid.nearest(records.widths[order]), records.loss[order]
    tables = []
    for column, count in enumerate(grid.counts):
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
