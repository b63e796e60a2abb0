"""kill -9 at random moments of a profile, then resume: does the table load each time, is anything repeated?

python benchmarks/bm_lut_kill.py --kills 20 --out benchmarks/results/lut_kill.json
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from bcnet_deploy import files
from bcnet_deploy.lut import LatencyTable


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--device", default="cpu-1thread")
    parser.add_argument("--budget", default="120s")
    parser.add_argument("--longest", type=float, default=12.0, help="seconds that a process may live")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        result = run(arguments, Path(folder) / "run", rng)
    files.write_json(arguments.out, result)
    print(json.dumps(result, indent=1))
    bad = result["tables_that_did_not_load"] or result["measured_twice"] or result["kills"] < arguments.kills
    # Kills so early that no table was there to load have shown nothing of tables.
    sys.exit(1 if bad or not result["tables_loaded_after_a_kill"] else 0)


def run(arguments: argparse.Namespace, run_dir: Path, rng: np.random.Generator) -> dict[str, Any]:
    """Kill, check, resume until the kills are used up; then let it finish."""
    table = run_dir / "latency" / f"{arguments.device}.json"
    log = table.with_name(f"{arguments.device}.samples.jsonl")
    command = [
        sys.executable, "-m", "bcnet_deploy", "profile", "--device", arguments.device,
        "--model", arguments.model, "--budget", arguments.budget, "--run-dir", str(run_dir), "--quiet",
    ]  # fmt: skip
    kills = loaded = failed = lost = 0
    for _ in range(4 * arguments.kills):
        if kills == arguments.kills:
            break
        before = log.read_bytes() if log.exists() else b""
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        # Half of the moments from the start of the process, half from its first new measurement.
        if rng.random() < 0.5:
            while process.poll() is None and time.monotonic() < deadline:
                if log.exists() and log.stat().st_size > len(before):
                    break
                time.sleep(0.005)
        time.sleep(float(rng.uniform(0, arguments.longest)))
        killed = process.poll() is None
        if killed:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        after = log.read_bytes() if log.exists() else b""
        lost += not after.startswith(before[: before.rfind(b"\n") + 1])
        if table.exists():
            try:
                LatencyTable.load(table)
                loaded += killed
            except Exception as error:  # any failure to load is what this looks for
                failed += 1
                print(f"did not load: {error}")
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    records = [json.loads(line) for line in log.read_text().splitlines()[1:]]
    trained = Counter(tuple(record["widths"]) for record in records if record["role"] == "train")
    rounds = Counter((record["role"], tuple(record["widths"]), record["round"]) for record in records)
    return {
        "kills": kills,
        "tables_loaded_after_a_kill": loaded,
        "tables_that_did_not_load": failed,
        "logs_that_lost_a_measurement": lost,
        "measured_twice": sum(n - 1 for n in trained.values()) + sum(n - 1 for n in rounds.values()),
        "measurements": len(records),
        "complete": LatencyTable.load(table).complete,
        "model": arguments.model,
        "device": arguments.device,
    }


if __name__ == "__main__":
    main()
