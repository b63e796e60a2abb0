"""``bcnet-deploy retrain``: the chosen widths as a plain network, trained to the end."""

from __future__ import annotations

from typing import Any

import click

from bcnet_deploy import files
from bcnet_deploy.cli.choices import datasets, importances
from bcnet_deploy.cli.common import (
    changes_of,
    chosen,
    console,
    emit,
    json_option,
    quiet_option,
    run_dir_option,
    shown_step,
)
from bcnet_deploy.cli.train import training_options
from bcnet_deploy.errors import ConfigError, wrong_option
from bcnet_deploy.run.directory import RunDir


@click.command("retrain")
@run_dir_option
@click.option(
    "--network", type=click.Choice(["found", "uniform", "full"]), default="found", show_default=True,
    help="found: the search's; uniform: one ratio for all layers within the same budgets; full: as it was.",
)  # fmt: skip
@click.option("--widths", help="Other widths, under the name of --network: a YAML file.")
@click.option("--data", shell_complete=datasets, help="Where the run has none yet.")
@training_options
@click.option(
    "--from", "start", type=click.Choice(["scratch", "original", "supernet"]),
    help="Start from random weights, the channels kept of --weights, or the supernet's. Default: the "
    "original "
    "where there is one, else scratch.",
)  # fmt: skip
@click.option(
    "--distill/--no-distill", default=None, help="Follow the supernet's full width with half of the loss."
)
@click.option("--inherit", is_flag=True, help="The same as --from supernet.")
@click.option(
    "--importance", shell_complete=importances, help="Which channels of the original are kept. Default: l2."
)
@click.option(
    "--steps", type=click.IntRange(min=1),
    help="Narrow the original in so many steps, each with its share of the training. Default: 1.",
)  # fmt: skip
@click.option("--fresh", is_flag=True, help="Start anew even where there is a checkpoint or result.")
@quiet_option
@json_option
def command(
    run_dir: RunDir,
    network: str,
    widths: str | None,
    data: str | None,
    inherit: bool,
    changes: tuple[str, ...],
    fresh: bool,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train the chosen network and take its accuracy on the test images, which nothing has seen before."""
    from bcnet_deploy.run.engine import first_rank, writing
    from bcnet_deploy.run.preflight import describe_run, start
    from bcnet_deploy.run.retrain import retrain
    from bcnet_deploy.run.settings import keeping, settings_of

    with wrong_option(data):
        config = describe_run(run_dir, data=data)
    if inherit:
        options["start"] = "supernet"
    given = chosen({**options, **changes_of(changes), "network": network, "widths": widths})
    settings = settings_of(run_dir, "retrain", given)
    if widths is not None:
        with wrong_option():
            files.require_file(widths, ConfigError, "widths", "give a YAML file")
    with writing(run_dir):
        if data is not None:
            start(run_dir, describe_run(run_dir, data=data))
        run_dir.data_reference()
        with (
            keeping(run_dir, "retrain", given),
            shown_step(f"Training {config.model.name}, {network}", quiet=quiet or as_json) as progress,
        ):
            result = retrain(run_dir, settings, progress, fresh=fresh)
    if not first_rank():
        return
    messages = console(stderr=True, quiet=quiet)
    for text in (*result.notes, *result.trained.notes):
        messages.print(f"Note: {text}", markup=False)

    def show() -> None:
        trained = result.trained
        final = "no test images" if trained.test_metric is None else (
            f"test {trained.metric_name} {trained.test_metric:.2f}{trained.unit} "
            f"({trained.test_images} images)"
        )  # fmt: skip
        again = "" if result.ran else " Done already; --fresh trains anew."
        console().print(
            f"{network}: {final}, held-out {trained.val_metric:.2f}{trained.unit}, {trained.macs:,} MACs, "
            f"{trained.params:,} parameters, {trained.seconds:.0f} s.{again} Next: bcnet-deploy export",
            markup=False,
        )

    emit(result.to_dict(), as_json=as_json, show=show)
