"""torchvision's classifiers, by their torchvision names."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision import models as tv

from bcnet_deploy.errors import CheckpointError

# The auxiliary heads are training aids of these papers; without the
# heads the network returns one tensor in both modes, as every other classifier does.
_EXTRA_ARGUMENTS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


@functools.cache
def names() -> tuple[str, ...]:
    """Names of the installed torchvision's classifiers (no quantised, video or detection models)."""
    return tuple(tv.list_models(module=tv))


def build(name: str, num_classes: int) -> nn.Module:
    """The classifier ``name`` of :func:`names` with random weights."""
    model = tv.get_model(name, weights=None, num_classes=num_classes, **_EXTRA_ARGUMENTS.get(name, {}))
    assert isinstance(model, nn.Module)
    return model


def wide_mobilenet_v2(multiplier: float, num_classes: int) -> nn.Module:
    """MobileNetV2 with every width times ``multiplier``, rounded to multiples of 8 as torchvision does."""
    model = tv.mobilenet_v2(width_mult=multiplier, num_classes=num_classes)
    assert isinstance(model, nn.Module)
    return model


_VIT_SIDE = 224  # fixed when it is built; some weights are of larger images


def input_size(name: str) -> tuple[int, int, int]:
    """Input size (channels, height, width) of the evaluation of the default weights of ``name``."""
    if name.startswith("vit_"):
        return (3, _VIT_SIDE, _VIT_SIDE)
    (side,) = set(tv.get_model_weights(name).DEFAULT.transforms().crop_size)
    return (3, side, side)


def pretrained_names(name: str) -> list[str]:
    """File names of all published weights of ``name``, default first; empty if it is not torchvision's."""
    if name not in names():
        return []
    weights = tv.get_model_weights(name)
    return [Path(weights.DEFAULT.url).name, *(Path(entry.url).name for entry in weights)]


def pretrained_file(name: str) -> Path:
    """torchvision's weights of ``name`` in torch's hub folder; the default ones, or else older ones.

    Raises:
        CheckpointError: there are none for this model, or none on this disk.
    """
    files = pretrained_names(name)
    if not files:
        raise CheckpointError(
            f"there are no pretrained weights for {name!r}; give a local file, or no weights"
        )
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for file in files:
        if (folder / file).is_file():
            return folder / file
    raise CheckpointError(
        f"the pretrained weights of {name!r} are not on this disk and are never downloaded: "
        f"put {files[0]} into {folder}, or give another local file"
    )


def match_pretrained_input(model: nn.Module) -> None:
    """Make GoogLeNet and Inception v3 scale their input as their published weights expect."""
    if isinstance(model, tv.GoogLeNet | tv.Inception3):
        model.transform_input = True
