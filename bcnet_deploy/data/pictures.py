"""From an image file to the network's input: one description, which decoding itself follows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Gt, Le
from PIL import Image, UnidentifiedImageError

from bcnet_deploy.data.augment import crop_boxes
from bcnet_deploy.errors import BCNetError, DataError
from bcnet_deploy.validation import Checked

PHOTOGRAPH_SIZE = 96
PHOTOGRAPH_CROP = 0.875

UNREADABLE = (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What decoding a damaged file raises."""

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Size = Annotated[int, Gt(0), Le(2**16)]


@dataclass(frozen=True, kw_only=True)
class View(Checked):
    """Which part of a picture the network sees, and at what size.

    The part is the largest centred one of the input's aspect ratio, or less of it (``crop``).

    Attributes:
        input_size: (C, H, W); C is 1 or 3.
        interpolation: of the resize, with antialiasing.
        crop: share of the part's sides that is kept where a picture is larger than the input. By default
            0.875 for inputs from 96 pixels, which are photographs, and 1 for smaller ones (CIFAR's).
    """

    error: ClassVar[type[BCNetError]] = DataError
    noun: ClassVar[str] = "preprocessing"

    input_size: tuple[Size, Size, Size]
    interpolation: Interpolation = "bilinear"
    crop: Annotated[float, Gt(0), Le(1)] | None = None

    def check(self) -> None:
        if self.input_size[0] not in (1, 3):
            raise DataError(f"image files give 1 or 3 channels; the model takes {self.input_size[0]}")

    @property
    def mode(self) -> Literal["L", "RGB"]:
        return "RGB" if self.input_size[0] == 3 else "L"

    @property
    def kept(self) -> float:
        """:attr:`crop`, or its default."""
        photograph = min(self.input_size[1:]) >= PHOTOGRAPH_SIZE
        return self.crop if self.crop is not None else PHOTOGRAPH_CROP if photograph else 1.0

    def box(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) of the part, for a picture of (width, height)."""
        _, height, width = self.input_size
        scale = min(size[0] / width, size[1] / height)
        if scale > 1:
            scale *= self.kept
        left, top = (size[0] - width * scale) / 2, (size[1] - height * scale) / 2
        return left, top, left + width * scale, top + height * scale

    def apply(
        self, picture: Image.Image, augment_seed: int | None = None, size: tuple[int, int] | None = None
    ) -> torch.Tensor:
        """(C, H, W) uint8 of an upright picture in :attr:`mode`; with a seed a random-resized crop of it.

        Args:
            picture: what is seen.
            augment_seed: of the crop.
            size: (width, height) of the picture where it was shrunk while it was decoded.
        """
        filtered = Image.Resampling[self.interpolation.upper()]
        array = np.array(self._resized(picture, augment_seed, filtered, size), dtype=np.uint8)
        return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1)).contiguous()

    def apply_mask(self, mask: Image.Image, augment_seed: int | None = None) -> torch.Tensor:
        """(H, W) uint8 of the same part of a mask, each pixel the nearest one's class."""
        array = np.array(self._resized(mask, augment_seed, Image.Resampling.NEAREST), dtype=np.uint8)
        return torch.from_numpy(array)

    def _resized(
        self, picture: Image.Image, augment_seed: int | None, filtered: Image.Resampling,
        size: tuple[int, int] | None = None,
    ) -> Image.Image:  # fmt: skip
        target = (self.input_size[2], self.input_size[1])
        # A JPEG's sides are rounded where it is shrunk. Its mask's are not: the box is of the whole picture.
        whole = size or picture.size
        if augment_seed is not None:
            generator = torch.Generator().manual_seed(augment_seed)
            shares = crop_boxes(torch.tensor([whole[0] / whole[1]]), generator)[0].tolist()
            sides = picture.size * 2
            left, top, right, bottom = (share * side for share, side in zip(shares, sides, strict=True))
            return picture.resize(target, filtered, box=(left, top, right, bottom))
        if picture.size == target:
            return picture
        gap = None if filtered is Image.Resampling.NEAREST else 3.0
        places = zip(self.box(whole), picture.size * 2, whole * 2, strict=True)
        left, top, right, bottom = (place * side / before for place, side, before in places)
        return picture.resize(target, filtered, box=(left, top, right, bottom), reducing_gap=gap)


@dataclass(frozen=True)
class Preprocessing:
    """How the network's input is made, for whoever runs the exported network.

    Attributes:
        input_size: (C, H, W).
        mean, std: of each channel, values taken as 0..1.
        view: for image files; None where the data came as arrays of the input's size.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    view: View | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able. ``steps`` says in words and in order what the other keys say in figures.

        ``crop`` is the share of the centre's sides that is resized, of pictures larger than the input.
        ``resize``, ``crop`` and ``interpolation`` are None where the data came as arrays.
        """
        view, (channels, height, width) = self.view, self.input_size
        steps = ["divide by 255, so that values are 0..1", "subtract mean and divide by std, by channel"]
        if view is not None:
            kept = f", of larger pictures {view.kept:g} of its sides" if view.kept < 1 else ""
            steps = [
                "turn the picture upright by its EXIF orientation, and lay it on white if it is transparent",
                f"convert it to {view.mode}",
                f"take its centre: the largest part of aspect ratio {width}:{height}{kept}",
                f"resize that to {height}x{width} (height x width), {view.interpolation}, antialiased",
                *steps,
            ]
        return {
            "layout": "NCHW", "channels": {3: "RGB", 1: "grey"}.get(channels, str(channels)),
            "size": [height, width], "value_range": [0.0, 1.0],
            "mean": list(self.mean), "std": list(self.std),
            "formula": "(value - mean) / std, by channel",
            "resize": None if view is None else "centre of the input's aspect ratio",
            "crop": None if view is None else view.kept,
            "interpolation": None if view is None else view.interpolation,
            "steps": steps,
        }  # fmt: skip


Remark = Callable[[str], None]
"""Told what reading a picture changes that its owner should know."""

SIXTEEN_BITS = "have 16 bits a channel, brought to 8 (value / 257)"
TRANSPARENT = "have transparent parts, laid on white"
_ORIENTATION = 0x0112


def decode(
    path: Path, view: View, augment_seed: int | None = None, remark: Remark = lambda text: None
) -> torch.Tensor:
    """(C, H, W) uint8 of an image file; with a seed a random crop. Raises one of :data:`UNREADABLE`."""
    with Image.open(path) as image:
        size = _shown_size(image)
        if image.format == "JPEG":
            longest = 2 * max(view.input_size[1:])  # the picture may lie on its side
            image.draft(view.mode, (longest, longest))
        return view.apply(upright(image, view.mode, remark), augment_seed, size)


def upright(image: Image.Image, mode: Literal["L", "RGB"], remark: Remark = lambda text: None) -> Image.Image:
    """A picture as a viewer shows it: turned by its EXIF orientation, laid on white, 8 bits a channel.

    Raises:
        ValueError: pixels of 32 bits, whose range no file says.
    """
    if has_16_bits(image):
        remark(SIXTEEN_BITS)
        values = np.asarray(image).astype(np.float64)
        turned = Image.fromarray(np.round(values / 257).clip(0, 255).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits, and no file says their range; save it with 8 or 16 bits")
    else:
        turned = image
    if 1 < _orientation(image) <= 8:
        turned = turned.transpose(_TURNS[_orientation(image)])
    if may_be_transparent(turned):
        picture = turned.convert("RGBA")
        if picture.getchannel("A").getextrema()[0] < 255:  # type: ignore[operator]
            remark(TRANSPARENT)
        turned = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return turned.convert(mode)


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""What undoes each EXIF orientation."""


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # EXIF is often damaged, and Pillow raises whatever comes up: then it says nothing
        return 1
    return found if isinstance(found, int) else 1


def has_16_bits(image: Image.Image) -> bool:
    """Whether grey values are 0..65535; Pillow itself cuts them off at 255."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def may_be_transparent(image: Image.Image) -> bool:
    """Whether the picture has an alpha channel or a transparent colour."""
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


# -- masks ----------------------------------------------------------------------------------------

ONLY_IGNORED = "255 stands for no class: number the classes from 0, so save the foreground as 1"
"""Said of masks of 0 and 255, which many programs write."""


def decode_mask(path: Path, view: View, augment_seed: int | None = None) -> torch.Tensor:
    """(H, W) uint8 class numbers of the part of a mask that :func:`decode` shows of its image.

    Raises one of :data:`UNREADABLE`.
    """
    return view.apply_mask(Image.fromarray(class_numbers(path)), augment_seed)


def class_numbers(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """(H, W) of a mask file: its values, or the indices of its palette. Raises one of :data:`UNREADABLE`."""
    with Image.open(path) as image:
        if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
            raise ValueError(f"its mode is {image.mode}; needed: one channel of class numbers, 255 for none")
        values = np.asarray(image)
    if values.max(initial=0) > 255:
        raise ValueError(f"it holds {int(values.max())}; needed: class numbers, 255 for none")
    return values.astype(np.uint8)


def upright_size(path: Path) -> tuple[int, int]:
    """(width, height) of a picture as shown, from its header. Raises one of :data:`UNREADABLE`."""
    with Image.open(path) as image:
        return _shown_size(image)


def _shown_size(image: Image.Image) -> tuple[int, int]:
    return (image.height, image.width) if 5 <= _orientation(image) <= 8 else image.size
