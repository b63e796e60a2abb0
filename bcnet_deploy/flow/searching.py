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

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from bcnet_deploy.lut import LatencyTable
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
    from bcnet_deploy.search.explain import explain, uniform_to_compare
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
    uniform, _ = uniform_to_compare(result.constraints)
    networks = {"found": result.widths, UNIFORM: uniform, "full": space.full}
    scores = {}
    for name, widths in networks.items():
        sides = [float(value) for value in evaluator.sides(widths[None])[0]]
        scores[name] = {
            "accuracy": sum(sides) / len(sides), **dict(zip(evaluator.side_names, sides, strict=True))
        }  # fmt: skip
    supernet = {"supernet": {"id": identity, "images": evaluator.val_count}}
    explained = explain(result, model=run.load().model.to_dict(), scores=scores, provenance=supernet)
    files.write_json(run.search / "search.json", {**result.to_dict(), "scores": scores})
    # Last: it is what later steps look for.
    files.write_yaml(run.widths, explained)


def attainable_confidence(space: WidthSpace, table: LatencyTable, config: FlowConfig) -> float:
    """See :func:`bcnet_deploy.search.feasibility.with_attainable_confidence`."""
    from bcnet_deploy.search.constraints import build_constraints
    from bcnet_deploy.search.feasibility import with_attainable_confidence

    asked = build_constraints(space, {"latency_ms": (table, config.latency)}, config.confidence)
    found = with_attainable_confidence(asked, config.seed)
    return config.confidence if found is asked else EXPECTED


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
