"""Networks a second that a search scores: what it draws and how it runs them, now and formerly.

    python benchmarks/bm_candidates.py --out benchmarks/results/search/candidates.json

Channel-Bench-Macro's MobileNet at 16x16 with weights and images by chance (time does not depend on them), one
thread. Compared, in turns within one run, piece by piece of the design:

- ``start``: each network by itself, statistics of 20 batches, as issue 18 began. The networks of ``now``.
- ``before``: networks drawn independently, in calls of 16, stages shared where it happens.
- ``now``: networks drawn as a tree, in calls of 16, memory kept from pass to pass.

Seconds are of the processor (user and system): the machine is shared. Scores of ``start`` with the same
statistics, of the first networks, must equal those of ``now``.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

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
NETWORKS, TOGETHER = 105, 16
TRAIN_BATCH, VAL_BATCH = 32, 64


def batches(images: int, size: int) -> list[Batch]:
    return [
        (
            torch.randn(size, *SIZE).contiguous(memory_format=torch.channels_last),
            torch.randint(10, (size,)),
        )
        for _ in range(images // size)
    ]


@contextmanager
def memory_returned() -> Iterator[None]:
    """As it was: what a pass frees goes back to the system."""
    kept = evaluate.memory_kept
    evaluate.memory_kept = lambda device: nullcontext()  # type: ignore[assignment]
    try:
        yield
    finally:
        evaluate.memory_kept = kept


def processor_seconds(work: Callable[[], Any]) -> float:
    before = resource.getrusage(resource.RUSAGE_SELF)
    work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--share", type=float, default=0.25, help="of the images of a search, in all cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checked", type=int, default=8, help="networks whose scores are compared")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    model = bd.build_model(MODEL, num_classes=10)
    space = bd.WidthSpace.from_model(model, SIZE, levels=LEVELS)
    supernet = bd.Supernet(model, space)
    supernet.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    former = batches(round(640 * options.share), TRAIN_BATCH)
    train = former[: round(512 * options.share) // TRAIN_BATCH]
    val = batches(round(2000 * options.share), VAL_BATCH)
    lattice = Lattice(space.variables)
    prefixes = SupernetEvaluator(supernet, train, val).prefixes
    tree, alone = (
        lattice.widths(drawn(lattice, NETWORKS, np.random.default_rng(options.seed), stages))
        for stages in (prefixes, ())
    )
    evaluators = {
        "start": SupernetEvaluator(supernet, former, val),
        "before": SupernetEvaluator(supernet, train, val),
        "now": SupernetEvaluator(supernet, train, val),
        "by itself": SupernetEvaluator(supernet, train, val),
    }
    evaluators["start"]._stages = evaluators["by itself"]._stages = ()
    seconds = dict.fromkeys(("start", "before", "now"), 0.0)
    for start in range(0, NETWORKS, TOGETHER):
        for name, rows in ("now", tree), ("start", tree), ("before", alone):
            part = rows[start : start + TOGETHER]
            with nullcontext() if name == "now" else memory_returned():
                seconds[name] += processor_seconds(lambda name=name, part=part: evaluators[name](part))  # type: ignore[misc]
        print(
            start + len(tree[start : start + TOGETHER]),
            {n: round(s, 1) for n, s in seconds.items()},
            flush=True,
        )
    checked = tree[:: NETWORKS // options.checked]
    difference = np.abs(evaluators["by itself"](checked) - evaluators["now"](checked)).max()
    result = {
        "networks": NETWORKS, "prefixes": [list(p) for p in prefixes],
        "beginnings": {
            name: [len(np.unique(rows[:, list(p)], axis=0)) for p in prefixes]
            for name, rows in (("before", alone), ("now", tree))
        },
        "mmacs_of_a_network": {
            name: float(space.macs(rows).mean() / 1e6) for name, rows in (("before", alone), ("now", tree))
        },
        "images": {"statistics": sum(len(b[1]) for b in train), "held_out": sum(len(b[1]) for b in val)},
        "seconds_a_network": {name: value / NETWORKS for name, value in seconds.items()},
        "times_as_many_as_at_start": seconds["start"] / seconds["now"],
        "times_as_many_as_before": seconds["before"] / seconds["now"],
        "largest_difference_of_scores": float(difference), "scores_compared": len(checked),
        "machine": describe_machine(),
    }  # fmt: skip
    print(json.dumps(result, indent=1, default=str))
    if options.out:
        files.write_json(options.out, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
