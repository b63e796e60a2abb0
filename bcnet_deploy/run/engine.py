"""Steps that are skipped when done, and go on where they were killed, whoever calls them.

Each step leaves a stamp in ``<run directory>/steps/<step>.json``: a digest of all it depends on (its settings
and the content of the files it reads) and whether it finished. A step is done when its stamp says so, the
digest is still the same and its outputs are there. A stamp of another digest means that settings or an
earlier result changed. A stamp of the same digest that is not finished means that the step was interrupted:
it goes on from its own checkpoints.
"""

from __future__ import annotations

import hashlib
import json
import os
import reprlib
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bcnet_deploy import files
from bcnet_deploy.errors import BCNetError, RunDirError
from bcnet_deploy.run.directory import RunDir

FORMAT = 2
FOLDER = "steps"

Progress = Callable[[float, str], None]
"""How a running step reports: share done in [0, 1], and a few words."""


def silent(done: float, note: str) -> None:
    """Progress that is shown to nobody."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a run, ready to be carried out.

    Attributes:
        name: for people and programs.
        stamp: name of its stamp; None: the same.
        identity: JSON-able values that its result depends on.
        inputs: files of earlier steps that it reads.
        outputs: files that must exist for it to be done.
        work: does it. Its first argument says to discard what lies there unfinished or of other settings.
        discards_other: whether work of other settings that is there is discarded without ``fresh``. Where it
            is not, the work itself refuses it or takes it over.
    """

    name: str
    identity: Any
    inputs: Sequence[Path]
    outputs: Sequence[Path]
    work: Callable[[bool, Progress], None] = field(repr=False)
    discards_other: bool = False
    stamp: str | None = None


@dataclass(frozen=True)
class Done:
    """How a step ended: whether it ran or was done already, its seconds, and what it has to say."""

    name: str
    ran: bool
    seconds: float
    notes: tuple[str, ...] = ()


def digest(identity: Any, inputs: Sequence[Path]) -> str:
    """Hash of the identity and of the files' names and content.

    Raises:
        RunDirError: an input cannot be read.
    """
    total = hashlib.sha256(json.dumps([FORMAT, identity], sort_keys=True).encode())
    for path in inputs:
        total.update(f"\0{path.name}\0{files.content_hash(path)}".encode())
    return total.hexdigest()


def carry_out(
    run: RunDir, step: Step, progress: Progress = silent, *, fresh: bool = False, replace: bool = False
) -> Done:
    """Do the step unless it is done.

    Args:
        run: its directory.
        step: what to do; its inputs exist.
        progress: told the share done.
        fresh: do it anew, whatever is there.
        replace: discard what is there of other settings; without it, the step may refuse to.

    Raises:
        RunDirError: a stamp is damaged or of another version, the step did not write an output, or another
            process writes into the directory.
        BCNetError: whatever the step raises.
    """
    path = stamp_path(run, step)
    first = first_rank()
    with writing(run):
        wanted = digest(step.identity, step.inputs)
        stamp = _load(path)
        same = stamp is not None and stamp["digest"] == wanted
        finished = same and stamp is not None and stamp.get("finished") is True
        if finished and not fresh and all(output.exists() for output in step.outputs):
            return Done(step.name, False, 0.0)
        if first and (fresh or not same or finished):
            # Written before the work: a kill in the middle must not look like a stale result.
            files.write_json(path, {"format": FORMAT, "digest": wanted, "finished": False})
        started = time.monotonic()

        def advance(done: float, note: str = "") -> None:
            progress(min(max(done, 0.0), 1.0), note)

        other = stamp is not None and not same
        anew = fresh or (other and (replace or step.discards_other))
        before = _versions(step.outputs)
        try:
            step.work(anew, advance)
        except BCNetError:
            if other and not anew and first and _versions(step.outputs) == before:
                # Refused: what is there is still of the former settings, and must not be done again for it.
                files.write_json(path, stamp)
            raise
        seconds = round(time.monotonic() - started, 3)
        if first:
            missing = [output for output in step.outputs if not output.exists()]
            if missing:
                raise RunDirError(
                    f"the step '{step.name}' ended without writing {missing[0]}; run it again with --fresh"
                )
            files.write_json(path, {"format": FORMAT, "digest": wanted, "finished": True, "seconds": seconds})
        return Done(step.name, True, seconds)


def _versions(paths: Sequence[Path]) -> list[tuple[int, int] | None]:
    """What changes with a file's content: all of ours are replaced as a whole."""
    stats = [path.stat() if path.exists() else None for path in paths]
    return [None if stat is None else (stat.st_ino, stat.st_mtime_ns) for stat in stats]


def stamp_path(run: RunDir, step: Step) -> Path:
    """Where the step leaves its stamp."""
    return run / FOLDER / f"{step.stamp or step.name}.json"


def begun(run: RunDir, step: Step) -> bool:
    """Whether this very step, with the same settings and inputs, was begun or finished before."""
    stamp = _load(stamp_path(run, step))
    return stamp is not None and stamp["digest"] == digest(step.identity, step.inputs)


def _load(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    data = files.read_json(path, RunDirError, "stamp of a step")
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        given = data.get("format") if isinstance(data, dict) else None
        raise RunDirError(
            f"{path} has format {reprlib.repr(given)}, this version reads {FORMAT}; use "
            "another --run-dir, or --force"
        )
    if not isinstance(data.get("digest"), str):
        raise RunDirError(
            f"{path} names no digest: it is damaged; delete it, and the step is looked at again"
        )
    return data


def first_rank() -> bool:
    """Whether this is the process of a torchrun that writes and speaks; it is where there is no torchrun."""
    return os.environ.get("RANK", "0") == "0"


def writing(run: RunDir) -> AbstractContextManager[None]:
    """:func:`only_writer`, for a step with all it reads and keeps; a torchrun's ranks share the first's."""
    return only_writer(run) if first_rank() else nullcontext()


@contextmanager
def only_writer(run: RunDir, patience_s: float = 2.0) -> Iterator[None]:
    """Hold the directory's lock: two writers would mix their lines and files.

    The lock goes with its holder, however that ends. On a network file system without locks nothing is held.

    Raises:
        RunDirError: another process holds it; names it.
    """
    import filelock

    if run.writing:  # a step may call another
        yield
        return
    place = run.path.resolve()
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunDirError(f"cannot write {place}: {error.strerror}; choose a writable folder") from error
    holder = place / ".writer.json"
    lock = filelock.FileLock(place / ".lock", timeout=patience_s)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise RunDirError(
            f"{run.path} is being written by {_who(holder)}; wait for it, stop it, or give another --run-dir"
        ) from None
    except (OSError, NotImplementedError) as error:  # a full disk, a folder of somebody else's
        raise RunDirError(
            f"cannot lock {run.path}: {files.reason(error)}; choose a writable folder"
        ) from error
    try:
        run.writing = True
        files.write_json(holder, {"pid": os.getpid(), "host": socket.gethostname()}, indent=None)
        yield
    finally:
        run.writing = False
        lock.release()


def _who(holder: Path) -> str:
    try:
        data = files.read_json(holder, RunDirError, "name of the writer")
        with files.malformed(holder, RunDirError, files.AGAIN):
            return f"process {int(data['pid'])} on {reprlib.repr(data['host'])[1:-1]}"
    except RunDirError:
        return "another process"
