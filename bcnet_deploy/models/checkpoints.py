"""Weights from local files into a model, with every mismatch named."""

from __future__ import annotations

import argparse
import pickle
import pickletools
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn

from bcnet_deploy import files
from bcnet_deploy.errors import CheckpointError, NonFiniteWeightError

Source = str | Path | nn.Module | Mapping[str, Tensor]
"""Where weights come from: a file, a loaded module, or named tensors."""

# Where training scripts put the weights among other things, in order of preference. Averaged weights (EMA)
# come first: they are what such a script evaluates and publishes.
_NESTED = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema",
    "state_dict", "model_state_dict", "model", "net", "network", "weights",
)  # fmt: skip
# What wrappers put before every name: DataParallel and AveragedModel, torch.compile, Lightning.
_PREFIXES = ("module.", "_orig_mod.", "model.")
_COUNTERS = ("num_batches_tracked", "n_averaged")
# Names of old torchvision DenseNet files: denselayer1.norm.1.weight for denselayer1.norm1.weight.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
# Training-only heads that our models are built without.
_AUXILIARY = re.compile(r"(AuxLogits|aux1|aux2)\.")
_QUANTISED = ("_packed_params", "zero_point", "qweight", "absmax")
_LONGEST_WORD = 10_000
_LEGACY_PICKLES = 5
"""A file before PyTorch 1.6 begins with so many: a magic number, version, system, objects, storages."""
# Data that training scripts save beside the weights; making one of these runs no code of the file's.
_SCALAR, _ARRAY = np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
_HARMLESS: list[Any] = [
    argparse.Namespace, np.ndarray, np.dtype, *{type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"},
    # Under the names that NumPy 2 and NumPy 1 save them.
    _SCALAR, (_SCALAR, "numpy.core.multiarray.scalar"),
    _ARRAY, (_ARRAY, "numpy.core.multiarray._reconstruct"),
]  # fmt: skip


def check_finite(model: nn.Module, what: str = "the model") -> None:
    """Raises :class:`NonFiniteWeightError` naming the first tensor with a NaN or infinite value."""
    _check_finite(model.state_dict(), what)


def _check_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            bad = int((~torch.isfinite(tensor.float())).sum())
            raise NonFiniteWeightError(
                f"tensor {name!r} of {what} has {bad} NaN or infinite values of {tensor.numel()}; "
                "use a checkpoint from before training diverged"
            )


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The named tensors of a ``.safetensors`` file or a torch checkpoint; no code in the file is run.

    They may stand alone or under one of the names that training scripts use; averaged weights (EMA) are
    preferred to the last step's. Arguments and figures saved beside them are passed over.

    Raises:
        CheckpointError: the file is missing, damaged, quantised, or holds anything but named tensors.
    """
    path = Path(path)
    files.require_file(path, CheckpointError, "checkpoint", "give a local .safetensors, .pth or .pt file")
    found: Any
    if path.suffix == ".safetensors":
        found, _ = files.read_tensors(path, CheckpointError, "checkpoint")
    else:
        found = _read_torch(path)
    for key in _NESTED:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
            break
    if not isinstance(found, dict) or not any(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(
            f"{path} holds no named tensors (a state_dict), alone or under one of {', '.join(_NESTED)}"
        )
    for name, value in found.items():
        quantised = isinstance(value, Tensor) and value.is_quantized
        if quantised or any(part in str(name).split(".") for part in _QUANTISED):
            raise CheckpointError(
                f"{path} is quantised (tensor {name!r}); give the floating-point weights, "
                "and quantise the network that is found"
            )
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path} is no state_dict: entry {name!r} is of type {type(value).__name__}, not a tensor"
            )
    return {_OLD_DENSENET.sub(r"\1\2.", str(name)): tensor for name, tensor in found.items()}


def _read_torch(path: Path) -> Any:
    """What a torch checkpoint holds. Raises :class:`CheckpointError`."""
    try:
        _check_words(path)
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds {_objects_in(path)}, not tensors alone; save its state_dict()"
        ) from error
    except Exception as error:  # torch raises many kinds for a damaged file, among them its own
        raise CheckpointError(
            f"cannot read checkpoint {path}: {files.reason(error)}; it may be truncated"
        ) from error


def _check_words(path: Path) -> None:
    """Raise ValueError where a name or text in a torch checkpoint has a word that is too long.

    Torch searches its own message of what it refuses, and the time of that is the square of a word's length:
    a name of 100,000 letters costs ten seconds, one of a million a quarter of an hour.
    """
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        if not zipped:
            for _ in range(_LEGACY_PICKLES):
                _check_words_of(file)
            return
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                if name.endswith("data.pkl"):
                    with archive.open(name) as pickled:
                        _check_words_of(pickled)


def _check_words_of(pickled: IO[bytes]) -> None:
    for _, text, _ in pickletools.genops(pickled):
        if isinstance(text, str) and len(text) > _LONGEST_WORD:
            longest = max(map(len, text.split()), default=0)
            if longest > _LONGEST_WORD:
                raise ValueError(f"it holds a word of {longest} letters")


def _objects_in(path: Path) -> str:
    try:
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # only for the message
        unsafe = []
    return f"objects of {', '.join(unsafe[:3])}" if unsafe else "more than tensors or is no torch checkpoint"


def load_weights(
    model: nn.Module, source: Source, *, new_head: bool = False, what: str = "the model"
) -> None:
    """Copy weights into ``model``. Nothing is changed unless all fit.

    Half-precision weights are converted. Prefixes that wrappers put before names (``module.``,
    ``_orig_mod.``, ``model.``) are taken off where the model has none.

    Args:
        source: a local file, a module with the same tensors, or the tensors by name.
        new_head: a classifier for another number of classes is passed over; the model keeps its own.
        what: how errors call the model.

    Raises:
        CheckpointError: the file cannot be read, or belongs to another model; tensors that are missing,
            unknown or of another shape are named.
        NonFiniteWeightError: a tensor in the file is NaN or infinite.
    """
    own = model.state_dict()
    if isinstance(source, (str, Path)):
        origin, found = str(source), read_state_dict(source)
    elif isinstance(source, nn.Module):
        origin, found = type(source).__name__, source.state_dict()
    else:
        origin, found = "the state_dict", dict(source)
    given = {
        name: tensor for name, tensor in _without_prefixes(found, own).items()
        if name in own or not (_AUXILIARY.match(name) or name.endswith(_COUNTERS))
    }  # fmt: skip
    if heads := _other_heads(given, own):
        (theirs, needed), names = heads
        if not new_head:
            raise CheckpointError(
                f"{origin} has a classifier for {theirs} classes ({names[0]}), {what} one for {needed}; "
                f"build the model with num_classes={theirs}, or keep its own with new_head=True (--new-head)"
            )
        own = {name: tensor for name, tensor in own.items() if name not in names}
        given = {name: tensor for name, tensor in given.items() if name not in names}
    _check_fit(given, own, origin, what)
    _check_finite(given, f"checkpoint {origin}")
    with torch.no_grad():
        for name, tensor in given.items():
            # state_dict() shares storage with the model; copying also converts half precision.
            own[name].copy_(tensor)


def _without_prefixes(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names as the model has them; a prefix is taken off only while no name is the model's."""
    names = dict(given)
    while not any(name in own for name in names):
        prefix = next((p for p in _PREFIXES if any(name.startswith(p) for name in names)), None)
        if prefix is None:
            return dict(given)
        names = {name.removeprefix(prefix): tensor for name, tensor in names.items()}
    return names


def _other_heads(
    given: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[tuple[int, int], list[str]] | None:
    """((classes given, classes needed), tensors) where all that differs is the size of the outputs.

    An inner layer of another width would differ from its reader, too, in the size of the inputs.
    """
    names = [name for name in given if name in own and given[name].shape != own[name].shape]
    sizes: set[tuple[int, int]] = set()
    for name in names:
        theirs, needed = given[name].shape, own[name].shape
        if not theirs or len(theirs) != len(needed) or theirs[1:] != needed[1:]:
            return None
        sizes.add((theirs[0], needed[0]))
    owners = {name.rpartition(".")[0] for name in names}
    whole = {n for n in own if n.rpartition(".")[0] in owners}
    return (sizes.pop(), names) if len(sizes) == 1 and whole == set(names) else None


def _check_fit(given: Mapping[str, Tensor], own: Mapping[str, Tensor], origin: str, what: str) -> None:
    """Raise :class:`CheckpointError` unless names, shapes and kinds of numbers fit."""
    # Files older than PyTorch 0.4.1 lack the counters; they matter to no result.
    missing = [name for name in own if name not in given and not name.endswith(_COUNTERS)]
    unknown = sorted(set(given) - set(own))
    shapes = [
        f"{name!r} has shape {tuple(given[name].shape)}, needed is {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in given and given[name].shape != tensor.shape
    ]
    problems = [
        text
        for text, names in (
            ("it has no tensor {}", [repr(name) for name in missing]),
            (f"{what} has no tensor {{}}", [repr(name) for name in unknown]),
            ("tensor {}", shapes),
        )
        if names
        for text in [text.format(_first(names))]
    ]
    if problems:
        raise CheckpointError(f"{origin} is of another model than {what}: {'; '.join(problems)}")
    for name, tensor in own.items():
        if name in given and tensor.is_floating_point() and not given[name].is_floating_point():
            raise CheckpointError(
                f"tensor {name!r} of {origin} holds {str(given[name].dtype).removeprefix('torch.')}, a "
                "quantised or integer weight; give the floating-point weights"
            )


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def timm_file(model: nn.Module) -> Path | None:
    """timm's weights of a model of timm's in the caches on this disk; None if it is not timm's.

    Looked for are the Hugging Face hub's cache, then torch's hub folder. Nothing is downloaded.

    Raises:
        CheckpointError: it is a model of timm's, and its weights are in neither.
    """
    settings = getattr(model, "pretrained_cfg", None)
    if not isinstance(settings, Mapping):
        return None
    repository, address = settings.get("hf_hub_id"), settings.get("url")
    if repository:
        from huggingface_hub import try_to_load_from_cache

        for file in (settings.get("hf_hub_filename"), "model.safetensors", "pytorch_model.bin"):
            cached = try_to_load_from_cache(repository, file) if file else None
            if isinstance(cached, str):
                return Path(cached)
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if address and (folder / Path(address).name).is_file():
        return folder / Path(address).name
    name = settings.get("architecture") or type(model).__name__
    raise CheckpointError(
        f"the pretrained weights of timm's {name!r} are not on this disk and are never downloaded: put "
        f"{repository or 'them'} into the Hugging Face hub's cache"
        + (f" or {Path(address).name} into {folder}" if address else "")
        + ", or give another local file"
    )
