"""Is it worth searching by latency rather than by MACs? One supernet, equal measured latency.

    python benchmarks/bm_search_hardware.py search --checkpoint RUN/checkpoint.safetensors \\
        --table RUN/latency/cpu-1thread.json --work DIR
    python benchmarks/bm_search_hardware.py measure (the same options)
    python benchmarks/bm_search_hardware.py compare (the same options) --out hardware.json

The supernet is Channel-Bench-Macro's MobileNet on CIFAR-10 at 16x16, trained by bm_ranking.py (4 levels) or
by ``bcnet-deploy run --config cifar10_quick`` (``RUN/train/checkpoint.safetensors``, ``--levels 16``).
`search`: for each seed one Pareto search by latency and one by MACs, with as many evaluations each, on the
first 500 held-out images. `measure`: every network of their fronts on this machine, interleaved. `compare`:
at several measured latencies the network that each front has at or below it, scored again on held-out
images that no search has seen. Each step goes on after a kill.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bm_ranking import LEVELS, MODEL, joined, shared_data
from bm_search_budgets import measure_networks
from prefix_scores import PrefixScorer
from safetensors.torch import load_file

import bcnet_deploy as bd
from bcnet_deploy import files
from bcnet_deploy.data import load_data
from bcnet_deploy.errors import DataError

SIZE = (3, 16, 16)
IMAGES = 500
FRESH = 2000
CALIBRATION = 128
SHARES = (0.3, 0.4, 0.5, 0.6, 0.7)
"""Of the full network's measured latency: where the two are compared."""
LIMITS = {"latency_ms": "0.72x", "macs": "0.8x"}
"""Up to where each searches: beyond the largest of SHARES by either cost."""


class Scorer:
    """(N, L) widths -> (N,) top-1 in percent, mean of both sides; remembered on disk."""

    def __init__(self, scorer: PrefixScorer, log: Path) -> None:
        self.scorer = scorer
        self.lines = files.JsonLines(log)
        self.known = {tuple(row["widths"]): row["accuracy"] for _, row in self.lines.read()}

    def __call__(self, widths: Any) -> Any:
        vectors = [tuple(int(w) for w in row) for row in widths]
        for vector in sorted(set(vectors) - set(self.known)):
            accuracy = float(np.mean(self.scorer(np.array(vector))[0]))
            self.known[vector] = accuracy
            self.lines.append([{"widths": list(vector), "accuracy": accuracy}])
        return np.array([self.known[vector] for vector in vectors])


class Bench:
    """Supernet, table and the places of the results."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        torch.set_num_threads(1)
        self.work: Path = arguments.work
        self.work.mkdir(parents=True, exist_ok=True)
        self.model = bd.build_model(MODEL, num_classes=10)
        self.space = bd.WidthSpace.from_model(self.model, SIZE, levels=arguments.levels)
        self.table = bd.LatencyTable.load(arguments.table).for_space(self.space)
        self.seeds = range(arguments.seeds)
        self.checkpoint: Path = arguments.checkpoint

    def scorer(self, log: str, images: slice) -> Scorer:
        """Scores by these held-out images."""
        supernet = bd.Supernet(self.model, self.space)
        tensors = load_file(self.checkpoint)
        own = {key.removeprefix("model."): value for key, value in tensors.items() if key[:6] == "model."}
        supernet.load_state_dict(own)
        splits = load_data(str(shared_data(None) / "cifar10-imagefolder.tar.xz"), SIZE)
        calibration, _ = joined(splits.train, splits, CALIBRATION)
        inputs, labels = joined(splits.val, splits, IMAGES + FRESH)
        scorer = PrefixScorer(supernet, calibration, inputs[images], labels[images], ("left", "right"))
        return Scorer(scorer, self.work / log)

    def fronts(self) -> Path:
        return self.work / "fronts.json"

    def measured(self) -> Path:
        return self.work / "measured.json"


def search(bench: Bench, arguments: argparse.Namespace) -> None:
    """Two fronts a seed."""
    score = bench.scorer("scores.jsonl", slice(0, IMAGES))
    found = []
    for seed in bench.seeds:
        for by, limit in LIMITS.items():
            budget: Any = (bench.table, limit) if by == "latency_ms" else limit
            result = bd.search(
                bench.space, score, {by: budget}, evaluations=arguments.evaluations, seed=seed, pareto=True,
                patience=10**6,
            )  # fmt: skip
            found.append({
                "seed": seed, "by": by, "evaluations": result.evaluations,
                "widths": result.front.tolist(), "accuracy": result.front.accuracy.tolist(),
            })  # fmt: skip
            print(seed, by, result.evaluations, len(result.front), len(score.known), flush=True)
    files.write_json(bench.fronts(), found)


def measure(bench: Bench, arguments: argparse.Namespace) -> None:
    """Every network of the fronts, and the full one."""
    fronts = files.read_json(bench.fronts(), DataError, "fronts")
    vectors = {tuple(row) for front in fronts for row in front["widths"]} | {tuple(bench.space.full.tolist())}
    widths = np.array(sorted(vectors))
    times, references = measure_networks(
        bench.model.eval(), bench.space, bench.table, widths, arguments.rounds
    )
    halves = np.median(times[:, ::2], axis=1) / np.median(times[:, 1::2], axis=1) - 1
    files.write_json(
        bench.measured(),
        {
            "widths": widths.tolist(), "milliseconds": np.median(times, axis=1).tolist(),
            "rounds": arguments.rounds, "noise_floor": float(np.abs(halves).mean()),
            "speed": float(np.median(references)) / float(bench.table.provenance["reference_ms"]),
        },
    )  # fmt: skip


def compare(bench: Bench, arguments: argparse.Namespace) -> None:
    """At equal measured latency, on fresh images."""
    fronts = files.read_json(bench.fronts(), DataError, "fronts")
    data = files.read_json(bench.measured(), DataError, "measurements")
    latency = dict(zip(map(tuple, data["widths"]), data["milliseconds"], strict=True))
    score = bench.scorer("fresh.jsonl", slice(IMAGES, IMAGES + FRESH))
    full = latency[tuple(bench.space.full.tolist())]
    rows = []
    for share in SHARES:
        for front in fronts:
            inside = [
                (accuracy, vector)
                for accuracy, vector in zip(front["accuracy"], map(tuple, front["widths"]), strict=True)
                if latency[vector] <= share * full
            ]
            if not inside:
                continue
            accuracy, vector = max(inside)
            rows.append({
                "share": share, "seed": front["seed"], "by": front["by"], "widths": list(vector),
                "measured_ms": latency[vector], "macs": int(bench.space.macs(np.array([vector]))[0]),
                "searched": accuracy, "fresh": float(score(np.array([vector]))[0]),
            })  # fmt: skip
            print(rows[-1], flush=True)
    files.write_json(
        arguments.out,
        {
            "full_ms": full, "images": IMAGES, "fresh_images": FRESH, "levels": arguments.levels,
            "evaluations": arguments.evaluations,
            "seeds": len(bench.seeds), "noise_floor": data["noise_floor"], "speed": data["speed"],
            "table": bench.table.network.accuracy,
            "fronts": [
                {**front, "measured_ms": [latency[tuple(row)] for row in front["widths"]]} for front in fronts
            ],
            "rows": rows,
        },
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    steps = {"search": search, "measure": measure, "compare": compare}
    parser.add_argument("step", choices=steps)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--levels", type=int, default=LEVELS, help="of the supernet")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--evaluations", type=int, default=200, help="of each search")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("hardware.json"))
    arguments = parser.parse_args()
    steps[arguments.step](Bench(arguments), arguments)


if __name__ == "__main__":
    main()
