"""Final trainings on CIFAR-10 of networks that searches of :mod:`bm_found_by_supernet` returned.

    python -m benchmarks.bm_final train   --folder FOLDER --device cuda [--share 0 12] [--until-s 400]
    python -m benchmarks.bm_final collect --folder FOLDER

The fewest networks that answer whether searching pays: at two budgets of latency at which a uniformly scaled
network takes nearly all of it, what the default rule's three supernets found, the uniform and the largest
network, and the random one that takes most of the budget. Each is trained from random weights, all alike,
with three seeds. FOLDER has
``data.safetensors`` of :mod:`bm_trained`. ``collect`` writes ``benchmarks/results/search/final.csv``.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bcnet_deploy import files
from bcnet_deploy.models import build_model
from bcnet_deploy.models.ref import ModelRef
from bcnet_deploy.space import WidthSpace
from bcnet_deploy.train import retrain
from benchmarks.bm_trained import CLASSES, GPU_BASE, NETWORKS, SIZE
from benchmarks.decoded import read_decoded

RESULTS = Path(__file__).resolve().parent / "results" / "search"
RULE, LEVELS, SEEDS = "bilateral-complementary-distilled", 4, (0, 1, 2)
BUDGETS_AT = (1, 8)
"""Which of the nine budgets of latency."""
KINDS = ("latency", "uniform", "largest", "random")
FIELDS = (
    "budget_ms", "kind", "arch", "found_by_seeds", "predicted_ms", "measured_ms", "seed", "epochs",
    "val_top1", "test_top1",
)  # fmt: skip


@dataclass
class Network:
    """One network to train, and what is known of it."""

    budget_ms: str
    kind: str
    arch: str
    found_by_seeds: int
    predicted_ms: str
    measured_ms: str


def networks() -> list[Network]:
    """Found, uniform, largest and random networks of the chosen budgets, each once."""
    with (RESULTS / "found_by_supernet.csv").open(newline="") as file:
        rows = [
            row for row in csv.DictReader(file) if row["rule"] == RULE and row["budget_kind"] == "latency"
        ]
    budgets = sorted({row["budget"] for row in rows}, key=float)
    chosen: dict[tuple[str, str, str], Network] = {}
    for budget in (budgets[at] for at in BUDGETS_AT):
        for kind in KINDS:
            own = [row for row in rows if row["budget"] == budget and row["searched_by"] == kind]
            if kind == "random":  # the one that takes most of the budget
                own = sorted(own, key=lambda row: float(row["predicted_ms"]))[-1:]
            for row in own:
                key = budget, kind, row["arch"]
                if key not in chosen:
                    chosen[key] = Network(*key, 0, row["predicted_ms"], row["measured_ms"])
                chosen[key].found_by_seeds += 1
    return list(chosen.values())


def train(folder: Path, device: torch.device, epochs: float, share: tuple[int, int], until: float) -> None:
    """Train this process's share; what is done is skipped."""
    splits = read_decoded(folder / "data.safetensors")
    model = build_model(NETWORKS["mobilenet"], num_classes=CLASSES)
    space = WidthSpace.from_model(model, SIZE, levels=LEVELS)
    ref = ModelRef(NETWORKS["mobilenet"], CLASSES, SIZE, LEVELS)
    todo = [(seed, arch) for seed in SEEDS for arch in dict.fromkeys(one.arch for one in networks())]
    longest = 0.0
    for seed, arch in todo[share[0] :: share[1]]:
        target = folder / "final" / f"{arch}-{seed}"
        if (target / "result.json").exists() or time.monotonic() + longest > until:
            continue
        started = time.monotonic()
        widths = np.array([int(digit) for digit in arch]) * space.full // LEVELS
        config = GPU_BASE.replace(epochs=epochs)
        result = retrain(
            model, space, widths, splits, config, target, model_ref=ref, seed=seed, device=device
        )
        for left in ("checkpoint.safetensors", "weights.safetensors"):
            (target / left).unlink(missing_ok=True)
        longest = max(longest, time.monotonic() - started)
        print(f"{arch} {seed}: test {result.test_top1}, {longest:.0f} s", flush=True)


def collect(folder: Path) -> None:
    """One row a network, budget and seed."""
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    for one in networks():
        for seed in SEEDS:
            path = folder / "final" / f"{one.arch}-{seed}" / "result.json"
            if path.exists():
                result = json.loads(path.read_text())
                writer.writerow(
                    {
                        **vars(one), "seed": seed, "epochs": result["config"]["epochs"],
                        "val_top1": round(result["val_metric"], 2),
                        "test_top1": round(result["test_top1"], 2),
                    }
                )  # fmt: skip
    files.write_text(RESULTS / "final.csv", text.getvalue())
    print(text.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("step", choices=("train", "collect"))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--epochs", type=float, default=GPU_BASE.epochs)
    parser.add_argument("--share", type=int, nargs=2, default=(0, 1), help="which of how many processes")
    parser.add_argument("--until-s", type=float, default=1e9, help="no training begins that may end later")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.step == "collect":
        collect(options.folder)
        return
    torch.backends.cudnn.benchmark = True
    share = (options.share[0], options.share[1])
    until = time.monotonic() + options.until_s
    train(options.folder, torch.device(options.device), options.epochs, share, until)


if __name__ == "__main__":
    main()
