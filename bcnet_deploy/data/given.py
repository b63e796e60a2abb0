"""Data that the user gives as objects: arrays, tensors, torch data sets, or a function that returns them."""

from __future__ import annotations

import hashlib
import reprlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bcnet_deploy.data.augment import OUTSIDE
from bcnet_deploy.data.pictures import ONLY_IGNORED, View, upright
from bcnet_deploy.data.splits import (
    DataSplits,
    ImageSet,
    MemoryImages,
    channel_statistics,
    check_labels,
    held_out_share,
    stratified_split,
)
from bcnet_deploy.errors import DataError

CONTRACT = (
    "(images, labels), a torch data set of such pairs, or a mapping with 'train': one of them, optionally "
    "'val' and 'test' alike (or functions without arguments that return one) and 'classes': names; images "
    "are (N, C, H, W), uint8 or floats of 0..1, labels (N,) integers, masks (N, H, W), or for a task of "
    "one's own integers (N, K) or finite floats (N, ...)"
)
Labels = npt.NDArray[np.int64]


def load_given(
    data: Any, name: str | None, view: View | None, input_size: tuple[int, int, int],
    val_fraction: float | None = None, memory_bytes: int | None = None,
) -> DataSplits:  # fmt: skip
    """Splits of data of the form :data:`CONTRACT`.

    Without 'val', a share of each class is held out of the training data. Labels without 'classes' may be any
    integers: they are numbered in ascending order, and are the names of the classes.

    Args:
        data: see :data:`CONTRACT`.
        name: for messages and the run directory; default: ``arrays`` and a digest of the content.
        view: for data sets whose images are Pillow's.
        input_size: (C, H, W) of the model.
        val_fraction: see :func:`bcnet_deploy.data.load_data`.
        memory_bytes: data sets up to this size are kept in memory, larger ones read image by image.

    Raises:
        DataError: the data is of another form or size, or its labels do not fit.
    """
    label = name or "the data"
    parts = data if isinstance(data, Mapping) else {"train": data}
    if unknown := [key for key in parts if key not in ("train", "val", "test", "classes")]:
        raise DataError(f"{label} has the key {unknown[0]!r}; needed: {CONTRACT}")
    if "train" not in parts:
        raise DataError(f"{label} has no 'train'; needed: {CONTRACT}")
    reader = _Reader(label, input_size, view, memory_bytes)
    train, raw = reader.read(parts["train"], "train")
    names = parts.get("classes", getattr(parts["train"], "classes", None))
    numbering = _Numbering.of(raw, names, input_size, label)
    train = train.labelled(numbering.of_labels(raw, f"{label} 'train'"))
    notes = numbering.notes()
    val: ImageSet
    if parts.get("val") is not None:
        given, val_labels = reader.read(parts["val"], "val")
        val = given.labelled(numbering.of_labels(val_labels, f"{label} 'val'"))
        if count := _shared(train, val):
            notes.append(
                f"{count} of {len(val)} images of 'val' are in 'train' too: accuracy on them says nothing"
            )
        kept: ImageSet = train
    else:
        copies = _copies(train)
        if copies:
            notes.append(
                f"{sum(map(len, copies)) - len(copies)} images of 'train' are copies of others; copies "
                "in one class stay on one side of the held-out split"
            )
        fraction = held_out_share(len(train)) if val_fraction is None else val_fraction
        one_each = raw.dtype == np.int64 and raw.ndim == 1
        classes = raw if one_each else np.zeros(len(train), dtype=np.int64)
        indices, held = stratified_split(
            np.searchsorted(numbering.values, classes), fraction, classes=numbering.names, copies=copies
        )
        kept, val = train.subset(indices), train.subset(held)

    def open_test() -> ImageSet | None:
        if parts.get("test") is None:
            return None
        test, test_labels = reader.read(parts["test"], "test")
        return test.labelled(numbering.of_labels(test_labels, f"{label} 'test'"))

    if parts.get("test") is None:
        notes.append("there are no test images, so there will be no accuracy on images that no step has used")
    some = _some(kept)
    mean, std = channel_statistics(some if kept.memory is None else kept.memory)
    return DataSplits(
        name=name or f"arrays-{_content(train, val)[:12]}", train=kept, val=val, classes=numbering.names,
        input_size=input_size, mean=mean, std=std, open_test=open_test, notes=tuple(notes),
        view=view if reader.saw_pictures else None,
        fingerprint=_fingerprint((kept.labels, some), (val.labels, _some(val))),
    )  # fmt: skip


# -- labels ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Numbering:
    """From the user's labels to what is learned.

    Attributes:
        values: the labels of the classes, ascending.
        names: of the classes; of numbers to be predicted, of the outputs.
        shape: of one image's label.
    """

    values: Labels
    names: tuple[str, ...]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, labels: Labels, names: Any, size: tuple[int, int, int], what: str) -> _Numbering:
        shape = labels.shape[1:]
        if names is not None:
            if not isinstance(names, list | tuple) or not names:
                raise DataError(f"{what} has classes {reprlib.repr(names)}; needed: a list of names")
            return cls(np.arange(len(names)), tuple(map(str, names)), shape)
        if labels.dtype == np.uint8:
            found = np.flatnonzero(np.bincount(labels.reshape(-1), minlength=256))
            if set(found.tolist()) <= {0, 255} and 255 in found:
                raise DataError(f"{what}: masks hold 0 and 255 alone; {ONLY_IGNORED}")
            values = np.arange(found[found < 255].max() + 1)
        elif labels.dtype.kind == "f" or shape:
            # A number, a row of numbers, or maps of them. What else they are does not tell the outputs.
            outputs = shape[: len(shape) - 2] if shape[-2:] == size[1:] else shape
            if len(outputs) > 1:
                raise DataError(
                    f"{what}: labels of the shape {labels.shape} do not tell how many classes the model has; "
                    "give 'classes' beside 'train': a list of names"
                )
            values = np.arange(outputs[0] if outputs else 1)
        else:
            values = np.unique(labels)
        return cls(values, tuple(map(str, values.tolist())), shape)

    @property
    def plain(self) -> bool:
        return bool((self.values == np.arange(len(self.values))).all())

    def of_labels(self, labels: Labels, what: str) -> torch.Tensor:
        """Class numbers, masks or values. Raises :class:`DataError` naming a label that is no class."""
        if labels.shape[1:] != self.shape:
            raise DataError(
                f"{what}: labels have the shape {labels.shape}, not training's: (N, "
                f"{', '.join(map(str, self.shape))})"
            )
        if labels.dtype == np.uint8:
            ignored = labels == OUTSIDE
            check_labels(np.where(ignored, 0, labels).reshape(len(labels), -1).max(1), len(self.names), what)
            return torch.from_numpy(labels)
        if labels.dtype.kind == "f" or self.shape:
            return torch.from_numpy(labels)
        if self.plain:
            check_labels(labels, len(self.values), what)
            return torch.from_numpy(labels)
        places = np.searchsorted(self.values, labels).clip(max=len(self.values) - 1)
        if (strange := self.values[places] != labels).any():
            raise DataError(
                f"{what}: label {int(labels[strange][0])} of image {int(np.flatnonzero(strange)[0])} is none "
                f"of training's: {', '.join(self.names[:10])}{', ...' * (len(self.names) > 10)}"
            )
        return torch.from_numpy(places.astype(np.int64))

    def notes(self) -> list[str]:
        if self.plain:
            return []
        return [
            f"the labels are {len(self.values)} numbers of {int(self.values[0])}..{int(self.values[-1])}; "
            "output i stands for the i-th of them, ascending"
        ]


def _tensor(raw: Any, what: str) -> torch.Tensor:
    """An array as a tensor, also one that is read backwards or of another byte order. Raises DataError."""
    try:
        if isinstance(raw, np.ndarray):
            raw = np.ascontiguousarray(raw, raw.dtype.newbyteorder("="))
        return torch.as_tensor(raw).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{what}: images are {type(raw).__name__}: {error}; needed: {CONTRACT}") from error


def _labels(raw: Any, count: int, size: tuple[int, int, int], what: str) -> Any:
    """(N,) int64 classes, (N, H, W) uint8 masks, or values: (N, ...) float32 or int64.

    Raises:
        DataError: they are none of these.
    """
    try:
        if isinstance(raw, list | tuple):
            raw = [np.asarray(_off_graph(label)) if hasattr(label, "__array__") else label for label in raw]
        labels = np.asarray(_off_graph(raw))
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{what}: the labels do not make one array: {error}") from error
    if len(labels.shape) and len(labels) == count and count:
        whole = labels.dtype.kind in "iub"
        if labels.ndim == 1 and whole:
            return labels.astype(np.int64)
        if whole and labels.shape[1:] == size[1:] and labels.min() >= 0 and labels.max() <= 255:
            return labels.astype(np.uint8)
        if labels.ndim == 2 and labels.dtype.kind in "iu" and labels.size:
            return labels.astype(np.int64)
        if (labels.dtype.kind == "f" or (whole and labels.ndim == 2)) and labels.size:
            values = labels.astype(np.float32)
            if np.isfinite(values).all():
                return values
    raise DataError(
        f"{what}: labels are {labels.dtype} of shape {labels.shape} for {count} images; needed: one integer "
        f"for each image, masks ({count}, {size[1]}, {size[2]}) of class numbers (255: none), or, for a task "
        "of your own, integers (N, K) or finite floats (N, ...); and at least one image"
    )


def _off_graph(label: Any) -> Any:
    """A label as NumPy can read it, also of a tensor that is on a GPU or part of a graph."""
    return label.detach().cpu() if isinstance(label, torch.Tensor) else label


# -- images ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Arrays(MemoryImages):
    def labelled(self, labels: torch.Tensor) -> _Arrays:
        return _Arrays(self.images, labels)


@dataclass(frozen=True)
class DatasetImages:
    """A torch data set, read image by image. Its own pictures are cropped after they were resized.

    Attributes:
        dataset: of (image, label) pairs.
        chosen: (N,) indices into it.
        labels: (N,) of them.
        reader: brings an image to the model's input.
    """

    dataset: Any
    chosen: Labels
    labels: torch.Tensor
    reader: _Reader
    crops = False

    @property
    def memory(self) -> torch.Tensor | None:
        return None

    def __len__(self) -> int:
        return len(self.chosen)

    def read(self, index: int, augment_seed: int | None) -> torch.Tensor:
        return self.reader.item(self.dataset, int(self.chosen[index]))[0]

    def target(self, index: int, augment_seed: int | None) -> torch.Tensor:
        return self.labels[index]

    def subset(self, indices: Labels) -> DatasetImages:
        return DatasetImages(
            self.dataset, self.chosen[indices], self.labels[torch.from_numpy(indices)], self.reader
        )

    def labelled(self, labels: torch.Tensor) -> DatasetImages:
        return DatasetImages(self.dataset, self.chosen, labels, self.reader)


@dataclass
class _Reader:
    """Brings what the user gave as one split to images of the model's size."""

    label: str
    input_size: tuple[int, int, int]
    view: View | None
    memory_bytes: int | None
    saw_pictures: bool = False

    def read(self, given: Any, split: str) -> tuple[_Arrays | DatasetImages, Labels]:
        """Images without labels yet, and the user's labels."""
        what = f"{self.label} {split!r}"
        if callable(given) and not hasattr(given, "__getitem__"):
            given = given()
        if isinstance(given, tuple | list) and len(given) == 2 and hasattr(given[0], "shape"):
            images = self.images(given[0], what)
            return _Arrays(images, torch.empty(0)), _labels(given[1], len(images), self.input_size, what)
        if isinstance(given, str | bytes | Mapping | np.ndarray | torch.Tensor) or not (
            hasattr(given, "__getitem__") and hasattr(given, "__len__")
        ):
            raise DataError(f"{what} is {type(given).__name__}; needed: {CONTRACT}")
        return self._dataset(given, what)

    def images(self, raw: Any, what: str) -> torch.Tensor:
        """(N, C, H, W) uint8 or float32 of arrays. Raises :class:`DataError`."""
        images = _tensor(raw, what)
        channels, height, width = self.input_size
        if images.ndim == 3 and channels == 1:
            images = images[:, None]
        shape = tuple(images.shape)
        if len(shape) != 4 or shape[1:] != self.input_size:
            hint = ""
            if shape[1:] == (height, width, channels):
                hint = "; channels stand last: images.transpose(0, 3, 1, 2) brings them to the front"
            elif len(shape) == 4 and shape[1] == channels:
                hint = "; resize them, or give this input size to the model"
            raise DataError(
                f"{what}: images are {images.dtype} of shape {shape}; needed: uint8, or floats of 0..1, of "
                f"shape (N, {', '.join(map(str, self.input_size))}){hint}"
            )
        if images.dtype == torch.uint8:
            return images
        if not images.is_floating_point():
            raise DataError(
                f"{what}: images are {images.dtype}; needed: uint8 or floats of 0..1; convert them"
            )
        if not len(images):
            return images.float()  # that there are none is said with the labels
        low, high = float(images.min()), float(images.max())
        if not (low >= 0 and high <= 1):  # also where one is NaN
            hint = (
                "divide them by 255" if low >= 0 and high <= 255
                else "give them as before normalisation: mean and deviation are measured and exported"
            )  # fmt: skip
            raise DataError(
                f"{what}: images are floats of {low:g}..{high:g}; needed: uint8 or floats of 0..1; {hint}"
            )
        return images.float()

    def item(self, dataset: Any, index: int) -> tuple[torch.Tensor, Any]:
        """(image (C, H, W), label) of one pair. Raises :class:`DataError`."""
        what = f"{self.label}: item {index} of the data set"
        try:
            pair = dataset[index]
        except Exception as error:
            raise DataError(f"{what} cannot be read: {type(error).__name__}: {error}") from error
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise DataError(f"{what} is {type(pair).__name__}; needed: a pair (image, label)")
        image, label = pair
        if hasattr(image, "getexif"):  # Pillow's
            if self.view is None:
                raise DataError(f"{what} is a picture; a model of {self.input_size[0]} channels needs arrays")
            self.saw_pictures = True
            if hasattr(label, "getexif"):
                label = self.view.apply_mask(label).numpy()
            return self.view.apply(upright(image, self.view.mode)), label
        return self.images(_tensor(image, what)[None], what)[0], label

    def _dataset(self, dataset: Any, what: str) -> tuple[_Arrays | DatasetImages, Labels]:
        count = len(dataset)
        if not count:
            raise DataError(f"{what} is empty")
        first, again = self.item(dataset, 0)[0], self.item(dataset, 0)[0]
        if not torch.equal(first, again):
            raise DataError(
                f"{what} gives another image each time: leave random transforms out of it; training has its "
                "own (the setting augment)"
            )
        if count * first.numel() * first.element_size() > self._limit():
            return DatasetImages(dataset, np.arange(count), torch.empty(0), self), self._targets(
                dataset, what
            )
        images = torch.empty((count, *first.shape), dtype=first.dtype)
        labels = []
        for index in range(count):
            image, label = self.item(dataset, index)
            if image.dtype != first.dtype:
                raise DataError(f"{what}: item {index} is {image.dtype}, item 0 is {first.dtype}")
            images[index] = image
            labels.append(label)
        return _Arrays(images, torch.empty(0)), _labels(labels, count, self.input_size, what)

    def _limit(self) -> int:
        from bcnet_deploy.data.folders import MEMORY_SHARE, free_memory

        return self.memory_bytes if self.memory_bytes is not None else int(MEMORY_SHARE * free_memory())

    def _targets(self, dataset: Any, what: str) -> Labels:
        """All labels, without reading the images where the data set keeps them apart (torchvision's do).

        Those are as before ``target_transform``, and before all else that the data set's own code does to a
        label: they are taken where they are what the items give, as far as a few of them tell.
        """
        count = len(dataset)
        few = np.random.default_rng(0).permutation(count)[:32]
        shown = _labels([self.item(dataset, int(i))[1] for i in few], len(few), self.input_size, what)
        transform = getattr(dataset, "target_transform", None)
        for key in ("targets", "labels"):
            with suppress(Exception):  # whatever the user's code raises here: then the items are read
                raw = getattr(dataset, key)
                if transform is not None:
                    raw = [transform(label) for label in (raw.tolist() if hasattr(raw, "tolist") else raw)]
                labels = _labels(raw, count, self.input_size, what)
                if np.array_equal(labels[few], shown):
                    return labels
        labels = [self.item(dataset, index)[1] for index in range(count)]
        return _labels(labels, count, self.input_size, what)


# -- content --------------------------------------------------------------------------------------


def _digests(images: ImageSet) -> list[bytes]:
    memory = images.memory
    if memory is None:
        return []
    return [hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest() for image in memory]


def _copies(images: ImageSet) -> list[list[int]]:
    """Groups of indices of equal images, of those in memory."""
    groups: dict[bytes, list[int]] = {}
    for index, digest in enumerate(_digests(images)):
        groups.setdefault(digest, []).append(index)
    return [group for group in groups.values() if len(group) > 1]


def _shared(one: ImageSet, other: ImageSet) -> int:
    known = set(_digests(one))
    return sum(digest in known for digest in _digests(other))


def _content(*parts: ImageSet) -> str:
    """Digest of the labels, and of the images that are in memory."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.labels.numpy().tobytes())
        for image in _digests(part):
            digest.update(image)
    return digest.hexdigest()[:16]


def _fingerprint(*parts: tuple[torch.Tensor, torch.Tensor]) -> str:
    """Digest of labels and of :func:`_some` images, the same whether the images fit into memory or not."""
    digest = hashlib.sha256()
    for labels, images in parts:
        digest.update(labels.numpy().tobytes())
        digest.update(images.numpy().tobytes())
    return digest.hexdigest()[:16]


def _some(images: ImageSet) -> torch.Tensor:
    """Images enough for mean and deviation of a set that does not fit into memory."""
    chosen = np.random.default_rng(0).permutation(len(images))[:1000]
    return torch.stack([images.read(int(index), None) for index in chosen])
