"""``kill -9`` of each single step at random moments after it began, then the same command: equal results?

    python -m benchmarks.check_step_kills --folder FOLDER [--kills 20] [--only STEP] [--seconds S] [--out F]

Steps: profile (measured, and estimated), train, search, retrain, ``run``, and one of two ranks that train
together with torchrun's environment. A small run (:mod:`benchmarks.small_run`) is the reference. Each trial
takes the directory as it was before the step, waits for the step's first stamp, kills the process group at a
moment drawn evenly from the step's duration, and gives the same command again. Everything that the step
leaves must be equal to the undisturbed one. A measured table cannot be: there, what was measured before the
kill must be kept and nothing be measured twice. Goes on where it was stopped.
"""

from __future__ import annotations

import json
import shutil
import signal
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np

from bcnet_deploy import files
from benchmarks.small_run import (
    MEASURED,
    RUN,
    STEPS,
    Child,
    Trials,
    options_of,
    outcome,
    prepare,
    refusal,
    unlike,
)

BEFORE = {"train": ("profile",), "search": ("profile", "train"), "retrain": ("profile", "train", "search")}
LINES = {
    "profile": MEASURED, "estimate": STEPS["profile"], "train": STEPS["train"], "search": STEPS["search"],
    "retrain": STEPS["retrain"], "run": RUN, "ranks": STEPS["train"],
}  # fmt: skip


class Ranks:
    """Two processes that train together; the first is ``ranks[0]``."""

    def __init__(self, line: list[str], log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        base = {
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        self.ranks = [
            Child(
                line,
                log.with_name(f"{log.name}.{rank}"),
                {**base, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(2)
        ]

    def wait(self) -> int:
        return max((abs(rank.wait()) for rank in self.ranks), default=0)

    def poll(self) -> int | None:
        codes = [rank.poll() for rank in self.ranks]
        return None if None in codes else 0

    def kill_one(self, which: int) -> None:
        """As torchrun does: the other is told to stop, and killed where it does not."""
        self.ranks[which].kill()
        self.ranks[which].wait()
        other = self.ranks[1 - which]
        other.kill(signal.SIGTERM)
        end = time.monotonic() + 5
        while other.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        other.kill()
        other.wait()

    @property
    def text(self) -> str:
        return "".join(rank.text for rank in self.ranks)


def start(step: str, run: Path, log: Path) -> Any:
    line = [*LINES[step], "--quiet", "--run-dir", str(run)]
    return Ranks(line, log) if step == "ranks" else Child(line, log)


def first_stamp(run: Path, known: set[str], child: Any) -> float:
    """The moment at which a step began; waits for it."""
    while child.poll() is None:
        if {path.name for path in (run / "steps").glob("*.json")} - known:
            break
        time.sleep(0.001)
    return time.monotonic()


def samples(run: Path) -> list[str]:
    """What a profile has measured so far: whole lines of its journal."""
    found = []
    for path in sorted((run / "latency").glob("*.samples.jsonl")):
        whole, _, _ = path.read_text().rpartition("\n")
        found += whole.splitlines()[1:]
    return found


def measured_twice(rows: list[str]) -> int:
    keys = [(r["role"], tuple(r["widths"]), r["round"]) for r in map(json.loads, rows)]
    return len(keys) - len(set(keys))


def trial(
    folder: Path, step: str, base: Path, duration: float, rng: np.random.Generator, expected: dict[str, Any]
) -> dict[str, Any]:
    """One kill and what goes on after it."""
    run, log = folder / "trial", folder / "log"
    shutil.rmtree(run, ignore_errors=True)
    if base.exists():
        shutil.copytree(base, run)
    known = {path.name for path in (run / "steps").glob("*.json")}
    child = start(step, run, log)
    began = first_stamp(run, known, child)
    after = float(rng.uniform(0, duration))
    while child.poll() is None and time.monotonic() < began + after:
        time.sleep(0.001)
    killed = child.poll() is None
    if killed and step == "ranks":
        child.kill_one(int(rng.integers(2)))
    elif killed:
        child.kill()
        child.wait()
    before = samples(run)
    again = start(step, run, log)
    code = again.wait()
    result: dict[str, Any] = {"step": step, "after_s": round(after, 3), "killed": killed, "exit_code": code}
    if code:
        result["problems"] = [f"exit code {code}: {refusal(again.text)}"]
        return result
    problems = unlike(run, expected)
    if step == "profile":
        rows = samples(run)
        if rows and rows[: len(before)] != before:
            problems.append("what was measured before the kill was not kept")
        if measured_twice(rows):
            problems.append(f"{measured_twice(rows)} samples were measured twice")
        result["samples_kept"] = len(before)
    result["problems"] = problems
    return result


def reference(folder: Path, step: str) -> tuple[Path, float, dict[str, Any]]:
    """The directory before the step, the step's duration, and what the undisturbed step leaves."""
    base, done = folder / f"before-{step}", folder / f"done-{step}"
    needed = BEFORE.get("train" if step == "ranks" else step, ())
    said = folder / f"reference-{step}.json"
    if not said.exists():
        for path in (base, done):
            shutil.rmtree(path, ignore_errors=True)
        for name in needed:
            child = Child([*STEPS[name], "--quiet", "--run-dir", str(base)], folder / "log")
            assert child.wait() == 0, child.text
        seconds = []
        for _ in range(2):  # the first warms caches up
            shutil.rmtree(done, ignore_errors=True)
            if base.exists():
                shutil.copytree(base, done)
            known = {path.name for path in (done / "steps").glob("*.json")}
            child = start(step, done, folder / "log")
            began = first_stamp(done, known, child)
            assert child.wait() == 0, child.text
            seconds.append(time.monotonic() - began)
        files.write_json(said, {"seconds": seconds[-1]})
    expected = outcome(done)
    if step == "profile":
        expected = {}
    return base, json.loads(said.read_text())["seconds"], expected


def main() -> None:
    parser = options_of(__doc__, "kills")
    parser.add_argument("--only", action="append", choices=list(LINES))
    options = parser.parse_args()
    began = time.monotonic()
    folder = options.folder.resolve()
    prepare(folder)
    trials = Trials(folder / "kills.json")
    for step in options.only or LINES:
        base, duration, expected = reference(folder, step)
        for index in range(5 * options.kills):
            mine = [one for one in trials.rows if one["step"] == step]
            if (
                sum(one["killed"] for one in mine) >= options.kills
                or time.monotonic() - began > options.seconds
            ):
                break
            if index < len(mine):
                continue
            rng = np.random.default_rng([list(LINES).index(step), index])
            trials.add(trial(folder, step, base, duration, rng, expected))
    counts = {}
    for step in LINES:
        mine = [one for one in trials.rows if one["step"] == step and one["killed"]]
        counts[step] = {"kills": len(mine), "equal": sum(not one["problems"] for one in mine)}
    print(json.dumps(counts))
    if options.out:
        bad = [one for one in trials.rows if one["problems"]]
        files.write_json(options.out, {"counts": counts, "problems": bad, "trials": trials.rows})


if __name__ == "__main__":
    main()
