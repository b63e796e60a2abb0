"""Options and output shared by the commands."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from bcnet_deploy.rundir import RunDir

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

F = TypeVar("F", bound=Callable[..., Any])


def _to_run_dir(ctx: click.Context, param: click.Parameter, value: str) -> RunDir:
    return RunDir(value)


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


def console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """A rich console; colours only on a terminal and without NO_COLOR (rich's own rule)."""
    from rich.console import Console

    width = None if (sys.stderr if stderr else sys.stdout).isatty() else 120
    return Console(stderr=stderr, quiet=quiet, width=width, highlight=False)


def progress(*, quiet: bool = False) -> Progress:
    """A progress display on standard error with the time left; silent when not on a terminal."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    target = console(stderr=True, quiet=quiet)
    return Progress(
        TextColumn("[bold]{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
        console=target, transient=True, disable=quiet or not target.is_terminal,
    )  # fmt: skip


def warn_of_threads(threads: int) -> None:
    """Say once, as a line of ours, that there are fewer cores; the runner's own warning is then silent."""
    from bcnet_deploy.runtime.ort import check_threads

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_threads(threads)
    for warning in caught:
        click.echo(f"bcnet-deploy: warning: {warning.message}", err=True)
        warnings.filterwarnings("ignore", message=r"\d+ threads on \d+ cores")


def emit(data: dict[str, Any], *, as_json: bool, show: Callable[[], None]) -> None:
    """Print ``data`` as JSON on standard output, or call ``show`` for people."""
    if as_json:
        click.echo(json.dumps(data, allow_nan=False))
    else:
        show()
