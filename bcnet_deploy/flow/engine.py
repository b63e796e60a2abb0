"""Steps that are skipped when done, and go on where they were killed.

Each step leaves a stamp in ``<run directory>/flow/<step>.json``: a digest of all it depends on (its settings
and the content of the files it reads) and whether it finished. A step is done when its stamp says so, the
digest is still the same and its outputs are there. A stamp of another digest means that settings or an
earlier result changed: the step starts afresh. A stamp of the same digest that is not finished means that
it was interrupted: the step goes on from its own checkpoints. Files without a stamp come from the single
commands; the step itself decides whether they serve.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from bcnet_deploy import files
from bcnet_deploy.errors import RunDirError

FORMAT = 1


class Advance(Protocol):
    """How a running step reports: share done in [0, 1], and a few words."""

    def __call__(self, done: float, note: str = "") -> None: ...


@dataclass(frozen=True)
class Step:
    """One step of the flow.

    Args:
        name: file name of its stamp.
        title: shown to people.
        seconds: expected duration on two cores; only shares of the progress display.
        settings: JSON-able values it depends on.
        inputs: files of earlier steps it reads.
        outputs: files that must exist for it to be done.
        run: does the work; its first argument says to discard what an earlier run with other settings left.
    """

    name: str
    title: str
    seconds: float
    settings: Any
    inputs: Sequence[Path]
    outputs: Sequence[Path]
    run: Callable[[bool, Advance], None] = field(repr=False)


class Display(Protocol):
    """What the engine tells about its steps."""

    def begin(self, step: Step) -> None: ...

    def advance(self, step: Step, done: float, note: str) -> None: ...

    def end(self, step: Step, seconds: float, *, skipped: bool) -> None: ...


@dataclass(frozen=True)
class _Stamp:
    digest: str
    finished: bool


def digest(settings: Any, inputs: Iterable[Path]) -> str:
    """Hash of the settings and of the files' names and content.

    Raises:
        RunDirError: an input cannot be read.
    """
    total = hashlib.sha256(json.dumps([FORMAT, settings], sort_keys=True).encode())
    for path in inputs:
        try:
            with path.open("rb") as handle:
                content = hashlib.file_digest(handle, "sha256").hexdigest()
        except OSError as error:
            raise RunDirError(f"cannot read {path}: {error.strerror}; run the same command again") from error
        total.update(f"\0{path.name}\0{content}".encode())
    return total.hexdigest()


def _load_stamp(path: Path) -> _Stamp | None:
    if not path.exists():
        return None
    data = files.read_json(path, RunDirError, "stamp of a step")
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        given = data.get("format") if isinstance(data, dict) else None
        raise RunDirError(
            f"{path} has format {given!r}, this version reads {FORMAT}; use another --run-dir, or --force"
        )
    return _Stamp(str(data.get("digest")), data.get("finished") is True)


def run_steps(steps: Sequence[Step], folder: Path, display: Display) -> list[str]:
    """Run what is not done, in order; the names of the steps that ran.

    Args:
        steps: in order; a step's inputs exist once the steps before it are done.
        folder: where the stamps are.
        display: told of each step.

    Raises:
        RunDirError: a stamp is damaged or of another version, or a step did not write an output.
        BCNetError: whatever a step raises.
    """
    ran = []
    for step in steps:
        path = folder / f"{step.name}.json"
        stamp = _load_stamp(path)
        wanted = digest(step.settings, step.inputs)
        fits = stamp is not None and stamp.digest == wanted
        display.begin(step)
        started = time.monotonic()
        if fits and stamp is not None and stamp.finished and all(output.exists() for output in step.outputs):
            display.end(step, 0.0, skipped=True)
            continue
        if not fits or (stamp is not None and stamp.finished):
            # Written before the work: a kill in the middle must not look like a stale result.
            files.write_json(path, {"format": FORMAT, "digest": wanted, "finished": False})

        def advance(done: float, note: str = "", step: Step = step) -> None:
            display.advance(step, min(max(done, 0.0), 1.0), note)

        step.run(stamp is not None and not fits, advance)
        missing = [output for output in step.outputs if not output.exists()]
        if missing:
            raise RunDirError(
                f"the step '{step.name}' ended without writing {missing[0]}; run it alone to see why"
            )
        seconds = time.monotonic() - started
        files.write_json(
            path, {"format": FORMAT, "digest": wanted, "finished": True, "seconds": round(seconds, 3)}
        )
        ran.append(step.name)
        display.end(step, seconds, skipped=False)
    return ran
