"""``kill -9`` of ``bcnet-deploy run`` at random moments, then the same command again.

    python -m benchmarks.check_run_kill --folder FOLDER [--kills 20] [--at-most N]

A small run (demo network, digits, a few epochs and evaluations) is made once undisturbed. Each trial starts
it in a new run directory, kills its process group at a moment drawn evenly from the undisturbed run's
duration, starts the same command again, and compares what that leaves: the supernet's weights, the widths
found, the final weights and the test accuracies, all exactly. Latencies are measured anew in every run, so
all runs are given one latency table, measured before. Goes on where it was stopped; results in
``docs/run_kill.json``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bcnet_deploy import files

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "run_kill.json"
RECIPE = {"recipe": "digits", "augment": "none", "epochs": 1, "checkpoint_every": 3, "evaluate_every": 1}
CONFIG: dict[str, Any] = {
    "model": "demo", "data": "digits", "device": "cpu-1thread", "levels": 8, "latency": "0.7x",
    "profile_budget": "10s", "train": RECIPE, "retrain": RECIPE, "networks": ["uniform", "found"],
    "search": {"evaluations": 12, "population_size": 6, "val_images": 100},
    "bench": {"rounds": 2, "runs": 5, "batches": [1], "layers": False},
}  # fmt: skip
NETWORKS = ("uniform", "found")


def command(folder: Path, name: str, table: Path | None) -> list[str]:
    """The run's command line in ``folder/name``."""
    base = [sys.executable, "-m", "bcnet_deploy", "run", "--config", str(folder / "config.yaml")]
    given = ["--table", str(table)] if table else []
    return [*base, *given, "--run-dir", str(folder / name), "--quiet"]


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
    """The step that a kill left unfinished; '-' before the first and between two."""
    for stamp in sorted((run / "flow").glob("*.json")):
        if not json.loads(stamp.read_text())["finished"]:
            return stamp.stem
    return "-"


def trial(folder: Path, name: str, table: Path, seconds: float, expected: dict[str, Any]) -> dict[str, Any]:
    """One kill after ``seconds`` and the run after it."""
    start = time.monotonic()
    with subprocess.Popen(
        command(folder, name, table), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    ) as first:  # fmt: skip
        try:
            first.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(first.pid, signal.SIGKILL)
    killed = first.returncode == -signal.SIGKILL
    step = unfinished(folder / name)
    again = subprocess.run(command(folder, name, table), capture_output=True, text=True, check=False)
    result: dict[str, Any] = {
        "after_s": round(seconds, 3), "killed": killed, "in_step": step, "exit_code": again.returncode,
        "seconds": round(time.monotonic() - start, 1), "differs": [],
    }  # fmt: skip
    if again.returncode:
        result["error"] = again.stderr.strip()[-500:]
        return result
    got = outcome(folder / name)
    result["differs"] = [key for key in expected if got[key] != expected[key]]
    complete = all((folder / name / part).exists() for part in ("bench/bench.json", "report.html"))
    result["complete"] = complete
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="for the runs")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--at-most", type=int, default=10**6, help="trials in this call")
    options = parser.parse_args()
    folder: Path = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    table = folder / "first" / "latency" / "cpu-1thread.json"
    if not table.exists():
        subprocess.run(command(folder, "first", None), check=True, stdout=subprocess.DEVNULL)
    state = folder / "trials.json"
    if state.exists():
        results = json.loads(state.read_text())
    else:
        start = time.monotonic()
        subprocess.run(command(folder, "undisturbed", table), check=True, stdout=subprocess.DEVNULL)
        results = {"undisturbed_s": round(time.monotonic() - start, 1), "trials": []}
        files.write_json(state, results)
    expected = outcome(folder / "undisturbed")
    moments = np.random.default_rng(0).uniform(0, results["undisturbed_s"], options.kills)
    for index in range(len(results["trials"]), min(options.kills, len(results["trials"]) + options.at_most)):
        one = trial(folder, f"kill-{index}", table, float(moments[index]), expected)
        results["trials"].append(one)
        files.write_json(state, results)
        print(index, one, flush=True)
    trials = results["trials"]
    same = sum(t["exit_code"] == 0 and t.get("complete", False) and not t["differs"] for t in trials)
    summary = {
        "command": f"python -m benchmarks.check_run_kill --folder FOLDER --kills {options.kills}",
        "python": platform.python_version(), "cores": len(os.sched_getaffinity(0)), "config": CONFIG,
        "compared": list(expected), "kills": sum(t["killed"] for t in trials), "same": same, **results,
    }  # fmt: skip
    files.write_json(RESULTS, summary)
    print(f"{same} of {len(trials)} runs came to the undisturbed result")


if __name__ == "__main__":
    main()
