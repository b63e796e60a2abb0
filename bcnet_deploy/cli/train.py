"""``bcnet-deploy train``: the supernet of a run directory."""

from __future__ import annotations

from typing import Any

import click

from bcnet_deploy.cli.choices import datasets, importances, recipes
from bcnet_deploy.cli.common import (
    changes_of,
    chosen,
    console,
    emit,
    json_option,
    model_options,
    quiet_option,
    run_dir_option,
    shown_step,
    size_of,
)
from bcnet_deploy.errors import wrong_option
from bcnet_deploy.run.directory import RunDir


def training_options(function: Any) -> Any:
    """``recipe``, ``changes`` (texts), ``compute`` and ``seed`` of a training."""
    for option in (
        click.option("--seed", type=click.IntRange(min=0), help="Default: the run's."),
        click.option("--compute", help="auto, cpu, cuda or cuda:N. Default: auto."),
        click.option(
            "--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a setting of the recipe."
        ),
        click.option(
            "--config", "recipe", shell_complete=recipes,
            help="Recipe: a YAML file, or the name of a shipped one.",
        ),
    ):  # fmt: skip
        function = option(function)
    return function


@click.command("train")
@run_dir_option
@model_options
@click.option(
    "--data", shell_complete=datasets,
    help="'digits', an image folder or its tar archive, or 'package.module:function'.",
)  # fmt: skip
@training_options
@click.option(
    "--importance", shell_complete=importances, help="Orders the channels of --weights. Default: l2."
)
@click.option("--fresh", is_flag=True, help="Start anew even where there is a checkpoint.")
@quiet_option
@json_option
def command(
    run_dir: RunDir,
    input_size: str | None,
    recipe: str | None,
    changes: tuple[str, ...],
    compute: str | None,
    seed: int | None,
    importance: str | None,
    fresh: bool,
    quiet: bool,
    as_json: bool,
    **about: Any,
) -> None:
    """Train the supernet that ranks widths, or go on where training was interrupted.

    Under torchrun all processes train together: torchrun --nproc-per-node 2 -m bcnet_deploy train
    """
    from bcnet_deploy.run.engine import first_rank, writing
    from bcnet_deploy.run.preflight import describe_run, start
    from bcnet_deploy.run.settings import keeping, settings_of
    from bcnet_deploy.run.train import train

    size = size_of(input_size)
    with wrong_option(*about.values()):
        config = describe_run(run_dir, input_size=size, **about)
    options = {"recipe": recipe, "compute": compute, "seed": seed, "importance": importance}
    given = chosen({**options, **changes_of(changes)})
    settings = settings_of(run_dir, "train", given)
    settings.config(config.data, trained=config.model.trained)
    if first_rank():
        with wrong_option(about["data"]):
            check_data(config)
    with writing(run_dir):
        if first_rank():
            # As it is now that nobody else writes.
            start(run_dir, describe_run(run_dir, input_size=size, **about))
        with (
            keeping(run_dir, "train", given),
            shown_step(f"Training the supernet of {config.model.name}", quiet=quiet or as_json) as progress,
        ):
            result = train(run_dir, settings, progress, fresh=fresh)
    if not first_rank():
        return
    messages = console(stderr=True, quiet=quiet)
    for text in (*result.notes, *result.trained.notes):
        messages.print(f"Note: {text}", markup=False)

    def show() -> None:
        trained = result.trained
        held_out = ", ".join(
            f"{name} {value:.1f}{trained.unit}" for name, value in trained.val_metric.items()
        )
        done = "Trained" if result.ran else "Done already (--fresh trains anew):"
        console().print(
            f"{done} {trained.steps} steps, {trained.seconds:.0f} s, "
            f"{trained.images_per_second:.0f} images/s. "
            f"Held-out {trained.metric_name} of its slices: {held_out}. "
            f"Next: bcnet-deploy search {suggested(run_dir)}",
            markup=False,
        )

    emit(result.to_dict(), as_json=as_json, show=show)


def check_data(config: Any) -> None:
    """Refuse data that is not named, or of other classes, before anything is written."""
    from bcnet_deploy.data import load_data

    load_data(config.data, config.model.input_size, num_classes=config.model.num_classes)


def suggested(run_dir: RunDir) -> str:
    """A budget to try: half of the full network's latency by the table, more where that is out of reach.

    An estimated table is so uncertain that milliseconds need a wide margin: there it is a share. Where the
    latency hardly depends on widths, it is MACs.
    """
    from bcnet_deploy.errors import BCNetError
    from bcnet_deploy.units import format_milliseconds

    try:
        table = run_dir.table()
        variables = table.network.variables
        narrowest, full = table.predict([[v.choices[0] for v in variables], [v.channels for v in variables]])
    except BCNetError:
        return "--latency 5ms"
    if narrowest > 0.9 * full:
        return "--macs 0.5x"
    share = 0.5 if narrowest < 0.4 * full else round((1 + narrowest / full) / 2, 2)
    if table.estimated:
        return f"--latency {share:g}x"
    return f"--latency {format_milliseconds(share * float(full)).replace(' ', '').replace('µ', 'u')}"
