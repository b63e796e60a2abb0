"""kill -9 of ``bcnet-deploy run`` at random moments, then the same command: the same widths and accuracies?

    python -m benchmarks.check_resume --kills 20 --folder FOLDER

One undisturbed run is the reference. Each trial starts in a fresh run directory, is killed once at a moment
drawn uniformly over the reference's duration, and the same command is run to its end. Latencies are
measurements, which never repeat exactly, and the search depends on them: trials therefore take the
reference's table (``--table``), so that all that is left must be equal. Kills while a table is being
measured are tried apart (``--profile-kills``): there the run must finish and nothing be measured twice.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

NETWORKS = ("found", "uniform", "full")


def outcome(run: Path) -> dict[str, Any]:
    """What must be equal: widths and final accuracies, weights bit by bit."""
    import hashlib

    import yaml

    explained = yaml.safe_load((run / "search" / "widths.yaml").read_text())
    found: dict[str, Any] = {"widths": explained["widths"]}
    for name in NETWORKS:
        folder = run / "retrain" / name
        if (folder / "result.json").exists():
            result = json.loads((folder / "result.json").read_text())
            digest = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
            found[name] = {"widths": result["widths"], "test_top1": result["test_top1"], "weights": digest}
    return found


def finish(command: list[str], log: Path) -> None:
    with log.open("a") as stream:
        subprocess.run(command, check=True, stdout=stream, stderr=subprocess.STDOUT)


def killed(command: list[str], after: float, log: Path) -> bool:
    """Run ``command`` and kill it after so many seconds; False when it ended before."""
    with log.open("a") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
        try:
            process.wait(timeout=after)
            return False
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return True


def measured_twice(run: Path) -> int:
    """How many (role, widths, round) the profiler's journal holds more than once."""
    seen: set[tuple[Any, ...]] = set()
    twice = 0
    for journal in (run / "latency").glob("*.samples.jsonl"):
        for line in journal.read_text().splitlines()[1:]:
            record = json.loads(line)
            key = (record["role"], tuple(record["widths"]), record["round"])
            twice += key in seen
            seen.add(key)
    return twice


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--profile-kills", type=int, default=2)
    parser.add_argument("--config", default="demo")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    log = options.folder / "log.txt"
    base = [sys.executable, "-m", "bcnet_deploy", "run", "--config", options.config]
    reference = options.folder / "reference"
    started = time.monotonic()
    finish([*base, "--run-dir", str(reference)], log)
    tables = list((reference / "latency").glob("*.json"))
    fixed = [*base, "--table", str(tables[0])]
    # The reference again with its own table: how long a trial takes, and equality without any kill.
    control = options.folder / "control"
    started = time.monotonic()
    finish([*fixed, "--run-dir", str(control)], log)
    duration = time.monotonic() - started
    wanted = outcome(reference)
    rows: list[dict[str, Any]] = [{"kind": "no kill", "equal": outcome(control) == wanted}]
    rng = random.Random(options.seed)
    for trial in range(options.kills):
        run = options.folder / f"trial-{trial}"
        shutil.rmtree(run, ignore_errors=True)
        command, after = [*fixed, "--run-dir", str(run)], rng.uniform(0, duration)
        hit = killed(command, after, log)
        finish(command, log)
        rows.append(
            {"kind": "kill", "after_s": round(after, 2), "killed": hit, "equal": outcome(run) == wanted}
        )
        print(json.dumps(rows[-1]), flush=True)
        shutil.rmtree(run, ignore_errors=True)
    for trial in range(options.profile_kills):
        run = options.folder / f"profile-{trial}"
        shutil.rmtree(run, ignore_errors=True)
        command, after = [*base, "--run-dir", str(run)], rng.uniform(5, 30)
        hit = killed(command, after, log)
        finish(command, log)
        rows.append(
            {"kind": "kill in profile", "after_s": round(after, 2), "killed": hit, "finished": True,
             "measured_twice": measured_twice(run)}
        )  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    kills = [row for row in rows if row["kind"] == "kill"]
    summary = {
        "trial_s": round(duration, 1), "kills": sum(row["killed"] for row in kills),
        "equal": sum(row["equal"] for row in kills), "trials": len(kills), "rows": rows,
    }  # fmt: skip
    (options.folder / "resume.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps({key: value for key, value in summary.items() if key != "rows"}))
    sys.exit(0 if all(row.get("equal", row.get("finished")) for row in rows) else 1)


if __name__ == "__main__":
    main()
