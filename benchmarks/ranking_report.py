"""The page and tables of ``bm_ranking.py``: rank agreement of supernet scores with the published accuracies.

This is the only place that reads those accuracies, and nothing flows back from here into training.
"""

from __future__ import annotations

import csv
import functools
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ranking_plots import ORDER, kendall_plot, scatter
from scipy.stats import kendalltau, spearmanr

import bcnet_deploy as bd
from bcnet_deploy import files

JUDGED = {
    "bilateral-complementary": "bilateral + complementary",
    "bilateral-complementary-distilled": "the default, with distillation",
}
INTENDED_COST = 600_000
ANCHORS = (
    "Anchors, from the published records on the full table (bcnet.md, section 8): the authors' BCNet "
    "0.30-0.54, AutoSlim's sandwich 0.66, MACs alone 0.546; among networks without a level-1 layer "
    "-0.35 to 0.10, and 0.42-0.50. Two seeds of the truth agree with 0.61-0.62."
)

INTRODUCTION = """\
Written by `python benchmarks/bm_ranking.py report`; the runs are `benchmarks/results/ranking/runs/*.json`,
every score is in `benchmarks/results/ranking/scores.csv`.

**Question.** A supernet is there to rank width vectors. Channel-Bench-Macro has the accuracy of its
MobileNet's networks, each trained three times on CIFAR-10. Supernets trained by several rules at the same
cost score 640 of its vectors; how well does the order agree?

**Set-up.** CIFAR-10 at {size}x{size} pixels (the truth: 32x32), SGD with Nesterov momentum, cosine, weight
decay 5e-4, batch {batch_size}, learning rate {learning_rate:g}, augmentation {augment}, the same for every
rule; chosen by the *held-out loss* of short trainings by two of the rules (last section). The published
accuracies chose nothing. Cost 1 is one image, forward and backward, through the full
width; narrower passes count by their MACs, and teachers and both sides count. Scores are top-1 on
images held out of the training data, after batch-norm recalibration on training images; for rules with two
sides the mean of both. *By loss* ranks by the same images' cross-entropy, which few images settle better;
the bars are held against top-1. The test images are not used. `-min` is a smallest level m = 1 with K + m
stored levels; a larger m would leave level 1, which most of the vectors have, untrained."""

WIDE_LAYERS = """\
A full-width layer joins channels that the narrower slices train apart: the left slices use the first, the
right slices the last; and weights between the outermost channels, such as those of the last input level
in the last output level, exist only where both layers are wide. Channels are trained equally often, weights
are not. Under plain bilateral training the full width of a layer is drawn for a quarter of the
vectors, under complementary pairs for an eighth (the complement K - c is never K), so sets of layers at full
width are hardly trained together and score below narrower ones, or hardly above. Distillation
runs the full width in every step, which puts the order right: that is why it is the default of training
and of the recipe `cifar10_cpu`. The recipes `digits` and `cifar10_quick` train for a minute or two and leave
it out (it costs two thirds of the steps), as do the published recipes; its effect there was not measured."""

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
    """Write ``scores.csv`` and ``summary.json`` beside the runs, and ``docs/ranking.md`` with its plots."""
    runs = [json.loads(path.read_text()) for path in sorted((results / "runs").glob("*.json"))]
    runs.sort(key=lambda run: (-run["cost"], ORDER.index(run["rule"]), run["seed"]))
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
    if not runs:
        raise SystemExit(f"no run in {results / 'runs'} yet: bm_ranking.py run")
    _write_scores(results / "scores.csv", runs)
    rows: list[dict[str, Any]] = []
    for run in runs:
        scores = {row["arch"]: row for row in run["scores"]}
        by_set = {
            part: agreement(_column(scores, members, "score"), _column(known, members, "acc_mean"))
            for part, members in sets.items()
        }
        by_loss = {
            part: agreement(-_column(scores, members, "loss"), _column(known, members, "acc_mean"))
            for part, members in sets.items()
        }
        keys = (
            "rule", "seed", "cost", "size", "cost_spent", "steps", "train_seconds", "train_loss",
            "held_out_loss", "held_out_accuracy", "held_out_images", "recalibration_images", "sides",
        )  # fmt: skip
        recipe = {key: run["config"][key] for key in ("batch_size", "learning_rate", "augment")}
        rows.append({
            **{key: run[key] for key in keys}, **recipe, "agreement": by_set, "by_loss": by_loss,
            "between_sides": between_sides(run), "between_halves": between_halves(run),
        })  # fmt: skip
    files.write_json(results / "summary.json", {"baselines": baselines, "runs": rows})
    folder = docs / "ranking"
    pilots = json.loads((results / "pilots.json").read_text())
    for cost in costs_of(rows):
        plot = kendall_plot(rows, baselines, list(sets)[:2], cost)
        files.write_text(folder / kendall_name(cost), plot)
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


def between_halves(run: dict[str, Any]) -> float | None:
    """Kendall's tau of the scores on every other held-out image with those on the rest; None if not kept."""
    halves = [row.get("accuracy_by_half") for row in run["scores"]]
    if None in halves:
        return None
    return float(kendalltau(*np.array(halves).T).statistic)


def _column(table: dict[str, Any], archs: Sequence[str], key: str) -> Floats:
    return np.array([table[arch][key] for arch in archs], dtype=np.float64)


def _write_scores(path: Path, runs: Sequence[dict[str, Any]]) -> None:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["rule", "seed", "cost", "size", "arch", "draw", "score", "loss", "left", "right"])
    for run in runs:
        for row in run["scores"]:
            sides = [f"{value:.2f}" for value in row["accuracy_by_side"]]
            writer.writerow([
                run["rule"], run["seed"], f"{run['cost']:.0f}", run["size"], row["arch"], row["draw"],
                f"{row['score']:.3f}", f"{row['loss']:.5f}", sides[0], sides[1] if len(sides) > 1 else "",
            ])  # fmt: skip
    files.write_text(path, out.getvalue())


# -- the page ----------------------------------------------------------------------------------


def page(
    rows: Sequence[dict[str, Any]],
    baselines: dict[str, Any],
    parts: Sequence[str],
    runs: Sequence[dict[str, Any]],
    pilots: Sequence[dict[str, Any]],
) -> str:
    """The text of docs/ranking.md; every figure in it comes from the runs' files."""
    first = rows[0]
    lines = [
        "# Which training rule ranks networks best?",
        "",
        *INTRODUCTION.format(**first).splitlines(),
        "",
    ]
    for cost in costs_of(rows):
        group = [row for row in rows if row["cost"] == cost]
        images = cost / 45000
        lines += [
            f"## Cost {cost:,.0f} full-width image passes (as much as {images:.1f} epochs of the full width)",
            "",
            f"![Kendall's tau by rule, cost {cost:.0f}](ranking/{kendall_name(cost)})",
            "",
            "Kendall's tau (95% interval over networks); rows: "
            + ", ".join(f"{part} {group[0]['agreement'][part]['rows']}" for part in parts)
            + ".",
            "",
            "*Left to right*: tau between the scores of the two sides. *Half to half*: tau between the scores"
            " on every other held-out image and on the rest; how much the images' number leaves open. Rules"
            " differ in steps because a step of the same batch runs more or fewer paths.",
            "",
            "| rule | seed | steps | " + " | ".join(parts)
            + " | Spearman, all | by loss: all | by loss: no level-1 | left to right | half to half"
            " | images scored, recalibrated | held-out top-1 | held-out loss |",
            "|---|---|---|" + "---|" * (len(parts) + 8),
        ]
        for row in group:
            cells = [_tau(row["agreement"][part]) for part in parts]
            lines.append(
                f"| {row['rule']} | {row['seed']} | {row['steps']} | " + " | ".join(cells)
                + f" | {row['agreement'][parts[0]]['spearman']:.3f} | "
                + " | ".join(f"{row['by_loss'][part]['kendall']:.3f}" for part in parts[:2])
                + "".join(
                    " | -" if row[key] is None else f" | {row[key]:.2f}"
                    for key in ("between_sides", "between_halves")
                )
                + f" | {row['held_out_images']}, {row['recalibration_images']}"
                + f" | {row['held_out_accuracy']:.1f}% "
                f"| {row['held_out_loss']:.3f} |"
            )  # fmt: skip
        for name, by_part in baselines.items():
            cells = [_tau(by_part[part]) for part in parts]
            lines.append(
                f"| *{name}* | | | " + " | ".join(cells)
                + f" | {by_part[parts[0]]['spearman']:.3f} | | | | | | | |"
            )
        missing = [rule for rule in ORDER if rule not in {row["rule"] for row in group}]
        if missing:
            lines += ["", f"Not run yet at this cost: {', '.join(missing)}."]
        seeds = {rule: sum(row["rule"] == rule for row in group) for rule in ORDER}
        if any(0 < count < 3 for count in seeds.values()):
            lines += [
                "",
                "Fewer than three seeds of: " + ", ".join(r for r, n in seeds.items() if 0 < n < 3) + ".",
            ]
        lines.append("")
    lines += ["## Against the bars", ""]
    for cost in costs_of(rows):
        lines += verdict([row for row in rows if row["cost"] == cost], baselines, parts, cost)
    lines += [ANCHORS, "", *wide_networks(runs), ""]
    lines += ["## Scores against the truth", ""]
    for rule in (rule for rule in ORDER if any(run["rule"] == rule for run in runs)):
        lines += [f"![{rule}](ranking/{rule}.svg)", ""]
    lines += pilot_table(pilots)
    return "\n".join(lines)


def verdict(
    rows: Sequence[dict[str, Any]], baselines: dict[str, Any], parts: Sequence[str], cost: float
) -> list[str]:
    """Whether the bars of the benchmark are met at one cost, from the figures alone."""
    group = {(row["rule"], row["seed"]): row["agreement"] for row in rows}
    lines = [
        f"At cost {cost:,.0f}; the benchmark is meant for {INTENDED_COST:,.0f} (about 40 minutes of two free "
        f"cores a run), of which this is {cost / INTENDED_COST:.0%}.",
        "",
        "| bar | met | figures |",
        "|---|---|---|",
    ]
    for rule, label in JUDGED.items():
        ours = {seed: value for (other, seed), value in group.items() if other == rule}
        for part, bar in zip(parts, (0.70, 0.50), strict=False):
            values = [(value[part]["kendall"], bar) for value in ours.values()]
            lines.append(_bar(f"{label}, {part}, at least {bar:.2f}", values))
        for other in ("unilateral", "sandwich"):
            for part in parts[:2]:
                pairs = [
                    (value[part]["kendall"], group[other, seed][part]["kendall"])
                    for seed, value in ours.items()
                    if (other, seed) in group
                ]
                lines.append(_bar(f"{label}, {part}, above {other} on every seed", pairs))
        flops = baselines["MACs alone"][parts[0]]["kendall"]
        values = [(value[parts[0]]["kendall"], flops) for value in ours.values()]
        lines.append(_bar(f"{label}, {parts[0]}, above MACs alone", values))
    return [*lines, ""]


def wide_networks(runs: Sequence[dict[str, Any]]) -> list[str]:
    """How each supernet treats wide layers: mean score by the number of layers at full width."""
    counts = range(5)
    lines = [
        "## Why plain bilateral supernets rank badly: full-width layers",
        "",
        "Mean held-out score of the vectors by how many of their seven layers are at full width, minus the",
        "mean of those with none. No published accuracy enters. The last column: Kendall's tau of the scores",
        "against MACs.",
        "",
        "| cost | rule | seed | " + " | ".join(map(str, counts)) + " or more | tau to MACs |",
        "|---|---|---|" + "---|" * len(counts) + "---|",
    ]
    for run in runs:
        archs = [row["arch"] for row in run["scores"]]
        score = np.array([row["score"] for row in run["scores"]])
        full = np.minimum([arch.count("4") for arch in archs], counts[-1])
        means = [float(score[full == count].mean()) for count in counts]
        macs = float(kendalltau(score, macs_of(archs)).statistic)
        cells = " | ".join(f"{mean - means[0]:+.2f}" for mean in means)
        lines.append(f"| {run['cost']:,.0f} | {run['rule']} | {run['seed']} | {cells} | {macs:.2f} |")
    return [*lines, "", WIDE_LAYERS]


def pilot_table(pilots: Sequence[dict[str, Any]]) -> list[str]:
    """The short trainings that the recipe was chosen by."""
    rules = list(dict.fromkeys(p["rule"] for p in pilots))
    lines = [
        f"## Pilots: cost {pilots[0]['cost']:,.0f}, held-out loss",
        "",
        "| batch | learning rate | augmentation | " + " | ".join(rules) + " |",
        "|---|---|---|" + "---|" * len(rules),
    ]
    recipes = dict.fromkeys((p["batch_size"], p["learning_rate"], p["augment"]) for p in pilots)
    for recipe in sorted(recipes, key=lambda r: (-r[0], -r[1], r[2])):
        cells = []
        for rule in rules:
            found = [
                f"{p['held_out_loss']:.3f}"
                for p in pilots
                if p["rule"] == rule and (p["batch_size"], p["learning_rate"], p["augment"]) == recipe
            ]
            cells.append(found[0] if found else "not run")
        lines.append("| " + " | ".join([*map(str, recipe), *cells]) + " |")
    return [*lines, ""]


def macs_of(archs: Sequence[str]) -> Floats:
    """MACs at 16x16 pixels of vectors of four levels, whether the published table has them or not."""
    space = _space()
    levels = np.array([[int(level) for level in arch] for arch in archs])
    return np.asarray(space.macs(levels * space.full // 4), dtype=np.float64)


@functools.cache
def _space() -> bd.WidthSpace:
    model = bd.build_model("channel_bench_macro_mobilenet", num_classes=10)
    return bd.WidthSpace.from_model(model, (3, 16, 16), levels=4)


def costs_of(rows: Sequence[dict[str, Any]]) -> list[float]:
    """Costs that were run, largest first."""
    return sorted({row["cost"] for row in rows}, reverse=True)


def kendall_name(cost: float) -> str:
    return f"kendall_{cost:.0f}.svg"


def _bar(name: str, pairs: Sequence[tuple[float, float]]) -> str:
    """A row: (reached, needed) of each seed. Three seeds are what the benchmark asks for."""
    if not pairs:
        met = "no run"
    elif any(reached <= needed for reached, needed in pairs):
        met = "no"
    else:
        met = "yes" if len(pairs) >= 3 else f"so far, {len(pairs)} of 3 seeds"
    return f"| {name} | {met} | {', '.join(f'{a:.3f} / {b:.3f}' for a, b in pairs)} |"


def _tau(value: dict[str, float]) -> str:
    return f"{value['kendall']:.3f} ({value['low']:.2f} to {value['high']:.2f})"
