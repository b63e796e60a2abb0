"""The last step: what a run found, as one HTML file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcnet_deploy.run.directory import RunDir

if TYPE_CHECKING:
    from bcnet_deploy.report import Content


@dataclass(frozen=True)
class ReportResult:
    """The page, and what it shows.

    Attributes:
        content: the summary's networks, widths, curves and where every number comes from.
    """

    path: Path
    content: Content

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "path": str(self.path), "networks": self.content.rows(), "warnings": self.content.warnings,
        }  # fmt: skip


def report(run: RunDir, path: str | Path | None = None, *, force: bool = False) -> ReportResult:
    """Write the report; steps that have not run yet are named on it with the command that adds them.

    Arguments and errors are those of :func:`bcnet_deploy.report.write_report`.
    """
    from bcnet_deploy.report import write_report

    return ReportResult(*write_report(run, path, force=force))


__all__ = ["ReportResult", "report"]
