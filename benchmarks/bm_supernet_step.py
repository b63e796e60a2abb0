"""Time of one training pass: the supernet's slice against the extracted plain network of the same widths.

Each round times forward + backward of both (and of a second copy of the plain network, whose ratio to the
first is the noise floor) in a fresh random order, at one random width vector and side a round. Gradients are
dropped before each pass, so both allocate theirs. Masking would pay the full network's multiply-accumulates
at every width; their ratio is given for comparison.

    python -m benchmarks.bm_supernet_step [--models mobilenet_v2 resnet50] [--batch 32] [--rounds 12]
                                          [--input-size 224] [--out docs/supernet_step.json]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import bcnet_deploy as bd
from bcnet_deploy import files
from bcnet_deploy.runtime.machine import describe_machine


def one_pass(model: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> float:
    """Seconds of one forward and backward pass."""
    model.zero_grad(set_to_none=True)
    started = time.perf_counter()
    nn.functional.cross_entropy(model(x), labels).backward()
    return time.perf_counter() - started


def measure(name: str, batch: int, rounds: int, side: int, seed: int = 0) -> dict[str, Any]:
    """Ratios of the passes of one model, round by round."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = bd.build_model(name)
    space = bd.WidthSpace.from_model(model, (3, side, side))
    supernet = bd.Supernet(model, space).train()
    x, labels = torch.randn(batch, 3, side, side), torch.randint(0, 1000, (batch,))
    rows = []
    for number in range(rounds + 1):
        widths, which = space.random(1, rng)[0], ("left", "right")[number % 2]
        plain = [space.extract(model, widths, side=which).train() for _ in range(2)]
        started = time.perf_counter()
        supernet.set_active(widths, side=which)
        switch = time.perf_counter() - started
        times: dict[str, list[float]] = {"slice": [], "plain": [], "again": []}
        for _ in range(2):
            for i in rng.permutation(3):
                key = ("slice", "plain", "again")[i]
                times[key].append(one_pass((supernet, *plain)[i], x, labels))
        best = {key: min(values) for key, values in times.items()}
        if number:  # the first round warms up
            rows.append(
                {
                    "macs_share": float(space.macs(widths)[0] / space.macs(space.full)[0]),
                    "set_active_ms": switch * 1e3,
                    **{f"{key}_s": value for key, value in best.items()},
                }
            )
    ratios = np.array([row["slice_s"] / row["plain_s"] for row in rows])
    noise = np.array([abs(row["again_s"] / row["plain_s"] - 1) for row in rows])
    return {
        "model": name, "batch": batch, "input_side": side,
        "ratio_median": float(np.median(ratios)),
        "ratio_of_sums": float(sum(row["slice_s"] for row in rows) / sum(row["plain_s"] for row in rows)),
        "ratio_p10": float(np.quantile(ratios, 0.1)), "ratio_p90": float(np.quantile(ratios, 0.9)),
        "noise_floor_median": float(np.median(noise)),
        "set_active_ms": float(np.median([row["set_active_ms"] for row in rows])),
        "masking_macs_ratio": float(1 / np.mean([row["macs_share"] for row in rows])),
        "rounds": rows,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["mobilenet_v2", "resnet50"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--input-size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = []
    for name in arguments.models:
        result = measure(name, arguments.batch, arguments.rounds, arguments.input_size)
        results.append(result)
        print({key: value for key, value in result.items() if key != "rounds"}, flush=True)
        if arguments.out:
            about = {
                "machine": describe_machine(),
                "torch": torch.__version__,
                "threads": arguments.threads,
            }
            files.write_json(arguments.out, {**about, "results": results})


if __name__ == "__main__":
    main()
