"""Models of installed libraries by name: ``torchvision:NAME``, ``timm:NAME``, ``smp:ARCHITECTURE/ENCODER``.

All are built with random weights, and nothing is ever downloaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, get_args

from torch import nn
from torchvision import models as tv

from bcnet_deploy.errors import ModelError, UnknownModelError, nearest

LIBRARIES = ("torchvision", "timm", "smp")
_PACKAGES = {"timm": ("timm", "timm"), "smp": ("segmentation_models_pytorch", "segmentation-models-pytorch")}
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]


@dataclass(frozen=True)
class InputConfig:
    """What a model's published weights were made for.

    Attributes:
        input_size: (channels, height, width).
        mean, std: of each channel, images taken as 0..1.
        interpolation: of the resize: nearest, bilinear, bicubic or lanczos.
        crop: share of the resized picture's sides that is kept, centred.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation
    crop: float


@dataclass(frozen=True)
class LibraryModel:
    """A model of an installed library.

    Attributes:
        library: one of :data:`LIBRARIES`.
        name: its name there.
        num_classes: what it usually has.
        input_size: (channels, height, width) that it is usually run at.
        input_config: of its published weights, or None where the library does not say without a download.
    """

    library: str
    name: str
    num_classes: int
    input_size: tuple[int, int, int]
    input_config: InputConfig | None

    def build(self, num_classes: int) -> nn.Module:
        """The model with random weights. Raises :class:`ModelError` where its library cannot build it."""
        try:
            model = self._build(num_classes)
        except Exception as error:
            raise ModelError(
                f"{self.library} cannot build {self.name!r} for {num_classes} classes "
                f"({type(error).__name__}: {error})"
            ) from error
        assert isinstance(model, nn.Module)
        return model

    def _build(self, num_classes: int) -> Any:
        if self.library == "timm":
            return _library("timm").create_model(self.name, pretrained=False, num_classes=num_classes)
        if self.library == "smp":
            architecture, _, encoder = self.name.partition("/")
            return _library("smp").create_model(
                architecture, encoder_name=encoder, encoder_weights=None, classes=num_classes
            )
        backbone = {"weights_backbone": None} if _has_backbone(self.name) else {}
        return tv.get_model(self.name, weights=None, num_classes=num_classes, **backbone)


def is_library_model(name: str) -> bool:
    """Whether ``name`` has the form ``library:model``."""
    return name.partition(":")[0] in LIBRARIES


def library_model(name: str) -> LibraryModel:
    """The model called ``library:model``.

    Raises:
        UnknownModelError: the library is not installed, or has no such model; the nearest names are offered.
    """
    library, _, own = name.partition(":")
    return {"torchvision": _of_torchvision, "timm": _of_timm, "smp": _of_smp}[library](own)


def torchvision_input(name: str) -> InputConfig:
    """Of the default weights of a model of torchvision's."""
    transforms: Any = tv.get_model_weights(name).DEFAULT.transforms()
    resized, crop = (getattr(transforms, key, None) for key in ("resize_size", "crop_size"))
    side = int((crop or resized or [224])[0])
    share = side / int(resized[0]) if crop and resized else 1.0
    return InputConfig(
        input_size=(3, side, side),
        mean=tuple(getattr(transforms, "mean", (0.0,) * 3)),
        std=tuple(getattr(transforms, "std", (1.0,) * 3)),
        interpolation=_interpolation(getattr(transforms, "interpolation", "bilinear")),
        crop=min(1.0, share),
    )


def _of_torchvision(name: str) -> LibraryModel:
    _require_known("torchvision", name, tv.list_models())
    config = torchvision_input(name)
    categories = tv.get_model_weights(name).DEFAULT.meta.get("categories") or range(1000)
    return LibraryModel("torchvision", name, len(categories), config.input_size, config)


def _of_timm(name: str) -> LibraryModel:
    timm = _library("timm")
    # A tag behind the point names weights: resnet50.a1_in1k.
    _require_known("timm", name.partition(".")[0], timm.list_models())
    published = timm.get_pretrained_cfg(name)
    if published is None:
        return LibraryModel("timm", name, 1000, (3, 224, 224), None)
    config = InputConfig(
        input_size=tuple(published.input_size),
        mean=tuple(published.mean),
        std=tuple(published.std),
        interpolation=_interpolation(published.interpolation),
        crop=float(published.crop_pct),
    )
    return LibraryModel("timm", name, published.num_classes or 1000, config.input_size, config)


def _of_smp(name: str) -> LibraryModel:
    smp = _library("smp")
    architecture, _, encoder = name.partition("/")
    # smp itself takes either case: its classes are called Unet and FPN, its list has unet and fpn.
    _require_known("smp", architecture.lower(), smp.MODEL_ARCHITECTURES_MAPPING)
    if not encoder:
        raise UnknownModelError(f"smp:{name} names no encoder; write smp:{architecture}/resnet18, say")
    if not encoder.startswith("tu-"):  # timm's, of which smp keeps no list
        _require_known("smp", encoder, smp.encoders.encoders)
    return LibraryModel("smp", f"{architecture}/{encoder}", 1, (3, 224, 224), None)


def _has_backbone(name: str) -> bool:
    return name not in tv.list_models(module=tv) and name in tv.list_models(
        module=tv.segmentation
    ) + tv.list_models(module=tv.detection)


def _interpolation(value: Any) -> Interpolation:
    text = str(getattr(value, "value", value))
    return next((known for known in get_args(Interpolation) if known == text), "bilinear")


def _require_known(library: str, name: str, known: Iterable[str]) -> None:
    names = list(known)
    if name not in names:
        raise UnknownModelError(
            f"{library} has no model or part {name!r}{nearest(name, names)}; it has {len(names)}"
        )


def _library(name: str) -> ModuleType:
    module, package = _PACKAGES[name]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UnknownModelError(
            f"models '{name}:...' need {package}, which cannot be imported ({error}); pip install {package}"
        ) from error
