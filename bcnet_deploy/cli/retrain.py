"""``bcnet-deploy retrain``: the chosen widths as a plain network, trained to the end."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from bcnet_deploy import files
from bcnet_deploy.cli.choices import recipes
from bcnet_deploy.cli.common import console, emit, json_option, quiet_option, run_dir_option
from bcnet_deploy.cli.train import settings, shown_progress
from bcnet_deploy.errors import ConfigError, WidthError
from bcnet_deploy.rundir import RunDir
from bcnet_deploy.stale import GIVEN

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from bcnet_deploy.space import WidthSpace


def searched_widths(run_dir: RunDir, space: WidthSpace, network: str) -> npt.NDArray[np.int64]:
    """(L,): the widths that the search found, or its uniform network within the same budgets.

    Raises:
        MissingStepError: there was no search yet.
        ConfigError, WidthError: the file does not fit the model.
    """
    path = run_dir.require(run_dir.widths, "search result", "bcnet-deploy search")
    data = files.read_yaml(path, ConfigError, "widths")
    if network == "uniform":
        compared = data.get("compared_with", {}) if isinstance(data, dict) else {}
        if "uniform" not in compared:
            # No uniform network keeps the budgets, or the file is the user's own: the same MACs instead.
            return uniform_like(space, read_widths(data, space, str(path)))
        data = compared["uniform"]
    return read_widths(data, space, str(path))


def read_widths(data: Any, space: WidthSpace, source: str) -> npt.NDArray[np.int64]:
    """(L,) from a mapping of variable names to widths, or a list in the variables' order.

    Either may be under a key ``widths``. Raises :class:`ConfigError` or :class:`WidthError`.
    """
    value = data.get("widths", data) if isinstance(data, dict) else data
    names = [variable.name for variable in space.variables]
    if isinstance(value, dict):
        if set(value) != set(names):
            odd = sorted(set(map(str, value)) ^ set(names))[:3]
            raise WidthError(
                f"{source} does not name the {len(names)} width variables of {space.model_name} "
                f"(first differences: {', '.join(odd)}); see 'bcnet-deploy inspect'"
            )
        value = [value[name] for name in names]
    if not isinstance(value, list):
        raise ConfigError(
            f"{source} holds {type(value).__name__}; allowed: widths by variable name, or a list"
        )
    return space.check(value)[0]


def uniform_like(space: WidthSpace, widths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """(L,): the widest uniform network with no more MACs than ``widths`` has."""
    limit = int(space.macs(widths)[0])
    fitting = [space.uniform(level / 200) for level in range(1, 201)]
    fitting = [row for row in fitting if int(space.macs(row)[0]) <= limit]
    return max(fitting, key=lambda row: int(space.macs(row)[0])) if fitting else space.narrowest


@click.command("retrain")
@run_dir_option
@click.option(
    "--network", type=click.Choice(["found", "uniform", "full"]), default="found", show_default=True,
    help="found: the search's; uniform: one ratio for all layers within the same budgets; full: as it was.",
)  # fmt: skip
@click.option("--widths", "widths_file", help="Other widths, under the name of --network: a YAML file.")
@click.option(
    "--config", "recipe", shell_complete=recipes, help="Recipe: a YAML file, or the name of a shipped one."
)
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a setting of the recipe.")
@click.option("--inherit", is_flag=True, help="Start from the supernet's weights; default: from scratch.")
@click.option("--distill", is_flag=True, help="Follow the supernet's full width with half of the loss.")
@click.option("--compute", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--seed", type=click.IntRange(min=0), help="Default: the run's.")
@click.option("--fresh", is_flag=True, help="Start anew even where there is a checkpoint or result.")
@quiet_option
@json_option
def command(
    run_dir: RunDir,
    network: str,
    widths_file: str | None,
    recipe: str | None,
    changes: tuple[str, ...],
    inherit: bool,
    distill: bool,
    compute: str,
    seed: int | None,
    fresh: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Train the chosen network and take its accuracy on the test images, which nothing has seen before."""
    run = run_dir.load()
    config = settings(recipe, run.data, changes)
    import torch

    from bcnet_deploy.data import load_data
    from bcnet_deploy.models import build_model
    from bcnet_deploy.space import WidthSpace
    from bcnet_deploy.train import load_supernet, retrain
    from bcnet_deploy.train.distributed import pick_device
    from bcnet_deploy.train.evaluate import calibrated_teacher

    device = pick_device(compute)
    ref = run.model
    model = build_model(ref.name, num_classes=ref.num_classes)
    space = WidthSpace.from_model(model, ref.input_size, ref.levels, ref.min_level)
    if widths_file is not None:
        widths = read_widths(files.read_yaml(widths_file, ConfigError, "widths"), space, widths_file)
    elif network == "full":
        widths = space.full
    else:
        widths = searched_widths(run_dir, space, network)
    splits = load_data(run.data, ref.input_size, num_classes=ref.num_classes)
    supernet = load_supernet(run_dir) if inherit or distill else None
    teacher = None
    if supernet is not None and distill:
        teacher = calibrated_teacher(supernet, splits, config.batch_size, torch.device("cpu"))
    display, advance = shown_progress(f"Training {ref.name}, {network}", quiet=quiet)
    with display:
        result = retrain(
            model, space, widths, splits, config, run_dir.retrained(network), model_ref=ref,
            initial=supernet if inherit else None, teacher=teacher, device=device, fresh=fresh,
            seed=run.seed if seed is None else seed, progress=advance,
        )  # fmt: skip
    if os.environ.get("RANK", "0") != "0":
        return
    given = run_dir.retrained(network) / GIVEN
    if widths_file is not None:
        named = {v.name: int(w) for v, w in zip(space.variables, widths, strict=True)}
        files.write_yaml(given, {"from": widths_file, "widths": named})
    else:
        given.unlink(missing_ok=True)

    def show() -> None:
        final = "no test images" if result.test_top1 is None else (
            f"test top-1 {result.test_top1:.2f}% ({result.test_images} images)"
        )  # fmt: skip
        console().print(
            f"{network}: {final}, held-out {result.val_top1:.2f}%, {result.macs:,} MACs, "
            f"{result.params:,} parameters, {result.seconds:.0f} s. Next: bcnet-deploy export"
        )

    emit({**result.to_dict(), "folder": str(run_dir.retrained(network))}, as_json=as_json, show=show)
