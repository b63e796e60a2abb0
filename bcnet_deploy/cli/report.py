"""``bcnet-deploy report``: what a run found, as one HTML file."""

from __future__ import annotations

from pathlib import Path

import click

from bcnet_deploy.cli.common import console, emit, json_option, note, quiet_option, run_dir_option
from bcnet_deploy.run.directory import RunDir


@click.command("report")
@run_dir_option
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path),
    help="Default: report.html of the run directory.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace a file at --out that is no report.")
@quiet_option
@json_option
def command(run_dir: RunDir, out: Path | None, force: bool, quiet: bool, as_json: bool) -> None:
    """Write the HTML report: one file, no network, light and dark, desktop and phone.

    Steps that have not run yet are named on the page with the command that adds them.
    """
    from bcnet_deploy.run.report import report

    result = report(run_dir, out, force=force)
    for warning in result.content.warnings:
        note(warning)

    def show() -> None:
        size = result.path.stat().st_size / 1024
        console().print(f"wrote {result.path} ({size:.0f} KiB)", soft_wrap=True, markup=False)

    emit(result.to_dict(), as_json=as_json, show=show)
