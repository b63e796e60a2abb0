"""A tiny network and data that it can learn, for tests of training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from bcnet_deploy.data import Augmentation, BatchLoader, DataSplits, MemoryImages
from bcnet_deploy.data.splits import ImageSet
from bcnet_deploy.nn import Supernet
from bcnet_deploy.space import WidthSpace
from bcnet_deploy.train import TrainConfig, Trainer, WidthGrid, make_sampler

CLASSES, SIZE = 4, (1, 8, 8)


def tiny(norm: bool = True, dropout: float = 0.0) -> nn.Module:
    """Two convolutions, one of them strided, and a classifier."""

    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=not norm)
        return [conv, nn.BatchNorm2d(outputs), nn.ReLU()] if norm else [conv, nn.ReLU()]

    return nn.Sequential(
        *block(1, 8, 1), *block(8, 12, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout),
        nn.Linear(12, CLASSES),
    )  # fmt: skip


def images(count: int, seed: int) -> MemoryImages:
    """Classes by texture: plain, rows, columns, checks; noise over it."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    y, x = np.mgrid[0:8, 0:8] % 2
    textures = np.stack([np.full((8, 8), 0.5), y, x, (x + y) % 2])
    pixels = 60 + 100 * textures[labels][:, None] + rng.integers(-40, 40, (count, *SIZE))
    return MemoryImages(torch.from_numpy(pixels.astype(np.uint8)), torch.from_numpy(labels))


class Opened:
    """Test images that count how often they were opened."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> ImageSet:
        self.times += 1
        return images(64, 3)


def splits(opened: Opened | None = None) -> DataSplits:
    return DataSplits(
        name="textures", train=images(128, 1), val=images(64, 2), classes=tuple("abcd"), input_size=SIZE,
        mean=(0.3,), std=(0.2,), open_test=opened or Opened(),
    )  # fmt: skip


def make_supernet(*, norm: bool = True, dropout: float = 0.0, min_level: int = 0, seed: int = 0) -> Supernet:
    torch.manual_seed(seed)
    model = tiny(norm, dropout)
    space = WidthSpace.from_model(model, SIZE, levels=4, min_level=min_level)
    return Supernet(model, space, generator=torch.Generator().manual_seed(seed))


def settings(**changes: object) -> TrainConfig:
    base = {
        "distillation": False,
        "batch_size": 32,
        "epochs": 3,
        "learning_rate": 0.05,
        "augment": "none",
        "workers": 0,
        "log_every": 4,
    }
    return TrainConfig.from_dict({**base, **changes})


def make_loader(config: TrainConfig) -> BatchLoader:
    data = splits()
    augmentation = Augmentation(config.augment, data.mean, data.std)
    return BatchLoader(data.train, config.batch_size, augmentation, torch.device("cpu"), seed=5)


def make_plain_trainer(config: TrainConfig, folder, seed: int = 0) -> Trainer:  # type: ignore[no-untyped-def]
    torch.manual_seed(seed)
    return Trainer(tiny(), make_loader(config), config, folder)


def trained_plain(epochs: int, folder: Path) -> nn.Module:
    """The plain network after so many epochs, in evaluation mode."""
    trainer = make_plain_trainer(settings(epochs=epochs), folder)
    trainer.run()
    return trainer.network.eval()


def make_trainer(supernet: Supernet, config: TrainConfig, folder, **options) -> Trainer:  # type: ignore[no-untyped-def]
    sampler = make_sampler(config.rule, WidthGrid.of(supernet), np.random.default_rng(7), config)
    return Trainer(
        supernet,
        make_loader(config),
        config,
        folder,
        sampler=sampler,
        identity={"space": supernet.space.fingerprint},
        **options,
    )
