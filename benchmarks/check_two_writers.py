"""Two commands at once in one run directory, all pairs of steps: is anything mixed up?

    python -m benchmarks.check_two_writers --folder FOLDER [--starts 20] [--seconds S] [--out FILE]

A small run (:mod:`benchmarks.small_run`) is finished. Each trial copies it and starts two commands that do
their step anew; the second begins the later the more starts there were, up to the end of the first. In the
last quarter of the starts the first is held up at that moment (SIGSTOP) for longer than the second waits.
Each must end well, or be refused in one line that names the process that writes. Then every file must be
whole, no line of a log there twice, and all results equal to those of the run before. Goes on where it was
stopped.
"""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bcnet_deploy import files
from benchmarks.small_run import (
    ANEW,
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

COMMANDS = {**{name: [*line, ANEW.get(name, "--fresh")] for name, line in STEPS.items()}, "run": RUN}
HELD_S = 2.3
"""A command waits for two seconds before it is refused."""
NAMED = "is being written by process"


def copied(base: Path, names: Iterable[str]) -> Path:
    """A copy of ``base`` in which these commands have work to do."""
    run = base.with_name("trial")
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(base, run)
    if "run" in names:  # of a run that is done it would do nothing: its last steps are asked for again
        for stamp in ("search", "retrain-found", "bench"):
            (run / "steps" / f"{stamp}.json").unlink()
    return run


def durations(base: Path) -> dict[str, float]:
    """Seconds of each command on a copy of ``base``, measured once."""
    said = base.with_name("seconds.json")
    if not said.exists():
        files.write_json(said, {n: carried_out(line, copied(base, [n])) for n, line in COMMANDS.items()})
    known: dict[str, float] = json.loads(said.read_text())
    return known


def trial(
    base: Path, pair: tuple[str, str], delay: float, held: bool, expected: dict[str, Any]
) -> dict[str, Any]:
    """One pair of commands, the second ``delay`` seconds later; the first then ``held`` up."""
    run = copied(base, pair)
    children = []
    for index, name in enumerate(pair):
        if index:
            time.sleep(delay)
            if held:
                children[0].kill(signal.SIGSTOP)
        line = [*COMMANDS[name], "--quiet", "--run-dir", str(run)]
        children.append(Child(line, base.with_name(f"log{index}")))
    if held:
        end = time.monotonic() + HELD_S
        while children[1].poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        children[0].kill(signal.SIGCONT)
    codes = [child.wait() for child in children]
    problems = []
    ends = []
    for name, child, code in zip(pair, children, codes, strict=True):
        if code == 0:
            ends.append("done")
        elif code == 1 and NAMED in refusal(child.text):
            ends.append("refused")
        else:
            ends.append("failed")
            problems.append(f"{name}: exit code {code}: {refusal(child.text)}")
    if "done" not in ends:
        problems.append("neither was carried out")
    problems += unlike(run, expected)
    for log in run.rglob("*.jsonl"):
        rows = Counter(log.read_text().splitlines())
        if log.name != "curves.jsonl" and max(rows.values(), default=1) > 1:
            problems.append(f"{log.relative_to(run)} has a line twice")
    return {"pair": list(pair), "delay_s": round(delay, 3), "held": held, "ends": ends, "problems": problems}


def main() -> None:
    options = options_of(__doc__, "starts").parse_args()
    began = time.monotonic()
    folder = options.folder.resolve()
    prepare(folder)
    base = folder / "first"  # all steps are done there
    expected, seconds, trials = outcome(base), durations(base), Trials(folder / "writers.json")
    quarter = options.starts // 4
    pairs = list(itertools.combinations_with_replacement(COMMANDS, 2))
    for start in range(options.starts):  # one start of every pair, then the next
        for number, given in enumerate(pairs):
            if len(trials.rows) > start * len(pairs) + number:
                continue
            if time.monotonic() - began > options.seconds:
                break
            pair = (given[0], given[1]) if start % 2 == 0 else (given[1], given[0])
            held = start >= options.starts - quarter
            share = start / options.starts if not held else (options.starts - start - 0.5) / quarter
            trials.add(trial(base, pair, share * seconds[pair[0]], held, expected))
    summary = {
        "pairs": len(pairs), "starts": len(trials.rows),
        "pairs_started": len({tuple(sorted(one["pair"])) for one in trials.rows}),
        "both_done": sum(one["ends"] == ["done", "done"] for one in trials.rows),
        "one_refused_by_name": sum(sorted(one["ends"]) == ["done", "refused"] for one in trials.rows),
        "first_held_up": sum(one.get("held", False) for one in trials.rows),
        "with_problems": sum(bool(one["problems"]) for one in trials.rows),
        "problems": [one for one in trials.rows if one["problems"]][:50],
    }  # fmt: skip
    print(json.dumps({key: value for key, value in summary.items() if key != "problems"}))
    if options.out:
        files.write_json(options.out, summary)


if __name__ == "__main__":
    main()
