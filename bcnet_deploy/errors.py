"""The errors a user can expect, as one small tree.

Every message says what was given, what is allowed and what to do next. The command line prints
the message of a :class:`BCNetError` on one line and exits with its ``exit_code``; anything else
is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

MESSAGE_LENGTH = 2000
"""Longer messages lose their middle: what was given may be of any size."""


def one_line(text: str) -> str:
    """``text`` on one line of at most :data:`MESSAGE_LENGTH` characters, safe to print anywhere.

    Line breaks become spaces. Control characters and halves of surrogate pairs, which files may have in
    their names, are escaped.
    """
    if len(text) > MESSAGE_LENGTH:
        part = MESSAGE_LENGTH // 2 - 3
        text = f"{text[:part]} ... {text[-part:]}"
    if text.isprintable():
        return text
    parts = (line if line.isprintable() else _escaped(line) for line in text.splitlines())
    return " ".join(parts).strip()


def _escaped(line: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


class BCNetError(Exception):
    """Root of all expected errors. Its text is one line, whatever it was made of."""

    exit_code = 1
    names_nothing = False
    """Whether a name or path was given that leads to nothing; see :func:`names_nothing`."""

    def __str__(self) -> str:
        return one_line(super().__str__())


E = TypeVar("E", bound=BCNetError)


def names_nothing(error: E) -> E:
    """``error``, marked as about a name or path that leads to nothing: as an option, wrong usage."""
    error.names_nothing = True
    return error


class UsageError(BCNetError):
    """An option has a value that is none of those allowed."""

    exit_code = 2


class UnitError(UsageError, ValueError):
    """A quantity such as ``5ms`` or ``300M`` could not be read, or is out of range."""


class ModelError(BCNetError):
    """A model, or a reference to one, cannot be used."""


class UnknownModelError(ModelError, LookupError):
    """No model has this name."""


class UnsupportedModelError(ModelError):
    """The model cannot become a width space: not a CNN, or its control flow depends on data."""


class InputSizeError(ModelError, ValueError):
    """The model does not run on inputs of this size."""


class NonFiniteWeightError(ModelError, ValueError):
    """A weight is NaN or infinite."""


class CheckpointError(BCNetError):
    """A checkpoint or saved network is damaged, or belongs to another model or space."""


class WidthError(BCNetError, ValueError):
    """A width vector has the wrong length, or a width is out of its variable's range."""


class DeviceError(BCNetError):
    """A device profile is invalid, or the device is not this machine's."""


class UnknownDeviceError(DeviceError, LookupError):
    """No device profile has this name."""


class TableError(BCNetError):
    """A latency table is damaged, of a newer version, or belongs to another network."""


class MissingEntryError(TableError, LookupError):
    """A latency table has no measurement that covers a requested layer."""


class EngineError(BCNetError):
    """A runtime is not installed, or refuses a network."""


class ExportError(BCNetError):
    """An exported network failed a check, or cannot be written."""


class ConstraintError(BCNetError, ValueError):
    """A budget cannot be read, or budgets contradict each other."""


class InfeasibleError(BCNetError):
    """No network of the space meets the budget."""


class EvaluationError(BCNetError):
    """The accuracy of a width vector could not be evaluated."""


class DataError(BCNetError):
    """A data set is missing, damaged or does not fit the model."""


class TaskError(BCNetError):
    """A task does not fit the network or the data: outputs, targets, loss or metric."""


class TrainingError(BCNetError):
    """Training cannot go on (for example the loss is not finite)."""


class ConfigError(BCNetError, ValueError):
    """A configuration file has an unknown, missing or invalid key."""


class RunDirError(BCNetError):
    """A run directory is of another version or model, or cannot be written."""


class MissingStepError(RunDirError):
    """An earlier step of the flow has not been run in this run directory."""


WRONG_VALUES = (UsageError, ConfigError, ConstraintError, WidthError, UnknownModelError, UnknownDeviceError)
"""Errors that say of a value itself that it is none of those allowed."""


@contextmanager
def wrong_option(*given: object) -> Iterator[None]:
    """Where options are read: a value that is none of those allowed exits as :class:`UsageError` does.

    So does a name or path that leads to nothing. What is there and damaged, or contradicts the run, does not.

    Args:
        given: the options' values; where all are None, what is refused comes from a file of the run.
    """
    try:
        yield
    except BCNetError as error:
        chosen = not given or any(value is not None for value in given)
        wrong = error.names_nothing or isinstance(error, WRONG_VALUES)
        error.exit_code = UsageError.exit_code if chosen and wrong else BCNetError.exit_code
        raise


def nearest(given: str, known: Iterable[str], count: int = 3) -> str:
    """A phrase such as ``; did you mean 'a', 'b'?`` for the known names nearest to ``given``.

    Empty when nothing is near.
    """
    matches = difflib.get_close_matches(given, list(known), n=count, cutoff=0.5)
    return f"; did you mean {', '.join(map(repr, matches))}?" if matches else ""
