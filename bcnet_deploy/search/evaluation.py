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
from typing import Annotated, Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from annotated_types import Ge, Le

from bcnet_deploy import files
from bcnet_deploy.errors import BCNetError, CheckpointError, EvaluationError
from bcnet_deploy.search.lattice import Float, Int64, Lattice, keys
from bcnet_deploy.validation import Checked

JOURNAL_FORMAT = 1
Accuracy = Callable[[Any], Any]
"""Widths (N, L) -> (N,) accuracies.

One with a method ``noise``, widths (N, L) -> (N,) standard deviations of what it returned, is chosen by the
posterior means of all its scores: see :mod:`bcnet_deploy.search.posterior`. An attribute ``shares_weights``
that is true says that they are of one supernet, whose effects hold for networks in general in part. One
``trains_each`` says that each is of a network trained for it, one ``before_training`` that they are of
networks to be trained: both are asked near the budgets. An attribute ``prefixes``, tuples of variables each
among those of the next, says that networks of one call that agree in one of them cost less: networks are then
drawn so that many do.
"""
OnError = Literal["stop", "skip"]
_DECIMALS = 9


@runtime_checkable
class RacingAccuracy(Protocol):
    """An accuracy that can be had from fewer images first and from more later.

    Attributes:
        images: of a full evaluation.
        image_passes: images that went through a network so far, recalibration included.
    """

    images: int
    image_passes: int

    def on(self, widths: Any, images: int) -> Any:
        """(N, L) widths -> (N,) accuracies on the first ``images`` images."""

    def noise(self, widths: Any, images: int) -> Any:
        """(N, L) widths -> (N,) standard deviations of these."""

    def __call__(self, widths: Any) -> Any: ...


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
    noise: Annotated[float, Ge(0)] = 0.0
    images: Annotated[int, Ge(0)] = 0


class AnswerJournal:
    """Answers on disk, one JSON line a vector after one line that says what they are about.

    ``known`` holds (accuracy, noise) by widths and number of images; 0 images is a full evaluation.

    Args:
        path: the file; made when absent.
        identity: what the answers depend on (space, supernet). JSON values.
        bounds: the least and the largest accuracy that there can be; None: any.

    Raises:
        CheckpointError: the file is of another space or supernet, or is no journal, or an accuracy in it is
            outside the bounds.
        RunDirError: it cannot be written.
    """

    def __init__(
        self, path: str | Path, identity: dict[str, Any], bounds: tuple[float, float] | None = None
    ) -> None:
        self._log = files.JsonLines(
            path, "search journal", header={"format": JOURNAL_FORMAT, "kind": "search journal", **identity},
            remedy="delete it to search from the start, or give another checkpoint path",
        )  # fmt: skip
        self.known: dict[tuple[bytes, int], tuple[float, float]] = {}
        for number, row in self._log.read():
            place = f"search journal {path}, line {number}"
            answer = _Answer.from_dict(row, place)
            if bounds and answer.accuracy is not None and not bounds[0] <= answer.accuracy <= bounds[1]:
                raise CheckpointError(
                    f"{place}: accuracy is {answer.accuracy:g}; allowed: {bounds[0]:g} to {bounds[1]:g}; "
                    "the file is damaged: delete it to search from the start"
                )
            value = -math.inf if answer.accuracy is None else float(rounded(answer.accuracy))
            key = np.array(answer.widths, dtype=np.int64).tobytes()
            self.known[key, answer.images] = value, answer.noise

    def close(self) -> None:
        """Close the file; what is known stays."""
        self._log.close()

    def add(self, widths: Int64, answers: Float, images: int) -> None:
        """Append (N, 2) accuracies and noises, and wait until they are on disk."""
        self._log.append(
            {
                "widths": [int(w) for w in row],
                "accuracy": float(a) if math.isfinite(a) else None,
                **({"noise": float(noise)} if noise else {}),
                **({"images": images} if images else {}),
            }
            for row, (a, noise) in zip(widths, answers, strict=True)
        )
        for key, (a, noise) in zip(keys(widths), answers, strict=True):
            self.known[key, images] = float(a), float(noise)


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
        images: number of images that each vector is asked on first, of a :class:`RacingAccuracy`; 0: all.

    Attributes:
        indices, accuracy, noise: everything answered so far, in the order asked.
        images: that each answer is from; 0: all.
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
        journal: AnswerJournal | None = None,
        batch_size: int | None = None,
        answered: Callable[[int], None] | None = None,
        images: int = 0,
    ) -> None:
        self._accuracy: Any = accuracy
        self._lattice = lattice
        self._first = images
        self._limit = limit
        self._on_error = on_error
        self._journal = journal
        self._batch_size = batch_size
        self._answered = answered
        self._order: dict[bytes, int] = {}
        self._rows: list[Int64] = []
        self._answers: list[tuple[float, float]] = []
        self.images: list[int] = []
        self.noisy = callable(getattr(accuracy, "noise", None))
        self.failures: list[tuple[list[int], str]] = []
        self.calls = 0

    @property
    def indices(self) -> Int64:
        """(number asked, L) choice indices."""
        return np.array(self._rows, dtype=np.int64).reshape(-1, self._lattice.length)

    @property
    def accuracy(self) -> Float:
        """(number asked,) accuracies."""
        return np.array([a for a, _ in self._answers], dtype=np.float64)

    @property
    def noise(self) -> Float:
        """(number asked,) standard deviations; 0 where the accuracies are exact."""
        return np.array([noise for _, noise in self._answers], dtype=np.float64)

    @property
    def widths(self) -> Int64:
        """(number asked, L) channels."""
        return self._lattice.widths(self.indices)

    def images_of(self, indices: Int64) -> int:
        """Images behind the answer for one known (L,) vector; 0: all."""
        return self.images[self._order[np.asarray(indices, dtype=np.int64).tobytes()]]

    def images_used(self, full: int) -> int:
        """Images behind all answers, where a full evaluation takes ``full``."""
        return sum(count or full for count in self.images)

    @property
    def prefixes(self) -> tuple[tuple[int, ...], ...]:
        """Variables in which networks of one call must agree to share a stage; shallow stages first."""
        return tuple(getattr(self._accuracy, "prefixes", ()))

    @property
    def count(self) -> int:
        return len(self._answers)

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
        return np.asarray(indices[rows], dtype=np.int64).reshape(-1, self._lattice.length)

    def __call__(self, indices: Int64) -> Float:
        """(N, L) choice indices -> (N,) accuracies; at most ``remaining`` new vectors.

        Raises:
            EvaluationError: the callable failed, or returned NaN or the wrong shape; names the vector.
        """
        new = self.fresh(indices)
        if len(new) > self.remaining:
            raise AssertionError(f"{len(new)} new vectors asked, {self.remaining} left")
        for part in self._parts(new):
            for row, answer in zip(part, self._ask(part, self._first), strict=True):
                self._order[row.tobytes()] = len(self._answers)
                self._rows.append(row.copy())
                self._answers.append((float(answer[0]), float(answer[1])))
                self.images.append(self._first)
            if self._answered is not None:
                self._answered(self.count)
        return np.array([self._answers[self._order[k]][0] for k in keys(indices)], dtype=np.float64)

    def again(self, indices: Int64, images: int) -> None:
        """Ask known (N, L) vectors again, on more images (0: on all); the new answers replace the old."""
        for part in self._parts(indices):
            for row, answer in zip(part, self._ask(part, images), strict=True):
                at = self._order[row.tobytes()]
                self._answers[at] = float(answer[0]), float(answer[1])
                self.images[at] = images

    def _parts(self, indices: Int64) -> list[Int64]:
        size = self._batch_size or max(len(indices), 1)
        return [indices[start : start + size] for start in range(0, len(indices), size)]

    def _ask(self, indices: Int64, images: int) -> Float:
        """(N, 2) accuracies and noises, from the journal where it has them."""
        widths = self._lattice.widths(indices)
        answers = np.full((len(indices), 2), np.nan)
        missing = np.ones(len(indices), dtype=np.bool_)
        if self._journal is not None:
            for i, key in enumerate(keys(widths)):
                if (key, images) in self._journal.known:
                    answers[i], missing[i] = self._journal.known[key, images], False
        if missing.any():
            answers[missing] = self._run(widths[missing], images)
        return answers

    def _run(self, widths: Int64, images: int) -> Float:
        try:
            answers = self._call(widths, images)
        except EvaluationError:
            raise
        except Exception as error:
            if len(widths) == 1:
                return self._failed(widths, error)
            # One by one: keeps what does work, and tells which vector does not.
            return np.concatenate([self._run(row[None], images) for row in widths])
        bad = np.isnan(answers[:, 0]) | (answers[:, 0] == math.inf)
        if self._journal is not None and not bad.all():
            self._journal.add(widths[~bad], answers[~bad], images)
        for i in np.flatnonzero(bad):
            answers[i] = self._failed(widths[i][None], ValueError(f"accuracy is {answers[i, 0]}"))[0]
        return answers

    def _call(self, widths: Int64, images: int) -> Float:
        more = (images,) if images else ()
        values = self._accuracy.on(widths.copy(), images) if images else self._accuracy(widths.copy())
        columns = [rounded(values)]
        columns.append(
            rounded(self._accuracy.noise(widths.copy(), *more)) if self.noisy else np.zeros(len(widths))
        )
        for what, column in zip(("accuracy callable", "accuracy callable's noise"), columns, strict=True):
            if column.shape != (len(widths),):
                raise EvaluationError(
                    f"the {what} returned shape {column.shape} for {len(widths)} width vectors; "
                    f"it must return one number a vector, shape ({len(widths)},)"
                )
        # Noise is often computed from the accuracy: one that cannot be had has none.
        columns[1] = np.where(np.isfinite(columns[0]), columns[1], 0.0)
        if not (np.isfinite(columns[1]) & (columns[1] >= 0)).all():
            raise EvaluationError(
                f"the accuracy callable's noise is {columns[1].tolist()}; allowed: finite standard "
                "deviations from 0, one a vector"
            )
        self.calls += len(widths)
        return np.stack(columns, axis=1)

    def _failed(self, widths: Int64, error: Exception) -> Float:
        vector = [int(w) for w in widths[0]]
        if self._on_error == "stop":
            raise NetworkFailedError(vector, named(error)) from error
        self.failures.append((vector, named(error)))
        return np.array([[-math.inf, 0.0]])
