"""Options and output shared by the commands."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from bcnet_deploy.cli.choices import models
from bcnet_deploy.errors import RunDirError
from bcnet_deploy.run.directory import RunDir

if TYPE_CHECKING:
    from rich.console import Console

    from bcnet_deploy.run.engine import Progress

F = TypeVar("F", bound=Callable[..., Any])


def _to_run_dir(ctx: click.Context, param: click.Parameter, value: str) -> RunDir:
    run = RunDir(value)
    try:
        run.exists()
    except OSError as error:  # too long, a loop of links, another user's
        raise RunDirError(f"cannot use --run-dir {value}: {error.strerror}") from None
    return run


def run_dir_option(function: F) -> F:
    """``--run-dir``: passes a :class:`RunDir` as ``run_dir``."""
    return click.option(
        "--run-dir", default="bcnet-run", show_default=True, callback=_to_run_dir,
        help="Folder in which the steps leave their results for one another.",
    )(function)  # fmt: skip


def json_option(function: F) -> F:
    """``--json``: passes ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")(
        function
    )


def quiet_option(function: F) -> F:
    """``--quiet``: passes ``quiet``."""
    return click.option("-q", "--quiet", is_flag=True, help="No progress, only the result.")(function)


def model_options(function: F) -> F:
    """What a run is about: model and its classes, input size (text), levels, weights."""
    for option in (
        click.option(
            "--new-head",
            is_flag=True,
            default=None,
            help="The weights are of other classes: draw the classifier anew.",
        ),
        click.option(
            "--weights",
            help="Trained weights to start from: a file, or 'pretrained' for those on this disk.",
        ),
        click.option("--min-level", type=click.IntRange(0, 1024), help="Smallest level. Default: 0."),
        click.option(
            "--levels", type=click.IntRange(1, 1024), help="Widths a variable may take. Default: 20."
        ),
        click.option("--input-size", help="3x224x224, or 224. Default: what the model is usually run at."),
        click.option(
            "--num-classes", type=click.IntRange(min=1), help="Default: the data's, or the model's."
        ),
        click.option(
            "--model",
            shell_complete=models,
            help="Name, package.module:function or file.py:function. Default: the run's.",
        ),
    ):
        function = option(function)
    return function


def size_of(text: str | None) -> tuple[int, int, int] | None:
    """An input size as it is given on the command line. Raises :class:`UnitError`."""
    from bcnet_deploy.units import parse_size

    return None if text is None else parse_size(text)


def chosen(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given."""
    return {key: value for key, value in options.items() if value is not None and value not in ((), [])}


def changes_of(texts: tuple[str, ...]) -> dict[str, Any]:
    """``--set KEY=VALUE`` as settings. Raises :class:`UsageError`."""
    from bcnet_deploy import files
    from bcnet_deploy.errors import UsageError

    values: dict[str, Any] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign:
            raise UsageError(f"--set {text!r}; allowed: KEY=VALUE, for example --set epochs=10")
        values[key.strip()] = files.parse_yaml(value, UsageError, f"--set {key.strip()}")
    return values


PIPE_WIDTH = 4000


def console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """A rich console; colours only on a terminal and without NO_COLOR (rich's own rule)."""
    from rich.console import Console

    # What goes into a file or another program is not wrapped.
    width = None if (sys.stderr if stderr else sys.stdout).isatty() else PIPE_WIDTH
    return Console(stderr=stderr, quiet=quiet, width=width, highlight=False)


@contextmanager
def shown_step(title: str, *, quiet: bool) -> Iterator[Progress]:
    """The progress of a step on standard error; the first rank of a torchrun shows it."""
    from bcnet_deploy.run.display import one_step
    from bcnet_deploy.run.engine import first_rank

    with one_step(console(stderr=True, quiet=quiet or not first_rank()), title) as progress:
        yield progress


def warn_of_threads(threads: int) -> None:
    """Say once, as a line of ours, that there are fewer cores; the runner's own warning is then silent."""
    from bcnet_deploy.runtime.ort import check_threads

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_threads(threads)
    for warning in caught:
        click.echo(f"bcnet-deploy: warning: {warning.message}", err=True)
        warnings.filterwarnings("ignore", message=r"\d+ threads on \d+ cores")


def note(text: str) -> None:
    """A line for people on standard error."""
    click.echo(f"bcnet-deploy: note: {text}", err=True)


def emit(data: dict[str, Any], *, as_json: bool, show: Callable[[], None]) -> None:
    """Print ``data`` as JSON on standard output, or call ``show`` for people."""
    if as_json:
        click.echo(json.dumps(data, allow_nan=False))
    else:
        show()
