"""``bcnet-deploy report``: what a run found, as one HTML file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from bcnet_deploy.cli.common import console, emit, json_option, quiet_option, run_dir_option
from bcnet_deploy.rundir import RunDir


@click.command("report")
@run_dir_option
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Default: report.html of the run directory.",
)
@click.option("--force", is_flag=True, help="Replace a file at --out that is no report.")
@quiet_option
@json_option
def command(run_dir: RunDir, out: Path | None, force: bool, quiet: bool, as_json: bool) -> None:
    """Write the HTML report: one file, no network, light and dark, desktop and phone.

    Steps that have not run yet are named on the page with the command that adds them.
    """
    from bcnet_deploy.report import write_report

    path, content = write_report(run_dir, out, force=force)

    for warning in content.warnings:
        click.echo(f"bcnet-deploy: note: {warning}", err=True)

    def show() -> None:
        console().print(f"wrote {path} ({path.stat().st_size / 1024:.0f} KiB)", soft_wrap=True)

    emit(
        {"path": str(path), "networks": [asdict(network) for network in content.networks]},
        as_json=as_json, show=show,
    )  # fmt: skip
