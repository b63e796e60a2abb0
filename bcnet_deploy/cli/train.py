"""``bcnet-deploy train``: the supernet of a run directory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from bcnet_deploy import files
from bcnet_deploy.cli.choices import recipes
from bcnet_deploy.cli.common import console, emit, json_option, progress, quiet_option, run_dir_option
from bcnet_deploy.errors import ConfigError, MissingStepError, UsageError
from bcnet_deploy.rundir import ModelRef, RunConfig, RunDir
from bcnet_deploy.units import parse_size

if TYPE_CHECKING:
    from bcnet_deploy.train import TrainConfig
    from bcnet_deploy.train.trainer import OnProgress

DEMO_RECIPE = "digits"


def open_run(
    run_dir: RunDir,
    *,
    model: str | None,
    num_classes: int | None,
    input_size: str | None,
    levels: int | None,
    min_level: int | None,
    data: str | None,
) -> RunConfig:
    """The settings of the run, begun where there is none; what was trained already decides what may change.

    Nothing is written: a wrong option is not to stay in the run after its error.

    Raises:
        MissingStepError: there is no run and no model is given.
        ConfigError: an option contradicts the run.
    """
    options = {"num_classes": num_classes, "levels": levels, "min_level": min_level}
    given = {key: value for key, value in options.items() if value is not None}
    size = parse_size(input_size) if input_size else None
    if not run_dir.exists():
        if model is None:
            run_dir.load()  # raises, naming the commands that begin a run
            raise MissingStepError(f"{run_dir.path} holds no run yet; name a model with --model")
        from bcnet_deploy.data import classes_of
        from bcnet_deploy.models.registry import default_input_size

        size = size or default_input_size(model)
        # As many classes as the data has, like `run`.
        counts = {"num_classes": classes_of(data or "digits", size), **given}
        return RunConfig(model=ModelRef(name=model, input_size=size, **counts), data=data or "digits")
    config = run_dir.load()
    wanted: dict[str, Any] = {"name": model, "input_size": size, **given}
    for key, value in wanted.items():
        if value is not None and value != getattr(config.model, key):
            raise ConfigError(
                f"{key} {value!r} is given, but {run_dir.path} is a run of {key} "
                f"{getattr(config.model, key)!r}; use another --run-dir, or leave the option out"
            )
    if data is not None and data != config.data:
        if (run_dir.train / "checkpoint.safetensors").exists():
            raise ConfigError(
                f"--data {data!r} is given, but {run_dir.path} was trained on {config.data!r}; "
                "use another --run-dir"
            )
        config.data = data
    return config


def settings(recipe: str | None, data: str, changes: tuple[str, ...]) -> TrainConfig:
    """The recipe with ``KEY=VALUE`` changes; by default the digits' for them, else the built-in values.

    Raises:
        ConfigError: the recipe or a change is not allowed.
    """
    from bcnet_deploy.train.config import TrainConfig

    if recipe is None:
        config = TrainConfig.load(DEMO_RECIPE) if data == "digits" else TrainConfig()
    else:
        config = TrainConfig.load(recipe)
    values: dict[str, Any] = {}
    for change in changes:
        key, sign, text = change.partition("=")
        if not sign:
            raise ConfigError(f"--set {change!r}; allowed: KEY=VALUE, for example --set epochs=10")
        values[key.strip()] = files.parse_yaml(text, UsageError, f"--set {key.strip()}")
    return config.replace(**values)


def shown_progress(task: str, *, quiet: bool) -> tuple[Any, OnProgress]:
    """A progress display (a context manager) and the function that feeds it."""
    display = progress(quiet=quiet or os.environ.get("RANK", "0") != "0")
    number = display.add_task(task, total=1.0, note="")

    def advance(done: float, note: str) -> None:
        display.update(number, completed=done, note=note)

    return display, advance


@click.command("train")
@run_dir_option
@click.option("--model", help="Name or 'package.module:function'; needed where the run has not begun.")
@click.option("--num-classes", type=click.IntRange(min=1), help="Default: the run's, or the data's.")
@click.option("--input-size", help="3x224x224, or 224; default: what the model is usually run at.")
@click.option("--levels", type=click.IntRange(min=1), help="Widths of each variable; default 20.")
@click.option("--min-level", type=click.IntRange(min=0), help="Smallest level; default 0.")
@click.option("--data", help="'digits', an image folder or its tar archive, or 'package.module:function'.")
@click.option(
    "--config", "recipe", shell_complete=recipes, help="Recipe: a YAML file, or the name of a shipped one."
)
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a setting of the recipe.")
@click.option("--compute", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--seed", type=click.IntRange(min=0), help="Default: the run's.")
@click.option("--fresh", is_flag=True, help="Start anew even where there is a checkpoint.")
@quiet_option
@json_option
def command(
    run_dir: RunDir,
    model: str | None,
    num_classes: int | None,
    input_size: str | None,
    levels: int | None,
    min_level: int | None,
    data: str | None,
    recipe: str | None,
    changes: tuple[str, ...],
    compute: str,
    seed: int | None,
    fresh: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Train the supernet that ranks widths, or go on where training was interrupted.

    Under torchrun all processes train together: torchrun --nproc-per-node 2 -m bcnet_deploy train
    """
    run = open_run(
        run_dir, model=model, num_classes=num_classes, input_size=input_size, levels=levels,
        min_level=min_level, data=data,
    )  # fmt: skip
    config = settings(recipe, run.data, changes)
    import torch

    from bcnet_deploy.data import load_data
    from bcnet_deploy.flow.run_space import keep_space
    from bcnet_deploy.models import build_model
    from bcnet_deploy.nn import Supernet
    from bcnet_deploy.space import WidthSpace
    from bcnet_deploy.train import train_supernet
    from bcnet_deploy.train.distributed import pick_device

    device = pick_device(compute)
    ref = run.model
    splits = load_data(run.data, ref.input_size, num_classes=ref.num_classes)
    used = run.seed if seed is None else seed
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(used)
        network = build_model(ref.name, num_classes=ref.num_classes)
    space = WidthSpace.from_model(network, ref.input_size, ref.levels, ref.min_level)
    supernet = Supernet(network, space, generator=torch.Generator().manual_seed(used))
    if not run_dir.exists() or run_dir.load() != run:
        run_dir.save(run)
    if os.environ.get("RANK", "0") == "0":
        keep_space(run_dir, ref, space)
    messages = console(stderr=True, quiet=quiet)
    for note in splits.notes:
        messages.print(f"Note: {note}")
    display, advance = shown_progress(f"Training the supernet of {ref.name}", quiet=quiet)
    with display:
        result = train_supernet(
            supernet, splits, config, run_dir.train, seed=used, device=device, fresh=fresh, progress=advance
        )
    if os.environ.get("RANK", "0") != "0":
        return
    for note in result.notes:
        messages.print(f"Note: {note}")

    def show() -> None:
        top1 = ", ".join(f"{name} {value:.1f}%" for name, value in result.val_top1.items())
        console().print(
            f"Trained {result.steps} steps, {result.seconds:.0f} s, {result.images_per_second:.0f} images/s. "
            f"Held-out top-1 of its slices: {top1}. Next: bcnet-deploy search --latency 5ms"
        )

    emit({**result.to_dict(), "folder": str(run_dir.train)}, as_json=as_json, show=show)
