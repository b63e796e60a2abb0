"""``bcnet-deploy search``: the best widths within hard budgets, by the run's supernet and tables."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bcnet_deploy import files
from bcnet_deploy.cli.common import emit, json_option, progress, quiet_option, run_dir_option
from bcnet_deploy.cli.run_space import keep_space, space_of_run
from bcnet_deploy.cli.search_view import show_dry_run, show_result
from bcnet_deploy.errors import ConstraintError, MissingStepError, TableError
from bcnet_deploy.rundir import RunConfig, RunDir

if TYPE_CHECKING:
    from bcnet_deploy.lut import LatencyTable
    from bcnet_deploy.search import Constraints, Generation, SearchResult

_COUNTED = {
    "macs": "macs",
    "params": "params",
    "peak_memory": "peak_activation_bytes",
    "weights": "weight_bytes",
}


@dataclass(frozen=True)
class _Request:
    """The options of one call."""

    latency: tuple[str, ...]
    counted: dict[str, str]
    confidence: float | None
    strategy: str
    evaluations: int | None
    population_size: int
    seed: int
    pareto: bool
    prior: bool
    patience: int
    on_error: str
    fresh: bool
    val_images: int | None


@click.command(name="search")
@click.option(
    "--latency",
    multiple=True,
    metavar="[DEVICE=]BUDGET",
    help="'5ms' or '0.5x' on the run's device, 'cpu=8ms' on another; repeatable.",
)
@click.option("--macs", metavar="BUDGET", help="Multiply-accumulates: '300M', '0.5x'.")
@click.option("--params", metavar="BUDGET", help="Parameters: '2M', '0.5x'.")
@click.option(
    "--peak-memory", metavar="BUDGET", help="Activations alive at once, FP32, batch 1: '4MiB', '0.5x'."
)
@click.option("--weights", metavar="BUDGET", help="Bytes of the weights, FP32: '10MB', '0.5x'.")
@click.option(
    "--confidence",
    type=float,
    default=0.95,
    show_default=True,
    help="Probability, by the table's uncertainty, that a latency budget is met; 0.5: the bare prediction.",
)
@click.option(
    "--pareto", is_flag=True, help="Look for the best network at every budget up to the given ones."
)
@click.option(
    "--strategy", default="nsga2", show_default=True, help="nsga2, random, greedy, uniform or exhaustive."
)
@click.option("--evaluations", type=int, help="Most networks to evaluate [default: 2000; exhaustive: all].")
@click.option(
    "--population", "population_size", type=int, default=40, show_default=True, help="Networks a generation."
)
@click.option(
    "--patience",
    type=int,
    default=15,
    show_default=True,
    help="Generations without improvement before it stops.",
)
@click.option("--seed", type=int, help="[default: the run's]")
@click.option(
    "--no-prior",
    "prior",
    is_flag=True,
    flag_value=False,
    default=True,
    help="Start without the supernet's loss records.",
)
@click.option("--val-images", type=int, help="Score on so many held-out images only.")
@click.option(
    "--on-error", default="stop", show_default=True, help="stop, or skip networks whose evaluation fails."
)
@click.option("--fresh", is_flag=True, help="Evaluate again what an interrupted or earlier search evaluated.")
@click.option(
    "--dry-run", is_flag=True, help="Check the budgets and show the size of the space; evaluate nothing."
)
@run_dir_option
@json_option
@quiet_option
def command(
    run_dir: RunDir,
    as_json: bool,
    quiet: bool,
    dry_run: bool,
    latency: tuple[str, ...],
    seed: int | None,
    macs: str | None,
    params: str | None,
    peak_memory: str | None,
    weights: str | None,
    **options: Any,
) -> None:
    """Find the best widths under hard budgets.

    Run again after a kill, it goes on where it stopped.
    """
    config = run_dir.load()
    given = {"macs": macs, "params": params, "peak_memory": peak_memory, "weights": weights}
    counted = {_COUNTED[name]: value for name, value in given.items() if value is not None}
    if not latency and not counted and not options["pareto"]:
        raise click.UsageError("give a budget, for example --latency 5ms, --macs 0.5x, or --pareto")
    request = _Request(
        latency=latency, counted=counted, seed=config.seed if seed is None else seed, **options
    )
    from bcnet_deploy.search.api import check_settings

    tables = _tables(run_dir, config, latency)
    check_settings(
        request.evaluations, request.seed, request.strategy, request.population_size, request.patience,
        request.on_error,
    )  # fmt: skip
    _refuse_early(run_dir, tables, request)
    if dry_run:
        data = _dry_run(run_dir, request, tables)
        emit(data, as_json=as_json, show=lambda: show_dry_run(data))
        return
    explained, result = _search(run_dir, config, request, tables, quiet=quiet or as_json)
    emit(
        {**explained, "front": result.front.to_list(), "files": [str(run_dir.widths)]},
        as_json=as_json,
        show=lambda: show_result(run_dir, explained, result),
    )


# -- budgets -----------------------------------------------------------------------------------


def _tables(run: RunDir, config: RunConfig, budgets: tuple[str, ...]) -> dict[str, tuple[LatencyTable, str]]:
    """Device -> (its table, the budget as text)."""
    from bcnet_deploy.lut import LatencyTable

    found: dict[str, tuple[LatencyTable, str]] = {}
    for text in budgets:
        device, _, budget = text.rpartition("=")
        device = device.strip() or config.device
        if device in found:
            raise ConstraintError(
                f"two latency budgets for device {device!r} conflict: {found[device][1]!r} and {budget!r}; "
                "give one"
            )
        path = run.latency_table(device)
        if not path.exists():
            known = sorted(p.stem for p in path.parent.glob("*.json")) if path.parent.is_dir() else []
            there = f"; there are tables of {', '.join(known)}" if known else ""
            raise MissingStepError(
                f"no latency table of device {device!r} in {run.path}{there}; "
                f"run 'bcnet-deploy profile --device {device}' first"
            )
        table = LatencyTable.load(path)
        network = table.network
        if tuple(network.input_size) != tuple(config.model.input_size):
            size = "x".join(map(str, config.model.input_size))
            raise TableError(
                f"{path} is of {network.description}, the run's model {config.model.name} is at {size}; "
                f"run 'bcnet-deploy profile --device {device}' again"
            )
        found[device] = (table, budget)
    return found


def _constraints(request: _Request, tables: dict[str, tuple[LatencyTable, str]]) -> dict[str, Any]:
    found: dict[str, Any] = dict(request.counted)
    if len(tables) == 1:
        (found["latency_ms"],) = tables.values()
    elif tables:
        found["latency_ms"] = dict(tables)
    return found


class _NetworkOfTable:
    """A table's network as a space that knows no other cost: enough to refuse a latency at once."""

    def __init__(self, table: LatencyTable) -> None:
        self.variables = table.network.variables
        self.interacting_pairs = sorted(
            {
                (a, b)
                for layer in table.network.layers
                for a in layer.variables
                for b in layer.variables
                if a < b
            }
        )

    def macs(self, widths: Any) -> Any:
        raise NotImplementedError

    params = macs


def _refuse_early(run: RunDir, tables: dict[str, tuple[LatencyTable, str]], request: _Request) -> None:
    """Raise for budgets that cannot be had before PyTorch is even imported.

    Latencies need the tables alone; other costs need the width space, kept by an earlier command.
    """
    for device, (table, budget) in tables.items():
        _require(_NetworkOfTable(table), {"latency_ms": {device: (table, budget)}}, request)
    if request.counted:
        _require(space_of_run(run), _constraints(request, tables), request)


def _require(space: Any, given: dict[str, Any], request: _Request) -> Constraints:
    import numpy as np

    from bcnet_deploy.search.constraints import build_constraints
    from bcnet_deploy.search.feasibility import require_feasible
    from bcnet_deploy.search.grid import Grid

    constraints = build_constraints(space, given, request.confidence)
    require_feasible(Grid(space.variables), constraints, np.random.default_rng(request.seed))
    return constraints


# -- dry run -----------------------------------------------------------------------------------


def _dry_run(run: RunDir, request: _Request, tables: dict[str, tuple[LatencyTable, str]]) -> dict[str, Any]:
    import numpy as np

    from bcnet_deploy.search.explain import uniform_within
    from bcnet_deploy.search.grid import Grid

    space = space_of_run(run)
    constraints = _require(space, _constraints(request, tables), request)
    grid, rng = Grid(space.variables), np.random.default_rng(request.seed)
    draws = grid.widths(grid.random(2000, rng))
    uniform = uniform_within(constraints)
    narrowest = constraints.bounds(grid.widths(grid.narrowest[None]))[0]
    return {
        "variables": grid.length,
        "networks_log10": math.log10(space.size),
        "feasible_share_of_uniform_draws": float(constraints.feasible(draws).mean()),
        "budgets": [
            {
                "cost": b.key, "device": b.device, "limit": b.limit, "given": b.given, "full": b.full,
                "narrowest": float(least), "confidence": b.confidence,
            }
            for b, least in zip(constraints.budgets, narrowest, strict=True)
        ],
        "uniform_macs": None if uniform is None else int(space.macs(uniform[None])[0]),
        "evaluations": request.evaluations,
    }  # fmt: skip


# -- the search --------------------------------------------------------------------------------


def _search(
    run: RunDir,
    config: RunConfig,
    request: _Request,
    tables: dict[str, tuple[LatencyTable, str]],
    *,
    quiet: bool,
) -> tuple[dict[str, Any], SearchResult]:
    from bcnet_deploy.search import search
    from bcnet_deploy.search.explain import explain, uniform_within
    from bcnet_deploy.train import open_evaluator

    run.require(run.train, "supernet", "bcnet-deploy train")
    evaluator = open_evaluator(run, limit=request.val_images)
    space = evaluator.supernet.space
    keep_space(run, config.model, space)
    identity = _identity(run, request.val_images)
    journal = run.search / f"journal-{identity}.jsonl"
    if request.fresh:
        journal.unlink(missing_ok=True)
    records = run.train / "records.jsonl"
    with progress(quiet=quiet) as display:
        task = display.add_task("search", total=request.evaluations or 2000, note="")

        def show(generation: Generation) -> None:
            best = (
                f"{generation.best_accuracy:.2f}%" if math.isfinite(generation.best_accuracy) else "none yet"
            )
            display.update(
                task, completed=generation.evaluations,
                note=f"generation {generation.index}, best {best}, "
                f"{generation.feasible_share:.0%} feasible",
            )  # fmt: skip

        result = search(
            space, evaluator, _constraints(request, tables),
            evaluations=request.evaluations, seed=request.seed, strategy=request.strategy,
            population_size=request.population_size, confidence=request.confidence if tables else None,
            records=records if request.prior and request.strategy == "nsga2" and records.exists() else None,
            pareto=request.pareto, patience=request.patience, on_error=request.on_error,  # type: ignore[arg-type]
            checkpoint=journal, evaluator_id=identity, batch_size=1, progress=show,
            answered=lambda count: display.update(task, completed=count),
        )  # fmt: skip
    networks = {"found": result.widths, "uniform": uniform_within(result.constraints), "full": space.full}
    scores = {}
    for name, widths in networks.items():
        if widths is not None:
            sides = [float(v) for v in evaluator.sides(widths[None])[0]]
            scores[name] = {
                "accuracy": sum(sides) / len(sides), **dict(zip(evaluator.side_names, sides, strict=True))
            }  # fmt: skip
    supernet = {
        "supernet": {
            "id": identity, "records_used_for_prior": result.prior_costs is not None,
            "scores": "top-1 in percent on held-out training images, batch norm recalibrated: "
            "for ranking, an estimate of the trained network's",
            "images": evaluator.val_count,
        }
    }  # fmt: skip
    explained = explain(result, model=config.model.to_dict(), scores=scores, provenance=supernet)
    files.write_json(run.search / "search.json", {**result.to_dict(), "scores": scores})
    files.write_yaml(run.widths, explained)
    return explained, result


def _identity(run: RunDir, val_images: int | None) -> str:
    """Names the supernet and the images that accuracies come from."""
    digest = hashlib.sha256(repr(val_images).encode())
    for path in sorted(Path(run.train).glob("supernet.*")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
