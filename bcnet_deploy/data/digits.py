"""The embedded data: scikit-learn's 1,797 handwritten digits of 8x8 pixels, no download."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from bcnet_deploy.data.splits import (
    DataSplits,
    ImageSet,
    MemoryImages,
    channel_statistics,
    held_out_share,
    stratified_split,
)

TEST_FRACTION = 0.25


def load_digits(input_size: tuple[int, int, int], val_fraction: float | None = None) -> DataSplits:
    """Digits as (C, H, W) images: grey repeated to C channels, 8x8 resized bilinearly where H, W differ.

    A fixed quarter, the same share of each class, is the test split; ``val_fraction`` of the rest is
    held out for validation.
    """
    from sklearn.datasets import load_digits as sklearn_digits

    bunch = sklearn_digits()
    labels = bunch.target.astype(np.int64)
    grey = np.round(bunch.images * (255.0 / 16.0)).astype(np.uint8)
    rest, test = stratified_split(labels, TEST_FRACTION)
    fraction = held_out_share(len(rest)) if val_fraction is None else val_fraction
    kept, held = stratified_split(labels[rest], fraction)

    def images(indices: npt.NDArray[np.int64]) -> MemoryImages:
        return MemoryImages(
            _fit(torch.from_numpy(grey[indices]), input_size), torch.from_numpy(labels[indices])
        )

    def open_test() -> ImageSet:
        return images(test)

    train = images(rest[kept])
    mean, std = channel_statistics(train.images)
    return DataSplits(
        name="digits", train=train, val=images(rest[held]), classes=tuple(map(str, range(10))),
        input_size=input_size, mean=mean, std=std, open_test=open_test, fingerprint="digits",
    )  # fmt: skip


def _fit(grey: torch.Tensor, input_size: tuple[int, int, int]) -> torch.Tensor:
    """(N, 8, 8) uint8 -> (N, C, H, W) uint8."""
    channels, height, width = input_size
    images = grey[:, None]
    if (height, width) != (8, 8):
        from torchvision.transforms.v2 import functional as transforms

        images = transforms.resize(images, [height, width], antialias=True)
    return images.expand(-1, channels, -1, -1).contiguous()
