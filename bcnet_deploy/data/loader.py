"""Batches for training: shuffled, sharded, augmented on the training device, resumable exactly.

Nothing random here has a state: the order of an epoch and the crops of a batch are functions of
(seed, epoch, batch). So the position is all that a checkpoint needs, and it does not matter how many
workers read ahead.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast, overload

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from bcnet_deploy.data.splits import DataSplits, ImageSet
from bcnet_deploy.errors import CheckpointError, ConfigError, DataError

AUGMENTATIONS = ("none", "crop", "crop-flip", "resized-crop-flip")
_ORDER, _CROP = 0, 1


def _generator(seed: int, *counters: int) -> torch.Generator:
    """A generator that is a function of its arguments (NumPy's SeedSequence mixes them well)."""
    state = np.random.SeedSequence([seed, *counters]).generate_state(1, dtype=np.uint64)[0]
    return torch.Generator().manual_seed(int(state) & (2**63 - 1))


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


class _Reader(Dataset[tuple[torch.Tensor, int]]):
    """Decodes in a worker; keys are (image, crop seed or -1)."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, int]:
        index, seed = key
        return self.images.read(index, None if seed < 0 else seed), int(self.images.labels[index])


class BatchLoader:
    """Endless training batches; the same (seed, position) gives the same batch in any process.

    Args:
        images: the training images.
        batch_size: images of a step, over all ranks together.
        augmentation: applied on ``device``.
        device: where batches end up; memory is pinned for a GPU.
        seed: of order and crops.
        rank, world: this process's share: consecutive parts of each batch.
        workers: processes that decode, for images on disk.

    Raises:
        DataError: fewer images than a batch.
        ConfigError: the batch does not divide over the ranks.
    """

    def __init__(
        self,
        images: ImageSet,
        batch_size: int,
        augmentation: Augmentation,
        device: torch.device,
        *,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
    ) -> None:
        if batch_size < 1 or batch_size % world:
            raise ConfigError(
                f"batch_size is {batch_size} over {world} process(es); allowed: positive multiples of {world}"
            )
        if len(images) < batch_size:
            raise DataError(
                f"{len(images)} training images are fewer than a batch of {batch_size}; "
                f"lower batch_size to {len(images)} or less, or add images"
            )
        self.images = images
        self.batch_size = batch_size
        self.augmentation = augmentation
        self.device = device
        self.seed = seed
        self.rank, self.world = rank, world
        self.workers = workers
        self.position = 0
        self._stream: Iterator[tuple[torch.Tensor, torch.Tensor]] | None = None
        self._order: tuple[int, torch.Tensor] | None = None
        self._memory, self._labels = images.memory, images.labels
        if self._memory is not None and fits_on(device, self._memory):
            # Then a batch is picked where it is needed, and only its indices travel.
            self._memory, self._labels = self._memory.to(device), self._labels.to(device)

    @property
    def batches_per_epoch(self) -> int:
        return len(self.images) // self.batch_size

    @property
    def epoch(self) -> int:
        return self.position // self.batches_per_epoch

    def state_dict(self) -> dict[str, Any]:
        """JSON-able: the position and what gives it meaning."""
        return {
            "position": self.position,
            "seed": self.seed,
            "images": len(self.images),
            "batch": self.batch_size,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at a position. Raises :class:`CheckpointError` if the data, batch or seed is another."""
        own = self.state_dict()
        for key in ("seed", "images", "batch"):
            if state.get(key) != own[key]:
                raise CheckpointError(
                    f"the checkpoint was trained with {key} = {state.get(key)}, this run has {own[key]}; "
                    "resume with the same data, batch size and seed, or start in another folder"
                )
        self.position = int(state["position"])
        self._stream = None

    def indices(self, position: int) -> torch.Tensor:
        """Which images this rank's part of batch ``position`` holds."""
        epoch, batch = divmod(position, self.batches_per_epoch)
        if self._order is None or self._order[0] != epoch:
            shuffled = torch.randperm(len(self.images), generator=_generator(self.seed, _ORDER, epoch))
            self._order = (epoch, shuffled)
        share = self.batch_size // self.world
        start = batch * self.batch_size + self.rank * share
        return self._order[1][start : start + share]

    def next_batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(images (B, C, H, W) float32, labels (B,)) on the device."""
        crops = _generator(self.seed, _CROP, self.position, self.rank)
        decoded_crop = False
        if self._memory is not None:
            chosen = self.indices(self.position).to(self._memory.device, non_blocking=True)
            images, labels = self._memory[chosen], self._labels[chosen]
        else:
            if self._stream is None:
                self._stream = self._read_ahead()
            try:
                images, labels = next(self._stream)
            except DataError as error:
                # A worker's error arrives with its traceback in front of the message.
                raise DataError(str(error).strip().splitlines()[-1].split("DataError: ", 1)[-1]) from error
            decoded_crop = self.augmentation.kind == "resized-crop-flip"
        self.position += 1
        if self.device.type == "cuda" and images.device.type == "cpu" and not images.is_pinned():
            images, labels = images.pin_memory(), labels.pin_memory()
        images = images.to(self.device, non_blocking=True)
        labels = labels.to(self.device, non_blocking=True)
        return self.augmentation(images, crops, cropped=decoded_crop), labels

    def _read_ahead(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        loader: DataLoader[Any] = DataLoader(
            _Reader(self.images),
            batch_sampler=cast(Any, self._keys(self.position)),
            num_workers=self.workers,
            prefetch_factor=4 if self.workers else None,
            pin_memory=self.device.type == "cuda",
        )
        return iter(loader)

    def _keys(self, position: int) -> Iterator[list[tuple[int, int]]]:
        cropping = self.augmentation.kind == "resized-crop-flip"
        while True:
            chosen = self.indices(position).tolist()
            seeds = [-1] * len(chosen)
            if cropping:
                crops = _generator(self.seed, _CROP, position, self.rank, 1)
                seeds = torch.randint(2**62, (len(chosen),), generator=crops).tolist()
            yield list(zip(chosen, seeds, strict=True))
            position += 1


HELD_BYTES = 2**29
"""Evaluation batches up to this size are made once and kept on the device; larger sets are read each time."""


def fits_on(device: torch.device, images: torch.Tensor) -> bool:
    """Whether a whole set may stay on a GPU: up to a tenth of its free memory."""
    return device.type == "cuda" and images.numel() <= 0.1 * torch.cuda.mem_get_info(device)[0]


class PlainBatches(Sequence[tuple[torch.Tensor, torch.Tensor]]):
    """Unaugmented, normalised batches on a device, for recalibration and evaluation.

    Args:
        images: in order; all of them unless ``limit``.
        splits: whose mean and deviation to use.
        batch_size: images a batch; the last batch may be smaller.
        device: where the batches end up.
        limit: take this many images, drawn once over the whole set (which may be sorted by class).
        channels_last: memory order of the images.
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
    ) -> None:
        self._images, self._device, self._batch_size = images, device, batch_size
        self._normalise = Augmentation("none", splits.mean, splits.std).normalise
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._chosen = np.arange(len(images))
        if limit is not None and limit < len(images):
            self._chosen = np.random.default_rng(0).permutation(len(images))[:limit]
        count = len(self._chosen) * int(np.prod(splits.input_size)) * 4
        self._held: dict[int, tuple[torch.Tensor, torch.Tensor]] | None = {} if count <= HELD_BYTES else None

    def __len__(self) -> int:
        return -(-len(self._chosen) // self._batch_size)

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
        part = torch.from_numpy(self._chosen[index * self._batch_size : (index + 1) * self._batch_size])
        memory = self._images.memory
        if memory is not None:
            raw = memory[part]
        else:
            with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
                raw = torch.stack(list(pool.map(lambda i: self._images.read(int(i), None), part)))
        batch = self._normalise(raw.to(self._device)).contiguous(memory_format=self._layout)
        return batch, self._images.labels[part].to(self._device)
