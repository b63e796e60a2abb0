"""Training state in one safetensors file: tensors as tensors, everything else as JSON in its header.

One file is either there or not, so weights, optimiser, generators and positions cannot disagree. No
pickle: reading a checkpoint runs no code.
"""

from __future__ import annotations

import json
import math
import reprlib
from pathlib import Path
from typing import Any

import torch

from bcnet_deploy import files
from bcnet_deploy.errors import CheckpointError

FORMAT = 2


def save_checkpoint(path: Path, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
    """Write atomically; the former checkpoint stays until the new one is whole.

    Args:
        path: target file.
        tensors: by name; copied to the CPU.
        state: JSON-able.

    Raises:
        RunDirError: the folder cannot be written.
    """
    header = {"format": str(FORMAT), "state": json.dumps(state, allow_nan=False)}
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    files.write_tensors(path, plain, header)


def load_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(tensors, state) of a checkpoint. Raises :class:`CheckpointError` if it is missing or damaged."""
    tensors, header = files.read_tensors(path, CheckpointError, "checkpoint")
    if header.get("format") != str(FORMAT):
        raise CheckpointError(
            f"checkpoint {path} has format {header.get('format')!r}, this version reads {FORMAT}; "
            "go on with the version that wrote it, or start anew with --fresh"
        )
    return tensors, files.parse_json(header.get("state", ""), CheckpointError, f"checkpoint {path}")


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The optimiser's state as (tensors by name, JSON-able rest)."""
    state = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    scalars: dict[str, Any] = {}
    for index, values in state["state"].items():
        for key, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{key}"] = value
            else:
                scalars[f"{index}.{key}"] = value
    return tensors, {"scalars": scalars, "groups": state["param_groups"]}


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], rest: dict[str, Any]
) -> None:
    """Undo :func:`pack_optimizer`.

    Raises:
        CheckpointError: the parameter groups differ.
        LookupError, TypeError, ValueError: a setting is missing or another one, or a tensor of another shape.
    """
    settings = [dict(group) for group in optimizer.param_groups]
    state: dict[int, dict[str, Any]] = {}
    for name, value in [*tensors.items(), *rest["scalars"].items()]:
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    try:
        optimizer.load_state_dict({"state": state, "param_groups": rest["groups"]})
    except ValueError as error:
        raise CheckpointError(f"the checkpoint's optimiser is of another network: {error}") from error
    for own, group in zip(settings, optimizer.param_groups, strict=True):
        # The rate goes its way; all else is what the same settings make of it.
        for key in own.keys() - {"params", "lr"}:
            if group[key] != own[key]:
                raise ValueError(f"the optimiser's {key} is {reprlib.repr(group[key])}, now {own[key]!r}")
        if not 0 <= float(group["lr"]) < math.inf:
            raise ValueError(f"the optimiser's rate is {group['lr']!r}")
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if isinstance(value, torch.Tensor) and value.ndim and value.shape != parameter.shape:
                raise ValueError(f"the optimiser's {key} is of shape {tuple(value.shape)}")
            if isinstance(value, torch.Tensor) and value.ndim:
                # Files hold plain order. A fused update needs the weight's, or it mixes up elements.
                values[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
