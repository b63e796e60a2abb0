"""``bcnet-deploy search``: the best widths within hard budgets, by the run's supernet and tables."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bcnet_deploy import files
from bcnet_deploy.cli.common import emit, json_option, progress, quiet_option, run_dir_option
from bcnet_deploy.cli.search_inputs import (
    Inputs,
    Request,
    bound,
    constraints_of,
    load_inputs,
    read_counted,
    read_latencies,
    records_of,
)
from bcnet_deploy.cli.search_view import show_dry_run, show_result
from bcnet_deploy.flow.run_space import keep_space
from bcnet_deploy.rundir import RunConfig, RunDir
from bcnet_deploy.search.strategies import STRATEGIES

if TYPE_CHECKING:
    from bcnet_deploy.search import Generation, SearchResult
    from bcnet_deploy.space import WidthSpace


@click.command(name="search")
@click.option(
    "--latency",
    multiple=True,
    metavar="[DEVICE=]BUDGET",
    help="'5ms' or '0.5x' on the run's device, 'cpu=8ms' on another; repeatable.",
)
@click.option("--macs", multiple=True, metavar="BUDGET", help="Multiply-accumulates: '300M', '0.5x'.")
@click.option("--params", multiple=True, metavar="BUDGET", help="Parameters: '2M', '0.5x'.")
@click.option(
    "--peak-memory", multiple=True, metavar="BUDGET",
    help="Activations alive at once, FP32, batch 1: '4MiB', '0.5x'.",
)  # fmt: skip
@click.option(
    "--weights", multiple=True, metavar="BUDGET", help="Bytes of the weights, FP32: '10MB', '0.5x'."
)
@click.option(
    "--confidence",
    type=float,
    default=0.95,
    show_default=True,
    help="Probability, by the table's uncertainty, that a latency budget is met; 0.5: the bare prediction.",
)
@click.option(
    "--pareto",
    is_flag=True,
    help="Look for the best network at every budget up to the given ones, or up to the full network.",
)
@click.option(
    "--strategy", type=click.Choice(STRATEGIES.names()), default="nsga2", show_default=True,
    help="How to search; all but nsga2 are baselines.",
)  # fmt: skip
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
@click.option(
    "--val-images", type=click.IntRange(min=1),
    help="Score on so many held-out images only: sooner done, less surely ranked. Otherwise all.",
)  # fmt: skip
@click.option(
    "--on-error", type=click.Choice(["stop", "skip"]), default="stop", show_default=True,
    help="Where the evaluation of a network fails: stop, or go on without it.",
)  # fmt: skip
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
    macs: tuple[str, ...],
    params: tuple[str, ...],
    peak_memory: tuple[str, ...],
    weights: tuple[str, ...],
    **options: Any,
) -> None:
    """Find the best widths under hard budgets.

    Run again after a kill, it goes on where it stopped.
    """
    config = run_dir.load()
    given = {"macs": macs, "params": params, "peak_memory": peak_memory, "weights": weights}
    if not latency and not any(given.values()) and not options["pareto"]:
        raise click.UsageError("give a budget, for example --latency 5ms, --macs 0.5x, or --pareto")
    from bcnet_deploy.search.api import check_settings
    from bcnet_deploy.search.constraints import check_confidence

    request = Request(
        latency=read_latencies(config, latency), counted=read_counted(given),
        seed=config.seed if seed is None else seed, **options,
    )  # fmt: skip
    check_confidence(request.confidence)
    check_settings(
        request.evaluations, request.seed, request.strategy, request.population_size, request.patience,
        request.on_error,
    )  # fmt: skip
    inputs = load_inputs(run_dir, config, request, evaluating=not dry_run)
    if dry_run:
        assert inputs.space is not None, "a dry run loads the space"
        data = _dry_run(request, inputs, inputs.space)
        emit(data, as_json=as_json, show=lambda: show_dry_run(data))
        return
    explained, result = _search(run_dir, config, request, inputs, quiet=quiet or as_json)
    emit(
        {**explained, "front": result.front.to_list(), "files": [str(run_dir.widths)]},
        as_json=as_json,
        show=lambda: show_result(run_dir, explained, result),
    )


def _dry_run(request: Request, inputs: Inputs, space: WidthSpace) -> dict[str, Any]:
    """What is known before anything is evaluated. Costs are expected ones; a ``bound`` is what is held
    against the limit, for a latency the value that is kept with the confidence's probability."""
    import numpy as np

    from bcnet_deploy.search.constraints import build_constraints
    from bcnet_deploy.search.explain import uniform_to_compare
    from bcnet_deploy.search.lattice import Lattice

    constraints = build_constraints(space, constraints_of(inputs, request), request.confidence)
    lattice, rng = Lattice(space.variables), np.random.default_rng(request.seed)
    draws = lattice.widths(lattice.random(2000, rng))
    uniform, margin = uniform_to_compare(constraints)
    ends = lattice.widths(np.stack([lattice.narrowest, lattice.top]))
    bounds = constraints.bounds(ends)
    expected = [np.asarray(b.cost(ends), dtype=np.float64) for b in constraints.budgets]
    return {
        "variables": lattice.length,
        "networks_log10": math.log10(space.size),
        "feasible_share_of_uniform_draws": float(constraints.feasible(draws).mean()),
        "budgets": [
            {
                "cost": b.key, "device": b.device, "limit": b.limit, "given": b.given,
                "confidence": b.confidence, "estimated": bool(getattr(b.table, "estimated", False)),
                "narrowest": float(expected[i][0]), "narrowest_bound": float(bounds[0, i]),
                "full": b.full, "full_bound": float(bounds[1, i]),
            }
            for i, b in enumerate(constraints.budgets)
        ],
        "uniform_macs": None if margin != "kept" else int(space.macs(uniform[None])[0]),
        "evaluations": request.evaluations,
    }  # fmt: skip


def _search(
    run: RunDir,
    config: RunConfig,
    request: Request,
    inputs: Inputs,
    *,
    quiet: bool,
) -> tuple[dict[str, Any], SearchResult]:
    from bcnet_deploy.search import search
    from bcnet_deploy.search.evaluation import NetworkFailedError
    from bcnet_deploy.search.explain import explain, uniform_to_compare
    from bcnet_deploy.train import open_evaluator

    evaluator = open_evaluator(run, limit=request.val_images)
    space = evaluator.supernet.space
    keep_space(run, config.model, space)
    inputs = bound(inputs, run, config, space)
    identity = _identity(run, request.val_images)
    journal = run.search / f"journal-{identity}.jsonl"
    if request.fresh:
        journal.unlink(missing_ok=True)
    with progress(quiet=quiet) as display:
        task = display.add_task("search", total=request.evaluations or 2000, note="")

        def show(generation: Generation) -> None:
            best = (
                f"{generation.best_accuracy:.2f}%" if math.isfinite(generation.best_accuracy) else "none yet"
            )
            display.update(
                task, completed=generation.evaluations,
                note=f"generation {generation.index}, best {best}{share_note(generation.proposed_feasible)}",
            )  # fmt: skip

        try:
            result = search(
                space, evaluator, constraints_of(inputs, request),
                evaluations=request.evaluations, seed=request.seed, strategy=request.strategy,
                population_size=request.population_size, confidence=request.confidence,
                records=records_of(run, request) if inputs.records is None else inputs.records,
                pareto=request.pareto, patience=request.patience, on_error=request.on_error,
                checkpoint=journal, evaluator_id=identity, batch_size=1, progress=show,
                answered=lambda count: display.update(task, completed=count),
            )  # fmt: skip
        except NetworkFailedError as error:
            remedy = "What was evaluated before is kept, and the same command goes on; add --on-error skip"
            raise NetworkFailedError(error.widths, error.reason, remedy) from error.__cause__
    uniform, _ = uniform_to_compare(result.constraints)
    networks = {"found": result.widths, "uniform": uniform, "full": space.full}
    scores = {}
    for name, widths in networks.items():
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
    explained = explain(
        result, model=config.model.to_dict(), scores=scores, provenance=supernet, tables=inputs.told
    )
    files.write_json(run.search / "search.json", {**result.to_dict(), "scores": scores})
    files.write_yaml(run.widths, explained)
    return explained, result


def share_note(share: float | None) -> str:
    """For the progress line; nothing where a generation proposed nothing."""
    return "" if share is None else f", {share:.0%} of proposals within the budgets before repair"


def _identity(run: RunDir, val_images: int | None) -> str:
    """Names the supernet and the images that accuracies come from."""
    digest = hashlib.sha256(repr(val_images).encode())
    for path in sorted(Path(run.train).glob("supernet.*")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
