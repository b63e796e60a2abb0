"""The one progress display of the flow: a bar over all steps on a terminal, a line a step elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bcnet_deploy.flow.engine import Step


class FlowDisplay:
    """Overall and current step; use as a context manager.

    Args:
        steps: all steps, for the shares of the bar.
        console: where to show it (standard error).
        quiet: show nothing.
    """

    def __init__(self, steps: Sequence[Step], console: Console, *, quiet: bool = False) -> None:
        self._steps = list(steps)
        self._console = console
        self._quiet = quiet
        self._behind = 0.0
        live = console.is_terminal and not quiet
        self._progress = Progress(
            TextColumn("[bold]{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
            console=console, disable=not live, transient=True,
        )  # fmt: skip
        self._live = live
        total = sum(step.seconds for step in self._steps) or 1.0
        self._total: TaskID = self._progress.add_task("everything", total=total, note="")
        self._current: TaskID = self._progress.add_task("", total=1.0, note="", visible=False)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def _say(self, text: str) -> None:
        if not self._quiet:
            self._console.print(text)

    def _place(self, step: Step) -> str:
        return f"[{self._steps.index(step) + 1}/{len(self._steps)}] {step.title}".replace("[", r"\[")

    def begin(self, step: Step) -> None:
        self._progress.reset(self._current, description=step.title, total=1.0, visible=True)

    def advance(self, step: Step, done: float, note: str) -> None:
        self._progress.update(self._current, completed=done, note=note)
        self._progress.update(self._total, completed=self._behind + step.seconds * done)

    def end(self, step: Step, seconds: float, *, skipped: bool) -> None:
        self._behind += step.seconds
        self._progress.update(self._total, completed=self._behind)
        self._progress.update(self._current, visible=False)
        self._say(f"{self._place(step)}: {'done already' if skipped else f'{seconds:.1f} s'}")
