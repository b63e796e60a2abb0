"""``kill -9`` of ``bcnet-deploy run`` or of single commands within each step, then the others go on.

    python -m benchmarks.check_run_kill --folder FOLDER [--kills 20] [--seconds S] [--out docs/run_kill.json]

A small run (:mod:`benchmarks.small_run`) is made once undisturbed by ``run``, and once by single commands;
of the latter a copy is kept before each command. A trial waits until a step has begun, kills the process
group at a moment drawn evenly from the step's undisturbed duration, and goes on. Every step is killed in two
ways, after commands did the steps before it: ``run`` is killed in it, its command finishes the step, and
``run`` the rest; the step's command is killed, and ``run`` goes on. Further trials kill a ``run`` that did
all steps itself, and let it go on itself. Compared is what is there in the end: the table, weights, loss
records, scores, the widths found and the accuracies, all exactly; and ``run`` does not do again what the
command finished. The latency table is an estimate: a measured one would be another in every run. Goes on
where it was stopped.
"""

from __future__ import annotations

import json
import platform
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bcnet_deploy import files
from benchmarks.small_run import (
    CONFIG,
    RUN,
    STEPS,
    Child,
    Trials,
    carried_out,
    options_of,
    outcome,
    prepare,
    refusal,
    unlike,
)

NETWORKS = ("uniform", "found")
COMMANDS: dict[str, list[str]] = {
    "profile-cpu-1thread": STEPS["profile"],
    "train": STEPS["train"],
    "search": STEPS["search"],
    **{f"retrain-{name}": [*STEPS["retrain"], "--network", name] for name in NETWORKS},
    **{f"export-{name}.onnx": [*STEPS["export"], "--which", name] for name in NETWORKS},
    "bench": STEPS["bench"],
    "report": STEPS["report"],
}
"""By the name of the step's stamp. The report has none: it follows the end of ``bench``."""
PLAN = [
    *((step, way) for step in COMMANDS for way in ("run, command, run", "command, run")),
    ("train", "run, run"), ("search", "run, run"), ("retrain-found", "run, run"), ("bench", "run, run"),
]  # fmt: skip
"""The step that is killed, what is killed and what goes on."""


def unfinished(run: Path) -> str:
    """The step that a kill left unfinished; '-' between two."""
    for stamp in sorted((run / "steps").glob("*.json")):
        if not json.loads(stamp.read_text())["finished"]:
            return stamp.stem
    return "-"


def has_begun(run: Path, step: str) -> bool:
    """Whether ``step`` is at work."""
    stamp = run / "steps" / f"{'bench' if step == 'report' else step}.json"
    if not stamp.exists():
        return False
    return bool(json.loads(stamp.read_text())["finished"]) == (step == "report")


def version(run: Path, step: str) -> tuple[int, int] | None:
    """Of the step's stamp: another one where the step was done again."""
    stamp = run / "steps" / f"{step}.json"
    return (stamp.stat().st_ino, stamp.stat().st_mtime_ns) if stamp.exists() else None


def trial(folder: Path, step: str, way: str, seconds: float, expected: dict[str, Any]) -> dict[str, Any]:
    """One kill ``seconds`` after ``step`` has begun, and what goes on after it."""
    run, log = folder / "trial", folder / "log"
    lines = {"run": RUN, "command": COMMANDS[step]}
    shutil.rmtree(run, ignore_errors=True)
    killed_one, *others = way.split(", ")
    if "command" in way and (before := folder / f"before-{step}").exists():
        shutil.copytree(before, run)
    first = Child([*lines[killed_one], "--quiet", "--run-dir", str(run)], log)
    while first.poll() is None and not has_begun(run, step):
        time.sleep(0.0005)
    end = time.monotonic() + seconds
    while first.poll() is None and time.monotonic() < end:
        time.sleep(0.0005)
    killed = first.poll() is None
    first.kill()
    first.wait()
    problems: list[str] = []
    result = {
        "step": step, "way": way, "after_s": round(seconds, 3), "killed": killed,
        "unfinished": unfinished(run), "problems": problems,
    }  # fmt: skip
    by_command = None
    for other in others:
        again = Child([*lines[other], "--quiet", "--run-dir", str(run)], log)
        if again.wait():
            problems.append(f"{other}: exit code {again.code}: {refusal(again.text)}")
            return result
        if other == "command":
            by_command = version(run, step)
    if by_command is not None and version(run, step) != by_command:
        problems.append(f"{step} was done again")
    problems += unlike(run, expected)
    problems += [f"no {part}" for part in ("bench/bench.json", "report.html") if not (run / part).exists()]
    return result


def references(folder: Path) -> dict[str, float]:
    """The undisturbed runs, from where they were stopped; seconds of each step in them."""
    undisturbed = folder / "undisturbed"
    if not (undisturbed / "report.html").exists():
        shutil.rmtree(undisturbed, ignore_errors=True)
        carried_out(RUN, undisturbed)
    steps = list(COMMANDS)
    for step, following in zip(steps, [*steps[1:], "nothing"], strict=True):
        if (folder / f"before-{following}").exists():
            continue
        by_commands = folder / "by-commands"
        shutil.rmtree(by_commands, ignore_errors=True)
        if (before := folder / f"before-{step}").exists():
            shutil.copytree(before, by_commands)
        carried_out(COMMANDS[step], by_commands)
        shutil.copytree(by_commands, folder / f"before-{following}")
    stamps = (undisturbed / "steps").glob("*.json")
    return {path.stem: json.loads(path.read_text())["seconds"] for path in stamps}


def main() -> None:
    options = options_of(__doc__, "kills").parse_args()
    began = time.monotonic()
    folder = options.folder.resolve()
    prepare(folder)
    config = {**CONFIG, "networks": list(NETWORKS)}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    took = references(folder)
    expected, trials = outcome(folder / "undisturbed"), Trials(folder / "trials.json")
    unequal = unlike(folder / "by-commands", expected)
    assert not unequal, f"single commands come to other results than run: {unequal}"
    rounds = 2 + options.kills // len(PLAN)
    moments = np.random.default_rng(0).uniform(0, 0.9, rounds * len(PLAN))
    for index in range(len(trials.rows), len(moments)):
        enough = sum(one["killed"] for one in trials.rows) >= options.kills
        if enough or time.monotonic() - began > options.seconds:
            break
        step, way = PLAN[index % len(PLAN)]
        # The report has no stamp: a tenth of a second is what it takes here.
        moment = float(moments[index]) * took.get(step, 0.1)
        trials.add(trial(folder, step, way, moment, expected))
    killed = [one for one in trials.rows if one["killed"]]
    same = sum(not one["problems"] for one in killed)
    print(f"{same} of {len(killed)} killed runs came to the undisturbed result")
    if options.out:
        summary = {
            "command": f"python -m benchmarks.check_run_kill --folder FOLDER --kills {options.kills}",
            "python": platform.python_version(), "config": config, "compared": list(expected),
            "kills": len(killed), "same": same, "trials": trials.rows,
        }  # fmt: skip
        files.write_json(options.out, summary)


if __name__ == "__main__":
    main()
