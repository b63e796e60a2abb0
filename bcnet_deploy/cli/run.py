"""``bcnet-deploy run``: everything, from nothing to a measured network and a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from bcnet_deploy.cli.choices import ENGINE, configurations, datasets, devices
from bcnet_deploy.cli.common import (
    chosen,
    console,
    emit,
    json_option,
    model_options,
    quiet_option,
    run_dir_option,
    size_of,
    warn_of_threads,
)
from bcnet_deploy.cli.search import budget_options
from bcnet_deploy.errors import RunDirError, wrong_option
from bcnet_deploy.run.directory import RunDir
from bcnet_deploy.units import format_count, format_milliseconds

if TYPE_CHECKING:
    from bcnet_deploy.run.pipeline import PipelineResult
    from bcnet_deploy.run.settings import PipelineSettings


@click.command("run")
@click.option(
    "--config", shell_complete=configurations,
    help="A YAML file, or a shipped one's name. Default: the run's own settings; demo where there is no run.",
)  # fmt: skip
@model_options
@click.option(
    "--data", shell_complete=datasets,
    help="'digits', an image folder or its tar archive, or package.module:function.",
)  # fmt: skip
@click.option("--device", shell_complete=devices, help="Name of a device profile, or path of your own.")
@budget_options
@click.option("--table", help="Take this latency table instead of measuring one.")
@click.option(
    "--estimate", is_flag=True, default=None, help="Estimate the table of a device that is not here."
)
@click.option(
    "--train-supernet/--no-supernet", default=None,
    help="Rank widths by a supernet. Default: unless trained weights can rank them.",
)  # fmt: skip
@click.option("--engine", type=ENGINE, help="Of the export of the network found.")
@click.option("--seed", type=click.IntRange(min=0), help="Of everything random.")
@click.option("--force", is_flag=True, help="Replace a run of another model, data set or seed.")
@run_dir_option
@quiet_option
@json_option
def command(
    config: str | None, input_size: str | None, force: bool, run_dir: RunDir, quiet: bool, as_json: bool,
    table: str | None, estimate: bool | None, engine: str | None, latency: tuple[str, ...],
    macs: str | None, params: str | None, peak_memory: str | None, weight_size: str | None,
    confidence: float | None, pareto: bool | None, channel_steps: str | None, **about: Any,
) -> None:  # fmt: skip
    """Profile, train, search, retrain, export, measure and report; the demo by default.

    Done steps are skipped, also those of the single commands; after a kill or Ctrl-C the same command goes on
    and comes to the same result.
    """
    about["input_size"] = size_of(input_size)
    search = {
        "latency": list(latency), "macs": macs, "params": params, "peak_memory": peak_memory,
        "weight_size": weight_size, "confidence": confidence, "pareto": pareto,
        "channel_steps": channel_steps,
    }  # fmt: skip
    sections: dict[str, dict[str, Any]] = {
        "profile": {"table": table, "estimate": estimate},
        "search": search,
        "export": {"engine": engine},
    }
    options = {**about, **{name: chosen(section) or None for name, section in sections.items()}}
    with wrong_option(config, *options.values()):
        settings = read_settings(run_dir, config, about, sections, force=force)
    from bcnet_deploy.run.display import StepsDisplay
    from bcnet_deploy.run.pipeline import PlannedStep, describe, run_all
    from bcnet_deploy.run.preflight import check_table

    with wrong_option(config, about["device"]):
        chosen_device = run_dir.device(settings.device)
    with wrong_option(config, *about.values()):
        describe(run_dir, settings, force=force)
    with wrong_option(config, table):
        check_table(settings.step("profile").table, chosen_device.name)
    warn_of_threads(chosen_device.threads or 1)
    silent = quiet or as_json

    def display(stages: Sequence[PlannedStep]) -> Any:
        seconds = {stage.title: stage.seconds for stage in stages}
        return StepsDisplay(console(stderr=True, quiet=silent), seconds).shown()

    result = run_all(run_dir, settings, display, force=force)
    data = {
        "networks": result.content.rows(),
        "budget_ms": result.budget_ms, "budget_share": result.content.budget_share,
        "measured_share": result.content.measured_share, "measured_on": result.content.measured_on,
        "measured_departs": result.content.measured_departs, "estimated": result.content.estimated,
        "steps_run": result.ran, "seconds": round(result.seconds, 1), "report": str(result.report),
    }  # fmt: skip
    emit(data, as_json=as_json, show=lambda: show(result))


def read_settings(
    run: RunDir,
    config: str | None,
    about: dict[str, Any],
    sections: dict[str, dict[str, Any]],
    *,
    force: bool,
) -> PipelineSettings:
    """The configuration, or the run's own settings, or the demo's, with the options over them.

    Raises:
        ConfigError: no such configuration, or a setting is not allowed.
    """
    from bcnet_deploy.run.settings import PipelineSettings, load_config, over_kept, sectioned

    there = settings_there(run, about, force=force) if config is None and run.exists() else None
    kept = there is not None
    if config is not None:
        base = load_config(config)
    elif there is not None:
        base = there
    elif about["model"] is None:
        base = load_config("demo")
    else:
        base = {}
    source = "the settings" if config is None else f"configuration {config}"
    merged = {**sectioned(chosen(base)), **chosen(about)}
    for name, given in sections.items():
        before = merged.get(name, {})
        merged[name] = over_kept(name, before, chosen(given)) if kept else {**before, **chosen(given)}
    return PipelineSettings.read(merged, source)


def settings_there(run: RunDir, about: dict[str, Any], *, force: bool) -> dict[str, Any] | None:
    """The settings of the run that is there; None where ``force`` begins one that has none of them.

    A forced run is the same one with what is given now changed, unless that is another model or the run file
    cannot be read.

    Raises:
        RunDirError: the run file cannot be read, and is not to be replaced.
    """
    from bcnet_deploy.run.pipeline import settings_of_run

    try:
        there = settings_of_run(run)
    except RunDirError:
        if not force:
            raise
        return None
    if not force:
        return there
    if about["model"] not in (None, there["model"]):
        return None
    if about.get("data") is not None:
        there["num_classes"] = None  # those of the data named now
    return there


def show(result: PipelineResult) -> None:
    """The final table."""
    from rich.markup import escape
    from rich.table import Table

    content = result.content
    estimated = " (estimated)" if content.estimated else ""
    budget = "" if result.budget_ms is None else f", budget {format_milliseconds(result.budget_ms)}"
    title = f"{content.model} on {content.data}, {content.device}{budget}{estimated}"
    table = Table(title=escape(title))
    table.add_column("network")
    # What was measured on another runtime than the device's must not pass for the device's time.
    here = f" on {content.measured_on.split(',')[0]} here" if content.measured_departs else ""
    for header in (
        f"test {content.metric}", f"predicted{estimated}", f"measured{here}", f"p90{here}", "MACs",
        "parameters",
    ):  # fmt: skip
        table.add_column(escape(header), justify="right")
    for network in content.networks:
        times = (network.predicted_ms, network.measured_ms, network.measured_p90_ms)
        table.add_row(
            network.name,
            escape(content.score(network.test_metric)),
            *("–" if value is None else format_milliseconds(value) for value in times),
            *("–" if value is None else format_count(value) for value in (network.macs, network.params)),
        )
    out = console()
    out.print(table)
    out.print(verdict(result), soft_wrap=True, markup=False)
    out.print(f"{result.seconds:.0f} s; report: {result.report}", soft_wrap=True, markup=False)


def verdict(result: PipelineResult) -> str:
    """One line: found against uniform scaling, and measured against the budget."""
    found, uniform = (result.content.network(name) for name in ("found", "uniform"))
    parts = []
    content = result.content
    if found and uniform and found.test_metric is not None and uniform.test_metric is not None:
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
        gap, unit = content.gap(found.test_metric, uniform.test_metric)
        size, unit = gap.lstrip("+-"), unit.removeprefix("percentage ")
        apart = f"{size} {unit} {'fewer' if gap.startswith('-') else 'more'} than"
        # As it is printed: less than a hundredth of a point is no difference.
        parts.append(f"Found: {apart if float(gap) else 'as accurate as'} {kept}")
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
