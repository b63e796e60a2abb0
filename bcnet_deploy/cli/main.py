"""The ``bcnet-deploy`` command: finds the subcommand, turns expected errors into one line."""

from __future__ import annotations

import errno
import gc
import importlib
import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

import bcnet_deploy
from bcnet_deploy.errors import BCNetError, one_line

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("bcnet_deploy.cli.run", "The whole flow, from latency table to report."),
    "inspect": ("bcnet_deploy.cli.inspect", "Show a model's width variables, costs and frozen parts."),
    "devices": ("bcnet_deploy.cli.devices", "List the device profiles."),
    "doctor": ("bcnet_deploy.cli.doctor", "Show what this machine can run."),
    "profile": ("bcnet_deploy.cli.profile", "Build the latency table of a device."),
    "table": ("bcnet_deploy.cli.table", "Show, convert and merge latency tables."),
    "train": ("bcnet_deploy.cli.train", "Train the BCNet supernet."),
    "search": ("bcnet_deploy.cli.search", "Find the best widths under hard budgets."),
    "retrain": ("bcnet_deploy.cli.retrain", "Train the chosen widths as a plain network."),
    "export": ("bcnet_deploy.cli.export", "Export to ONNX or an engine, with a parity check."),
    "bench": ("bcnet_deploy.cli.bench", "Measure latency against prediction."),
    "report": ("bcnet_deploy.cli.report", "Write the HTML report."),
}  # fmt: skip


class LazyGroup(click.Group):
    """Lists all commands from a static table and imports only the one that runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(COMMANDS[cmd_name][0]).command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from bcnet_deploy.errors import nearest

            ctx.fail(f"no such command {args[0]!r}{nearest(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_JSON] = "--json" in args
        with _refusals(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        with _refusals(ctx):
            return super().invoke(ctx)


_JSON = "bcnet_deploy.json"
"""Whether the arguments ask for JSON; known before they are parsed, as that may fail."""


@contextmanager
def _refusals(ctx: click.Context) -> Iterator[None]:
    """Expected errors as one line on standard error, with ``--json`` as an object on standard output too."""
    try:
        yield
    except BCNetError as error:
        _end(ctx, type(error).__name__, f"error: {error}", error.exit_code)
    except click.exceptions.NoArgsIsHelpError:
        raise  # not a refusal: the help is shown
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "bcnet-deploy"
        text = one_line(error.format_message()).rstrip(".")
        _end(ctx, "UsageError", f"error: {text}; see '{command} --help'", error.exit_code)
    except OSError as error:
        # What writes into the run directory says it itself; temporary files and libraries do not.
        no_place = error.errno == errno.ENOENT and "temporary directory" in str(error)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS) and not no_place:
            raise
        where = f" ({error.filename})" if error.filename else ""
        reason = one_line(str(error.strerror))
        text = f"error: {reason}{where}; free some space, also where temporary files go, and run it again"
        _end(ctx, "RunDirError", text, 1)
    except KeyboardInterrupt:
        _end(ctx, "Interrupted", "interrupted; run the same command again to go on", 130)


def _end(ctx: click.Context, kind: str, text: str, code: int) -> None:
    """Say why, once: of several processes of a torchrun the first one does."""
    from bcnet_deploy.run.engine import first_rank

    if ctx.meta[_JSON] and first_rank():
        click.echo(json.dumps({"error": {"type": kind, "message": text.removeprefix("error: ")}}))
    click.echo(f"bcnet-deploy: {text}", err=True)
    ctx.exit(code)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(bcnet_deploy.__version__, prog_name="bcnet-deploy")
def cli() -> None:
    """Give a CNN, a device and a budget; get back the channel widths that are best for that device."""


def main() -> None:
    """Entry point of the console script and of ``python -m bcnet_deploy``."""
    # Stopped by a job scheduler, or by Ctrl-C: the same to a step, whichever it is in.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        cli(prog_name="bcnet-deploy")
    finally:
        # The process ends here: a last search for garbage among PyTorch's million objects takes a second.
        gc.freeze()


if __name__ == "__main__":
    main()
