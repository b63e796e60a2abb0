"""``bcnet-deploy bench``: measured latency of the run's networks, against prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from bcnet_deploy.cli.choices import devices
from bcnet_deploy.cli.common import (
    console,
    emit,
    json_option,
    progress,
    quiet_option,
    run_dir_option,
    warn_of_threads,
)
from bcnet_deploy.errors import UnitError
from bcnet_deploy.rundir import RunDir
from bcnet_deploy.units import format_milliseconds

if TYPE_CHECKING:
    from rich.console import Console

    from bcnet_deploy.bench import BenchResult


def _batches(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    parts = [part.strip() for part in value.split(",") if part.strip()]
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UnitError(f"cannot read batch sizes {value!r}; give positive numbers such as '1,4,16'")
    return tuple(int(part) for part in parts)


@click.command("bench")
@click.option(
    "--device", default=None, shell_complete=devices,
    help="Device profile whose table and threads are used. Default: the run's.",
)  # fmt: skip
@click.option("--rounds", default=8, show_default=True, help="How often each network is loaded anew.")
@click.option("--runs", default=20, show_default=True, help="Timed runs a round.")
@click.option("--warmup", default=5, show_default=True, help="Untimed runs before them.")
@click.option("--threads", default=None, type=int, help="Of the CPU runtime. Default: the profile's.")
@click.option(
    "--batches",
    default="1,4,16",
    show_default=True,
    callback=_batches,
    help="Batch sizes of the throughput; empty for none.",
)
@click.option("--layers/--no-layers", default=True, help="Profile by layer too.")
@run_dir_option
@json_option
@quiet_option
def command(
    device: str | None, rounds: int, runs: int, warmup: int, threads: int | None, batches: tuple[int, ...],
    layers: bool, run_dir: RunDir, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Measure full, uniform and found on every runtime here, interleaved, against the latency table.

    Writes bench/bench.json into the run directory.
    """
    from bcnet_deploy.bench import BenchSettings, bench_run
    from bcnet_deploy.devices import device_of_run

    if threads is None:
        threads = device_of_run(run_dir, device or run_dir.load().device).threads
    warn_of_threads(1 if threads is None else threads)
    settings = BenchSettings(
        rounds=rounds, runs=runs, warmup=warmup, threads=threads, batches=batches, layers=layers
    )
    with progress(quiet=quiet or as_json) as display:
        task = display.add_task("bench", total=1.0, note="")

        def tell(done: float, note: str) -> None:
            display.update(task, completed=done, note=note)

        result = bench_run(run_dir, device=device, settings=settings, progress=tell)
    emit(result.to_dict(), as_json=as_json, show=lambda: show(result, console(), str(run_dir.bench)))


def show(result: BenchResult, target: Console, path: str) -> None:
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
                name, f"{runtime} {network.precision}", format_milliseconds(stats.median_ms),
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
        f"wrote {path}",
    ]
    for line in lines:
        target.print(escape(line), soft_wrap=True)


__all__ = ["command", "show"]
