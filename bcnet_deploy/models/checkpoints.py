"""Weights from local files into a model, with every mismatch named."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bcnet_deploy.errors import CheckpointError, NonFiniteWeightError

# Where training scripts put the weights among other things, in order of preference.
_NESTED = ("state_dict", "model_state_dict", "model", "net", "weights")
# Names of old torchvision DenseNet files: denselayer1.norm.1.weight for denselayer1.norm1.weight.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
# Training-only heads that our models are built without.
_AUXILIARY = re.compile(r"(AuxLogits|aux1|aux2)\.")


def check_finite(model: nn.Module, what: str = "the model") -> None:
    """Raises :class:`NonFiniteWeightError` naming the first tensor with a NaN or infinite value."""
    _check_finite(model.state_dict(), what)


def _check_finite(tensors: dict[str, Tensor], what: str) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise NonFiniteWeightError(
                f"tensor {name!r} of {what} has {bad} NaN or infinite values of {tensor.numel()}; "
                "use a checkpoint from before training diverged"
            )


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The named tensors of a ``.safetensors`` file or a torch checkpoint; no code in the file is run.

    Raises:
        CheckpointError: the file is missing, damaged, or holds anything but named tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}; give a local .safetensors, .pth or .pt file")
    found: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors or is not a torch checkpoint; save its state_dict() alone"
        ) from error
    except Exception as error:  # readers raise many kinds for a damaged file, among them their own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"cannot read checkpoint {path}: {reason}; it may be truncated") from error
    for key in _NESTED:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
            break
    if not isinstance(found, dict) or not found or not all(isinstance(v, Tensor) for v in found.values()):
        raise CheckpointError(
            f"{path} holds no named tensors (a state_dict), alone or under one of {', '.join(_NESTED)}"
        )
    return {_plain_name(name): tensor for name, tensor in found.items()}


def _plain_name(name: str) -> str:
    return _OLD_DENSENET.sub(r"\1\2.", name.removeprefix("module."))


def load_weights(
    model: nn.Module, path: str | Path, *, may_differ: str | None = None, what: str = "the model"
) -> None:
    """Copy the weights in ``path`` into ``model``. Nothing is changed unless all fit.

    Args:
        may_differ: module path whose tensors may have other shapes; it then keeps its own values
            (a classifier for another number of classes).
        what: how errors call the model.

    Raises:
        CheckpointError: the file cannot be read, or belongs to another model; the first tensor that does not
            fit is named.
        NonFiniteWeightError: a tensor in the file is NaN or infinite.
    """
    own = model.state_dict()
    # Files older than PyTorch 0.4.1 lack the counters; they matter to no result.
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    given = {
        name: tensor for name, tensor in read_state_dict(path).items()
        if name in own or not _AUXILIARY.match(name)
    }  # fmt: skip
    for name, tensor in own.items():
        if name not in given and name not in counters:
            raise CheckpointError(f"{path} is of another model: it has no tensor {name!r}, which {what} has")
        if name in given and given[name].shape != tensor.shape:
            if may_differ is not None and name.startswith(f"{may_differ}."):
                del given[name]
                continue
            raise CheckpointError(
                f"{path} is of another model: tensor {name!r} has shape {tuple(given[name].shape)}, "
                f"{what} needs {tuple(tensor.shape)}"
            )
    unknown = sorted(set(given) - set(own))
    if unknown:
        raise CheckpointError(
            f"{path} is of another model: {what} has no tensor {unknown[0]!r} ({len(unknown)} such tensors)"
        )
    _check_finite(given, f"checkpoint {path}")
    with torch.no_grad():
        for name, tensor in given.items():
            # state_dict() shares storage with the model; copying also converts half precision.
            own[name].copy_(tensor)
