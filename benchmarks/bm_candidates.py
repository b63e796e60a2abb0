"""Networks a second that a search scores: what it draws and how it runs them, now and formerly.

    python benchmarks/bm_candidates.py --out benchmarks/results/search/candidates.json

Channel-Bench-Macro's MobileNet at 16x16 with weights and images by chance (time does not depend on them), one
thread. Compared, in turns within one run, piece by piece of the design:

- ``start``: each network by itself, statistics of 20 batches, as issue 18 began. Every third network of
  ``now``.
- ``before``: networks drawn independently, stages shared where it happens.
- ``now``: networks drawn as a tree, memory kept from pass to pass.

Each in a process of its own. Seconds are of the processor (user and system): the machine is shared. Scores of
some networks, each by itself, are compared with those of ``now``.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from contextlib import nullcontext
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from bm_ranking import LEVELS, MODEL

import bcnet_deploy as bd
from bcnet_deploy import files
from bcnet_deploy.runtime.machine import describe_machine
from bcnet_deploy.search.design import drawn
from bcnet_deploy.search.lattice import Lattice
from bcnet_deploy.train import SupernetEvaluator, evaluate

Int64 = npt.NDArray[np.int64]
Batch = tuple[torch.Tensor, torch.Tensor]
SIZE = (3, 16, 16)
NETWORKS = 105
TRAIN_BATCH, VAL_BATCH = 32, 64
THIRD = 3


def batches(images: int, size: int) -> list[Batch]:
    return [
        (
            torch.randn(size, *SIZE).contiguous(memory_format=torch.channels_last),
            torch.randint(10, (size,)),
        )
        for _ in range(images // size)
    ]


def supernet_of(seed: int) -> bd.Supernet:
    torch.manual_seed(seed)
    model = bd.build_model(MODEL, num_classes=10)
    supernet = bd.Supernet(model, bd.WidthSpace.from_model(model, SIZE, levels=LEVELS))
    supernet.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return supernet


def worker(pipe: Connection, name: str, seed: int, share: float) -> None:
    """Answers widths with scores and processor seconds, in a process of its own: memory is its own matter."""
    torch.set_num_threads(1)
    supernet = supernet_of(seed)
    former = batches(round(640 * share), TRAIN_BATCH)
    train = former[: round(512 * share) // TRAIN_BATCH]
    val = batches(round(2000 * share), VAL_BATCH)
    evaluator = SupernetEvaluator(supernet, former if name == "start" else train, val)
    if name in ("start", "by itself"):
        evaluator._stages = ()
    if name in ("start", "before"):  # what a pass frees goes back to the system, as it did
        evaluate.memory_kept = lambda device: nullcontext()  # type: ignore[assignment]
    while (widths := pipe.recv()) is not None:
        before = resource.getrusage(resource.RUSAGE_SELF)
        scores = evaluator(widths)
        after = resource.getrusage(resource.RUSAGE_SELF)
        pipe.send((scores, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--share", type=float, default=0.25, help="of the images of a search, in all cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--together", type=int, default=32, help="networks of one call, as `search` asks")
    parser.add_argument("--checked", type=int, default=8, help="networks whose scores are compared")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    supernet = supernet_of(options.seed)
    space, lattice = supernet.space, Lattice(supernet.space.variables)
    images = batches(VAL_BATCH, VAL_BATCH)
    prefixes = SupernetEvaluator(supernet, images, images).prefixes
    tree, alone = (
        lattice.widths(drawn(lattice, NETWORKS, np.random.default_rng(options.seed), stages))
        for stages in (prefixes, ())
    )
    context = get_context("spawn")
    pipes = {}
    for name in ("start", "before", "now", "by itself"):
        pipes[name], other = context.Pipe()
        context.Process(target=worker, args=(other, name, options.seed, options.share), daemon=True).start()

    def ask(name: str, widths: Int64) -> tuple[npt.NDArray[np.float64], float]:
        pipes[name].send(widths)
        scores, seconds = pipes[name].recv()
        return scores, seconds

    for name in pipes:  # what a first pass does once is done
        ask(name, space.narrowest[None])
    seconds = dict.fromkeys(("start", "before", "now"), 0.0)
    asked: dict[str, list[Int64]] = {name: [] for name in seconds}
    for start in range(0, NETWORKS, options.together):
        for name, rows in ("now", tree), ("start", tree), ("before", alone):
            part = rows[start : start + options.together]
            if name == "start":  # it takes as long as its networks are large, whatever the others are
                part = part[1::THIRD]
            asked[name].append(part)
            seconds[name] += ask(name, part)[1]
        print(start, {name: round(value, 1) for name, value in seconds.items()}, flush=True)
    networks = {name: np.concatenate(parts) for name, parts in asked.items()}
    each = {name: value / len(networks[name]) for name, value in seconds.items()}
    checked = tree[:: NETWORKS // options.checked]
    difference = np.abs(ask("by itself", checked)[0] - ask("now", checked)[0]).max()
    for pipe in pipes.values():
        pipe.send(None)
    result = {
        "networks": NETWORKS, "prefixes": [list(p) for p in prefixes],
        "beginnings": {
            name: [len(np.unique(rows[:, list(p)], axis=0)) for p in prefixes]
            for name, rows in (("before", alone), ("now", tree))
        },
        "mmacs_of_a_network": {
            name: float(space.macs(rows).mean() / 1e6) for name, rows in networks.items()
        },
        "share_of_images": options.share, "networks_a_call": options.together,
        "seconds_a_network": each,
        "times_as_many_as_at_start": each["start"] / each["now"],
        "times_as_many_as_before": each["before"] / each["now"],
        "largest_difference_of_scores": float(difference), "scores_compared": len(checked),
        "machine": describe_machine(),
    }  # fmt: skip
    print(json.dumps(result, indent=1, default=str))
    if options.out:
        files.write_json(options.out, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
