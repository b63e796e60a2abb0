"""Random crops and flips of whole batches, of what they show, and normalisation, on the training device."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch.nn import functional as F

from bcnet_deploy.errors import ConfigError

Augment = Literal["none", "crop", "crop-flip", "resized-crop-flip"]
AUGMENTATIONS: tuple[str, ...] = get_args(Augment)


@dataclass(frozen=True)
class Augmentation:
    """Random crop and flip of a batch, then normalisation, on the batch's device.

    Each image has its own crop and flip; torchvision's transforms draw one for a whole batch.

    Attributes:
        kind: ``none``; ``crop`` and ``crop-flip``: a crop out of the image padded by an eighth of each
            side (4 pixels of 32), flipped or not; ``resized-crop-flip``: :func:`crop_boxes`, resized back
            (of files, the crop is taken from the whole picture while it is decoded).
        mean, std: of each channel, images taken as 0..1.
    """

    kind: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.kind not in AUGMENTATIONS:
            raise ConfigError(f"unknown augmentation {self.kind!r}; allowed: {', '.join(AUGMENTATIONS)}")

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) uint8, or float 0..1 -> float32 of zero mean and unit deviation."""
        # One fused multiply-add; the constants are made on the device without a copy that waits.
        largest = 255 if images.dtype == torch.uint8 else 1
        scale = torch.tensor([1 / (largest * s) for s in self.std]).view(1, -1, 1, 1)
        shift = torch.tensor([-m / s for m, s in zip(self.mean, self.std, strict=True)]).view(1, -1, 1, 1)
        scale = scale.to(images.device, non_blocking=True)
        return torch.addcmul(shift.to(images.device, non_blocking=True), images.float(), scale)

    def __call__(
        self, images: torch.Tensor, generator: torch.Generator, *, cropped: bool = False
    ) -> torch.Tensor:
        """Augment and normalise a batch.

        Args:
            images: (N, C, H, W) uint8, or float 0..1, on any device.
            generator: on the CPU, so that every device draws alike and none has to wait.
            cropped: the crop has been made while decoding.
        """
        return self.pair(images, None, generator, cropped=cropped)[0]

    def draw(self, images: torch.Tensor, generator: torch.Generator, *, cropped: bool = False) -> Moves:
        """One move for each image of a batch, see :meth:`__call__`."""
        count, (height, width), device = len(images), images.shape[2:], images.device
        moves = Moves(count, height, width)
        if self.kind == "resized-crop-flip" and not cropped:
            moves = replace(moves, boxes=crop_boxes(torch.full((count,), width / height), generator))
        elif self.kind in ("crop", "crop-flip"):
            pad = (max(1, height // 8), max(1, width // 8))
            shifts = torch.stack([torch.randint(0, 2 * p + 1, (count,), generator=generator) for p in pad])
            moves = replace(moves, pad=pad, shifts=shifts.to(device, non_blocking=True))
        if self.kind in ("crop-flip", "resized-crop-flip"):
            flips = (torch.rand(count, generator=generator) < 0.5).to(device, non_blocking=True)
            moves = replace(moves, flips=flips)
        return moves

    def pair(
        self,
        images: torch.Tensor,
        masks: torch.Tensor | None,
        generator: torch.Generator,
        *,
        cropped: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """:meth:`__call__` for images and masks (N, H, W), moved alike; what comes from outside is 255."""
        moves = self.draw(images, generator, cropped=cropped)
        moved = None if masks is None else moves.maps(masks, OUTSIDE)
        return self.normalise(moves.maps(images, smooth=True)), moved


@dataclass(frozen=True)
class Moves:
    """How each image of a batch was cropped and flipped, to do the same to what says something of places.

    A task's ``move`` is given one, with the targets of the batch: :meth:`points` for coordinates,
    :meth:`maps` for a value at each pixel, ``flips`` for what changes its sides alone.

    Attributes:
        count, height, width: of the images.
        pad, shifts: where images were padded by ``pad`` rows and columns on each side, (2, N) rows and
            columns at which the crops begin; else zeros and None.
        boxes: (N, 4) boxes of :func:`crop_boxes`, resized to the image; None where there is none.
        flips: (N,) bool, left and right exchanged after the crop; None where none is.
    """

    count: int
    height: int
    width: int
    pad: tuple[int, int] = (0, 0)
    shifts: torch.Tensor | None = None
    boxes: torch.Tensor | None = None
    flips: torch.Tensor | None = None

    def maps(self, values: torch.Tensor, outside: float = 0, *, smooth: bool = False) -> torch.Tensor:
        """A value at each pixel, (N, H, W) or (N, C, H, W), moved as the images were.

        Args:
            values: of any type.
            outside: what pixels from beyond the image get.
            smooth: resize by interpolation, not by the nearest pixel.
        """
        if values.ndim == 3:
            return self.maps(values[:, None], outside, smooth=smooth)[:, 0]
        if self.boxes is not None:
            values = _resized(values, self.boxes, "bilinear" if smooth else "nearest")
        elif self.shifts is not None:
            values = _shifted(values, self.shifts, self.pad, outside)
        if self.flips is not None:
            values = torch.where(self.flips[:, None, None, None], values.flip(3), values)
        return values

    def points(self, xy: torch.Tensor) -> torch.Tensor:
        """Points (N, ..., 2), x and y as shares of width and height from the upper left corner, moved.

        Points that the crop has left out come to lie below 0 or above 1. A box has two points; after a flip
        its left side is the one that was the right: exchange them where ``flips`` is true.
        """
        scale, offset = torch.ones(self.count, 2), torch.zeros(self.count, 2)
        if self.boxes is not None:
            scale = 1 / (self.boxes[:, 2:] - self.boxes[:, :2])
            offset = -self.boxes[:, :2] * scale
        elif self.shifts is not None:
            sides = torch.tensor([self.width, self.height], device=self.shifts.device)
            pads = torch.tensor(self.pad[::-1], device=self.shifts.device)
            offset = (pads - self.shifts.flip(0).T) / sides
        scale, offset = scale.to(xy), offset.to(xy)
        if self.flips is not None:
            flips = self.flips.to(xy.device)
            turned = torch.stack([flips, torch.zeros_like(flips)], dim=1)
            scale, offset = torch.where(turned, -scale, scale), torch.where(turned, 1 - offset, offset)
        shape = (self.count, *[1] * (xy.ndim - 2), 2)
        return xy * scale.view(shape) + offset.view(shape)


OUTSIDE = 255
"""Label of mask pixels from beyond the picture: they belong to no class."""


def _shifted(images: torch.Tensor, shifts: torch.Tensor, pad: tuple[int, int], fill: float) -> torch.Tensor:
    """Each image's own window of its size, ``shifts`` (2, N) down and right in the padded image."""
    count, _, height, width = images.shape
    rows_added, columns_added = pad
    padded = F.pad(images, (columns_added, columns_added, rows_added, rows_added), value=fill)
    rows = shifts[0][:, None] + torch.arange(height, device=images.device)
    columns = shifts[1][:, None] + torch.arange(width, device=images.device)
    which = torch.arange(count, device=images.device)[:, None, None]
    # Advanced indices around a slice put the channels last.
    return padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


_TRIES = 10
_NARROWEST = 3 / 4


def crop_boxes(aspects: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """(N,) widths / heights of images -> (N, 4) boxes: left, top, right, bottom as shares of width, height.

    Each box has 8-100% of the area and an aspect ratio of 3/4-4/3, the usual ImageNet crop (Szegedy et al.,
    "Going deeper with convolutions", section 6). What does not fit is drawn again. After ten draws it is the
    largest box in the middle.
    """
    count = len(aspects)
    area = torch.empty(_TRIES, count).uniform_(0.08, 1.0, generator=generator)
    ratio = torch.empty(_TRIES, count).uniform_(-1, 1, generator=generator).mul(-math.log(_NARROWEST)).exp()
    widths, heights = (area * ratio / aspects).sqrt(), (area / ratio * aspects).sqrt()
    fits = (widths <= 1) & (heights <= 1)
    first = fits.to(torch.uint8).argmax(0, keepdim=True)
    allowed = aspects.clamp(_NARROWEST, 1 / _NARROWEST)
    found = fits.any(0)
    width = torch.where(found, widths.gather(0, first)[0], (allowed / aspects).clamp(max=1))
    height = torch.where(found, heights.gather(0, first)[0], (aspects / allowed).clamp(max=1))
    place = torch.rand(2, count, generator=generator)
    left, top = torch.where(found, place, 0.5) * (1 - torch.stack([width, height]))
    return torch.stack([left, top, left + width, top + height], dim=1)


def _resized(images: torch.Tensor, boxes: torch.Tensor, mode: str) -> torch.Tensor:
    """Each image's own box of :func:`crop_boxes`, at the images' size and of their dtype."""
    boxes = boxes * 2 - 1
    theta = torch.zeros(len(images), 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = (boxes[:, 2] - boxes[:, 0]) / 2, (boxes[:, 2] + boxes[:, 0]) / 2
    theta[:, 1, 1], theta[:, 1, 2] = (boxes[:, 3] - boxes[:, 1]) / 2, (boxes[:, 3] + boxes[:, 1]) / 2
    grid = F.affine_grid(theta.to(images.device, non_blocking=True), [*images.shape], align_corners=False)
    out = F.grid_sample(images.float(), grid, mode=mode, padding_mode="reflection", align_corners=False)
    return out if images.is_floating_point() else out.round().to(images.dtype)
