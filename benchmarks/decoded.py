"""Decoded images in one file, for many processes that train on the same data."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from bcnet_deploy import files
from bcnet_deploy.data import DataSplits
from bcnet_deploy.data.splits import MemoryImages


def keep_decoded(splits: DataSplits, path: Path) -> None:
    """Write the images of a classification task, which must fit in memory, as they are drawn from."""
    kept: dict[str, torch.Tensor] = {}
    for name, images in (("train", splits.train), ("val", splits.val), ("test", splits.load_test())):
        if images.memory is None:
            raise MemoryError("the decoded images must fit in memory")
        kept |= {f"{name}.images": images.memory, f"{name}.labels": images.labels}
    kept |= {"mean": torch.tensor(splits.mean).double(), "std": torch.tensor(splits.std).double()}
    with files.replacing(path) as temporary:
        save_file(kept, temporary)


def read_decoded(path: Path) -> DataSplits:
    """The same splits; classes are named by their numbers."""
    kept = load_file(path)
    train, val, test = (
        MemoryImages(kept[f"{part}.images"], kept[f"{part}.labels"]) for part in ("train", "val", "test")
    )
    mean, std = (tuple(kept[name].tolist()) for name in ("mean", "std"))
    names = tuple(str(label) for label in range(int(train.labels.max()) + 1))
    assert train.memory is not None
    channels, height, width = train.memory.shape[1:]
    return DataSplits(
        "cifar10", train, val, names, (channels, height, width), mean, std, open_test=lambda: test
    )
