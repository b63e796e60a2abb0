"""``kill -9`` of ``bcnet-deploy run`` or of single commands within each step, then the others go on.

    python -m benchmarks.check_run_kill --folder FOLDER [--kills 20] [--seconds S]

A small run (a network of three layers, digits, an epoch, a few evaluations) is made once undisturbed by
``run``, and once by the single commands; of the latter a copy is kept before each command. A trial waits
until a step has begun, kills the process group at a moment drawn evenly from the step's undisturbed
duration, and goes on. Every step is killed in two ways: ``run`` is killed in it, its command finishes the
step, and ``run`` the rest; the step's command is killed, and ``run`` goes on. Further trials kill ``run``
and let it go on itself. Compared is what is there in the end: the supernet's weights, the widths found, the
final weights and the test accuracies, all exactly; and ``run`` does not do again what the command finished.
The latency table is an estimate: a measured one would be another in every run. Goes on where it was stopped;
results in ``docs/run_kill.json``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bcnet_deploy import files
from tests.run.tinynet import MODEL

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "run_kill.json"
RECIPE = {"recipe": "digits", "augment": "none", "epochs": 1, "checkpoint_every": 3, "evaluate_every": 1}
CONFIG: dict[str, Any] = {
    "model": "tinynet:net", "input_size": "1x16x16", "data": "digits", "device": "cpu-1thread",
    "estimate": True, "levels": 8, "latency": "0.7x", "confidence": 0.5, "train": RECIPE, "retrain": RECIPE,
    "search": {"evaluations": 10, "population_size": 5, "val_images": 100},
    "networks": ["uniform", "found"],
    "bench": {"rounds": 2, "runs": 5, "batches": [1], "layers": False},
}  # fmt: skip
NETWORKS = ("uniform", "found")


TRAINING = " ".join(
    ["--config digits", *(f"--set {key}={value}" for key, value in RECIPE.items() if key != "recipe")]
)
COMMANDS = {
    "profile-cpu-1thread": "profile --model tinynet:net --input-size 1x16x16 --levels 8 --data digits "
    "--device cpu-1thread --estimate",
    "train": f"train {TRAINING}",
    "search": "search --latency 0.7x --confidence 0.5 --evaluations 10 --population 5 --val-images 100",
    "retrain-uniform": f"retrain --network uniform {TRAINING}",
    "retrain-found": f"retrain --network found {TRAINING}",
    "export-uniform.onnx": "export --which uniform",
    "export-found.onnx": "export --which found",
    "bench": "bench --rounds 2 --runs 5 --batches 1 --no-layers",
    "report": "report",
}
"""By the name of the step's stamp. The report has none: it follows the end of ``bench``."""
RUN = "run --config ../config.yaml --json"
PLAN = [
    *((step, way) for step in COMMANDS for way in ("run, command, run", "command, run")),
    ("train", "run, run"), ("search", "run, run"), ("retrain-found", "run, run"), ("bench", "run, run"),
]  # fmt: skip
"""The step that is killed, what is killed and what goes on."""


def call(folder: Path, name: str, line: str) -> list[str]:
    """A command line of ours on the run directory ``folder/name``."""
    return [
        sys.executable, "-m", "bcnet_deploy", *line.replace("../", f"{folder}/").split(), "--quiet",
        "--run-dir", str(folder / name),
    ]  # fmt: skip


def environment() -> dict[str, str]:
    """With this checkout importable from the folder in which the model is."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}


def outcome(run: Path) -> dict[str, Any]:
    """What must not depend on a kill: digests of weights, widths, accuracies."""

    def digest(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    widths = yaml.safe_load((run / "search" / "widths.yaml").read_text())
    result: dict[str, Any] = {
        "supernet": digest(run / "train" / "supernet.safetensors"),
        "found": widths["widths"], "uniform": widths["compared_with"]["uniform"]["widths"],
    }  # fmt: skip
    for name in NETWORKS:
        folder = run / "retrain" / name
        trained = json.loads((folder / "result.json").read_text())
        result[f"{name} trained"] = {
            "weights": digest(folder / "weights.safetensors"),
            "val_top1": trained["val_top1"], "test_top1": trained["test_top1"],
        }  # fmt: skip
    return result


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


def trial(
    folder: Path, name: str, step: str, seconds: float, expected: dict[str, Any], way: str
) -> dict[str, Any]:
    """One kill ``seconds`` after ``step`` has begun, and what goes on after it."""
    start = time.monotonic()
    killed_one, *others = way.split(", ")
    lines = {"run": RUN, "command": COMMANDS[step]}
    shutil.rmtree(folder / name, ignore_errors=True)  # of a trial that was itself interrupted
    if killed_one == "command" and (before := folder / f"before-{step}").exists():
        shutil.copytree(before, folder / name)
    with subprocess.Popen(
        call(folder, name, lines[killed_one]), cwd=folder, env=environment(), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as first:  # fmt: skip
        try:
            while first.poll() is None and not has_begun(folder / name, step):
                time.sleep(0.002)
            time.sleep(seconds)
        finally:  # also where the trial itself is told to end: nobody else may write there
            if first.poll() is None:
                os.killpg(first.pid, signal.SIGKILL)
    result: dict[str, Any] = {
        "step": step, "way": way, "after_s": round(seconds, 3), "killed": first.returncode == -signal.SIGKILL,
        "unfinished": unfinished(folder / name), "differs": [], "redone": [],
    }  # fmt: skip
    done = ""
    for other in others:
        again = subprocess.run(
            call(folder, name, lines[other]), cwd=folder, env=environment(), capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        if again.returncode:
            return {**result, "error": again.stderr.strip()[-500:]}
        if other == "run":
            again_done = json.loads(again.stdout)["steps_run"]
            result["redone"] = [name for name in again_done if done and done.startswith(name)]
        else:
            done = step
    got = outcome(folder / name)
    result["differs"] = [key for key in expected if got[key] != expected[key]]
    result["complete"] = all((folder / name / part).exists() for part in ("bench/bench.json", "report.html"))
    result["seconds"] = round(time.monotonic() - start, 1)
    return result


def prepare(folder: Path) -> None:
    """The undisturbed runs, from where they were stopped."""
    quiet: dict[str, Any] = {
        "cwd": folder, "env": environment(), "check": True, "stdout": subprocess.DEVNULL,
    }  # fmt: skip
    if not (folder / "undisturbed" / "report.html").exists():
        shutil.rmtree(folder / "undisturbed", ignore_errors=True)
        subprocess.run(call(folder, "undisturbed", RUN), **quiet)
    for step, following in zip(COMMANDS, [*list(COMMANDS)[1:], "nothing"], strict=True):
        if (folder / f"before-{following}").exists():
            continue
        shutil.rmtree(folder / "by-commands", ignore_errors=True)
        if (before := folder / f"before-{step}").exists():
            shutil.copytree(before, folder / "by-commands")
        subprocess.run(call(folder, "by-commands", COMMANDS[step]), **quiet)
        shutil.copytree(folder / "by-commands", folder / f"before-{following}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="for the runs")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=1e9, help="no new trial after so long")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    folder: Path = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tinynet.py").write_text(MODEL)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    state = folder / "trials.json"
    prepare(folder)
    results: dict[str, Any] = json.loads(state.read_text()) if state.exists() else {"trials": []}
    expected = outcome(folder / "undisturbed")
    assert outcome(folder / "by-commands") == expected, "single commands come to other results than run"
    took = {
        path.stem: json.loads(path.read_text())["seconds"]
        for path in (folder / "undisturbed" / "steps").glob("*.json")
    }
    moments = np.random.default_rng(0).uniform(0, 0.9, len(PLAN))
    for index in range(len(results["trials"]), len(PLAN)):
        if (
            sum(one["killed"] for one in results["trials"]) >= options.kills
            or time.monotonic() - began > options.seconds
        ):
            break
        step, way = PLAN[index]
        # The report takes a quarter of a second; as a command of its own it has to start, too.
        moment = float(moments[index]) * took.get(step, 0.25 if way.startswith("run") else 2.0)
        one = trial(folder, f"kill-{index}", step, moment, expected, way)
        results["trials"].append(one)
        files.write_json(state, results)
        print(index, one, flush=True)
    trials = results["trials"]
    trials = [t for t in trials if t["killed"]]
    same = sum(t.get("complete", False) and not t["differs"] and not t["redone"] for t in trials)
    summary = {
        "command": f"python -m benchmarks.check_run_kill --folder FOLDER --kills {options.kills}",
        "python": platform.python_version(), "cores": len(os.sched_getaffinity(0)), "config": CONFIG,
        "commands": COMMANDS, "compared": list(expected), "kills": len(trials), "same": same, **results,
    }  # fmt: skip
    files.write_json(RESULTS, summary)
    print(f"{same} of {len(trials)} killed runs came to the undisturbed result")


if __name__ == "__main__":
    main()
