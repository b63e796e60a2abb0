"""Widths chosen by one runtime's table, and measured on another; and the full network on each.

    cd benchmarks
    python bm_runtimes.py choose --tables FOLDER --of cpu-openvino --on cpu-openvino-bf16 --out choices.json
    python bm_runtimes.py measure --out results/runtimes/mobilenet_v2.json choices.json

``choose`` looks for the largest capacity (the sum of the logarithms of the widths' shares; no accuracy)
under shares of the full network's latency: by one device's table, and by another's. FOLDER holds
``<model>_<device>.json`` of ``bm_lut_accuracy.py build``. ``measure`` times all choices on the first device,
and the full network on all devices, in interleaved rounds, a new session each time. It compares at equal
measured time: of each table's choices the one of the largest capacity that measured within a budget, and how
much longer the second table's choices take than the first's of the same capacity.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import bcnet_deploy as bd
from bcnet_deploy import files
from bcnet_deploy.devices import load_device
from bcnet_deploy.models import default_input_size
from bcnet_deploy.profiler.measure import measure_plain
from bcnet_deploy.profiler.narrow import NetworkMaker
from bcnet_deploy.profiler.profiling import make_runner_of
from bcnet_deploy.runtime.machine import describe_machine

SHARES = np.linspace(0.25, 0.6, 15)  # of the full network's latency, by the table that chooses
BUDGETS = (0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6)  # of the full network's measured latency
DEVICES = ("cpu-1thread", "cpu-int8", "cpu-openvino", "cpu-openvino-bf16", "cpu-openvino-int8")
Int64 = npt.NDArray[np.int64]


def largest(
    space: bd.WidthSpace, latency: Callable[[Int64], npt.NDArray[np.float64]], limit: float,
    rng: np.random.Generator, generations: int = 60,
) -> Int64 | None:  # fmt: skip
    """(L,) the widths of the largest capacity within ``limit``, by crossover and mutation; None where none
    of those to begin with is."""

    def capacity(widths: Int64) -> npt.NDArray[np.float64]:
        return np.log(widths / space.full).sum(axis=1)

    kept = np.concatenate([space.random(4000, rng), [space.uniform(r) for r in np.linspace(0.1, 1, 60)]])
    kept = kept[latency(kept) <= limit]
    if not len(kept):
        return None
    for _ in range(generations):
        kept = kept[np.argsort(-capacity(kept))[:250]]
        first, second = kept[rng.integers(0, len(kept), (2, 600))]
        children = np.where(rng.random(first.shape) < 0.5, first, second)
        changed = rng.random(first.shape) < 2 / first.shape[1]
        children = np.where(changed, space.random(600, rng), children)
        kept = np.unique(np.concatenate([kept, children[latency(children) <= limit]]), axis=0)
    return kept[np.argmax(capacity(kept))]


def run_choose(options: argparse.Namespace) -> None:
    space = bd.WidthSpace.from_model(bd.build_model(options.model).eval(), default_input_size(options.model))
    rng, full = np.random.default_rng(0), space.full[None]
    on = bd.LatencyTable.load(options.tables / f"{options.model}_{options.on}.json").for_space(space)
    choices = []
    for by in (options.on, options.of):
        table = bd.LatencyTable.load(options.tables / f"{options.model}_{by}.json").for_space(space)
        chosen: set[bytes] = set()
        for share in SHARES:
            widths = largest(space, table.predict, share * float(table.predict(full)[0]), rng)
            if widths is None or widths.tobytes() in chosen:
                continue
            chosen.add(widths.tobytes())
            choices.append({
                "device": options.on, "share": round(float(share), 4), "by": by,
                "widths": widths.tolist(), "macs": int(space.macs(widths)[0]),
                "capacity": float(np.log(widths / space.full).sum()),
                "predicted_ms": float(on.predict(widths[None])[0]),
            })  # fmt: skip
            print({key: value for key, value in choices[-1].items() if key != "widths"}, flush=True)
    files.write_json(options.out, choices)


def run_measure(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    model = bd.build_model(options.model).eval()
    space = bd.WidthSpace.from_model(model, default_input_size(options.model))
    image = np.random.default_rng(0).standard_normal((1, *space.input_size)).astype(np.float32)
    entries: list[dict[str, Any]] = [
        {"device": device, "share": 1.0, "by": "full", "widths": space.full.tolist()} for device in DEVICES
    ] + json.loads(options.choices.read_text())
    networks = []
    for entry in entries:
        device = load_device(entry["device"])
        maker = NetworkMaker(
            model, space, prepare=lambda net, d=device: d.run_by().prepared(net, d.precision)
        )
        networks.append((make_runner_of(device), maker(np.array(entry["widths"]))))
        entry["rounds_ms"] = []
    rng = np.random.default_rng(0)
    for _ in range(options.rounds):
        for index in rng.permutation(len(entries)):
            times = measure_plain(*networks[index], image, runs=options.runs)
            entries[index]["rounds_ms"].append(round(float(times.min()), 5))
    for entry in entries:
        print(entry["device"], entry["share"], entry["by"], min(entry["rounds_ms"]), flush=True)
    compared = compare(entries)
    print(json.dumps(compared, indent=1))
    files.write_json(
        options.out,
        {"model": options.model, "machine": describe_machine(), "compared": compared, "entries": entries},
        indent=None,
    )


def compare(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """The choices of two tables at equal measured time, and at equal capacity."""
    chosen = [entry for entry in entries if entry["by"] != "full"]
    device = chosen[0]["device"]
    full = next(e for e in entries if e["by"] == "full" and e["device"] == device)
    full_ms = float(np.median(full["rounds_ms"]))
    curves: dict[str, list[tuple[float, float, int]]] = {}
    for entry in chosen:
        point = (float(np.median(entry["rounds_ms"])), entry["capacity"], entry["macs"])
        curves.setdefault(entry["by"], []).append(point)
    own, other = curves.pop(device), next(iter(curves.values()))
    budgets = []
    for share in BUDGETS:
        within = [[point for point in curve if point[0] <= share * full_ms] for curve in (own, other)]
        if not all(within):
            continue
        best = [max(points, key=lambda point: point[1]) for points in within]
        first, second = (dict(zip(("measured_ms", "capacity", "macs"), point, strict=True)) for point in best)
        budgets.append({"budget_ms": share * full_ms, "share": share, "own": first, "other": second})

    def line(curve: list[tuple[float, float, int]]) -> tuple[npt.NDArray[np.float64], ...]:
        ordered = sorted((capacity, ms) for ms, capacity, _ in curve)
        capacities, times = np.array(ordered).T
        return capacities, np.log(times)

    (own_capacity, own_time), (other_capacity, other_time) = line(own), line(other)
    shared = (other_capacity >= own_capacity[0]) & (other_capacity <= own_capacity[-1])
    longer = np.exp(other_time - np.interp(other_capacity, own_capacity, own_time))[shared] - 1
    return {
        "full_ms": full_ms, "budgets": budgets,
        "other_takes_longer": {"mean": float(longer.mean()), "least": float(longer.min()),
                               "most": float(longer.max()), "choices": len(longer)},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    commands = parser.add_subparsers(required=True)
    choose = commands.add_parser("choose")
    choose.add_argument("--tables", type=Path, required=True)
    choose.add_argument("--of", default="cpu-openvino")
    choose.add_argument("--on", required=True)
    choose.set_defaults(run=run_choose)
    measure = commands.add_parser("measure")
    measure.add_argument("choices", type=Path)
    measure.add_argument("--rounds", type=int, default=8)
    measure.add_argument("--runs", type=int, default=20)
    measure.set_defaults(run=run_measure)
    for command in (choose, measure):
        command.add_argument("--model", default="mobilenet_v2")
        command.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
