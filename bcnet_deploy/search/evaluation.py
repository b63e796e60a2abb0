"""Accuracies of width vectors: each asked once, in batches, kept in a journal, errors named.

The journal is why a search can be killed at any moment: a search with one seed asks for the same
vectors in the same order, so running it again replays the answered ones from the journal and goes
on from there. The result is the one of a search that was never killed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Le

from bcnet_deploy import files
from bcnet_deploy.errors import BCNetError, CheckpointError, EvaluationError
from bcnet_deploy.search.lattice import Float, Int64, Lattice, keys
from bcnet_deploy.validation import Checked

JOURNAL_FORMAT = 1
Accuracy = Callable[[Any], Any]
OnError = Literal["stop", "skip"]
_DECIMALS = 9


class NetworkFailedError(EvaluationError):
    """The evaluation of one network failed; what was evaluated before is kept.

    Attributes:
        widths: of the network.
        reason: the failure's type and text.
    """

    def __init__(
        self,
        widths: list[int],
        reason: str,
        remedy: str = "What was evaluated before is kept where a checkpoint is set; set on_error='skip'",
    ) -> None:
        super().__init__(
            f"evaluating widths {widths} failed: {reason}. {remedy} to go on without this network"
        )
        self.widths = widths
        self.reason = reason


def rounded(accuracy: Any) -> Float:
    """Accuracies to 9 decimals: a mean of two sides differs in its last bit by the order of the sum, and
    a network must not stay in the front for that. Large values have no such decimals and stay."""
    values = np.asarray(accuracy, dtype=np.float64)
    small = np.abs(values) < 1e6
    return np.where(small, np.round(np.where(small, values, 0.0), _DECIMALS), values)


def named(error: BaseException) -> str:
    """``MemoryError`` or ``RuntimeError: out of memory``: an exception without a text has its type."""
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@dataclass(frozen=True)
class _Answer(Checked):
    """One line of a journal; an accuracy of None is a network that cannot be had."""

    error: ClassVar[type[BCNetError]] = CheckpointError

    widths: tuple[Annotated[int, Ge(0), Le(2**31)], ...]
    accuracy: float | None


class Journal:
    """Answers on disk, one JSON line a vector after one line that says what they are about.

    Args:
        path: the file; made when absent.
        identity: what the answers depend on (space, supernet). JSON values.

    Raises:
        CheckpointError: the file is of another space or supernet, or is no journal.
        RunDirError: it cannot be written.
    """

    def __init__(self, path: str | Path, identity: dict[str, Any]) -> None:
        self._log = files.JsonLines(
            path, "search journal", header={"format": JOURNAL_FORMAT, "kind": "search journal", **identity},
            remedy="delete it to search from the start, or give another checkpoint path",
        )  # fmt: skip
        self.known: dict[bytes, float] = {}
        for number, row in self._log.read():
            answer = _Answer.from_dict(row, f"search journal {path}, line {number}")
            value = -math.inf if answer.accuracy is None else float(rounded(answer.accuracy))
            self.known[np.array(answer.widths, dtype=np.int64).tobytes()] = value

    def add(self, widths: Int64, accuracy: Float) -> None:
        """Append answers and wait until they are on disk."""
        self._log.append(
            {"widths": [int(w) for w in row], "accuracy": float(a) if math.isfinite(a) else None}
            for row, a in zip(widths, accuracy, strict=True)
        )
        self.known.update(zip(keys(widths), (float(a) for a in accuracy), strict=True))


class Evaluator:
    """The accuracy callable with a memory, a limit and careful errors.

    Args:
        accuracy: widths (N, L) -> (N,) floats, kept to 9 decimals; ``-inf`` marks a network that cannot
            be had.
        lattice: the choices.
        limit: number of distinct vectors that may be asked.
        on_error: ``stop`` raises when an evaluation fails, ``skip`` counts the vector as ``-inf``.
        journal: answers from before, and the place for new ones.
        batch_size: vectors a call; None passes each generation in one call.

    Attributes:
        indices, accuracy: everything answered so far, in the order asked.
        failures: vectors that failed, with the reason.
        calls: vectors that were really run (not taken from the journal).
    """

    def __init__(
        self,
        accuracy: Accuracy,
        lattice: Lattice,
        limit: int,
        *,
        on_error: OnError = "stop",
        journal: Journal | None = None,
        batch_size: int | None = None,
        answered: Callable[[int], None] | None = None,
    ) -> None:
        self._accuracy = accuracy
        self._grid = lattice
        self._limit = limit
        self._on_error = on_error
        self._journal = journal
        self._batch_size = batch_size
        self._answered = answered
        self._order: dict[bytes, int] = {}
        self._rows: list[Int64] = []
        self._values: list[float] = []
        self.failures: list[tuple[list[int], str]] = []
        self.calls = 0

    @property
    def indices(self) -> Int64:
        """(number asked, L) choice indices."""
        return np.array(self._rows, dtype=np.int64).reshape(-1, self._grid.length)

    @property
    def accuracy(self) -> Float:
        """(number asked,) accuracies."""
        return np.array(self._values, dtype=np.float64)

    @property
    def count(self) -> int:
        return len(self._values)

    @property
    def remaining(self) -> int:
        return self._limit - self.count

    def known(self, indices: Int64) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """(N, L) -> (N,) whether each vector has been asked."""
        return np.fromiter((k in self._order for k in keys(indices)), dtype=np.bool_, count=len(indices))

    def fresh(self, indices: Int64) -> Int64:
        """The rows that have not been asked, each once, in order."""
        seen: set[bytes] = set()
        rows = []
        for i, key in enumerate(keys(indices)):
            if key not in self._order and key not in seen:
                seen.add(key)
                rows.append(i)
        return np.asarray(indices[rows], dtype=np.int64).reshape(-1, self._grid.length)

    def __call__(self, indices: Int64) -> Float:
        """(N, L) choice indices -> (N,) accuracies; at most ``remaining`` new vectors.

        Raises:
            EvaluationError: the callable failed, or returned NaN or the wrong shape; names the vector.
        """
        new = self.fresh(indices)
        if len(new) > self.remaining:
            raise AssertionError(f"{len(new)} new vectors asked, {self.remaining} left")
        size = self._batch_size or max(len(new), 1)
        for start in range(0, len(new), size):
            self._ask(new[start : start + size])
            if self._answered is not None:
                self._answered(self.count)
        return np.array([self._values[self._order[k]] for k in keys(indices)], dtype=np.float64)

    def _ask(self, indices: Int64) -> None:
        widths = self._grid.widths(indices)
        values = np.full(len(indices), np.nan)
        missing = np.ones(len(indices), dtype=np.bool_)
        if self._journal is not None:
            for i, key in enumerate(keys(widths)):
                if key in self._journal.known:
                    values[i], missing[i] = self._journal.known[key], False
        if missing.any():
            rows = np.flatnonzero(missing)
            values[rows] = self._run(widths[rows])
        for row, value in zip(indices, values, strict=True):
            self._order[row.tobytes()] = len(self._values)
            self._rows.append(row.copy())
            self._values.append(float(value))

    def _run(self, widths: Int64) -> Float:
        try:
            values = self._call(widths)
        except EvaluationError:
            raise
        except Exception as error:
            if len(widths) == 1:
                return self._failed(widths, error)
            # One by one: keeps what does work, and tells which vector does not.
            return np.concatenate([self._run(row[None]) for row in widths])
        bad = np.isnan(values) | (values == math.inf)
        if bad.any():
            good = ~bad
            self._keep(widths[good], values[good])
            for row, value in zip(widths[bad], values[bad], strict=True):
                self._failed(row[None], ValueError(f"accuracy is {value}"))
            values = np.where(bad, -math.inf, values)
        else:
            self._keep(widths, values)
        return values

    def _call(self, widths: Int64) -> Float:
        values = rounded(self._accuracy(widths.copy()))
        if values.shape != (len(widths),):
            raise EvaluationError(
                f"the accuracy callable returned shape {values.shape} for {len(widths)} width vectors; "
                f"it must return one number a vector, shape ({len(widths)},)"
            )
        self.calls += len(widths)
        return values

    def _keep(self, widths: Int64, values: Float) -> None:
        if self._journal is not None and len(widths):
            self._journal.add(widths, values)

    def _failed(self, widths: Int64, error: Exception) -> Float:
        vector = [int(w) for w in widths[0]]
        if self._on_error == "stop":
            raise NetworkFailedError(vector, named(error)) from error
        self.failures.append((vector, named(error)))
        return np.array([-math.inf])
