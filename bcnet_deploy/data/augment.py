"""Random crops and flips of whole batches, and normalisation, on the training device."""

from __future__ import annotations

from dataclasses import dataclass
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
        kind: ``none``; ``crop`` and ``crop-flip``: a crop out of the image padded by an eighth of its
            size (4 pixels of 32), flipped or not; ``resized-crop-flip``: a crop of 8-100% of the area,
            resized back.
        mean, std: of each channel, images taken as 0..1.
    """

    kind: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.kind not in AUGMENTATIONS:
            raise ConfigError(f"unknown augmentation {self.kind!r}; allowed: {', '.join(AUGMENTATIONS)}")

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) uint8 -> float32 of zero mean and unit deviation."""
        # One fused multiply-add; the constants are made on the device without a copy that waits.
        scale = torch.tensor([1 / (255 * s) for s in self.std]).view(1, -1, 1, 1)
        shift = torch.tensor([-m / s for m, s in zip(self.mean, self.std, strict=True)]).view(1, -1, 1, 1)
        scale = scale.to(images.device, non_blocking=True)
        return torch.addcmul(shift.to(images.device, non_blocking=True), images.float(), scale)

    def __call__(
        self, images: torch.Tensor, generator: torch.Generator, *, cropped: bool = False
    ) -> torch.Tensor:
        """Augment and normalise a batch.

        Args:
            images: (N, C, H, W) uint8, on any device.
            generator: on the CPU, so that every device draws alike and none has to wait.
            cropped: the crop has been made while decoding.
        """
        if self.kind == "none":
            return self.normalise(images)
        count, _, height, width = images.shape
        if self.kind == "resized-crop-flip" and not cropped:
            out = _resized_crop(images, generator)
        elif self.kind in ("crop", "crop-flip"):
            pad = max(1, height // 8)
            shifts = torch.randint(0, 2 * pad + 1, (2, count), generator=generator)
            shifts = shifts.to(images.device, non_blocking=True)
            padded = F.pad(images, (pad, pad, pad, pad))
            rows = shifts[0][:, None] + torch.arange(height, device=images.device)
            columns = shifts[1][:, None] + torch.arange(width, device=images.device)
            which = torch.arange(count, device=images.device)[:, None, None]
            # Advanced indices around a slice put the channels last.
            out = padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        else:
            out = images
        out = self.normalise(out)
        if self.kind == "crop":
            return out
        flips = (torch.rand(count, generator=generator) < 0.5).to(images.device, non_blocking=True)
        return torch.where(flips[:, None, None, None], out.flip(3), out)


def _resized_crop(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image's own box of 8-100% of the area and aspect 3/4-4/3, resampled bilinearly; uint8."""
    count = len(images)
    area = torch.empty(count).uniform_(0.08, 1.0, generator=generator)
    ratio = torch.empty(count).uniform_(-0.2877, 0.2877, generator=generator).exp()
    height = (area / ratio).sqrt().clamp(max=1.0)
    width = (area * ratio).sqrt().clamp(max=1.0)
    place = torch.rand(2, count, generator=generator) * 2 - 1
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = width, place[0] * (1 - width)
    theta[:, 1, 1], theta[:, 1, 2] = height, place[1] * (1 - height)
    grid = F.affine_grid(theta.to(images.device, non_blocking=True), [*images.shape], align_corners=False)
    return F.grid_sample(
        images.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False
    ).round().to(torch.uint8)  # fmt: skip
