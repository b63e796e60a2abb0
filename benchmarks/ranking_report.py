"""The page and tables of ``bm_ranking.py``: rank agreement of supernet scores with the published accuracies.

This is the only place that reads those accuracies, and nothing flows back from here into training.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ranking_page import page
from ranking_plots import ORDER, kendall_plot, scatter
from ranking_runs import kendall_name, read_runs, setting, settings_of
from scipy.stats import kendalltau, spearmanr

from bcnet_deploy import files

Floats = npt.NDArray[np.float64]


def truth_table(data: Path) -> dict[str, dict[str, float]]:
    """arch -> acc_mean, flops, params."""
    with (data / "channel_bench_macro_mobilenet.csv").open(encoding="utf-8") as file:
        return {
            row["arch"]: {key: float(row[key]) for key in ("acc_mean", "flops", "params")}
            for row in csv.DictReader(file)
        }


def agreement(score: Floats, truth: Floats) -> dict[str, float]:
    """Kendall's tau-b with a 95% bootstrap interval over networks, and Spearman's rho."""
    rng = np.random.default_rng(0)
    picks = rng.integers(len(score), size=(400, len(score)))
    spread = [float(kendalltau(score[pick], truth[pick]).statistic) for pick in picks]
    low, high = np.nanpercentile(spread, [2.5, 97.5])
    return {
        "kendall": float(kendalltau(score, truth).statistic), "low": float(low), "high": float(high),
        "spearman": float(spearmanr(score, truth).statistic), "rows": len(score),
    }  # fmt: skip


def subsets(archs: Sequence[tuple[str, str]], known: dict[str, Any]) -> dict[str, list[str]]:
    """Names of row sets -> archs with a published accuracy."""
    found = [(arch, draw) for arch, draw in archs if arch in known]
    return {
        "drawn from all": [arch for arch, draw in found if draw == "all"],
        "no level-1 layer": [arch for arch, _ in found if "1" not in arch],
        "with a level-1 layer": [arch for arch, _ in found if "1" in arch],
    }


def write_report(results: Path, data: Path, docs: Path) -> None:
    """Write ``summary.json`` beside the runs, and ``docs/ranking.md`` with its plots."""
    runs = read_runs(results)
    if not runs:
        raise SystemExit(f"no run in {results} yet: bm_ranking.py run")
    settings = settings_of(runs)
    runs.sort(key=lambda run: (settings.index(setting(run)), ORDER.index(run["rule"]), run["seed"]))
    known = truth_table(data)
    with (data / "channel_bench_macro_rank_archs.csv").open(encoding="utf-8") as file:
        sets = subsets([(row["arch"], row["draw"]) for row in csv.DictReader(file)], known)
    baselines = {
        f"{name} alone": {
            part: agreement(_column(known, rows, key), _column(known, rows, "acc_mean"))
            for part, rows in sets.items()
        }
        for name, key in (("MACs", "flops"), ("parameters", "params"))
    }
    rows: list[dict[str, Any]] = []
    for run in runs:
        scores = {row["arch"]: row for row in run["scores"]}
        measures = {
            "agreement": {arch: row["score"] for arch, row in scores.items()},
            "left_alone": {arch: row["accuracy_by_side"][0] for arch, row in scores.items()},
            "by_loss": {arch: -row["loss"] for arch, row in scores.items()},
        }
        agreements = {
            name: {
                part: agreement(np.array([value[a] for a in members]), _column(known, members, "acc_mean"))
                for part, members in sets.items()
            }
            for name, value in measures.items()
        }
        keys = (
            "rule", "seed", "cost", "size", "cost_spent", "steps", "train_seconds", "train_loss",
            "held_out_loss", "held_out_accuracy", "held_out_images", "recalibration_images", "sides",
            "between_halves",
        )  # fmt: skip
        recipe = {key: run["config"][key] for key in ("batch_size", "learning_rate", "augment")}
        rows.append({
            **{key: run[key] for key in keys}, **recipe, **agreements,
            "between_sides": between_sides(run),
        })  # fmt: skip
    files.write_json(results / "summary.json", {"baselines": baselines, "runs": rows})
    folder = docs / "ranking"
    pilots = json.loads((results / "pilots.json").read_text())
    for one in settings:
        plot = kendall_plot([row for row in rows if setting(row) == one], baselines, list(sets)[:2])
        files.write_text(folder / kendall_name(one), plot)
    shown: dict[str, dict[str, Any]] = {}
    for run in runs:  # by falling cost, then rising seed
        shown.setdefault(run["rule"], run)
    for rule, run in shown.items():
        files.write_text(folder / f"{rule}.svg", scatter(run, known))
    files.write_text(docs / "ranking.md", page(rows, baselines, list(sets), runs, pilots))


def between_sides(run: dict[str, Any]) -> float | None:
    """Kendall's tau of the left scores with the right ones, over all vectors; None for one-sided rules."""
    sides = np.array([row["accuracy_by_side"] for row in run["scores"]])
    return float(kendalltau(sides[:, 0], sides[:, 1]).statistic) if sides.shape[1] > 1 else None


def _column(table: dict[str, Any], archs: Sequence[str], key: str) -> Floats:
    return np.array([table[arch][key] for arch in archs], dtype=np.float64)
