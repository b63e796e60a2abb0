"""A search's result as a person wants it: each width, what it costs layer by layer, and against what."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from bcnet_deploy.search.constraints import Budget, Constraints, CostFunction
from bcnet_deploy.search.lattice import Int64, Lattice, uniform_ladder
from bcnet_deploy.search.result import FORMAT, SearchResult

INTERVAL = 0.95
"""Two-sided probability of the latency intervals that are shown."""


Margin = Literal["kept", "expected", "exceeded"]


def uniform_to_compare(constraints: Constraints) -> tuple[Int64, Margin]:
    """(L,) widths of the uniformly scaled network to compare with, and how it stands to the budgets.

    ``kept``: the widest that keeps all budgets. Where none does, so that there is something to compare with,
    ``expected``: the widest whose expected costs keep them; ``exceeded``: the one that exceeds them least.
    """
    lattice = Lattice(constraints.space.variables)
    ladder = lattice.widths(uniform_ladder(lattice))
    kept = np.flatnonzero(constraints.feasible(ladder))
    if len(kept):
        return ladder[kept[-1]], "kept"
    shares = [np.asarray(b.cost(ladder), dtype=np.float64) / b.limit for b in constraints.budgets]
    worst = np.max(shares, axis=0)
    expected = np.flatnonzero(worst <= 1)
    if len(expected):
        return ladder[expected[-1]], "expected"
    return ladder[worst.argmin()], "exceeded"


def costs_of(constraints: Constraints, widths: Int64) -> dict[str, float]:
    """Every cost the space knows, and the expected latency on each device of the budgets."""
    row = widths[None]
    found = {key: float(values[0]) for key, values in constraints.costs(row).items()}
    for kind in ("peak_activation_bytes", "weight_bytes"):
        if kind not in found and hasattr(constraints.space, kind):
            found[kind] = float(getattr(constraints.space, kind)(row)[0])
    return found


def latency_of(budget: Budget, widths: Int64, *, layers: bool = True) -> dict[str, Any]:
    """Predicted latency on the device of a budget; see :func:`predicted_latency`."""
    found = predicted_latency(budget.device, budget.table, budget.cost, widths, layers=layers)
    bound = float(np.asarray(budget.bound(widths[None]))[0])
    return {**found, "budget_ms": budget.limit, "confidence": budget.confidence, "bound_ms": bound}


def predicted_latency(
    device: str | None, table: Any, cost: CostFunction, widths: Int64, *, layers: bool = True
) -> dict[str, Any]:
    """Predicted latency on one device: interval, and share of each layer where the table tells.

    Only the whole network has an interval: a table's error is known from held-out whole networks, and how it
    is shared by the layers cannot be told from those (``docs/tables.md``).
    """
    row = widths[None]
    predicted = float(np.asarray(cost(row))[0])
    found: dict[str, Any] = {
        "device": device,
        "source": getattr(table, "source", "unknown"),
        "predicted_ms": predicted,
        "budget_ms": None,
    }
    if hasattr(table, "uncertainty"):
        reach = NormalDist().inv_cdf((1 + INTERVAL) / 2) * float(np.asarray(table.uncertainty(row))[0])
        found["interval_ms"] = [max(0.0, predicted - reach), predicted + reach]
        found["interval_probability"] = INTERVAL
    if layers and hasattr(table, "breakdown"):
        parts = table.breakdown(row)
        found["by_layer_ms"] = {
            name: float(f"{value:.4g}")
            for name, value in zip(parts.names, parts.milliseconds[0], strict=True)
        }
    return found


def explain(
    result: SearchResult,
    *,
    model: Mapping[str, Any] | None = None,
    scores: Mapping[str, Mapping[str, float]] | None = None,
    provenance: Mapping[str, Any] | None = None,
    tables: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of ``widths.yaml``.

    Args:
        result: of the search.
        model: reference of the model, to build it again.
        scores: for ``found``, ``uniform`` and ``full``, accuracies by name (``accuracy``, ``left``, ...).
        provenance: of supernet and tables, beside what the result knows.
        tables: device -> latency table bound to the space, of devices without a budget: their latencies are
            told as information (``budget_ms`` is None).
    """
    constraints = result.constraints
    names = [variable.name for variable in constraints.space.variables]
    full = np.array([int(v.channels) for v in constraints.space.variables], dtype=np.int64)
    uniform, margin = uniform_to_compare(constraints)
    latencies = [b for b in constraints.budgets if b.kind == "latency_ms"]
    told = {d: t for d, t in (tables or {}).items() if d not in {b.device for b in latencies}}
    sources = [*((b.device, b.table) for b in latencies), *told.items()]

    def network(which: str, widths: Int64) -> dict[str, Any]:
        return {
            "widths": {name: int(width) for name, width in zip(names, widths, strict=True)},
            "scores": dict((scores or {}).get(which, {})),
            "costs": _whole(costs_of(constraints, widths)),
            "latency": [
                *(latency_of(budget, widths, layers=which == "found") for budget in latencies),
                *(
                    predicted_latency(device, table, table.predict, widths, layers=which == "found")
                    for device, table in told.items()
                ),
            ],
        }

    found = network("found", result.widths)
    if not found["scores"]:
        found["scores"] = {"accuracy": result.accuracy}
    return {
        "format": FORMAT,
        **({"model": dict(model)} if model else {}),
        **found,
        **({"posterior": result.belief.to_dict()} if result.belief else {}),
        "budgets": [
            {"cost": b.key, "limit": b.limit, "given": b.given, "confidence": b.confidence}
            for b in constraints.budgets
        ],
        "compared_with": {
            "uniform": {**network("uniform", uniform), "budget": margin},
            "full": network("full", full),
        },
        "search": {
            "strategy": result.strategy,
            "seed": result.seed,
            "evaluations": result.evaluations,
            "generations": len(result.generations),
            "stopped": result.stopped,
        },
        "provenance": {
            "tables": [_table(device, table) for device, table in sources],
            **dict(provenance or {}),
        },
    }


def _whole(costs: dict[str, float]) -> dict[str, float]:
    return {k: v if k.startswith("latency") else int(v) for k, v in costs.items()}


def _table(device: str | None, table: Any) -> dict[str, Any]:
    known = {
        key: getattr(table, key)
        for key in ("source", "precision", "batch", "fingerprint")
        if getattr(table, key, None) is not None
    }
    measured = getattr(table, "provenance", None)
    return {"device": device, **known, **({"made": dict(measured)} if measured else {})}
