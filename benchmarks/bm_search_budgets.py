"""Whether networks that were searched for a budget in milliseconds keep it when they are measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import bcnet_deploy as bd
from bcnet_deploy.devices import load_device
from bcnet_deploy.models import default_input_size
from bcnet_deploy.profiler.measure import measure_plain
from bcnet_deploy.profiler.narrow import NetworkMaker
from bcnet_deploy.profiler.profiling import make_runner_of
from bcnet_deploy.runtime.machine import describe_machine
from bcnet_deploy.search import BudgetInfeasibleError

CONFIDENCE = 0.95
RUNS = 25


def measure_results(
    model_name: str,
    path: Path,
    accuracy_of: Callable[[Any], Any],
    count: int,
    rounds: int,
) -> dict[str, Any]:
    """Search at ``count`` budgets with confidence 0.95, then measure the networks found.

    Budgets lie evenly between the least that any network keeps and the full network's latency; the seed
    of a search is its number. A round measures every network in a new session, in a new order each
    time, and takes the fastest of its runs; a network's latency is the median of its rounds. A
    reference network, measured all through, tells how fast the machine is against when the table was made.
    """
    import torch

    torch.set_num_threads(1)
    model = bd.build_model(model_name).eval()
    space = bd.WidthSpace.from_model(model, default_input_size(model_name))
    table = bd.LatencyTable.load(path).for_space(space)
    device = load_device(table.device)
    accuracy = accuracy_of(space)
    full = float(table.predict(space.full[None])[0])
    least = _least_budget(space, table, accuracy)
    budgets = np.linspace(1.02 * least, 0.95 * full, count)
    results = [
        bd.search(
            space, accuracy, {"latency_ms": (table, float(budget))}, evaluations=400, seed=seed,
            confidence=CONFIDENCE,
        )
        for seed, budget in enumerate(budgets)
    ]  # fmt: skip
    widths = np.array([result.widths for result in results])
    times, references = measure_networks(model, space, table, widths, rounds)
    measured = np.median(times, axis=1)
    halves = np.median(times[:, ::2], axis=1) / np.median(times[:, 1::2], axis=1) - 1
    speed = float(np.median(references)) / float(table.provenance["reference_ms"])
    predicted = table.predict(widths)
    rows = [
        {
            "budget_ms": float(budget), "predicted_ms": float(mean), "bound_ms": result.bounds["latency_ms"],
            "measured_ms": float(value), "widths": result.widths.tolist(),
        }
        for budget, mean, result, value in zip(budgets, predicted, results, measured, strict=True)
    ]  # fmt: skip
    return {
        "table": {"full_ms": full, "least_budget_ms": least, **table.network.accuracy},
        "machine": describe_machine(device.run_by()), "threads": device.threads, "confidence": CONFIDENCE,
        "results": count, "rounds": rounds, "runs": RUNS,
        "predicted_within": float(np.mean([row["bound_ms"] <= row["budget_ms"] for row in rows])),
        "measured_within": float(np.mean(measured <= budgets)),
        "measured_within_5_percent": float(np.mean(measured <= 1.05 * budgets)),
        "measured_share_of_budget": [float(v) for v in np.quantile(measured / budgets, [0, 0.5, 1])],
        "speed": speed,
        "even_speed_within_5_percent": float(np.mean(measured / speed <= 1.05 * budgets)),
        "even_speed_share_of_budget": [
            float(v) for v in np.quantile(measured / speed / budgets, [0, 0.5, 1])
        ],
        "noise_floor": float(np.abs(halves).mean()),
        "reference_ms": [float(v) for v in np.quantile(references, [0, 0.5, 1])],
        "rows": rows,
    }  # fmt: skip


def _least_budget(space: Any, table: Any, accuracy: Any) -> float:
    """The least budget that any network keeps at the confidence, in ms, as the search's refusal names it."""
    try:
        bd.search(space, accuracy, {"latency_ms": (table, 1e-6)}, evaluations=1, confidence=CONFIDENCE)
    except BudgetInfeasibleError as error:
        return error.nearest["latency_ms"]
    raise AssertionError("a budget of a nanosecond was met")


def measure_networks(
    model: Any, space: bd.WidthSpace, table: bd.LatencyTable, widths: Any, rounds: int
) -> tuple[Any, Any]:
    """(N, rounds) ms of the networks, and ms of the table's reference network, all through."""
    make_runner = make_runner_of(load_device(table.device))
    maker = NetworkMaker(model, space)
    rng = np.random.default_rng(0)
    image = rng.standard_normal((1, *space.input_size)).astype(np.float32)
    reference = np.array(table.provenance["reference_widths"])
    times, references = np.empty((len(widths), rounds)), []
    for column in range(rounds):
        for place, row in enumerate(rng.permutation(len(widths))):
            times[row, column] = measure_plain(make_runner, maker(widths[row]), image, runs=RUNS).min()
            if place % 5 == 0:
                references.append(measure_plain(make_runner, maker(reference), image, runs=RUNS).min())
    return times, np.array(references)
