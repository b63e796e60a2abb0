"""Batches for training: shuffled, sharded, augmented on the training device, resumable exactly.

Nothing random here has a state: the order of an epoch and the crops of a batch are functions of
(seed, epoch, batch). So the position is all that a checkpoint needs, and it does not matter how many
workers read ahead.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from bcnet_deploy.data.augment import OUTSIDE, Augmentation, Moves
from bcnet_deploy.data.splits import ImageSet, are_masks, are_values, as_targets
from bcnet_deploy.errors import CheckpointError, ConfigError, DataError

_ORDER, _CROP = 0, 1


def _generator(seed: int, *counters: int) -> torch.Generator:
    """A generator that is a function of its arguments (NumPy's SeedSequence mixes them well)."""
    state = np.random.SeedSequence([seed, *counters]).generate_state(1, dtype=np.uint64)[0]
    return torch.Generator().manual_seed(int(state) & (2**63 - 1))


def fits_on(device: torch.device, images: torch.Tensor) -> bool:
    """Whether a whole set may stay on a GPU: up to a tenth of its free memory."""
    return device.type == "cuda" and images.nbytes <= 0.1 * torch.cuda.mem_get_info(device)[0]


class _Reader(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Decodes in a worker; keys are (image, crop seed or -1)."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        index, seed = key
        crop = None if seed < 0 else seed
        return self.images.read(index, crop), self.images.target(index, crop)


GRACE_S = 10
"""A worker goes on so long after SIGTERM."""


def _leave_signals_to_the_trainer(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach the whole process group: a worker that dies of one at once takes
    the step with it that the trainer wants to finish and save."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE_S))
    signal.signal(signal.SIGALRM, lambda number, frame: os._exit(0))


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
        move: brings targets, other than classes and masks, to where the augmentation moved their images.

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
        move: Callable[[torch.Tensor, Moves], torch.Tensor] | None = None,
    ) -> None:
        if batch_size < 1 or batch_size % world:
            raise ConfigError(
                f"batch_size is {batch_size} over {world} process(es); allowed: positive multiples of {world}"
            )
        if len(images) < batch_size:
            raise DataError(
                f"{len(images)} training images are fewer than a batch of {batch_size}; "
                f"lower batch_size to {len(images)} or less (--set batch_size={len(images)}), or add images"
            )
        self.images = images
        self.batch_size = batch_size
        self.augmentation = augmentation
        self.device = device
        self.seed = seed
        self.rank, self.world = rank, world
        self.workers = workers
        self.move = move
        self.position = 0
        self._stream: Iterator[tuple[torch.Tensor, torch.Tensor]] | None = None
        self._order: tuple[int, torch.Tensor] | None = None
        self._crops = augmentation.kind == "resized-crop-flip" and images.crops
        self._memory = images.memory
        if self._memory is not None:
            self._labels = images.labels
            if fits_on(device, self._memory):
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
                    "resume with the same data, batch size and seed, use another folder, or start anew "
                    "with --fresh"
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
        """(images (B, C, H, W) float32, targets (B, ...) int64 or float32) on the device."""
        crops = _generator(self.seed, _CROP, self.position, self.rank)
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
        self.position += 1
        if self.device.type == "cuda" and images.device.type == "cpu" and not images.is_pinned():
            images, labels = images.pin_memory(), labels.pin_memory()
        images = images.to(self.device, non_blocking=True)
        labels = labels.to(self.device, non_blocking=True)
        moves = self.augmentation.draw(images, crops, cropped=self._crops)
        if are_masks(labels, images.shape[2:]):
            labels = moves.maps(labels, OUTSIDE)
        targets = as_targets(labels)
        if self.move is not None and are_values(labels, images.shape[2:]):
            targets = self.move(targets, moves)
        return self.augmentation.normalise(moves.maps(images, smooth=True)), targets

    def close(self) -> None:
        """End the workers; the next batch starts them again."""
        self._stream = None

    def _read_ahead(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        loader: DataLoader[Any] = DataLoader(
            _Reader(self.images),
            batch_sampler=cast(Any, self._keys(self.position)),
            num_workers=self.workers,
            prefetch_factor=4 if self.workers else None,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_leave_signals_to_the_trainer,
        )
        return iter(loader)

    def _keys(self, position: int) -> Iterator[list[tuple[int, int]]]:
        while True:
            chosen = self.indices(position).tolist()
            seeds = [-1] * len(chosen)
            if self._crops:
                crops = _generator(self.seed, _CROP, position, self.rank, 1)
                seeds = torch.randint(2**62, (len(chosen),), generator=crops).tolist()
            yield list(zip(chosen, seeds, strict=True))
            position += 1
