"""The runs of ``bm_ranking.py``: where they are kept, which are compared with each other, and their names.

A run is a dictionary of what was trained and how, with its scores under ``scores``. On disk the scores of
all runs are ``scores.csv`` and the rest is a line of ``runs.jsonl``.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from bcnet_deploy import files

USUAL_IMAGES = 2000
"""Held-out images of a score, at most; scores on more are a setting of their own."""

Setting = tuple[float, str, int]
"""Cost, augmentation and held-out images: runs in one setting are compared."""


def setting(run: dict[str, Any]) -> Setting:
    return run["cost"], run["augment"], max(run["held_out_images"], USUAL_IMAGES)


def title(one: Setting) -> str:
    cost, augment, images = one
    more = f", scored on {images:,} images" if images > USUAL_IMAGES else ""
    return f"cost {cost:,.0f}, augmentation {augment}{more}"


def settings_of(rows: Sequence[dict[str, Any]]) -> list[Setting]:
    """Settings that were run.

    Largest cost first, then the usual number of held-out images, then the lowest held-out loss of the rules
    that the augmentations share.
    """
    found = list(dict.fromkeys(setting(row) for row in rows))

    def held_out_loss(one: Setting) -> float:
        alike = [other for other in found if (other[0], other[2]) == (one[0], one[2])]
        shared = set.intersection(*[{r["rule"] for r in rows if setting(r) == other} for other in alike])
        losses = [r["held_out_loss"] for r in rows if setting(r) == one and r["rule"] in shared]
        return float(np.mean(losses)) if losses else 0.0

    return sorted(found, key=lambda one: (-one[0], one[2], held_out_loss(one), one[1]))


def name_suffix(augment: str, images: int) -> str:
    """What the names of files add for a setting: nothing where it is usual."""
    augmented = "" if augment == "none" else f"_{augment}"
    return augmented + (f"_images{images}" if images > USUAL_IMAGES else "")


def kendall_name(one: Setting) -> str:
    cost, augment, images = one
    return f"kendall_{cost:.0f}{name_suffix(augment, images)}.svg"


KEY = ("rule", "seed", "cost", "size", "augment", "held_out_images")
"""What tells one run from another."""
COLUMNS = (*KEY[:5], "images", "arch", "draw", "score", "loss", "left", "right")


def read_heads(results: Path) -> list[dict[str, Any]]:
    """All runs, without their scores."""
    path = results / "runs.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def read_runs(results: Path) -> list[dict[str, Any]]:
    """All runs with their scores; a score is in percent, ``accuracy_by_side`` likewise."""
    heads = read_heads(results)
    if not heads:
        return []
    scores: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    with (results / "scores.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            key = tuple(row[column] for column in COLUMNS[:6])
            sides = [float(row[side]) for side in ("left", "right") if row[side]]
            scores.setdefault(key, []).append({
                "arch": row["arch"], "draw": row["draw"], "score": float(row["score"]),
                "loss": float(row["loss"]), "accuracy_by_side": sides,
            })  # fmt: skip
    # A kill between the two files leaves a line without scores: that run is gone.
    return [{**head, "scores": scores[_key(head)]} for head in heads if _key(head) in scores]


def slot(run: dict[str, Any]) -> tuple[Any, ...]:
    """What a run is of: there is one run a slot."""
    return run["rule"], run["seed"], run["size"], *setting(run)


def add_run(results: Path, run: dict[str, Any]) -> None:
    """Keep a run, in place of an earlier one of this :func:`slot`; other processes may do so too."""
    with FileLock(results / ".lock"):
        kept = [other for other in read_runs(results) if slot(other) != slot(run)]
        write_runs(results, [*kept, {**run, "between_halves": between_halves(run["scores"])}])


def write_runs(results: Path, runs: Sequence[dict[str, Any]]) -> None:
    """Write ``scores.csv`` and ``runs.jsonl``, in the order of :data:`KEY`."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    heads = []
    for run in sorted(runs, key=lambda run: [run[key] for key in KEY]):
        heads.append(json.dumps({key: value for key, value in run.items() if key != "scores"}) + "\n")
        for row in run["scores"]:
            sides = row["accuracy_by_side"]
            # Every digit: rounding would make ties, and move the agreement in the third decimal.
            about = [row["arch"], row["draw"], row["score"], row["loss"]]
            writer.writerow([*_key(run), *about, *sides, *[""] * (2 - len(sides))])
    # Scores first: without its line a run is not there, and is scored again.
    files.write_text(results / "scores.csv", out.getvalue())
    files.write_text(results / "runs.jsonl", "".join(heads))


def between_halves(scores: Sequence[dict[str, Any]]) -> float | None:
    """Kendall's tau of the scores on every other held-out image with those on the rest; None if not kept."""
    from scipy.stats import kendalltau  # here: a training has no use for it until it is scored

    halves = [row.get("accuracy_by_half") for row in scores]
    if None in halves:
        return None
    return float(kendalltau(*np.array(halves).T).statistic)


def _key(run: dict[str, Any]) -> tuple[str, ...]:
    return tuple(f"{run[key]:.0f}" if key == "cost" else str(run[key]) for key in KEY)
