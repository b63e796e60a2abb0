"""What ``bcnet-deploy search`` shows people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bcnet_deploy.cli.common import console
from bcnet_deploy.units import format_bytes, format_count, format_milliseconds

if TYPE_CHECKING:
    from bcnet_deploy.rundir import RunDir
    from bcnet_deploy.search import SearchResult


def show_dry_run(data: dict[str, Any]) -> None:
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
        bound = f"{confidences[0]:.0%} bound"
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
        table.add_row(row["cost"] + (", estimate" if row["estimated"] else ""), *values)
    out.print(table)
    if any(row["estimated"] and row["confidence"] is None for row in data["budgets"]):
        out.print(
            "A share of the full network on an estimated table is held by the prediction, without a margin."
        )
    if confidences:
        out.print(
            "Held against a budget is the bound, by the table's uncertainty; where none is shown, the cost."
        )


def show_result(run: RunDir, explained: dict[str, Any], result: SearchResult) -> None:
    from rich.markup import escape
    from rich.table import Table

    out = console()
    networks = {
        "full": explained["compared_with"]["full"],
        "uniform": explained["compared_with"]["uniform"],
        "found": explained,
    }
    table = Table(title=f"{result.evaluations} networks evaluated; {result.stopped}")
    table.add_column("network")
    for header in ("supernet accuracy", "left / right", "MACs", "parameters"):
        table.add_column(header, justify="right")
    for latency in explained["latency"]:
        estimate = ", estimate" if latency["source"] == "estimated" else ""
        limit = latency["budget_ms"]
        budget = "no budget" if limit is None else f"budget {format_milliseconds(limit)}"
        table.add_column(f"{latency['device']} latency ({budget}{estimate})", justify="right")
    for name, network in networks.items():
        if network.get("budget", "kept") != "kept":
            name = f"{name} (budget {network['budget']})"
        scores, costs = network["scores"], network["costs"]
        sides = " / ".join(f"{scores[s]:.2f}" for s in ("left", "right") if s in scores)
        table.add_row(
            name, f"{scores['accuracy']:.2f}%", sides,
            format_count(costs["macs"]), format_count(costs["params"]),
            *(_interval(latency) for latency in network["latency"]),
        )  # fmt: skip
    out.print(table)
    for limit in result.constraints.budgets:
        if limit.kind.endswith("bytes"):
            out.print(f"{limit.label()}: found {format_bytes(explained['costs'][limit.key])}")
    if len(result.front) > 1:
        _show_front(result)
    full = explained["compared_with"]["full"]["widths"]
    widths = Table(title="widths")
    widths.add_column("variable", overflow="fold")
    for header in ("found", "full", "share"):
        widths.add_column(header, justify="right")
    for name, width in explained["widths"].items():
        widths.add_row(escape(name), str(width), str(full[name]), f"{width / full[name]:.0%}")
    out.print(widths)
    out.print(f"written: {run.widths}. Next: bcnet-deploy retrain")


def _interval(latency: dict[str, Any]) -> str:
    text = format_milliseconds(latency["predicted_ms"])
    if "interval_ms" in latency:
        low, high = latency["interval_ms"]
        text += f" ({format_milliseconds(low)} .. {format_milliseconds(high)})"
    return text


def _show_front(result: SearchResult, rows: int = 12) -> None:
    """The front, thinned to a few rows."""
    import numpy as np
    from rich.table import Table

    from bcnet_deploy.search.constraints import format_cost

    front = result.front
    keys = list(front.costs)
    table = Table(title=f"front: {len(front)} networks that no other evaluated one beats")
    for header in ("supernet accuracy", *keys):
        table.add_column(header, justify="right")
    for row in np.unique(np.linspace(0, len(front) - 1, min(rows, len(front))).round().astype(int)):
        table.add_row(
            f"{front.accuracy[row]:.2f}%", *(format_cost(key, front.costs[key][row]) for key in keys)
        )
    console().print(table)
