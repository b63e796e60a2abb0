"""Names -> models."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from bcnet_deploy.errors import ModelError, UnknownModelError, nearest
from bcnet_deploy.models import channel_bench, checkpoints, cifar, demo, demo_segmentation, user, zoo
from bcnet_deploy.models.libraries import InputConfig, is_library_model, library_model, torchvision_input
from bcnet_deploy.models.ref import PRETRAINED
from bcnet_deploy.references import is_reference

_WIDENED = re.compile(r"mobilenet_v2_(\d+(?:\.\d+)?)x")


@dataclass(frozen=True)
class _Entry:
    """How to build one model, and what it is usually fed with."""

    build: Callable[[int], nn.Module]
    num_classes: int
    input_size: tuple[int, int, int]


_OWN: dict[str, _Entry] = {
    "demo": _Entry(demo.demo_net, 10, (1, 16, 16)),
    "demo_segmentation": _Entry(demo_segmentation.demo_segmentation, 11, (1, 24, 24)),
    "vgg19_cifar10": _Entry(cifar.vgg19, 10, (3, 32, 32)),
    "mobilenet_v2_cifar10": _Entry(cifar.mobilenet_v2, 10, (3, 32, 32)),
    "channel_bench_macro_mobilenet": _Entry(channel_bench.mobilenet, 10, (3, 32, 32)),
    "channel_bench_macro_resnet": _Entry(channel_bench.resnet, 10, (3, 32, 32)),
}


def model_names() -> list[str]:
    """Every name that :func:`build_model` knows, sorted.

    Not listed, but also built: ``mobilenet_v2_<multiplier>x`` for any multiplier, models of libraries as
    ``timm:NAME``, ``torchvision:NAME`` and ``smp:ARCHITECTURE/ENCODER``, and one's own as
    ``package.module:function`` or ``file.py:function``.
    """
    return sorted([*_OWN, *zoo.names(), "mobilenet_v2_1.5x"])


def _entry(name: str) -> _Entry:
    """The entry of a name that is not the user's. Raises :class:`UnknownModelError`."""
    if is_library_model(name):
        model = library_model(name)
        return _Entry(model.build, model.num_classes, model.input_size)
    if name in _OWN:
        return _OWN[name]
    if name in zoo.names():
        return _Entry(lambda classes: zoo.build(name, classes), 1000, zoo.input_size(name))
    widened = _WIDENED.fullmatch(name)
    if widened:
        multiplier = float(widened.group(1))
        if not 0.05 <= multiplier <= 16:
            raise UnknownModelError(
                f"{name!r} has the width multiplier {multiplier:g}; allowed are 0.05 to 16"
            )
        return _Entry(lambda classes: zoo.wide_mobilenet_v2(multiplier, classes), 1000, (3, 224, 224))
    known = model_names()
    raise UnknownModelError(
        f"no model is called {name!r}{nearest(name.lower(), known)}; known are {len(known)} names "
        "(bcnet_deploy.models.model_names()), 'mobilenet_v2_<multiplier>x', "
        "'timm:NAME', 'torchvision:NAME', 'smp:ARCHITECTURE/ENCODER', "
        "and functions of your own as 'package.module:function' or 'file.py:function'"
    )


def default_num_classes(name: str) -> int:
    """Number of classes that the model called ``name`` usually has.

    Of the user's own functions it is the default of their argument ``num_classes``, or what a function
    without this argument builds; 1000 where neither says.

    Raises:
        UnknownModelError: no such model.
        ModelError: the user's function cannot be imported, or fails.
    """
    return user.default_num_classes(name) if _is_own(name) else _entry(name).num_classes


def default_input_size(name: str) -> tuple[int, int, int]:
    """Input size (channels, height, width) that ``name`` is usually run at.

    For torchvision's models the size of their default weights' evaluation (299 for inception_v3);
    3x224x224 for the user's own functions.

    Raises:
        UnknownModelError: no such model.
    """
    return (3, 224, 224) if _is_own(name) else _entry(name).input_size


def input_config(name: str) -> InputConfig | None:
    """What the published weights of ``name`` were made for: size, mean, deviation, interpolation and crop.

    None for the user's own functions, our own networks, and where the library does not say.

    Raises:
        UnknownModelError: no such model.
    """
    if _is_own(name):
        return None
    if is_library_model(name):
        return library_model(name).input_config
    _entry(name)
    if name in _OWN:
        return None
    return torchvision_input("mobilenet_v2" if _WIDENED.fullmatch(name) else name)


def _is_own(name: str) -> bool:
    return is_reference(name) and not is_library_model(name)


def build_model(
    name: str | nn.Module | Callable[..., nn.Module],
    num_classes: int | None = None,
    weights: str | Path | None = None,
    *,
    new_head: bool = False,
) -> nn.Module:
    """The model called ``name``, in training mode, on the CPU, in float32.

    Args:
        name: one of :func:`model_names`, ``mobilenet_v2_<multiplier>x``, ``timm:NAME``, ``torchvision:NAME``,
            ``smp:ARCHITECTURE/ENCODER``; or a function of the user, itself or as ``package.module:function``
            or ``file.py:function``, which is called with ``num_classes`` if it takes such an argument; or a
            module, which is returned itself.
        num_classes: outputs of the classifier; None for the model's usual number
            (1000 for torchvision's, 10 for the CIFAR, Channel-Bench and demo networks).
        weights: None (random, from torch's global generator), a local ``.safetensors`` or torch checkpoint
            (read without unpickling code), or "pretrained": torchvision's or timm's default weights if
            the caches on this disk already hold them, with a new classifier for another number of classes.
            Nothing is ever downloaded.
        new_head: weights for another number of classes are accepted; the model keeps its own classifier.

    Raises:
        UnknownModelError: no model has this name; the nearest names are offered.
        ModelError: ``num_classes`` is not positive, or the user's function fails.
        NonFiniteWeightError: a weight is NaN or infinite.
        CheckpointError: the weights cannot be read, or belong to another model.
    """
    if not isinstance(name, str) and not callable(name):
        raise ModelError(
            f"a model is a name, a function that returns a torch.nn.Module, or a module; "
            f"given: {type(name).__name__}"
        )
    if num_classes is not None and (isinstance(num_classes, bool) or int(num_classes) < 1):
        raise ModelError(f"num_classes is a positive integer; given: {num_classes!r}")
    if isinstance(name, nn.Module):
        model, name = name, type(name).__name__
    elif not isinstance(name, str):
        model, name = user.called(name, num_classes), getattr(name, "__name__", type(name).__name__)
    elif _is_own(name):
        model = user.build(name, num_classes)
    else:
        entry = _entry(name)
        model = entry.build(entry.num_classes if num_classes is None else int(num_classes))
    if weights is not None:
        pretrained = str(weights) == PRETRAINED
        plain = name.removeprefix("torchvision:")
        path = checkpoints.timm_file(model) or zoo.pretrained_file(plain) if pretrained else Path(weights)
        if path.name in zoo.pretrained_names(plain):
            zoo.match_pretrained_input(model)
        checkpoints.load_weights(model, path, new_head=new_head or pretrained, what=f"model {name!r}")
    checkpoints.check_finite(model, f"model {name!r}")
    return model
