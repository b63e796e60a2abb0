"""The search step: the run's supernet and table, one latency budget, an explained result."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcnet_deploy import files
from bcnet_deploy.errors import InfeasibleError, RunDirError
from bcnet_deploy.flow.config import FlowConfig
from bcnet_deploy.flow.engine import Advance
from bcnet_deploy.flow.run_space import keep_space
from bcnet_deploy.rundir import RunDir
from bcnet_deploy.searched import searched_row
from bcnet_deploy.units import parse_latency

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from bcnet_deploy.lut import LatencyTable
    from bcnet_deploy.search.constraints import Constraints
    from bcnet_deploy.space import WidthSpace

UNIFORM = "uniform"
EXPECTED = 0.5
"""Confidence that asks for nothing beyond the expected latency."""


def run_search(
    run: RunDir, table_path: Path, config: FlowConfig, settings: dict[str, Any], advance: Advance
) -> None:
    """Search and write ``search/search.json`` and ``search/widths.yaml``; resumes by its journal.

    Raises:
        InfeasibleError: no network keeps the budget.
        BCNetError: see :func:`bcnet_deploy.search.search`.
    """
    from bcnet_deploy.lut import LatencyTable
    from bcnet_deploy.search import search
    from bcnet_deploy.search.explain import costs_of, explain, latency_of
    from bcnet_deploy.train import open_evaluator

    evaluator = open_evaluator(run, limit=int(settings["val_images"]) or None)
    space = evaluator.supernet.space
    keep_space(run, run.load().model, space)
    table = LatencyTable.load(table_path).for_space(space)
    content = (run.train / "supernet.safetensors").read_bytes() + str(evaluator.val_count).encode()
    identity = hashlib.sha256(content).hexdigest()[:12]
    limit = int(settings["evaluations"])
    best = {"text": ""}

    def generation(state: Any) -> None:
        if math.isfinite(state.best_accuracy):
            best["text"] = f", best {state.best_accuracy:.2f}%"

    records = run.train / "records.jsonl"
    result = search(
        space, evaluator, {"latency_ms": (table, config.latency)}, seed=config.seed, evaluations=limit,
        population_size=int(settings["population_size"]), patience=int(settings["patience"]),
        confidence=attainable_confidence(space, table, config), records=records if records.exists() else None,
        checkpoint=run.search / f"journal-{identity}.jsonl", evaluator_id=identity, batch_size=1,
        progress=generation, answered=lambda count: advance(count / limit, f"{count} networks{best['text']}"),
    )  # fmt: skip
    uniform, margin = comparable_uniform(result.constraints)
    networks = {"found": result.widths, UNIFORM: uniform, "full": space.full}
    scores = {}
    for name, widths in networks.items():
        sides = [float(value) for value in evaluator.sides(widths[None])[0]]
        scores[name] = {
            "accuracy": sum(sides) / len(sides), **dict(zip(evaluator.side_names, sides, strict=True))
        }  # fmt: skip
    supernet = {"supernet": {"id": identity, "images": evaluator.val_count}}
    explained = explain(result, model=run.load().model.to_dict(), scores=scores, provenance=supernet)
    if margin != "kept":
        # The search's own page knows uniform networks within the budget only.
        explained["compared_with"][UNIFORM] = {
            "widths": {v.name: int(w) for v, w in zip(space.variables, uniform, strict=True)},
            "scores": scores[UNIFORM], "costs": costs_of(result.constraints, uniform),
            "latency": [latency_of(budget, uniform, layers=False) for budget in result.constraints.budgets],
        }  # fmt: skip
    explained["compared_with"][UNIFORM]["budget"] = margin
    files.write_json(run.search / "search.json", {**result.to_dict(), "scores": scores})
    # Last: it is what later steps look for.
    files.write_yaml(run.widths, explained)


def comparable_uniform(constraints: Constraints) -> tuple[npt.NDArray[np.int64], str]:
    """(L,) widths of the uniformly scaled network to compare with, and how it stands to the budget.

    ``kept``: the widest that keeps it with the confidence asked for. Where there is none, so that there is
    something to compare with, ``expected``: the widest whose expected latency keeps it; ``exceeded``: the
    fastest.
    """
    import numpy as np

    from bcnet_deploy.search.explain import uniform_within
    from bcnet_deploy.search.lattice import Lattice, uniform_ladder

    within = uniform_within(constraints)
    if within is not None:
        return within, "kept"
    lattice = Lattice(constraints.space.variables)
    ladder = lattice.widths(uniform_ladder(lattice))
    (budget,) = constraints.budgets
    expected = np.asarray(budget.cost(ladder))
    inside = np.flatnonzero(expected <= budget.limit)
    if len(inside):
        return ladder[inside[-1]], "expected"
    return ladder[expected.argmin()], "exceeded"


def attainable_confidence(space: WidthSpace, table: LatencyTable, config: FlowConfig) -> float:
    """The configured confidence, or 0.5 where only the table's noise rules out a relative budget.

    A share of the full network is no promise to anybody: a machine that was busy while it was profiled
    should not end the run. A budget in milliseconds stays as hard as it was asked for.

    Raises:
        InfeasibleError: no network keeps the budget.
    """
    import numpy as np

    from bcnet_deploy.search.constraints import build_constraints
    from bcnet_deploy.search.feasibility import require_feasible
    from bcnet_deploy.search.lattice import Lattice

    def require(confidence: float) -> None:
        constraints = build_constraints(space, {"latency_ms": (table, config.latency)}, confidence)
        require_feasible(Lattice(space.variables), constraints, np.random.default_rng(config.seed))

    try:
        require(config.confidence)
    except InfeasibleError:
        if not parse_latency(config.latency).relative:
            raise
        require(EXPECTED)
        return EXPECTED
    return config.confidence


def widths_of(run: RunDir, space: WidthSpace, which: str) -> npt.NDArray[np.int64]:
    """(L,) widths of ``full``, ``uniform`` or ``found``.

    Raises:
        InfeasibleError: no uniformly scaled network keeps the budget.
        RunDirError: the search result is missing, damaged or of another model.
    """
    row = searched_row(run, space, which)
    if row is None and which == UNIFORM and run.widths.exists():
        raise InfeasibleError(
            "no uniformly scaled network keeps the budget; leave 'uniform' out of 'networks', "
            "or raise --latency"
        )
    if row is None:
        raise RunDirError(f"{run.widths} is missing; search again")
    return row
