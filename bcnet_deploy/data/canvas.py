"""The embedded data for segmentation: digits of many sizes on a canvas, a label for each pixel."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from bcnet_deploy.data.digits import load_digits
from bcnet_deploy.data.splits import DataSplits, ImageSet, MemoryImages, channel_statistics
from bcnet_deploy.errors import DataError

COUNTS = {"train": 1200, "val": 400, "test": 400}
MOST, SMALLEST, LARGEST = 2, 0.45, 0.6
"""Digits on a canvas, and their side as a share of the canvas's."""

INK = 64
"""From this brightness up a pixel belongs to its digit."""


def load_canvases(input_size: tuple[int, int, int]) -> DataSplits:
    """Canvases (C, H, W) of one or two digits and masks (H, W): 0 is background, n + 1 the digit n.

    The canvases of training, validation and test are made of other handwritten digits each. A digit drawn
    later lies on those before it. The canvases are the same in every run.

    Raises:
        DataError: the canvas is smaller than 16x16.
    """
    channels, height, width = input_size
    if min(height, width) < 16:
        raise DataError(f"digits-canvas: the canvas is {height}x{width}; allowed: 16x16 or more")
    digits = load_digits((1, 8, 8))

    def canvases(source: ImageSet, split: str) -> MemoryImages:
        rng = np.random.default_rng([20210521, list(COUNTS).index(split)])
        glyphs = torch.stack([source.read(index, None) for index in range(len(source))])
        images = torch.zeros(COUNTS[split], height, width)
        masks = torch.zeros(COUNTS[split], height, width, dtype=torch.uint8)
        for image, mask in zip(images, masks, strict=True):
            image += float(rng.uniform(0, 48))
            for _ in range(rng.integers(1, MOST + 1)):
                index = int(rng.integers(len(glyphs)))
                side = max(8, round(min(height, width) * rng.uniform(SMALLEST, LARGEST)))
                top, left = (int(rng.integers(0, whole - side + 1)) for whole in (height, width))
                glyph = F.interpolate(
                    glyphs[index][None].float(), size=[side, side], mode="bilinear", align_corners=False
                )[0, 0]
                place = (slice(top, top + side), slice(left, left + side))
                image[place] = torch.where(glyph >= INK, glyph, image[place])
                mask[place] = torch.where(glyph >= INK, 1 + source.labels[index], mask[place])
        noise = torch.from_numpy(rng.normal(0, 8, images.shape))
        grey = (images + noise).round().clamp(0, 255).to(torch.uint8)
        return MemoryImages(grey[:, None].expand(-1, channels, -1, -1).contiguous(), masks)

    train = canvases(digits.train, "train")
    mean, std = channel_statistics(train.images)
    return DataSplits(
        name="digits-canvas", train=train, val=canvases(digits.val, "val"),
        classes=("background", *digits.classes), input_size=input_size, mean=mean, std=std,
        open_test=lambda: canvases(digits.load_test(), "test"), fingerprint="digits-canvas",
    )  # fmt: skip
