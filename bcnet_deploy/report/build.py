"""From a run directory to the file."""

from __future__ import annotations

from pathlib import Path

from bcnet_deploy import files
from bcnet_deploy.errors import ExportError
from bcnet_deploy.report.content import Content
from bcnet_deploy.report.load import gather
from bcnet_deploy.report.page import render
from bcnet_deploy.run.directory import RunDir

_MARK = b"<title>bcnet-deploy: "


def write_report(run: RunDir, path: str | Path | None = None, *, force: bool = False) -> tuple[Path, Content]:
    """Write the report, and return where it is and what it shows.

    Args:
        run: any run directory; steps that have not run are named on the page.
        path: default: ``report.html`` of the run directory.
        force: replace a file at ``path`` that is no report.

    Raises:
        ExportError: a file that is no report lies at ``path`` and ``force`` is false.
        MissingStepError: there is no run.
        RunDirError, TableError: a file of the run is damaged, or ``path`` cannot be written.
    """
    if path is not None and not force:
        _require_report(Path(path))
    content = gather(run)
    target = Path(path) if path is not None else run.report
    files.write_text(target, render(content))
    return target, content


def _require_report(path: Path) -> None:
    """Raise :class:`ExportError` where ``path`` is a file that is not a report of ours."""
    if not path.exists():
        return
    try:
        ours = _MARK in path.read_bytes()[:2000]
    except OSError:
        ours = False
    if not ours:
        raise ExportError(
            f"{path} exists already and is no report; give --force to replace it, or another --out"
        )
