"""Loss records of a supernet's training, as the prior reads them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bcnet_deploy import files
from bcnet_deploy.errors import DataError
from bcnet_deploy.search.grid import Float, Grid, Int64


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
    def of(cls, given: Any, grid: Grid) -> Records:
        """From records, (widths, loss) arrays, mappings with these keys, or a ``records.jsonl`` path.

        Raises:
            DataError: unreadable, of another number of layers, or without any finite loss.
        """
        reference: Float | None = None
        if isinstance(given, cls):
            widths, loss, reference = given.widths, given.loss, given.reference
        elif isinstance(given, (str, Path)):
            return _read_records(given, grid)
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
        if widths.ndim != 2 or widths.shape[1] != grid.length or loss.shape != (len(widths),):
            raise DataError(
                f"loss records have widths of shape {widths.shape} and losses of shape {loss.shape}; this "
                f"space has {grid.length} variables: were they written for another space?"
            )
        finite = np.isfinite(loss)
        if not finite.any():
            raise DataError("no loss record is finite; train the supernet again")
        kept = None if reference is None else reference[finite]
        return cls(widths[finite].astype(np.int64), loss[finite], kept)


_REMEDY = (
    "search without the records (--no-prior, or records=None), or train again ('bcnet-deploy train --fresh')"
)


def _read_records(path: str | Path, grid: Grid) -> Records:
    """The records of a ``records.jsonl``. Raises :class:`DataError` naming file, line and what helps."""
    try:
        lines = files.read_text(path, DataError, "loss records").split("\n")
    except DataError as error:
        raise DataError(f"{error}; {_REMEDY}") from error
    rows: list[tuple[list[int], float, float | None]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(_record(line, grid))
        except (ValueError, KeyError, TypeError) as error:
            if number >= len(lines) - 1 and isinstance(error, json.JSONDecodeError):
                continue  # a kill can cut the last line
            raise DataError(f"{path}, line {number}: {_reason(error)}; {_REMEDY}") from error
    if not rows:
        raise DataError(f"{path} holds no loss record; {_REMEDY}")
    widths, losses, references = zip(*rows, strict=True)
    try:
        return Records.of(Records(np.array(widths), np.array(losses), _references(references)), grid)
    except DataError as error:
        raise DataError(f"{path}: {error}; {_REMEDY}") from error


def _references(values: Iterable[float | None]) -> Float | None:
    """(R,) where all records have one, else None: a log may begin before references were kept."""
    found = list(values)
    return None if any(value is None for value in found) else np.array(found, dtype=np.float64)


def _record(line: str, grid: Grid) -> tuple[list[int], float, float | None]:
    """One line's content; raises a ValueError, KeyError or TypeError that says what is wrong."""
    row = json.loads(line)
    widths, loss = row["widths"], row["loss"]
    if not isinstance(widths, list) or not all(type(w) is int and w > 0 for w in widths):
        raise ValueError(f"widths are {widths!r}, not a list of channel counts")
    if len(widths) != grid.length:
        raise ValueError(
            f"it has {len(widths)} widths, this space has {grid.length} variables: another model's records?"
        )
    reference = row.get("reference")
    return widths, float(loss), None if reference is None else float(reference)


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON ({error.msg})"
    if isinstance(error, KeyError):
        return f"it lacks the key {error}"
    return f"it is no loss record ({error})"
