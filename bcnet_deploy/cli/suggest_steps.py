"""``bcnet-deploy suggest-steps``: the widths at which latency drops."""

from __future__ import annotations

from pathlib import Path

import click

from bcnet_deploy import files
from bcnet_deploy.cli.common import console, emit, json_option, run_dir_option
from bcnet_deploy.rundir import RunDir


@click.command("suggest-steps")
@click.argument("path", type=click.Path(path_type=Path), required=False)
@click.option("--device", help="Take the run's table of this device. Default: the run's device.")
@click.option(
    "--gain",
    type=click.FloatRange(min=0, min_open=True, max=1),
    default=0.002,
    show_default=True,
    help="A width counts if it is faster than every wider one by this share of the network.",
)
@click.option("--most", type=click.IntRange(min=2), help="Keep so many widths a variable at most.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the widths as YAML, by variable.")
@run_dir_option
@json_option
def command(
    path: Path | None,
    device: str | None,
    gain: float,
    most: int | None,
    out: Path | None,
    run_dir: RunDir,
    as_json: bool,
) -> None:
    """The widths of each variable that no wider one beats, from the table at PATH or of the run.

    On a staircase, all other widths pay for channels that they do not have.
    """
    from bcnet_deploy.lut import LatencyTable
    from bcnet_deploy.lut.steps import suggest_steps

    if path is None:
        name = device or run_dir.load().device
        path = run_dir.require(
            run_dir.latency_table(name), f"latency table of {name}", f"bcnet-deploy profile --device {name}"
        )
    table = LatencyTable.load(path)
    suggestions = suggest_steps(table, gain=gain, most=most)
    if out is not None:
        widths = {suggestion.name: list(suggestion.widths) for suggestion in suggestions}
        files.write_yaml(out, {"device": table.device, "source": table.source, "widths": widths})

    def show() -> None:
        from rich.markup import escape
        from rich.table import Table

        console_ = console()
        mark = " (estimated)" if table.estimated else ""
        view = Table(title=f"Widths worth choosing on {table.device}{mark}")
        for header in ("#", "channels", "multiples of"):
            view.add_column(header, justify="right")
        view.add_column("variable", overflow="fold")
        view.add_column("widths", overflow="fold")
        for item in suggestions:
            view.add_row(
                str(item.index), str(item.channels), str(item.step), escape(item.name),
                ", ".join(map(str, item.widths)),
            )  # fmt: skip
        console_.print(view)

    emit(
        {
            "device": table.device,
            "source": table.source,
            "variables": [
                {
                    "index": s.index, "name": s.name, "channels": s.channels, "step": s.step,
                    "widths": list(s.widths), "saved_ms": list(s.saved_ms),
                }
                for s in suggestions
            ],
        },
        as_json=as_json,
        show=show,
    )  # fmt: skip
