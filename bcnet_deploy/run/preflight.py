"""What a run is about, and all that can be refused before any work."""

from __future__ import annotations

import hashlib
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcnet_deploy import files
from bcnet_deploy.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    MissingStepError,
    RunDirError,
    TableError,
    names_nothing,
)
from bcnet_deploy.models.ref import GIVEN, PRETRAINED, ModelRef
from bcnet_deploy.run.directory import DIGITS, NETWORKS, RunConfig, RunDir, require_device

if TYPE_CHECKING:
    from torch import nn

_log = logging.getLogger("bcnet_deploy")

FOLDERS = ("latency", "train", "search", "retrain", "export", "bench", "steps", "flow")
"""What belongs to one model, data set and seed."""
DEMO = "demo"
NAMED = (DIGITS, "digits-canvas")
"""Data that is no file, even where a folder has the same name."""


def describe_run(
    run: RunDir,
    *,
    model: str | None = None,
    num_classes: int | None = None,
    input_size: tuple[int, int, int] | None = None,
    levels: int | None = None,
    min_level: int | None = None,
    weights: str | None = None,
    new_head: bool | None = None,
    data: str | None = None,
    device: str | None = None,
    seed: int | None = None,
    default_model: str | None = None,
    replaces: bool = False,
) -> RunConfig:
    """What the run is about, with what is given now. Nothing is written.

    Args:
        run: a directory with or without a run.
        model, num_classes, input_size, levels, min_level, weights, new_head, data, device, seed: what is
            given; None leaves the run's, or takes the usual.
        default_model: of a run that begins.
        replaces: whether another run that is there is to be replaced.

    Raises:
        MissingStepError: there is no run and no model is given.
        RunDirError: what is given contradicts the run.
        UnknownModelError, DataError, UnknownDeviceError: a reference names nothing.
    """
    if weights not in (None, PRETRAINED, GIVEN):
        files.require_file(
            weights, CheckpointError, "checkpoint", "give a local .safetensors, .pth or .pt file"
        )
        weights = str(Path(weights).resolve())  # a later step may run elsewhere
    given = {
        "name": model, "num_classes": num_classes, "input_size": input_size, "levels": levels,
        "min_level": min_level, "weights": weights, "new_head": new_head,
    }  # fmt: skip
    if run.exists():
        try:
            there = run.load()
        except RunDirError:
            if not replaces:
                raise
        else:
            try:
                config = _continued(run, there, given, data, seed)
            except RunDirError:
                if not replaces:
                    raise
            else:
                return config if device is None else replace(config, device=device)
    name = model or default_model
    if name is None:
        run.load()  # raises, naming the commands that begin a run
        raise MissingStepError(f"{run.path} holds no run yet; name a model with --model")
    from bcnet_deploy.data import classes_of
    from bcnet_deploy.models.registry import default_input_size, default_num_classes

    if data is None and name == DEMO:
        data = DIGITS
    size = input_size or default_input_size(name)
    count = num_classes or (classes_of(data, size) if data is not None else default_num_classes(name))
    chosen: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    ref = ModelRef(**{**chosen, "name": name, "num_classes": count, "input_size": size})
    return RunConfig(model=ref, device=device or "cpu", data=from_anywhere(data), seed=seed or 0)


def from_anywhere(data: str | None) -> str | None:
    """Data by a name that means the same from every working directory: a later step may run elsewhere.

    That is the full path of a folder, an archive or a function's file that is there; other names stay.
    """
    if data is None or data in NAMED:
        return data
    place, _, function = data.rpartition(":")
    in_file = place.endswith(".py")
    try:
        path = Path(place if in_file else data.removeprefix("folder:")).expanduser()
        if not path.exists():
            return data
        return f"{path.resolve()}:{function}" if in_file else str(path.resolve())
    except (OSError, ValueError, RuntimeError):  # too long, with a NUL, of an unknown user: refused elsewhere
        return data


def _continued(
    run: RunDir, there: RunConfig, given: dict[str, Any], data: str | None, seed: int | None
) -> RunConfig:
    """The run that is there, with data where it had none. Raises :class:`RunDirError` for another."""
    late = {}
    for key, value in given.items():
        kept = getattr(there.model, key)
        if value is not None and value != kept:
            if key in ("weights", "new_head") and not kept and not run.supernet_file.exists():
                late[key] = value  # tables do not depend on weights
                continue
            raise _another(run, "model" if key == "name" else key.replace("_", " "), kept, value)
    if late:
        there = replace(there, model=there.model.replace(**late))
    if seed is not None and seed != there.seed:
        raise _another(run, "seed", there.seed, seed)
    # A run may have been begun when paths were still kept as they were typed.
    if data is not None and from_anywhere(data) not in (there.data, from_anywhere(there.data)):
        if there.data is not None and _has_figures(run):
            raise _another(run, "data", there.data, data)
        return replace(there, data=from_anywhere(data))
    return there


def _has_figures(run: RunDir) -> bool:
    """Whether something was trained or scored on the run's data: figures of two data sets do not compare."""
    made = [run.train / "checkpoint.safetensors", run.widths_file]
    return any(
        path.exists() for path in (*made, *(run.retrained(which) / "result.json" for which in NETWORKS))
    )


def _another(run: RunDir, key: str, kept: Any, value: Any) -> RunDirError:
    return RunDirError(
        f"{run.path} holds a run of {key} {kept!r}, not {value!r}; leave it out to go on with that run, "
        "give another --run-dir, or replace it with 'bcnet-deploy run --force'"
    )


def describe_object(
    run: RunDir, module: nn.Module, *, num_classes: int | None, input_size: tuple[int, int, int]
) -> ModelRef:
    """A reference that names a module given from Python by its class and the hash of its weights."""
    from torch import nn

    total = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        total.update(f"{name}{tuple(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().view(-1).numpy().tobytes())
    name = f"object:{type(module).__name__}#{total.hexdigest()[:12]}"
    if num_classes is None:
        linear = [part for part in module.modules() if isinstance(part, nn.Linear)]
        num_classes = linear[-1].out_features if linear else None
    if num_classes is None:
        raise ConfigError("the model has no linear layer that tells its classes; give num_classes")
    return ModelRef(name, num_classes=num_classes, input_size=input_size)


def start(run: RunDir, config: RunConfig, *, force: bool = False) -> None:
    """Write the run file. ``force`` drops what a run of another model, data set or seed left.

    Raises:
        RunDirError: the folder cannot be written.
    """
    there = None
    if run.exists():
        try:
            there = run.load()
        except RunDirError:
            if not force:
                raise
        keys = ("model", "data", "seed")
        if force and (there is None or any(getattr(there, k) != getattr(config, k) for k in keys)):
            for name in FOLDERS:
                shutil.rmtree(run / name, ignore_errors=True)
    if there != config:
        run.save(config)


# -- refusals ----------------------------------------------------------------------------------


def check_classes(reference: str | None, num_classes: int, input_size: tuple[int, int, int]) -> None:
    """Raise :class:`DataError` where the data is not named, or of other classes than the model."""
    from bcnet_deploy.data import classes_of

    count = classes_of(reference, input_size)
    if count != num_classes:
        raise DataError(
            f"{reference} has {count} classes, the model tells {num_classes} apart; "
            f"give --num-classes {count}, or leave it out to take the data's"
        )


def check_table(path: str | None, device: str) -> None:
    """Raise :class:`TableError` where a latency table is named that is not there, or of another device."""
    if path is None:
        return
    if not files.is_file(path):
        raise names_nothing(
            TableError(
                f"no latency table at {path}; give a file that 'bcnet-deploy profile' wrote, "
                "or leave --table out to measure one"
            )
        )
    data = files.read_json(path, TableError, "latency table")
    require_device(path, data.get("device") if isinstance(data, dict) else None, device)


__all__ = [
    "check_classes",
    "check_table",
    "describe_object",
    "describe_run",
    "start",
]
