"""How steps are shown while they run: bars on a terminal, a line a step elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from bcnet_deploy.run.engine import Done, Progress, silent

if TYPE_CHECKING:
    from rich.console import Console


class Display(Protocol):
    """What the pipeline tells about its steps."""

    def begin(self, title: str) -> Progress: ...

    def end(self, title: str, done: Done) -> None: ...


class NoDisplay:
    """Shows nothing."""

    def begin(self, title: str) -> Progress:
        return silent

    def end(self, title: str, done: Done) -> None:
        pass


@dataclass
class StepsDisplay:
    """A bar over all steps and one of the current step, on a terminal; elsewhere a line a step.

    Args:
        console: where to show it (standard error).
        seconds: by title, the expected duration of each step, for the shares of the bar.
    """

    console: Console
    seconds: dict[str, float]
    _number: int = 0
    _behind: float = 0.0
    _bars: Bars | None = field(default=None, repr=False)
    _said: set[str] = field(default_factory=set, repr=False)

    @contextmanager
    def shown(self) -> Iterator[StepsDisplay]:
        """Show the bars as long as the context lasts."""
        with bars(self.console) as self._bars:
            self._bars.add("everything", total=sum(self.seconds.values()) or 1.0)
            self._bars.add("", total=1.0)
            yield self
        self._bars = None

    def begin(self, title: str) -> Progress:
        self._number += 1
        assert self._bars is not None
        shown = self._bars
        shown.restart(1, title)
        share = self.seconds.get(title, 0.0)

        def advance(done: float, note: str = "") -> None:
            shown.update(1, done, note)
            shown.update(0, self._behind + share * done)

        return advance

    def end(self, title: str, done: Done) -> None:
        self._behind += self.seconds.get(title, 0.0)
        if self._bars is not None:
            self._bars.update(0, self._behind)
        place = f"[{self._number}/{len(self.seconds)}] {title}"
        took = f"{done.seconds:.1f} s" if done.ran else "done already"
        self.console.print(f"{place}: {took}", markup=False)
        for note in done.notes:
            if note not in self._said:  # of the data, each step that reads it says the same
                self._said.add(note)
                self.console.print(f"Note: {note}", markup=False)


class Bars:
    """Progress bars with the time left; silent where the console is no terminal."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self.progress = Progress(
            TextColumn("{task.description}", style="bold", markup=False), BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(), TextColumn("left"),
            TimeRemainingColumn(), TextColumn("{task.fields[note]}", markup=False),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._tasks: list[object] = []

    def add(self, title: str, total: float = 1.0) -> None:
        self._tasks.append(self.progress.add_task(title, total=total, note="", visible=bool(title)))

    def restart(self, index: int, title: str) -> None:
        self.progress.reset(self._tasks[index], description=title, total=1.0, visible=True)  # type: ignore[arg-type]

    def update(self, index: int, done: float, note: str = "") -> None:
        self.progress.update(self._tasks[index], completed=done, note=note)  # type: ignore[arg-type]


@contextmanager
def bars(console: Console) -> Iterator[Bars]:
    """Bars that are gone when the context ends."""
    shown = Bars(console)
    shown.progress.start()
    try:
        yield shown
    finally:
        shown.progress.stop()


@contextmanager
def one_step(console: Console, title: str) -> Iterator[Progress]:
    """The progress of a single step."""
    with bars(console) as shown:
        shown.add(title)

        def advance(done: float, note: str = "") -> None:
            shown.update(0, done, note)

        yield advance


__all__ = ["Bars", "Display", "NoDisplay", "StepsDisplay", "bars", "one_step"]
