"""A full disk at random moments of a run: a typed error, the former files whole, and going on ends equal?

    python -m benchmarks.check_disk_full --folder FOLDER [--moments 20] [--seconds S] [--out FILE]  # as root

The run directory lies on a small tmpfs, mounted for the trials. At a moment drawn evenly from the duration of
``run`` (:mod:`benchmarks.small_run`) the rest of the disk is filled, and kept full until the command ends.
It must end by itself with one line of a typed error (or well, where it had nothing more to write). Every
file that is there must be whole. Then the disk is freed, the same command is given again, and all results
must equal those of an undisturbed run. In every second trial temporary files lie on the full disk too. Goes
on where it was stopped.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np

from bcnet_deploy import files
from benchmarks.small_run import (
    PATIENCE_S,
    RUN,
    Child,
    Trials,
    carried_out,
    damaged,
    options_of,
    outcome,
    prepare,
    refusal,
    unlike,
)  # fmt: skip

SIZE_MB = 16


def fill(place: Path) -> int:
    """Write until nothing fits any more; the bytes that fitted."""
    handle = os.open(place / "filler", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    written, block = 0, 2**20
    try:
        while block:
            try:
                written += os.write(handle, b"\0" * block)
            except OSError:
                block //= 2
    finally:
        os.close(handle)
    return written


def trial(
    folder: Path, disk: Path, after: float, temporary: bool, expected: dict[str, Any]
) -> dict[str, Any]:
    run = disk / "run"
    (disk / "filler").unlink(missing_ok=True)
    for path in (run, disk / "tmp"):
        shutil.rmtree(path, ignore_errors=True)
    (disk / "tmp").mkdir()
    line = [*RUN, "--quiet", "--run-dir", str(run)]
    child = Child(line, folder / "log", {"TMPDIR": str(disk / "tmp")} if temporary else {})
    began = time.monotonic()
    while child.poll() is None and not (run / "steps").exists():
        time.sleep(0.001)
    while child.poll() is None and time.monotonic() < began + after:
        time.sleep(0.001)
    in_time = child.poll() is None
    filled_from = time.monotonic()
    while child.poll() is None and time.monotonic() < filled_from + PATIENCE_S:
        fill(disk)
        time.sleep(0.002)
    hang = child.poll() is None
    child.kill()
    code = child.wait()
    problems = []
    how = (
        "done"
        if code == 0
        else refusal(child.text)
        if code == 1
        else f"exit code {code}: {refusal(child.text)}"
    )
    if hang:
        problems.append("hang")
    elif code not in (0, 1) or how.startswith(("TRACEBACK", "NO ERROR")):
        problems.append(how)
    problems += damaged(run)
    (disk / "filler").unlink(missing_ok=True)
    again = Child(line, folder / "log")
    if again.wait():
        problems.append(f"going on: exit code {again.code}: {refusal(again.text)}")
    else:
        problems += unlike(run, expected)
    return {
        "after_s": round(after, 3), "full_in_time": in_time, "temporary_files_too": temporary,
        "how": how[:300], "problems": problems,
    }  # fmt: skip


def main() -> None:
    options = options_of(__doc__, "moments").parse_args()
    started = time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the disk is unmounted then, too
    folder = options.folder.resolve()
    prepare(folder)
    trials, undisturbed = Trials(folder / "full.json"), folder / "undisturbed"
    disk = folder / "disk"
    disk.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "tmpfs", str(disk)], check=True)
    try:
        known = folder / "undisturbed.json"
        if not known.exists():
            shutil.rmtree(undisturbed, ignore_errors=True)
            files.write_json(known, {"seconds": carried_out(RUN, undisturbed)})
        duration, expected = json.loads(known.read_text())["seconds"], outcome(undisturbed)
        for index in range(len(trials.rows), 5 * options.moments):
            enough = sum(one["full_in_time"] for one in trials.rows) >= options.moments
            if enough or time.monotonic() - started > options.seconds:
                break
            after = float(np.random.default_rng([9, index]).uniform(0, duration))
            trials.add(trial(folder, disk, after, index % 2 == 1, expected))
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=False)
    full = [one for one in trials.rows if one["full_in_time"]]
    summary = {
        "moments": len(full), "ended_with_a_typed_error": sum(one["how"] != "done" for one in full),
        "ended_well": sum(one["how"] == "done" for one in full),
        "with_problems": sum(bool(one["problems"]) for one in full), "trials": trials.rows,
    }  # fmt: skip
    print(json.dumps({key: value for key, value in summary.items() if key != "trials"}))
    if options.out:
        files.write_json(options.out, summary)


if __name__ == "__main__":
    main()
