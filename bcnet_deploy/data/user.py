"""The user's own data: ``package.module:function``."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from bcnet_deploy.data.splits import (
    DataSplits,
    ImageSet,
    MemoryImages,
    channel_statistics,
    check_labels,
    stratified_split,
)
from bcnet_deploy.errors import DataError

CONTRACT = (
    "a mapping with 'train': (images, labels) and optionally 'val' and 'test' alike (or a function without "
    "arguments that returns such a pair) and 'classes': names; images are (N, C, H, W) uint8, labels (N,) "
    "integers"
)


def load_user(reference: str, input_size: tuple[int, int, int], val_fraction: float) -> DataSplits:
    """Call the function that ``reference`` names and check what it returns against :data:`CONTRACT`.

    Without 'val', ``val_fraction`` of each class is held out of the training data.

    Raises:
        DataError: the function cannot be imported or called, or its images or labels do not fit.
    """
    data = _call(reference)
    if not isinstance(data, Mapping) or "train" not in data:
        raise DataError(f"{reference} returned {type(data).__name__}; needed: {CONTRACT}")
    images, labels = _pair(data["train"], f"{reference} 'train'", input_size)
    names = data.get("classes")
    count = len(names) if names is not None else int(labels.max()) + 1
    check_labels(labels, count, f"{reference} 'train'")
    full = MemoryImages(images, torch.from_numpy(labels))
    train, val = full, None
    if data.get("val") is not None:
        val_images, val_labels = _pair(data["val"], f"{reference} 'val'", input_size)
        check_labels(val_labels, count, f"{reference} 'val'")
        val = MemoryImages(val_images, torch.from_numpy(val_labels))
    else:
        kept, held = stratified_split(labels, val_fraction)
        train, val = full.subset(kept), full.subset(held)

    def open_test() -> ImageSet | None:
        if data.get("test") is None:
            return None
        test_images, test_labels = _pair(data["test"], f"{reference} 'test'", input_size)
        check_labels(test_labels, count, f"{reference} 'test'")
        return MemoryImages(test_images, torch.from_numpy(test_labels))

    mean, std = channel_statistics(train.images)
    return DataSplits(
        name=reference, train=train, val=val, input_size=input_size, mean=mean, std=std, open_test=open_test,
        classes=tuple(map(str, names)) if names is not None else tuple(map(str, range(count))),
    )  # fmt: skip


def _call(reference: str) -> Any:
    module_name, _, function_name = reference.partition(":")
    here = os.getcwd()
    # A console script does not look into the current folder, where a user's own module usually is.
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module_name), function_name, None)
        if not callable(function):
            raise DataError(
                f"module {module_name!r} has no function {function_name!r} for the data {reference!r}"
            )
        return function()
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"loading the data {reference!r} failed: {type(error).__name__}: {error}") from error
    finally:
        if added:
            sys.path.remove(here)


def _pair(
    value: Any, what: str, input_size: tuple[int, int, int]
) -> tuple[torch.Tensor, np.ndarray[tuple[int, ...], np.dtype[np.int64]]]:
    if callable(value):
        value = value()
    try:
        raw_images, raw_labels = value
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} is {type(value).__name__}; needed: a pair (images, labels)") from error
    images, labels = torch.as_tensor(raw_images), np.asarray(raw_labels)
    if images.dtype != torch.uint8 or tuple(images.shape[1:]) != tuple(input_size):
        raise DataError(
            f"{what}: images are {images.dtype} of shape {tuple(images.shape)}; "
            f"needed: torch.uint8 of shape (N, {', '.join(map(str, input_size))})"
        )
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) != len(images) or not len(labels):
        raise DataError(
            f"{what}: labels are {labels.dtype} of shape {labels.shape} for {len(images)} images; "
            "needed: one integer for each image, and at least one image"
        )
    return images, labels.astype(np.int64)
