"""``bcnet-deploy profile``: the latency table of a device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from bcnet_deploy.cli.choices import devices as profile_names
from bcnet_deploy.cli.common import (
    console,
    emit,
    json_option,
    model_options,
    note,
    quiet_option,
    run_dir_option,
    shown_step,
    size_of,
    warn_of_threads,
)
from bcnet_deploy.errors import wrong_option
from bcnet_deploy.run.directory import RunDir
from bcnet_deploy.units import format_milliseconds

if TYPE_CHECKING:
    from pathlib import Path

    from bcnet_deploy.lut import LatencyTable

DEFAULT_MODEL = "mobilenet_v2"


@click.command("profile")
@click.option(
    "--device", shell_complete=profile_names,
    help="Name of a device profile, or path of your own. Default: the run's, or cpu.",
)  # fmt: skip
@click.option("--devices", help="Several devices, separated by commas.")
@model_options
@click.option("--data", help="What will be trained on; tells the number of classes. May be named later.")
@click.option("--budget", help="Time for everything: 90s, 2m. Default: 120s.")
@click.option(
    "--estimate", is_flag=True, default=None, help="From data sheets, for a device that is not here."
)
@click.option("--table", help="Take this latency table, made on another host, instead of measuring one.")
@click.option("--rebase", help="Begin with this table of another machine or runtime; 20s measure the rest.")
@click.option(
    "--task", help="Training's, where no built-in task takes what the network returns; none: no training."
)
@click.option("--fresh", is_flag=True, help="Measure anew; neither go on nor start from shipped tables.")
@click.option("--seed", type=click.IntRange(min=0), help="Of the sampled networks. Default: the run's.")
@run_dir_option
@quiet_option
@json_option
def command(
    device: str | None,
    devices: str | None,
    input_size: str | None,
    budget: str | None,
    estimate: bool | None,
    table: str | None,
    rebase: str | None,
    task: str | None,
    fresh: bool,
    seed: int | None,
    run_dir: RunDir,
    quiet: bool,
    as_json: bool,
    **about: Any,
) -> None:
    """Build the latency table of a device, and say how accurate it is.

    Whole networks of random widths are measured on this machine and taken apart layer by layer; held-out
    networks tell how far predictions are off. Interrupted, the same command goes on where it stopped.
    """
    from bcnet_deploy.run.engine import only_writer
    from bcnet_deploy.run.preflight import describe_run, start
    from bcnet_deploy.run.profile import check_profile, profile
    from bcnet_deploy.run.settings import keeping, settings_of

    if device and devices:
        raise click.UsageError("give either --device or --devices")
    begun = run_dir.exists()
    names = [name.strip() for name in (devices or device or "").split(",") if name.strip()]
    if devices is not None and not names:
        raise click.UsageError("give the name of a device: 'bcnet-deploy devices' lists them")
    names = names or [run_dir.load().device if begun else "cpu"]
    given = {
        "budget": budget, "estimate": bool(estimate), "table": table, "rebase": rebase, "seed": seed,
        "task": task,
    }  # fmt: skip
    settings = settings_of(run_dir, "profile", given)
    with wrong_option(device, devices):
        profiles = [run_dir.device(name) for name in names]
    size = size_of(input_size)
    with wrong_option(*about.values()):
        config = describe_run(
            run_dir, input_size=size, device=profiles[0].name, default_model=DEFAULT_MODEL, **about
        )
    if not begun and ":" in config.model.name and about["num_classes"] is None and about["data"] is None:
        note(
            f"{config.model.num_classes} classes, as {config.model.name} builds by default; "
            "--num-classes sets another number"
        )
    for name, chosen in zip(names, profiles, strict=True):
        with wrong_option(table, rebase):
            check_profile(run_dir, settings.replace(device=name), model=config.model.name)
        if chosen.kind == "cpu" and not settings.estimate:
            warn_of_threads(chosen.threads or 1)
    results = []
    if begun and (former := run_dir.load().device) != config.device:
        note(
            f"the run's device is now {config.device}, it was {former}: budgets without a device are its; "
            f"'--latency {former}=BUDGET' names the other"
        )
    with only_writer(run_dir):
        # As it is now that nobody else writes.
        config = describe_run(
            run_dir, input_size=size, device=profiles[0].name, default_model=DEFAULT_MODEL, **about
        )
        start(run_dir, config)
        with keeping(run_dir, "profile", given):
            for chosen in profiles:
                run_dir.keep_device(chosen)
                with shown_step(f"profile {chosen.name}", quiet=quiet or as_json) as progress:
                    one = settings.replace(device=chosen.name)
                    results.append(profile(run_dir, one, progress, fresh=fresh))

    def show() -> None:
        for result in results:
            if not result.ran:
                console().print("Done already; --fresh measures anew.")
            show_summary(result.path, result.table, config.model.name)

    emit({"tables": [result.to_dict() for result in results]}, as_json=as_json, show=show)


def show_summary(path: Path, table: LatencyTable, model: str | None = None) -> None:
    """What a table is of and how accurate it is, in a few lines; ``model`` as the user calls it."""
    from rich.markup import escape

    out = console()
    network = table.network
    what = network.description if model is None else f"{model} at {'x'.join(map(str, network.input_size))}"
    full = float(table.predict([variable.channels for variable in network.variables])[0])
    mark = "[bold yellow]ESTIMATED[/] " if table.estimated else ""
    out.print(
        f"{mark}{escape(str(path))}: {escape(what)} on {escape(table.device)}, "
        f"{len(network.layers)} layers", soft_wrap=True,
    )  # fmt: skip
    suffix = " (estimated)" if table.estimated else ""
    fast = format_milliseconds(full)
    out.print(f"full network: {fast}{suffix}, batch {table.batch}, {table.precision}", markup=False)
    if table.estimated:
        out.print(
            "Nothing was measured: a roofline from data sheets, whose order is worth more than its values."
        )
        return
    where = table.provenance
    out.print(
        f"{where.get('networks_measured')} networks, {sum(map(len, table.entries.values()))} entries, "
        f"{where.get('threads') or '-'} thread(s), {where.get('runtime')} {where.get('runtime_version')}, "
        f"{where.get('cpu_model') if not where.get('gpu') else where.get('gpu')}",
        soft_wrap=True, markup=False,
    )  # fmt: skip
    accuracy = network.accuracy
    if accuracy:
        out.print(
            f"accuracy on {accuracy['networks']} held-out networks: mean error {accuracy['mape']:.2%} "
            f"(machine repeats to {accuracy['noise_floor']:.2%}), within 5% {accuracy['within_5']:.0%}, "
            f"within 10% {accuracy['within_10']:.0%}, Kendall {accuracy['kendall']:.3f}", soft_wrap=True,
        )  # fmt: skip
    else:
        out.print("accuracy: not known, too few held-out networks; give a larger --budget")
