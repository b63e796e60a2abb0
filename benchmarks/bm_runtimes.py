"""Widths chosen by one runtime's table, and measured on another; and the full network on each.

    cd benchmarks
    python bm_runtimes.py choose --tables FOLDER --of cpu-openvino --on cpu-openvino-bf16 --out choices.json
    python bm_runtimes.py measure --out results/runtimes/mobilenet_v2.json choices.json

``choose`` looks for the largest capacity (the sum of the logarithms of the widths' shares; no accuracy)
under a share of the full network's latency on one device: once by that device's table, and once by another's
table, at the largest budget there whose choice keeps this one by this device's table. FOLDER holds
``<model>_<device>.json`` of ``bm_lut_accuracy.py build``. ``measure`` times all choices on their device, and
the full network on all devices, in interleaved rounds, a new session each time.
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

SHARES = (0.5, 0.35)
DEVICES = ("cpu-1thread", "cpu-int8", "cpu-openvino", "cpu-openvino-bf16", "cpu-openvino-int8")
Int64 = npt.NDArray[np.int64]


def largest(
    space: bd.WidthSpace, latency: Callable[[Int64], npt.NDArray[np.float64]], limit: float,
    rng: np.random.Generator, generations: int = 60,
) -> Int64:  # fmt: skip
    """(L,) the widths of the largest capacity within ``limit``, by crossover and mutation."""

    def capacity(widths: Int64) -> npt.NDArray[np.float64]:
        return np.log(widths / space.full).sum(axis=1)

    kept = np.concatenate([space.random(4000, rng), [space.uniform(r) for r in np.linspace(0.1, 1, 60)]])
    kept = kept[latency(kept) <= limit]
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
    of, on = (
        bd.LatencyTable.load(options.tables / f"{options.model}_{device}.json").for_space(space)
        for device in (options.of, options.on)
    )
    rng, full = np.random.default_rng(0), space.full[None]
    choices = json.loads(options.out.read_text()) if options.out.exists() else []
    for share in SHARES:
        limit = share * float(on.predict(full)[0])
        found = {"own": largest(space, on.predict, limit, rng)}
        for budget in np.linspace(0.45 * share, min(1.0, 1.3 * share), 14):
            other = largest(space, of.predict, budget * float(of.predict(full)[0]), rng, 30)
            if on.predict(other[None])[0] <= limit:
                found["other"] = other
        for by, widths in found.items():
            choices.append({
                "device": options.on, "share": share, "by": options.on if by == "own" else options.of,
                "widths": widths.tolist(), "macs": int(space.macs(widths)[0]),
                "capacity": float(np.log(widths / space.full).sum()),
                "predicted_ms": float(on.predict(widths[None])[0]),
            })  # fmt: skip
            print(choices[-1], flush=True)
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
    files.write_json(options.out, {"model": options.model, "machine": describe_machine(), "entries": entries})


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
