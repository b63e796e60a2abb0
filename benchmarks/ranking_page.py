"""The text of docs/ranking.md, out of the figures that ``ranking_report.py`` makes of the runs."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from ranking_plots import ORDER
from ranking_runs import USUAL_IMAGES, Setting, kendall_name, setting, settings_of, title
from scipy.stats import kendalltau

import bcnet_deploy as bd

JUDGED = {
    "bilateral-complementary": "bilateral + complementary",
    "bilateral-complementary-distilled": "the default, with distillation",
}
INTENDED_COST = 600_000
ANCHORS = (
    "Anchors, from the published records on the full table (Channel-Bench-Macro): the authors' BCNet "
    "0.30-0.54, AutoSlim's sandwich 0.66, MACs alone 0.546; among networks without a level-1 layer "
    "-0.35 to 0.10, and 0.42-0.50. Two seeds of the truth agree with 0.61-0.62."
)

INTRODUCTION = """\
Written by `python benchmarks/bm_ranking.py report`; the runs are in `benchmarks/results/ranking/runs.jsonl`,
every score is in `benchmarks/results/ranking/scores.csv`.

**Question.** A supernet is there to rank width vectors. Channel-Bench-Macro has the accuracy of its
MobileNet's networks, each trained three times on CIFAR-10. Supernets trained by several rules at the same
cost score 640 of its vectors; how well does the order agree?

**Set-up.** CIFAR-10 at {size}x{size} pixels (the truth: 32x32), SGD with Nesterov momentum, cosine, weight
decay 5e-4, batch {batch_size}, learning rate {learning_rate:g}, the same for every rule; chosen by the
*held-out loss* of short trainings by two of the rules, which were best without augmentation. Runs with it
are apart; at one cost, the augmentation with the lower held-out loss comes first (last section). Scores on
more than {usual_images:,} held-out images are apart too, since the number of images alone moves the
agreement: rules are compared on equally many. The published accuracies chose nothing. Cost 1 is one image,
forward and backward, through the full width; narrower passes count by their MACs, and teachers and both
sides count. Scores are top-1 on images held out of the training data, after batch-norm recalibration on
training images; for rules with two sides the mean of both, which takes two passes an image: on equally many
images those rules have the less noisy scores. *Left alone* ranks by the left side, a pass an image for every
rule, and *by loss* by both sides' cross-entropy, which few images settle better; the bars are held against
top-1. The test images are not used. `-min` is a smallest level m = 1 with K + m stored levels; a larger m
would leave level 1, which most of the vectors have, untrained."""

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
        *INTRODUCTION.format(**first, usual_images=USUAL_IMAGES).splitlines(),
        "",
    ]
    for one in settings_of(rows):
        cost = one[0]
        group = [row for row in rows if setting(row) == one]
        lines += [
            f"## {title(one).capitalize()}",
            "",
            f"Full-width image passes, as much as {cost / 45000:.1f} epochs of the full width.",
            "",
            f"![Kendall's tau by rule, {title(one)}](ranking/{kendall_name(one)})",
            "",
            "Kendall's tau (95% interval over networks); rows: "
            + ", ".join(f"{part} {group[0]['agreement'][part]['rows']}" for part in parts)
            + ".",
            "",
            "*Left to right*: tau between the scores of the two sides. *Half to half*: tau between the scores"
            " on every other held-out image and on the rest; how much the images' number leaves open. Rules"
            " differ in steps because a step of the same batch runs more or fewer paths.",
            "",
            "| rule | seed | steps | "
            + " | ".join(parts)
            + " | Spearman, all | left alone: all | left alone: no level-1"
            " | by loss: all | by loss: no level-1 | left to right | half to half"
            " | images scored, recalibrated | held-out top-1 | held-out loss |",
            "|---|---|---|" + "---|" * (len(parts) + 10),
        ]
        for row in group:
            cells = [_tau(row["agreement"][part]) for part in parts]
            lines.append(
                f"| {row['rule']} | {row['seed']} | {row['steps']} | " + " | ".join(cells)
                + f" | {row['agreement'][parts[0]]['spearman']:.3f} | "
                + " | ".join(
                    f"{row[measure][part]['kendall']:.3f}"
                    for measure in ("left_alone", "by_loss")
                    for part in parts[:2]
                )
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
                f"| *{name}* | | | "
                + " | ".join(cells)
                + f" | {by_part[parts[0]]['spearman']:.3f} | | | | | | | | | |"
            )
        missing = [rule for rule in ORDER if rule not in {row["rule"] for row in group}]
        if missing:
            lines += ["", f"Not run in this setting: {', '.join(missing)}."]
        seeds = {rule: sum(row["rule"] == rule for row in group) for rule in ORDER}
        if any(0 < count < 3 for count in seeds.values()):
            lines += [
                "",
                "Fewer than three seeds of: " + ", ".join(r for r, n in seeds.items() if 0 < n < 3) + ".",
            ]
        lines.append("")
    lines += ["## Against the bars", ""]
    for one in settings_of(rows):
        lines += verdict([row for row in rows if setting(row) == one], baselines, parts, one)
    lines += [ANCHORS, "", *wide_networks(runs), ""]
    lines += ["## Scores against the truth", ""]
    for rule in (rule for rule in ORDER if any(run["rule"] == rule for run in runs)):
        lines += [f"![{rule}](ranking/{rule}.svg)", ""]
    lines += [*pilot_table(pilots), *augmentation_table(rows)]
    return "\n".join(lines)


def verdict(
    rows: Sequence[dict[str, Any]], baselines: dict[str, Any], parts: Sequence[str], one: Setting
) -> list[str]:
    """Whether the bars of the benchmark are met in one setting, from the figures alone.

    Bars without a run in the setting are left out; what was not run is said above.
    """
    cost = one[0]
    runs = {(row["rule"], row["seed"]): row for row in rows}
    lines = [
        f"At {title(one)}; the benchmark is meant for {INTENDED_COST:,.0f} "
        f"(about 40 minutes of two free cores a run), of which this is {cost / INTENDED_COST:.0%}.",
        "",
        "| bar | met | figures |",
        "|---|---|---|",
    ]
    bars: list[tuple[str, list[tuple[float, float]]]] = []
    for rule, label in JUDGED.items():
        ours = {seed: row for (other, seed), row in runs.items() if other == rule}
        for part, bar in zip(parts, (0.70, 0.50), strict=False):
            values = [(row["agreement"][part]["kendall"], bar) for row in ours.values()]
            bars.append((f"{label}, {part}, at least {bar:.2f}", values))
        for measure, how in (("agreement", ""), ("left_alone", ", left alone"), ("by_loss", ", by loss")):
            for other in ("unilateral", "sandwich"):
                for part in parts[:2]:
                    pairs = [
                        (row[measure][part]["kendall"], runs[other, seed][measure][part]["kendall"])
                        for seed, row in ours.items()
                        if (other, seed) in runs
                    ]
                    bars.append((f"{label}, {part}, above {other} on every seed{how}", pairs))
        flops = baselines["MACs alone"][parts[0]]["kendall"]
        values = [(row["agreement"][parts[0]]["kendall"], flops) for row in ours.values()]
        bars.append((f"{label}, {parts[0]}, above MACs alone", values))
    return [*lines, *(_bar(name, pairs) for name, pairs in bars if pairs), ""]


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
        "| cost | augmentation | images | rule | seed | "
        + " | ".join(map(str, counts))
        + " or more | tau to MACs |",
        "|---|---|---|---|---|" + "---|" * len(counts) + "---|",
    ]
    for run in runs:
        archs = [row["arch"] for row in run["scores"]]
        score = np.array([row["score"] for row in run["scores"]])
        full = np.minimum([arch.count("4") for arch in archs], counts[-1])
        means = [float(score[full == count].mean()) for count in counts]
        macs = float(kendalltau(score, macs_of(archs)).statistic)
        cells = " | ".join(f"{mean - means[0]:+.2f}" for mean in means)
        cost = f"{run['cost']:,.0f}"
        about = " | ".join(map(str, [cost, run["augment"], run["held_out_images"], run["rule"], run["seed"]]))
        lines.append(f"| {about} | {cells} | {macs:.2f} |")
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


def augmentation_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Held-out and training loss of the runs that differ in augmentation alone."""
    pairs: dict[tuple[float, str, int], dict[str, dict[str, Any]]] = {}
    for row in (row for row in rows if row["held_out_images"] <= USUAL_IMAGES):
        pairs.setdefault((row["cost"], row["rule"], row["seed"]), {})[row["augment"]] = row
    compared = {key: found for key, found in pairs.items() if len(found) > 1}
    if not compared:
        return []
    names = list(dict.fromkeys(name for found in compared.values() for name in sorted(found)))
    lines = [
        "## Augmentation: held-out loss, training loss in brackets",
        "",
        "Held-out: mean over the scored vectors. Training: of the last steps, the teacher's loss included.",
        "These runs were made after those without augmentation were known, because at full cost those learn",
        "the training images by heart; the lower held-out loss still decides.",
        "",
        "| cost | rule | seed | " + " | ".join(names) + " |",
        "|---|---|---|" + "---|" * len(names),
    ]
    for (cost, rule, seed), found in compared.items():
        cells = [
            f"{found[name]['held_out_loss']:.3f} ({found[name]['train_loss']:.3f})" if name in found else ""
            for name in names
        ]
        lines.append(f"| {cost:,.0f} | {rule} | {seed} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def macs_of(archs: Sequence[str]) -> npt.NDArray[np.float64]:
    """MACs at 16x16 pixels of vectors of four levels, whether the published table has them or not."""
    space = _space()
    levels = np.array([[int(level) for level in arch] for arch in archs])
    return np.asarray(space.macs(levels * space.full // 4), dtype=np.float64)


@functools.cache
def _space() -> bd.WidthSpace:
    model = bd.build_model("channel_bench_macro_mobilenet", num_classes=10)
    return bd.WidthSpace.from_model(model, (3, 16, 16), levels=4)


def _bar(name: str, pairs: Sequence[tuple[float, float]]) -> str:
    """A row: (reached, needed) of each seed. Three seeds are what the benchmark asks for."""
    if any(reached <= needed for reached, needed in pairs):
        met = "no"
    else:
        met = "yes" if len(pairs) >= 3 else f"so far, {len(pairs)} of 3 seeds"
    return f"| {name} | {met} | {', '.join(f'{a:.3f} / {b:.3f}' for a, b in pairs)} |"


def _tau(value: dict[str, float]) -> str:
    return f"{value['kendall']:.3f} ({value['low']:.2f} to {value['high']:.2f})"
