"""``bcnet-deploy profile``: the latency table of a device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bcnet_deploy.cli.choices import devices as profile_names
from bcnet_deploy.cli.common import (
    console,
    emit,
    json_option,
    progress,
    quiet_option,
    run_dir_option,
    warn_of_threads,
)
from bcnet_deploy.errors import RunDirError
from bcnet_deploy.rundir import ModelRef, RunConfig, RunDir
from bcnet_deploy.units import format_milliseconds, parse_duration, parse_size

if TYPE_CHECKING:
    from bcnet_deploy.lut import LatencyTable
    from bcnet_deploy.profiler.profiling import Progress

DEFAULT_MODEL = "mobilenet_v2"


@click.command("profile")
@click.option(
    "--device", shell_complete=profile_names,
    help="Name of a device profile, or path of your own. Default: the run's, or cpu.",
)  # fmt: skip
@click.option("--devices", help="Several devices, separated by commas.")
@click.option("--model", help=f"Name, or package.module:function. Default: the run's, or {DEFAULT_MODEL}.")
@click.option("--input-size", help="3x224x224, or 224. Default: what the model is usually run at.")
@click.option("--num-classes", type=click.IntRange(min=1), help="Default: the model's own number.")
@click.option("--levels", type=click.IntRange(min=1), help="Widths a variable. Default: 20.")
@click.option("--budget", default="120s", show_default=True, help="Time for everything: 90s, 2m.")
@click.option("--estimate", is_flag=True, help="From data sheets, for a device that is not here.")
@click.option("--fresh", is_flag=True, help="Measure anew; neither go on nor start from shipped tables.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the sampled networks.")
@run_dir_option
@quiet_option
@json_option
def command(
    device: str | None,
    devices: str | None,
    model: str | None,
    input_size: str | None,
    num_classes: int | None,
    levels: int | None,
    budget: str,
    estimate: bool,
    fresh: bool,
    seed: int,
    run_dir: RunDir,
    quiet: bool,
    as_json: bool,
) -> None:
    """Build the latency table of a device, and say how accurate it is.

    Whole networks of random widths are measured on this machine and taken apart layer by layer; held-out
    networks tell how far predictions are off. Interrupted, the same command goes on where it stopped.
    """
    from bcnet_deploy.devices import device_of_run, keep_device

    if device and devices:
        raise click.UsageError("give either --device or --devices")
    seconds = parse_duration(budget)
    size = None if input_size is None else parse_size(input_size)
    config = run_dir.load() if run_dir.exists() else None
    names = [name.strip() for name in (devices or device or (config.device if config else "cpu")).split(",")]
    profiles = [device_of_run(run_dir, name) for name in names if name]
    if not profiles:
        raise click.UsageError("give the name of a device: 'bcnet-deploy devices' lists them")
    reference = _reference(run_dir, config, model, size, num_classes, levels)

    from bcnet_deploy.flow.run_space import keep_space
    from bcnet_deploy.models import build_model
    from bcnet_deploy.profiler.profiling import profile_device
    from bcnet_deploy.space import WidthSpace

    own = ":" in reference.name
    if config is None and own and num_classes is None:
        click.echo(
            f"bcnet-deploy: note: {reference.num_classes} classes, as {reference.name} builds by default; "
            "--num-classes sets another number",
            err=True,
        )
    if not estimate:
        for profile in profiles:
            profile.require_here(reference.name)  # before minutes of work for another device
            if profile.kind == "cpu":
                warn_of_threads(profile.threads or 1)
    network = build_model(reference.name, num_classes=reference.num_classes).eval()
    space = WidthSpace.from_model(network, reference.input_size, reference.levels, reference.min_level)
    results = []
    for profile in profiles:
        path = run_dir.latency_table(profile.name)
        with progress(quiet=quiet or as_json) as bar:
            task = bar.add_task(f"profile {profile.name}", total=seconds, note="")

            def report(state: Progress, bar: Any = bar, task: Any = task) -> None:
                bar.update(
                    task, completed=min(state.done_s, state.budget_s), note=f"{state.networks} measured"
                )

            table = profile_device(
                network, space, profile, path, budget_s=seconds, estimate=estimate, seed=seed, fresh=fresh,
                report=report,
            )  # fmt: skip
        results.append((path, table))
    first = profiles[0].name
    if config is None:
        config = RunConfig(model=reference, device=first)
        run_dir.save(config)
    elif config.device != first:
        config.device = first
        run_dir.save(config)
    for profile in profiles:
        keep_device(run_dir, profile)
    keep_space(run_dir, config.model, space)
    emit({"tables": [_json(path, table) for path, table in results]}, as_json=as_json, show=_shower(results))


def _reference(
    run_dir: RunDir,
    config: RunConfig | None,
    model: str | None,
    size: tuple[int, int, int] | None,
    num_classes: int | None,
    levels: int | None,
) -> ModelRef:
    """The run's model, or a new run's. Raises :class:`RunDirError` when the options contradict the run."""
    if config is not None:
        given = {"name": model, "input_size": size, "num_classes": num_classes, "levels": levels}
        for key, value in given.items():
            kept = getattr(config.model, key)
            if value is not None and value != kept:
                raise RunDirError(
                    f"{run_dir.path} is a run with {key.replace('_', ' ')} {kept!r}, not {value!r}; "
                    "use another --run-dir for it"
                )
        return config.model
    from bcnet_deploy.models import default_input_size, default_num_classes

    name = model or DEFAULT_MODEL
    return ModelRef(
        name=name,
        num_classes=num_classes or default_num_classes(name),
        input_size=size or default_input_size(name),
        levels=levels or 20,
    )


def _json(path: Path, table: LatencyTable) -> dict[str, Any]:
    network = table.network
    full = [variable.channels for variable in network.variables]
    return {
        "path": str(path),
        "device": table.device,
        "source": table.source,
        "network": network.description,
        "entries": sum(map(len, table.entries.values())),
        "layers": len(network.layers),
        "full_ms": float(table.predict(full)[0]),
        "accuracy": network.accuracy,
        "relative_error": network.relative_error,
        "provenance": table.provenance,
        "fingerprint": table.fingerprint,
    }


def _shower(results: list[tuple[Path, LatencyTable]]) -> Callable[[], None]:
    def show() -> None:
        for path, table in results:
            show_summary(path, table)

    return show


def show_summary(path: Path, table: LatencyTable) -> None:
    """What a table is of and how accurate it is, in a few lines."""
    out = console()
    network = table.network
    full = float(table.predict([variable.channels for variable in network.variables])[0])
    mark = "[bold yellow]ESTIMATED[/] " if table.estimated else ""
    out.print(f"{mark}{path}: {network.description} on {table.device}, {len(network.layers)} layers")
    suffix = " (estimated)" if table.estimated else ""
    out.print(f"full network: {format_milliseconds(full)}{suffix}, batch {table.batch}, {table.precision}")
    if table.estimated:
        out.print(
            "Nothing was measured: a roofline from data sheets, whose order is worth more than its values."
        )
        return
    where = table.provenance
    out.print(
        f"{where.get('networks_measured')} networks, {sum(map(len, table.entries.values()))} entries, "
        f"{where.get('threads') or '-'} thread(s), {where.get('runtime')} {where.get('runtime_version')}, "
        f"{where.get('cpu_model') if not where.get('gpu') else where.get('gpu')}"
    )
    accuracy = network.accuracy
    if accuracy:
        out.print(
            f"accuracy on {accuracy['networks']} held-out networks: mean error {accuracy['mape']:.2%} "
            f"(machine repeats to {accuracy['noise_floor']:.2%}), within 5% {accuracy['within_5']:.0%}, "
            f"within 10% {accuracy['within_10']:.0%}, Kendall {accuracy['kendall']:.3f}"
        )
    else:
        out.print("accuracy: not known, too few held-out networks; give a larger --budget")
