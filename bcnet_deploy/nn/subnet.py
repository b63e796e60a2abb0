"""Sub-networks on disk: weights as safetensors, widths and origin as a small YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import nn

from bcnet_deploy import files
from bcnet_deploy.errors import CheckpointError
from bcnet_deploy.models.ref import ModelRef
from bcnet_deploy.space import WidthSpace
from bcnet_deploy.space.patching import tensor_places

FORMAT = 1
WEIGHTS = "weights.safetensors"
DESCRIPTION = "subnet.yaml"


def own_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer once, by its first name."""
    return {
        name: places[0].table[places[0].key].detach().contiguous()
        for name, places in tensor_places(model).items()
    }


def save_subnet(
    directory: str | Path,
    subnet: nn.Module,
    widths: npt.ArrayLike,
    space: WidthSpace,
    model_ref: ModelRef | dict[str, Any],
    extra: dict[str, Any] | None = None,
) -> None:
    """Write a sub-network so that :func:`load_subnet` can rebuild it.

    Args:
        directory: created if need be; two files are replaced atomically, the description last.
        subnet: what ``space.extract`` returned, trained further or not.
        widths: (L,) its widths.
        space: its width space.
        model_ref: how to build the full model again.
        extra: kept as it is under ``extra``.

    Raises:
        WidthError: the widths are not in the space.
        RunDirError: the directory cannot be written.
    """
    row = space.check(widths)[0]
    ref = model_ref.to_dict() if isinstance(model_ref, ModelRef) else dict(model_ref)
    folder = Path(directory)
    files.write_tensors(folder / WEIGHTS, own_tensors(subnet))
    files.write_yaml(
        folder / DESCRIPTION,
        {
            "format": FORMAT,
            "model": ref,
            "space": space.fingerprint,
            "macs": int(space.macs(row)[0]),
            "params": int(space.params(row)[0]),
            "widths": {variable.name: int(w) for variable, w in zip(space.variables, row, strict=True)},
            "extra": extra or {},
        },
    )


def load_subnet(directory: str | Path, model: nn.Module | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """Rebuild a saved sub-network from its two files.

    Args:
        directory: what :func:`save_subnet` wrote.
        model: the full model, where it cannot be built by name; its weights do not matter.

    Returns:
        The plain network, and the description (widths by variable name, model reference, ...).

    Raises:
        CheckpointError: a file is missing or damaged, or belongs to another model.
        UnknownModelError: the description names a model that cannot be built here.
    """
    folder = Path(directory)
    info = files.read_yaml(folder / DESCRIPTION, CheckpointError, "sub-network description")
    if not isinstance(info, dict) or info.get("format") != FORMAT:
        raise CheckpointError(f"{folder / DESCRIPTION} is not a sub-network description of format {FORMAT}")
    with files.malformed(folder / DESCRIPTION, CheckpointError, "train the network again, or restore a copy"):
        ref = ModelRef.from_dict(info["model"])
        by_name = dict(info["widths"])
    if model is None:
        from bcnet_deploy.models import build_model

        model = build_model(ref.name, num_classes=ref.num_classes)
    space = WidthSpace.from_model(model, ref.input_size, levels=ref.levels, min_level=ref.min_level)
    if space.fingerprint != info.get("space"):
        raise CheckpointError(
            f"{folder} was saved from another network than {ref.name} builds now "
            f"(space {info.get('space')}, now {space.fingerprint}); use the code that saved it"
        )
    if set(by_name) != {variable.name for variable in space.variables}:
        raise CheckpointError(f"{folder / DESCRIPTION} does not name the width variables of {ref.name}")
    tensors, _ = files.read_tensors(folder / WEIGHTS, CheckpointError, "weights of a sub-network")
    subnet = space.extract(model, [by_name[variable.name] for variable in space.variables])
    load_tensors(subnet, tensors, str(folder / WEIGHTS))
    return subnet, info


def load_tensors(model: nn.Module, tensors: dict[str, torch.Tensor], source: str) -> None:
    """Copy ``tensors`` into a model that has exactly these names and shapes.

    Raises:
        CheckpointError: names or shapes differ (names the first); the model is then unchanged.
    """
    own = tensor_places(model)
    if set(own) != set(tensors):
        odd = sorted(set(own) ^ set(tensors))[0]
        raise CheckpointError(
            f"{source} belongs to another model: {odd} is only in {'it' if odd in tensors else 'the model'}"
        )
    targets = {name: places[0].table[places[0].key] for name, places in own.items()}
    for name, target in targets.items():
        if target.shape != tensors[name].shape:
            raise CheckpointError(
                f"{source} belongs to another model: {name} has shape {tuple(tensors[name].shape)}, "
                f"the model's is {tuple(target.shape)}"
            )
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(tensors[name])


__all__ = ["load_subnet", "load_tensors", "own_tensors", "save_subnet"]
