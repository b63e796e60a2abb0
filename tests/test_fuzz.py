"""A little of what benchmarks/fuzz.py does for minutes: hostile files and options of every family."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CASES = 64
"""Four of each family."""


def test_hostile_input_is_used_or_refused_on_one_line(tmp_path: Path) -> None:
    """In a process of its own: it watches every file that is opened."""
    out = tmp_path / "fuzz.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.fuzz", "--cases", str(CASES), "--seed", "1", "--out", str(out)],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(out.read_text())
    assert result["cases"] == CASES and result["failures"] == []
    assert len(result["counts"]) == 16 and all(count == {"ok": 4} for count in result["counts"].values())
