"""Batches for evaluation: in order, unaugmented, kept on the device where they fit."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch

from bcnet_deploy.data.augment import Augmentation
from bcnet_deploy.data.splits import DataSplits, ImageSet, as_targets

HELD_BYTES = 2**29
"""Evaluation batches up to this size are made once and kept on the device; larger sets are read each time."""


def drawing_order(count: int) -> npt.NDArray[np.int64]:
    """Indices of ``count`` images in the order in which a limit takes them, always the same."""
    return np.random.default_rng(0).permutation(count)


def in_memory_order(images: torch.Tensor, *, channels_last: bool) -> torch.Tensor:
    """(N, C, H, W) images in channels_last or plain order.

    Images of one channel are both at once to PyTorch, which then may choose channels_last kernels. Plain
    order is made certain: a model whose ``view`` cannot take the other depends on it.
    """
    if channels_last:
        return images.contiguous(memory_format=torch.channels_last)
    plain = torch.empty(images.shape, device="meta").stride()
    if images.stride() == plain:
        return images
    return torch.empty(images.shape, dtype=images.dtype, device=images.device).copy_(images)


class PlainBatches(Sequence[tuple[torch.Tensor, torch.Tensor]]):
    """Unaugmented, normalised batches on a device, for recalibration and evaluation.

    Args:
        images: in order, and all of them, unless ``limit`` or ``mixed``.
        splits: whose mean and deviation to use.
        batch_size: images a batch; the last batch may be smaller. A last batch of one image joins the one
            before: batch norm in training mode takes no single images.
        device: where the batches end up.
        limit: take at most this many images, drawn once over the whole set (which may be sorted by class), in
            the order of the draw: statistics of batches of one class each would lack what classes differ by.
        channels_last: memory order of the images.
        mixed: all of them in the order of a draw too, so that the first ones are a fair sample.
    """

    def __init__(
        self,
        images: ImageSet,
        splits: DataSplits,
        batch_size: int,
        device: torch.device,
        *,
        limit: int | None = None,
        channels_last: bool = True,
        mixed: bool = False,
    ) -> None:
        self._images, self._device, self._batch_size = images, device, batch_size
        self._normalise = Augmentation("none", splits.mean, splits.std).normalise
        self._channels_last = channels_last
        self._chosen = np.arange(len(images))
        if mixed or limit is not None:
            self._chosen = drawing_order(len(images))[:limit]
        count = len(self._chosen) * int(np.prod(splits.input_size)) * 4
        self._held: dict[int, tuple[torch.Tensor, torch.Tensor]] | None = {} if count <= HELD_BYTES else None

    def __len__(self) -> int:
        full, rest = divmod(len(self._chosen), self._batch_size)
        return full + (rest > 1 or (rest == 1 and full == 0))

    @overload
    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]: ...

    @overload
    def __getitem__(self, index: slice) -> list[tuple[torch.Tensor, torch.Tensor]]: ...

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        if self._held is None:
            return self._read(index)
        if index not in self._held:
            self._held[index] = self._read(index)
        return self._held[index]

    @property
    def image_count(self) -> int:
        """Images over all the batches."""
        return len(self._chosen)

    def _read(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        end = (index + 1) * self._batch_size if index + 1 < len(self) else None
        part = torch.from_numpy(self._chosen[index * self._batch_size : end])
        memory = self._images.memory
        if memory is not None:
            raw, labels = memory[part], self._images.labels[part]
        else:
            with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
                raw = torch.stack(list(pool.map(lambda i: self._images.read(int(i), None), part)))
                labels = torch.stack(list(pool.map(lambda i: self._images.target(int(i), None), part)))
        batch = self._normalise(raw.to(self._device))
        return in_memory_order(batch, channels_last=self._channels_last), as_targets(labels.to(self._device))
