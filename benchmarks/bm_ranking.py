"""Which training rule ranks networks best? Channel-Bench-Macro's MobileNet, CIFAR-10, equal cost for each.

A supernet is trained by each rule and seed for the same number of image passes weighed by MACs, then
scores the 640 vectors of ``channel_bench_macro_rank_archs.csv``; where the published table has the
true accuracy of a vector, scores and truth are compared by rank. Nothing is fitted to those accuracies:
``run`` never opens that table, only ``report`` does. Everything resumes after a kill.

    python benchmarks/bm_ranking.py run --rules bilateral-complementary,unilateral --seeds 0,1,2 --cost 600000
    python benchmarks/bm_ranking.py pilot --cost 10000
    python benchmarks/bm_ranking.py report

Cost 1 is one image through the full width, forward and backward. On one free core of the machine that
the first results come from, about 150 of them pass in a second (16x16 images, batch 128).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from prefix_scores import PrefixScorer
from ranking_runs import USUAL_IMAGES, add_run, name_suffix, read_heads, slot

import bcnet_deploy as bd
from bcnet_deploy import files
from bcnet_deploy.data import Augmentation, BatchLoader, DataSplits, PlainBatches, load_data
from bcnet_deploy.data.augment import AUGMENTATIONS
from bcnet_deploy.data.plain import drawing_order
from bcnet_deploy.train.config import TrainConfig
from bcnet_deploy.train.samplers import SamplerSource, WidthGrid, make_sampler
from bcnet_deploy.train.trainer import Trainer, TrainOutcome

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "ranking"
MODEL = "channel_bench_macro_mobilenet"
LEVELS = 4
CPU = torch.device("cpu")
RULES: dict[str, dict[str, Any]] = {
    "bilateral-complementary": {"rule": "bilateral", "distillation": False},
    "unilateral": {"rule": "unilateral", "distillation": False},
    "sandwich": {"rule": "sandwich", "distillation": True, "random_paths": 2},
    "bilateral-complementary-distilled": {"rule": "bilateral", "distillation": True},
    "bilateral": {"rule": "bilateral", "complementary": False, "distillation": False},
    "bilateral-complementary-min": {"rule": "bilateral", "distillation": False},
    "bilateral-complementary-min-distilled": {"rule": "bilateral", "distillation": True},
}
MIN_LEVEL = {"bilateral-complementary-min": 1, "bilateral-complementary-min-distilled": 1}
"""m = 1 alone: a larger m leaves level 1 untrained, and half of the vectors to score have it."""
# Chosen by held-out loss of short trainings (`pilot`), never by the table's accuracies: runs are far shorter
# than the truth's 60 epochs, so small batches gain by their steps, and augmentation only costs.
RECIPE = {
    "batch_size": 32, "learning_rate": 0.05, "weight_decay": 5e-4, "schedule": "cosine",
    "augment": "none", "epochs": 1.0, "warmup_epochs": 0.05,
    "checkpoint_every": 100, "log_every": 25, "workers": 0,
}  # fmt: skip
PILOTS: tuple[dict[str, Any], ...] = (
    {"batch_size": 128, "learning_rate": 0.1, "augment": "crop-flip"},
    {"batch_size": 64, "learning_rate": 0.1, "augment": "crop-flip"},
    {"batch_size": 64, "learning_rate": 0.1, "augment": "none"},
    {"batch_size": 64, "learning_rate": 0.05, "augment": "none"},
    {"batch_size": 32, "learning_rate": 0.05, "augment": "none"},
    {"batch_size": 16, "learning_rate": 0.05, "augment": "none"},
)


@dataclass(frozen=True)
class Plan:
    """What every run of an invocation has in common."""

    cost: float
    size: int
    augment: str
    recalibration_images: int
    held_out_images: tuple[int, ...]
    data: Path
    work: Path


def shared_data(argument: str | None) -> Path:
    """The folder of test data."""
    return Path(argument or os.environ.get("BCNET_SHARED_DATA") or HERE.parent.parent / "shared" / "data")


def vectors(data: Path) -> list[tuple[str, str]]:
    """(arch, draw) of the vectors to score."""
    with (data / "channel_bench_macro_rank_archs.csv").open(encoding="utf-8") as file:
        return [(row["arch"], row["draw"]) for row in csv.DictReader(file)]


def run_name(rule: str, seed: int, plan: Plan, count: int = USUAL_IMAGES) -> str:
    """Name of a training, and of its scores on ``count`` held-out images: more than usual are kept apart."""
    return f"{rule}_seed{seed}_cost{plan.cost:.0f}_size{plan.size}{name_suffix(plan.augment, count)}"


def trained(
    rule: str, seed: int, cost: float, recipe: dict[str, Any], splits: DataSplits, folder: Path,
    device: torch.device = CPU, *, sampler: SamplerSource | None = None,
) -> tuple[bd.Supernet, TrainConfig, TrainOutcome]:  # fmt: skip
    """A supernet trained by a rule and a recipe, with averaged weights where the recipe averages.

    Resumed where ``folder`` has a checkpoint. ``sampler``: of the steps, in place of the rule's.
    """
    torch.manual_seed(seed)
    size = splits.input_size
    model = bd.build_model(MODEL, num_classes=10)
    space = bd.WidthSpace.from_model(model, size, levels=LEVELS, min_level=MIN_LEVEL.get(rule, 0))
    supernet = bd.Supernet(model, space, generator=torch.Generator().manual_seed(seed))
    config = TrainConfig.from_dict({**recipe, **RULES[rule], "cost": cost})
    rng = np.random.default_rng([seed, 1])
    steps = make_sampler(sampler or config.rule, WidthGrid.of(supernet), rng, config)
    loader = BatchLoader(
        splits.train, config.batch_size, Augmentation(config.augment, splits.mean, splits.std),
        device, seed=seed,
    )  # fmt: skip
    said = time.monotonic()

    def progress(share: float, note: str) -> None:
        nonlocal said
        if time.monotonic() - said > 30:
            said = time.monotonic()
            print(f"{folder.name}: {share:.1%} {note}", flush=True)

    trainer = Trainer(
        supernet, loader, config, folder, sampler=steps, seed=seed, progress=progress,
        identity={"space": space.fingerprint, "rule": rule, "seed": seed},
    )  # fmt: skip
    outcome = trainer.run()
    with trainer.averaged():
        weights = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    supernet.load_state_dict(weights)
    print(f"{folder.name}: trained, {outcome}", flush=True)
    return supernet, config, outcome


def sides_of(rule: str) -> tuple[str, ...]:
    return ("left", "right") if rule.startswith("bilateral") else ("left",)


def run_one(rule: str, seed: int, plan: Plan, splits: DataSplits) -> None:
    """Train one supernet and score the vectors; does nothing where that is done, on as many images."""
    cost, size = plan.cost, plan.size
    name = run_name(rule, seed, plan)

    asked = {"rule": rule, "seed": seed, "cost": cost, "size": size, "augment": plan.augment}
    done = {
        slot(run): run["held_out_images"]
        for run in read_heads(RESULTS)
        if run["recalibration_images"] >= plan.recalibration_images
    }
    counts = [n for n in plan.held_out_images if done.get(slot({**asked, "held_out_images": n}), 0) < n]
    if not counts:
        return
    folder = plan.work / name
    supernet, config, outcome = trained(rule, seed, cost, {**RECIPE, "augment": plan.augment}, splits, folder)
    sides = sides_of(rule)
    calibration, _ = joined(splits.train, splits, plan.recalibration_images)
    scorer = PrefixScorer(supernet, calibration, *held_out(splits, counts), sides)
    log = folder / f"scores-{'-'.join(map(str, counts))}-{plan.recalibration_images}.jsonl"
    by_count = score(scorer, vectors(plan.data), counts, log, name)
    for count, rows in by_count.items():
        add_run(
            RESULTS,
            {
                **asked, "steps": outcome.steps,
                "cost_spent": outcome.cost, "train_seconds": round(outcome.seconds, 1),
                "train_loss": outcome.loss, "config": config.to_dict(),
                "min_level": MIN_LEVEL.get(rule, 0), "sides": list(sides),
                "recalibration_images": plan.recalibration_images, "held_out_images": count,
                "held_out_loss": float(np.mean([row["loss"] for row in rows])),
                "held_out_accuracy": float(np.mean([row["score"] for row in rows])),
                "torch": torch.__version__, "scores": rows,
            },
        )  # fmt: skip
    print(f"{name}: scored", flush=True)


def pilot(plan: Plan, splits: DataSplits) -> None:
    """Short trainings by other recipes: the lowest held-out loss of both rules chooses :data:`RECIPE`.

    Those that ``pilots.json`` has are not run again.
    """
    target = RESULTS / "pilots.json"
    rows = json.loads(target.read_text()) if target.exists() else []
    for rule in ("bilateral-complementary", "unilateral"):
        for change in PILOTS:
            about = {"rule": rule, **change, "cost": plan.cost}
            if any(about.items() <= row.items() for row in rows):
                continue
            recipe = {**RECIPE, **change}
            name = "-".join(["pilot", rule, *map(str, change.values())])
            supernet, _, outcome = trained(rule, 0, plan.cost, recipe, splits, plan.work / name)
            widths = np.random.default_rng(9).integers(1, LEVELS + 1, (16, 7)) * supernet.space.full // LEVELS
            calibration, _ = joined(splits.train, splits, 256)
            scorer = PrefixScorer(supernet, calibration, *joined(splits.val, splits, 1000), sides_of(rule))
            loss = float(np.mean([scorer(vector)[1] for vector in widths]))
            rows.append({**about, "steps": outcome.steps, "held_out_loss": round(loss, 4)})
            print(rows[-1], flush=True)
            files.write_json(target, rows)


def joined(
    images: Any, splits: DataSplits, count: int, device: torch.device = CPU
) -> tuple[torch.Tensor, torch.Tensor]:
    """``count`` images of a set and their labels, the same ones always."""
    batches = PlainBatches(images, splits, 128, device, limit=count)
    inputs, labels = zip(*batches, strict=True)
    return torch.cat(inputs), torch.cat(labels)


def held_out(splits: DataSplits, counts: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Held-out images and labels, the ones of each smaller count first.

    Raises:
        RuntimeError: fewer images are drawn in another way than this takes for granted.
    """
    images, labels = joined(splits.val, splits, max(counts))
    if max(counts) >= len(splits.val):  # all of them come in the order of the folder
        order = drawing_order(len(splits.val))
        images, labels = images[order], labels[order]
    for count in sorted(counts)[:-1]:
        if not torch.equal(images[:count], joined(splits.val, splits, count)[0]):
            raise RuntimeError(f"the first {count} held-out images are not those that {count} alone would be")
    return images, labels


def score(
    scorer: PrefixScorer, archs: list[tuple[str, str]], counts: Sequence[int], log: Path, name: str
) -> dict[int, list[dict[str, Any]]]:
    """Score every vector on each count of held-out images, remembering each on disk as soon as it is done."""
    lines = files.JsonLines(log)
    done = {row["arch"]: row for _, row in lines.read()}
    full = scorer.supernet.space.full
    said = time.monotonic()
    for index, (arch, draw) in enumerate(sorted(archs)):
        if arch in done:
            continue
        widths = np.array([int(digit) for digit in arch]) * full // LEVELS
        percent = 100 * scorer.correct(widths).mean(axis=0)
        by_count = {}
        for count in counts:
            accuracy, loss = scorer(widths, count)
            by_image = percent[:count]
            by_count[str(count)] = {
                "arch": arch, "draw": draw, "score": sum(accuracy) / len(accuracy),
                "loss": sum(loss) / len(loss), "accuracy_by_side": accuracy, "loss_by_side": loss,
                "accuracy_by_half": [float(by_image[half::2].mean()) for half in (0, 1)],
            }  # fmt: skip
        done[arch] = {"arch": arch, "by_count": by_count}
        lines.append([done[arch]])
        if time.monotonic() - said > 30:
            said = time.monotonic()
            print(f"{name}: {index + 1} of {len(archs)} vectors scored", flush=True)
    lines.close()
    return {count: [done[arch]["by_count"][str(count)] for arch, _ in archs] for count in counts}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["run", "pilot", "report"])
    parser.add_argument("--data", help="folder with CIFAR-10 and the tables; default $BCNET_SHARED_DATA")
    parser.add_argument(
        "--work", default=None, help="folder for checkpoints; default beside the unpacked data"
    )
    parser.add_argument("--rules", default=",".join(RULES))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--cost", type=float, default=600_000.0, help="full-width image passes of each run")
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--augment", choices=AUGMENTATIONS, default=RECIPE["augment"])
    parser.add_argument("--recalibration", type=int, default=512, help="images for batch-norm statistics")
    parser.add_argument(
        "--held-out", default=str(USUAL_IMAGES),
        help="held-out images of each score; several counts, as 2000,5000, are scored in one pass",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    data = shared_data(options.data)
    if options.action == "report":
        from ranking_report import write_report

        write_report(RESULTS, data, HERE.parent / "docs")
        return 0
    torch.set_num_threads(options.threads)
    from bcnet_deploy.data.archives import cache_folder

    work = Path(options.work) if options.work else cache_folder() / "ranking"
    splits = load_data(str(data / "cifar10-imagefolder.tar.xz"), (3, options.size, options.size))
    plan = Plan(
        options.cost, options.size, options.augment, options.recalibration,
        tuple(map(int, options.held_out.split(","))), data, work,
    )  # fmt: skip
    if options.action == "pilot":
        pilot(plan, splits)
        return 0
    for seed in map(int, options.seeds.split(",")):
        for rule in options.rules.split(","):
            run_one(rule, seed, plan, splits)
    return 0


if __name__ == "__main__":
    sys.exit(main())
