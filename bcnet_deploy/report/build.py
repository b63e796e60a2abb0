"""From a run directory to the file."""

from __future__ import annotations

from pathlib import Path

from bcnet_deploy import files
from bcnet_deploy.report.content import Content
from bcnet_deploy.report.load import gather
from bcnet_deploy.report.page import render
from bcnet_deploy.rundir import RunDir


def write_report(run: RunDir, path: str | Path | None = None) -> tuple[Path, Content]:
    """Write the report, and return where it is and what it shows.

    Args:
        run: any run directory; steps that have not run are named on the page.
        path: default: ``report.html`` of the run directory.

    Raises:
        MissingStepError: there is no run.
        RunDirError, TableError: a file of the run is damaged, or ``path`` cannot be written.
    """
    content = gather(run)
    target = Path(path) if path is not None else run.report
    files.write_text(target, render(content))
    return target, content
