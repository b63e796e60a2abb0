"""The whole path as one call."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bcnet_deploy.flow.config import FlowConfig
from bcnet_deploy.flow.display import FlowDisplay
from bcnet_deploy.flow.engine import run_steps
from bcnet_deploy.flow.steps import Steps, open_run
from bcnet_deploy.report import Content, write_report
from bcnet_deploy.rundir import RunDir

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class FlowResult:
    """What a run came to.

    Attributes:
        content: what the report shows, the summary's networks among it.
        report: the HTML file.
        ran: the steps that were not done already.
        seconds: wall time of this call.
        budget_ms: the latency budget in milliseconds.
    """

    content: Content
    report: Path
    ran: list[str]
    seconds: float
    budget_ms: float | None


def run_flow(
    run: RunDir, config: FlowConfig, console: Console, *, quiet: bool = False, force: bool = False
) -> FlowResult:
    """Profile, train, search, retrain, export, measure, report; what is done is skipped.

    Args:
        run: where everything is kept; the same call goes on after a kill.
        config: what to do.
        console: for progress, standard error.
        quiet: show no progress.
        force: replace a run of another model, data set or seed.

    Raises:
        BCNetError: whatever a step raises; the steps before it are kept.
    """
    started = time.monotonic()
    plan = Steps(run, config).all()
    open_run(run, config, force=force)
    display = FlowDisplay(plan, console, quiet=quiet)
    with display:
        ran = run_steps(plan, run / "flow", display)
    path, content = write_report(run)
    return FlowResult(content, path, ran, time.monotonic() - started, content.budget_ms)
