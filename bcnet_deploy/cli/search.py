"""``bcnet-deploy search``: the best widths within hard budgets, by the run's supernet and tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from bcnet_deploy import files
from bcnet_deploy.cli.choices import importances, strategies
from bcnet_deploy.cli.common import (
    chosen,
    console,
    emit,
    json_option,
    quiet_option,
    run_dir_option,
    shown_step,
)
from bcnet_deploy.errors import RunDirError, UsageError, wrong_option
from bcnet_deploy.run.directory import RunDir
from bcnet_deploy.units import format_bytes, format_count, format_milliseconds

if TYPE_CHECKING:
    from bcnet_deploy.run.search import SearchStepResult


def _one(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> str | None:
    """A budget that is given once at most. Raises :class:`UsageError`."""
    if len(texts) > 1:
        raise UsageError(
            f"{len(texts)} budgets of {param.opts[0]} conflict: {' and '.join(map(repr, texts))}; give one"
        )
    return texts[0] if texts else None


def _strategy(ctx: click.Context, param: click.Parameter, name: str | None) -> str | None:
    """A registered name. Raises :class:`UsageError`."""
    if name is not None:
        from bcnet_deploy.search.strategies import STRATEGIES

        STRATEGIES.get(name, UsageError)
    return name


def budget_options(function: Any) -> Any:
    """Everything that bounds a search."""
    counted: dict[str, Any] = {"multiple": True, "metavar": "BUDGET", "callback": _one}
    for option in (
        click.option(
            "--channel-steps", type=click.Choice(["levels", "learned"]),
            help="Choose among the run's levels (default), or the widths at which the tables' latency drops.",
        ),
        click.option(
            "--pareto", is_flag=True, default=None,
            help="Look for the best network at every budget up to the given ones, or up to the full network.",
        ),
        click.option(
            "--confidence", type=float,
            help="Probability, by the table's uncertainty, that a latency budget is met; 0.5: the bare "
            "prediction. Default: 0.95.",
        ),
        click.option("--weight-size", help="Bytes of the weights, FP32: '10MB', '0.5x'.", **counted),
        click.option(
            "--peak-memory", help="Activations alive at once, FP32, batch 1: '4MiB', '0.5x'.", **counted
        ),
        click.option("--params", help="Parameters: '2M', '0.5x'.", **counted),
        click.option("--macs", help="Multiply-accumulates: '300M', '0.5x'.", **counted),
        click.option(
            "--latency", multiple=True, metavar="[DEVICE=]BUDGET",
            help="'5ms' or '0.5x' on the run's device, 'cpu=8ms' on another; repeatable.",
        ),
    ):  # fmt: skip
        function = option(function)
    return function


@click.command(name="search")
@budget_options
@click.option(
    "--strategy", shell_complete=strategies, callback=_strategy,
    help="How to search; all but nsga2 are baselines. Default: nsga2.",
)  # fmt: skip
@click.option(
    "--evaluations",
    type=int,
    help="Most networks to evaluate. Default: 2000; exhaustive: all; tuned scores: 32.",
)
@click.option("--population", "population_size", type=int, help="Networks a generation. Default: 40.")
@click.option("--patience", type=int, help="Generations without improvement before it stops. Default: 15.")
@click.option("--seed", type=int, help="Default: the run's.")
@click.option(
    "--no-prior", "prior", flag_value=False, is_flag=True, default=None,
    help="Start without the supernet's loss records.",
)  # fmt: skip
@click.option(
    "--val-images", type=click.IntRange(min=1),
    help="Score on so many held-out images only: sooner done, less surely ranked. Default: all; of pruned "
    "scores 2,000.",
)  # fmt: skip
@click.option(
    "--on-error", type=click.Choice(["stop", "skip"]),
    help="Where the evaluation of a network fails: stop (default), or go on without it.",
)  # fmt: skip
@click.option(
    "--scores", type=click.Choice(["supernet", "pruned", "tuned"]),
    help="Of the trained supernet; of slices of the run's trained weights, nothing trained (pruned); or of "
    "these after a short fine-tuning each (tuned): the best, and the slowest. Default: the supernet's where "
    "there is one, else pruned.",
)  # fmt: skip
@click.option("--tune-steps", type=int, help="Steps of fine-tuning before a tuned score. Default: 150.")
@click.option(
    "--importance", shell_complete=importances, help="Which channels a pruned network keeps. Default: l2."
)
@click.option("--weights", help="Trained weights of the run's model, where it has none yet.")
@click.option("--fresh", is_flag=True, help="Evaluate again what an interrupted or earlier search evaluated.")
@click.option(
    "--dry-run", is_flag=True, help="Check the budgets and show the size of the space; evaluate nothing."
)
@run_dir_option
@json_option
@quiet_option
def command(
    run_dir: RunDir, as_json: bool, quiet: bool, dry_run: bool, fresh: bool, weights: str | None,
    **options: Any,
) -> None:  # fmt: skip
    """Find the best widths under hard budgets.

    Run again after a kill, it goes on where it stopped. Without a budget, the run's last one holds.
    """
    from bcnet_deploy.run import search as step
    from bcnet_deploy.run.settings import keeping, settings_of

    if weights is not None:
        from bcnet_deploy.run.engine import writing
        from bcnet_deploy.run.preflight import describe_run, start

        with wrong_option():
            config = describe_run(run_dir, weights=weights)
        with writing(run_dir):
            start(run_dir, config)
    run_dir.load()
    given = chosen(options)
    settings = settings_of(run_dir, "search", given)
    with wrong_option(given.get("latency")):
        settings.latencies(run_dir.load().device)
    if not settings.has_budget:
        raise click.UsageError("give a budget, for example --latency 5ms, --macs 0.5x, or --pareto")
    if dry_run:
        data = step.dry_run(run_dir, settings)
        emit(data, as_json=as_json, show=lambda: show_dry_run(data))
        return
    with (
        keeping(run_dir, "search", given),
        shown_step("search", quiet=quiet or as_json) as progress,
    ):
        result = step.search(run_dir, settings, progress, fresh=fresh)
    emit(result.to_dict(), as_json=as_json, show=lambda: _shown(run_dir, result))


def _shown(run: RunDir, result: SearchStepResult) -> None:
    """:func:`show_result`; a file that was spoilt since it was written is named."""
    with files.malformed(run.widths_file, RunDirError, "search again with --fresh"):
        show_result(run, result)


def show_dry_run(data: dict[str, Any]) -> None:
    """What is known before anything is evaluated."""
    from rich.markup import escape
    from rich.table import Table

    from bcnet_deploy.search.constraints import format_cost

    out = console()
    out.print(
        f"{data['variables']} width variables, 10^{data['networks_log10']:.1f} networks; of uniform draws "
        f"{data['feasible_share_of_uniform_draws']:.1%} keep the budgets. Nothing was evaluated."
    )
    if not data["budgets"]:
        return
    confidences = sorted({row["confidence"] for row in data["budgets"] if row["confidence"] is not None})
    columns = {"narrowest network": "narrowest", "budget": "limit", "full network": "full"}
    if confidences:
        # A bound and a mean side by side, or the narrowest network could seem slower than the full one.
        bound = f"{confidences[0]:.0%} bound" if len(confidences) == 1 else "bound"
        columns = {
            "narrowest: expected": "narrowest", f"narrowest: {bound}": "narrowest_bound", "budget": "limit",
            "full: expected": "full", f"full: {bound}": "full_bound",
        }  # fmt: skip
    table = Table(title="budgets: all can be met")
    for header in ("cost", *columns):
        table.add_column(header, justify="left" if header == "cost" else "right")
    for row in data["budgets"]:
        plain = row["confidence"] is None
        values = (
            "" if plain and key.endswith("_bound") else format_cost(row["cost"], row[key])
            for key in columns.values()
        )
        held = "" if plain or len(confidences) == 1 else f", bound of {row['confidence']:.0%}"
        table.add_row(escape(row["cost"]) + (", estimate" if row["estimated"] else "") + held, *values)
    out.print(table)
    if any(row["estimated"] and row["confidence"] is None for row in data["budgets"]):
        out.print(
            "A share of the full network on an estimated table is held by the prediction, without a margin."
        )
    if confidences:
        out.print(
            "Held against a budget is the bound, by the table's uncertainty; where none is shown, the cost."
        )


def show_result(run: RunDir, result: SearchStepResult) -> None:
    """The networks compared, the front and the widths."""
    from rich.markup import escape
    from rich.table import Table

    out, explained = console(), result.explained
    compared = explained["compared_with"]
    again = "" if result.ran else " (done already; --fresh searches anew)"
    scored = explained.get("provenance", {}).get("supernet", {}).get("scored", "slices of the supernet")
    title = f"{result.evaluations} networks evaluated, {scored}; {result.stopped}{again}"
    table = Table(title=escape(title))
    table.add_column("network")
    metric, unit = metric_of(run)
    for header in (escape(metric), "left / right", "MACs", "parameters"):
        table.add_column(header, justify="right")
    for latency in explained["latency"]:
        estimate = ", estimate" if latency["source"] == "estimated" else ""
        limit = latency["budget_ms"]
        budget = "no budget" if limit is None else f"budget {format_milliseconds(limit)}"
        table.add_column(f"{latency['device']} latency ({budget}{estimate})", justify="right")
    margins = {"expected": "uniform, by expectation", "exceeded": "uniform, over the budget"}
    uniform = margins.get(compared["uniform"].get("budget", ""), "uniform")
    networks = {"full": compared["full"], uniform: compared["uniform"], "found": explained}
    for name, network in networks.items():
        scores, costs = network["scores"], network["costs"]
        sides = " / ".join(f"{scores[s]:.2f}" for s in ("left", "right") if s in scores)
        table.add_row(
            name, escape(f"{scores['accuracy']:.2f}{unit}") if scores else "–", sides,
            format_count(costs["macs"]), format_count(costs["params"]),
            *(_interval(latency) for latency in network["latency"]),
        )  # fmt: skip
    out.print(table)
    if "posterior" in explained:
        belief = explained["posterior"]
        out.print(
            f"by all scores together, found: {belief['mean']:.2f}{unit} ({belief['low']:.2f} .. "
            f"{belief['high']:.2f}); better than uniform with probability {belief['beats_uniform']:.0%}",
            markup=False,
        )
        for remark in belief["notes"]:
            out.print(remark, markup=False)
    for budget in explained["budgets"]:
        if budget["cost"].endswith("bytes"):
            limit = f"{budget['cost']} <= {format_bytes(budget['limit'])}"
            out.print(f"{limit}: found {format_bytes(result.costs[budget['cost']])}")
    if len(result.front) > 1:
        _show_front(result, metric, unit)
    full = compared["full"]["widths"]
    widths = Table(title="widths")
    widths.add_column("variable", overflow="fold")
    for header in ("found", "full", "share"):
        widths.add_column(header, justify="right")
    for name, width in result.widths.items():
        widths.add_row(escape(name), str(width), str(full[name]), f"{width / full[name]:.0%}")
    out.print(widths)
    out.print(f"written: {escape(str(run.widths_file))}. Next: bcnet-deploy retrain", soft_wrap=True)


def _interval(latency: dict[str, Any]) -> str:
    text = format_milliseconds(latency["predicted_ms"])
    if "interval_ms" in latency:
        low, high = latency["interval_ms"]
        text += f" ({format_milliseconds(low)} .. {format_milliseconds(high)})"
    return text


def metric_of(run: RunDir) -> tuple[str, str]:
    """Name and unit of what a search's scores are in."""
    from bcnet_deploy.tasks import classifies

    task = run.task()
    return ("accuracy", "%") if task is None or classifies(task) else (task.metric_name, task.unit)


def _show_front(result: SearchStepResult, metric: str, unit: str, rows: int = 12) -> None:
    """The front, thinned to a few rows."""
    import numpy as np
    from rich.markup import escape
    from rich.table import Table

    from bcnet_deploy.search.constraints import format_cost

    front = result.front
    keys = list(front[0]["costs"])
    table = Table(title=f"front: {len(front)} networks that no other evaluated one beats")
    for header in (escape(metric), *map(escape, keys)):
        table.add_column(header, justify="right")
    for row in np.unique(np.linspace(0, len(front) - 1, min(rows, len(front))).round().astype(int)):
        record = front[row]
        table.add_row(
            escape(f"{record['accuracy']:.2f}{unit}"),
            *(format_cost(key, record["costs"][key]) for key in keys),
        )
    console().print(table)
