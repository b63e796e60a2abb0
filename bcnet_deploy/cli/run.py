"""``bcnet-deploy run``: everything, from nothing to a measured network and a report."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from bcnet_deploy.cli.choices import ENGINE, configurations, datasets, devices
from bcnet_deploy.cli.common import console, emit, json_option, quiet_option, run_dir_option, warn_of_threads
from bcnet_deploy.rundir import RunDir
from bcnet_deploy.units import format_count, format_milliseconds, parse_size

if TYPE_CHECKING:
    from bcnet_deploy.flow.run import FlowResult


@click.command("run")
@click.option(
    "--config", default="demo", show_default=True, shell_complete=configurations,
    help="A YAML file, or a shipped one's name.",
)  # fmt: skip
@click.option("--model", help="Name, or package.module:function.")
@click.option("--num-classes", type=click.IntRange(min=1), help="Default: the data's.")
@click.option("--input-size", help="3x224x224, or 224. Default: what the model is usually run at.")
@click.option("--levels", type=click.IntRange(min=1), help="Widths a variable may take.")
@click.option(
    "--data", shell_complete=datasets,
    help="'digits', an image folder or its tar archive, or package.module:function.",
)  # fmt: skip
@click.option("--device", shell_complete=devices, help="Name of a device profile, or path of your own.")
@click.option("--latency", help="The budget: 5ms, or 0.5x of the full network.")
@click.option("--table", help="Take this latency table instead of measuring one.")
@click.option(
    "--estimate", is_flag=True, default=None, help="Estimate the table of a device that is not here."
)
@click.option("--engine", type=ENGINE, help="Of the export of the network found.")
@click.option("--seed", type=click.IntRange(min=0), help="Of everything random.")
@click.option("--force", is_flag=True, help="Replace a run of another model, data set or seed.")
@run_dir_option
@quiet_option
@json_option
def command(
    config: str,
    input_size: str | None,
    force: bool,
    run_dir: RunDir,
    quiet: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Profile, train, search, retrain, export, measure and report; the demo by default.

    Done steps are skipped; after a kill or Ctrl-C the same command goes on and comes to the same result.
    With --model, the demo's training settings and budget stay unless --config names others.
    """
    from bcnet_deploy.flow.config import load

    size = parse_size(input_size) if input_size else None
    settings = load(config).replace(**given, input_size=size)
    from bcnet_deploy.devices import device_of_run
    from bcnet_deploy.flow.run import run_flow

    warn_of_threads(device_of_run(run_dir, settings.device).threads or 1)
    result = run_flow(
        run_dir, settings, console(stderr=True, quiet=quiet or as_json), quiet=quiet or as_json, force=force
    )
    data = {
        "networks": [asdict(network) for network in result.content.networks],
        "budget_ms": result.budget_ms, "budget_share": result.content.budget_share,
        "measured_share": result.content.measured_share, "measured_on": result.content.measured_on,
        "measured_departs": result.content.measured_departs, "estimated": result.content.estimated,
        "steps_run": result.ran, "seconds": round(result.seconds, 1), "report": str(result.report),
    }  # fmt: skip
    emit(data, as_json=as_json, show=lambda: show(result))


def show(result: FlowResult) -> None:
    """The final table."""
    from rich.table import Table

    content = result.content
    estimated = " (estimated)" if content.estimated else ""
    budget = "" if result.budget_ms is None else f", budget {format_milliseconds(result.budget_ms)}"
    table = Table(title=f"{content.model} on {content.data}, {content.device}{budget}{estimated}")
    table.add_column("network")
    # What was measured on another runtime than the device's must not pass for the device's time.
    here = f" on {content.measured_on.split(',')[0]} here" if content.measured_departs else ""
    for header in (
        "test top-1", f"predicted{estimated}", f"measured{here}", f"p90{here}", "MACs", "parameters",
    ):  # fmt: skip
        table.add_column(header, justify="right")
    for network in content.networks:
        times = (network.predicted_ms, network.measured_ms, network.measured_p90_ms)
        table.add_row(
            network.name,
            "–" if network.test_top1 is None else f"{network.test_top1:.2%}",
            *("–" if value is None else format_milliseconds(value) for value in times),
            *("–" if value is None else format_count(value) for value in (network.macs, network.params)),
        )
    out = console()
    out.print(table)
    out.print(verdict(result))
    out.print(f"{result.seconds:.0f} s; report: {result.report}", soft_wrap=True)


def verdict(result: FlowResult) -> str:
    """One line: found against uniform scaling, and measured against the budget."""
    found, uniform = (result.content.network(name) for name in ("found", "uniform"))
    parts = []
    if found and uniform and found.test_top1 is not None and uniform.test_top1 is not None:
        gap = 100 * (found.test_top1 - uniform.test_top1)
        over = (
            uniform.predicted_ms is not None
            and result.budget_ms is not None
            and uniform.predicted_ms > result.budget_ms
        )
        kept = (
            "the fastest uniform scaling, over the budget"
            if over
            else "uniform scaling within the same budget"
        )
        # As it is printed: less than a hundredth of a point is no difference.
        apart = f"{abs(gap):.2f} points {'more' if gap > 0 else 'fewer'} than"
        parts.append(f"Found: {apart if round(abs(gap), 2) else 'as accurate as'} {kept}")
    content = result.content
    if content.measured_departs and found and found.measured_ms is not None:
        parts.append(
            f"measured on {content.measured_on}, not as predicted for {content.device} "
            f"({content.measured_departs}): no verdict on the budget"
        )
    elif content.budget_share is not None and content.measured_share is not None:
        parts.append(
            f"measured {content.measured_share:.3f}x of the full network (budget {content.budget_share:g}x)"
        )
    elif found and found.measured_ms is not None and result.budget_ms is not None:
        share = found.measured_ms / result.budget_ms - 1
        parts.append(f"measured {abs(share):.1%} {'over' if share > 0 else 'below'} the budget")
    return "; ".join(parts) + ("." if parts else "")
