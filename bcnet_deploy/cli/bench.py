"""``bcnet-deploy bench``: measured latency of the run's networks, against prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from bcnet_deploy.cli.choices import devices
from bcnet_deploy.cli.common import (
    chosen,
    console,
    emit,
    json_option,
    quiet_option,
    run_dir_option,
    shown_step,
    warn_of_threads,
)
from bcnet_deploy.errors import UnitError, wrong_option
from bcnet_deploy.run.directory import RunDir
from bcnet_deploy.units import format_milliseconds

if TYPE_CHECKING:
    from rich.console import Console

    from bcnet_deploy.bench import BenchResult


def _batches(ctx: click.Context, param: click.Parameter, value: str | None) -> list[int] | None:
    if value is None:
        return None
    parts = [part.strip() for part in value.split(",") if part.strip()]
    if not all(part.isdecimal() and len(part) < 8 and int(part) > 0 for part in parts):
        raise UnitError(f"cannot read batch sizes {value!r}; give positive numbers such as '1,4,16'")
    return [int(part) for part in parts]


@click.command("bench")
@click.option(
    "--device", shell_complete=devices,
    help="Device profile whose table and threads are used. Default: the run's.",
)  # fmt: skip
@click.option("--rounds", type=int, help="How often each network is loaded anew. Default: 8.")
@click.option("--runs", type=int, help="Timed runs a round. Default: 20.")
@click.option("--warmup", type=int, help="Untimed runs before them. Default: 5.")
@click.option("--threads", type=int, help="Of the CPU runtime. Default: the profile's.")
@click.option(
    "--batches", callback=_batches,
    help="Batch sizes of the throughput; empty for none. Default: 1,4,16.",
)  # fmt: skip
@click.option("--layers/--no-layers", default=None, help="Profile by layer too. Default: yes.")
@click.option("--fresh", is_flag=True, help="Measure again what was measured before.")
@run_dir_option
@json_option
@quiet_option
def command(fresh: bool, run_dir: RunDir, as_json: bool, quiet: bool, **options: Any) -> None:
    """Measure full, uniform and found on every runtime here, interleaved, against the latency table.

    Writes bench/bench.json into the run directory.
    """
    from bcnet_deploy.run.bench import bench
    from bcnet_deploy.run.settings import keeping, settings_of

    run_dir.load()
    given = chosen(options)
    settings = settings_of(run_dir, "bench", given)
    with wrong_option(options["device"]):
        device = run_dir.device(settings.device)
    warn_of_threads(settings.threads or device.threads or 1)
    with keeping(run_dir, "bench", given), shown_step("bench", quiet=quiet or as_json) as progress:
        result = bench(run_dir, settings, progress, fresh=fresh)
    emit(
        result.to_dict(), as_json=as_json,
        show=lambda: show(result.measured, console(), str(run_dir.bench), again=not result.ran),
    )  # fmt: skip


def show(result: BenchResult, target: Console, path: str, *, again: bool = False) -> None:
    """Print the table and what was measured how."""
    from rich.markup import escape
    from rich.table import Table

    elsewhere = any("is not here" in note for note in result.notes)
    place = f"this machine ({result.device} is not here)" if elsewhere else result.device
    table = Table(title=f"Latency on {place}, {result.settings['threads']} thread(s)")
    table.add_column("network")
    table.add_column("runtime", no_wrap=True)
    for title in ("median", "p90", "spread", "undisturbed", "noise floor", "predicted", "error", "images/s"):
        table.add_column(title, justify="right", min_width=len(title) if " " not in title else None)
    for name, network in result.networks.items():
        prediction = network.prediction
        for runtime, entry in network.runtimes.items():
            stats = entry.latency
            best = max(entry.throughput, key=lambda item: item.images_per_second, default=None)
            estimated = " (est.)" if prediction is not None and prediction.source == "estimated" else ""
            table.add_row(
                name, escape(f"{runtime} {network.precision}"), format_milliseconds(stats.median_ms),
                format_milliseconds(stats.p90_ms), f"{stats.spread:.1%}", format_milliseconds(stats.low_ms),
                "-" if stats.noise_floor is None else f"{stats.noise_floor:.1%}",
                format_milliseconds(prediction.milliseconds) + estimated if prediction is not None else "-",
                "-" if entry.prediction_error is None else f"{entry.prediction_error:+.1%}",
                "-" if best is None else f"{best.images_per_second:.0f} (batch {best.batch})",
            )  # fmt: skip
    target.print(table)
    settings, machine = result.settings, result.machine
    clocks = [machine.get("clock_mhz_before"), machine.get("clock_mhz_after")]
    lines = [
        f"{settings['rounds']} rounds of {settings['runs']} runs after {settings['warmup']} of warm-up each; "
        f"{settings['order']}",
        "undisturbed: the fastest run of each round, median of the rounds: what tables predict; "
        "noise floor: between halves of the rounds",
        f"{machine['cpu_model']}, {machine['cores']} cores, governor {machine['governor']}, clock "
        + " to ".join("unknown" if clock is None else f"{clock:.0f} MHz" for clock in clocks)
        + f"; {machine['runtime']} {machine['runtime_version']}",
        *dict.fromkeys(
            f"{runtime} is not compared with the prediction: {entry.departs}"
            for network in result.networks.values()
            if network.prediction is not None
            for runtime, entry in network.runtimes.items()
            if entry.departs
        ),
        *(f"{runtime} was not measured: {reason}" for runtime, reason in result.absent.items()),
        *result.notes,
        f"{path} is of an earlier call; --fresh measures again" if again else f"wrote {path}",
    ]
    for line in lines:
        target.print(escape(line), soft_wrap=True)


__all__ = ["command", "show"]
