"""The supernet that a run trained: what it is of, its weights, and the scores by them."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from bcnet_deploy import files
from bcnet_deploy.errors import CheckpointError, MissingStepError

if TYPE_CHECKING:
    from bcnet_deploy.nn import Supernet
    from bcnet_deploy.run.directory import RunDir
    from bcnet_deploy.space import WidthSpace
    from bcnet_deploy.train import SupernetEvaluator


SUPERNET_FORMAT = 1
"""As bcnet_deploy.train.supernet writes it; known here without PyTorch."""


def supernet_info(run: RunDir) -> dict[str, Any]:
    """The description of the trained supernet, of the run's levels.

    Raises:
        MissingStepError: nothing was trained here, or training has not finished.
        CheckpointError: the description is damaged or of another version; or the supernet was trained
            with other levels than the run's, so that its weights rank other widths.
    """
    path = run.supernet_file
    if not path.exists():
        begun = (run.train / "checkpoint.safetensors").exists()
        state = "training has not finished" if begun else "no supernet has been trained"
        raise MissingStepError(f"{state} in {run.path}; run 'bcnet-deploy train' first")
    info = files.read_json(path, CheckpointError, "supernet description")
    if not isinstance(info, dict) or info.get("format") != SUPERNET_FORMAT or "space" not in info:
        raise CheckpointError(f"{path} is not of format {SUPERNET_FORMAT}; train again")
    model = run.load().model
    for key in ("levels", "min_level"):
        trained, asked = info.get(key), getattr(model, key)
        if trained is not None and trained != asked:
            raise CheckpointError(
                f"the supernet in {run.train} was trained with {key} {trained}, {run.config_path} says "
                f"{key} {asked}; train again with 'bcnet-deploy train --fresh --run-dir {run.path}', or "
                f"restore '{key}: {trained}' in {run.config_path.name}"
            )
    return info


def require_supernet_of(run: RunDir, space: WidthSpace) -> dict[str, Any]:
    """:func:`supernet_info`; :class:`CheckpointError` where it is of another model than ``space``."""
    info = supernet_info(run)
    if info["space"] != space.fingerprint:
        trained = "another model"
        with suppress(TypeError):  # of a spoilt file the names are no matter
            size = "x".join(map(str, info.get("input_size", ())))
            trained = f"{info['model']} at {size}" if "model" in info else trained
        here = f"{space.model_name} at {'x'.join(map(str, space.input_size))}"
        if trained == here:
            here += " with other layers or channels"
        raise CheckpointError(
            f"the supernet in {run.train} is of {trained} (space {info['space']}), the run's model is "
            f"now {here} (space {space.fingerprint}); train again with 'bcnet-deploy train --fresh "
            f"--run-dir {run.path}', or name the run directory it belongs to with --run-dir"
        )
    return info


def load_supernet(run: RunDir) -> Supernet:
    """The trained supernet, on the CPU.

    Raises:
        MissingStepError, CheckpointError: nothing was trained here, it is damaged or of another space.
    """
    supernet_info(run)  # before a model is built
    from bcnet_deploy.nn import Supernet

    model, space = run.build()
    require_supernet_of(run, space)
    supernet = Supernet(model, space)
    tensors, _ = files.read_tensors(run.weights, CheckpointError, "supernet")
    try:
        supernet.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"cannot load {run.weights}: {reason}; train again") from error
    return supernet


def supernet_evaluator(run: RunDir, images: int | None = None) -> SupernetEvaluator:
    """What a search needs: accuracies of widths by the trained supernet, on the run's held-out data.

    Args:
        images: held-out images to score on; None: all.

    Raises:
        MissingStepError, CheckpointError, DataError: see :func:`load_supernet` and :meth:`RunDir.data`.
    """
    info = supernet_info(run)
    from bcnet_deploy.train.config import TrainConfig
    from bcnet_deploy.train.distributed import pick_device
    from bcnet_deploy.train.supernet import SupernetResult, make_evaluator

    device = pick_device()
    supernet = load_supernet(run).to(device)
    with files.malformed(run.supernet_file, CheckpointError, "train again"):
        config = TrainConfig.from_dict(info["config"])
    sides = SupernetResult.load(run.supernet_file).sides
    return make_evaluator(supernet, run.data(), config, device=device, sides=sides, limit=images)
