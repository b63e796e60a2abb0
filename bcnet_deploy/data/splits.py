"""What a data set is to the rest of the project: training, validation and, last of all, test images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from bcnet_deploy.data.pictures import Preprocessing, View
from bcnet_deploy.errors import DataError

SMALLEST_SHARE, LARGEST_SHARE, ENOUGH_HELD_OUT = 0.1, 0.3, 500
SPLIT_SEED = 20210521
"""The validation split is the same in every run, whatever the run's own seed: scores stay comparable."""


class ImageSet(Protocol):
    """Labelled images of one size, whether in memory or on disk."""

    @property
    def labels(self) -> torch.Tensor:
        """What is to be learned: (N,) int64 classes, (N, H, W) uint8 masks, or values: (N, ...) float32, or
        int64 of another shape."""
        ...

    @property
    def crops(self) -> bool:
        """Whether :meth:`read` makes random crops itself."""
        ...

    @property
    def memory(self) -> torch.Tensor | None:
        """(N, C, H, W) uint8, or float32 of 0..1, where all images are in memory, else None."""
        ...

    def __len__(self) -> int: ...

    def read(self, index: int, augment_seed: int | None) -> torch.Tensor:
        """(C, H, W) of image ``index``, randomly cropped by ``augment_seed`` where it is given."""
        ...

    def target(self, index: int, augment_seed: int | None) -> torch.Tensor:
        """What ``labels`` hold of image ``index``; of a mask the part that :meth:`read` shows."""
        ...

    def subset(self, indices: npt.NDArray[np.int64]) -> ImageSet:
        """The images at ``indices``, in that order."""
        ...


@dataclass(frozen=True)
class MemoryImages:
    """Decoded images in memory: ``images`` (N, C, H, W) uint8, or float32 of 0..1; ``labels`` (N, ...)."""

    images: torch.Tensor
    labels: torch.Tensor
    crops = False

    @property
    def memory(self) -> torch.Tensor | None:
        return self.images

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int, augment_seed: int | None) -> torch.Tensor:
        return self.images[index]

    def target(self, index: int, augment_seed: int | None) -> torch.Tensor:
        return self.labels[index]

    def subset(self, indices: npt.NDArray[np.int64]) -> MemoryImages:
        chosen = torch.from_numpy(indices)
        return MemoryImages(self.images[chosen], self.labels[chosen])


@dataclass(frozen=True)
class DataSplits:
    """A data set, ready for training.

    Attributes:
        name: the reference it was loaded from; of objects a name with a digest of their content.
        train: training images without the validation ones.
        val: held out of the training data; widths are ranked on it.
        classes: class names, by label.
        input_size: (C, H, W) of every image.
        mean, std: of each channel of ``train``, images taken as 0..1; or what published weights want.
        notes: what was skipped or converted, for people.
        view: how image files are brought to ``input_size``; None for arrays.
        fingerprint: digest of the content (of folders: of names and sizes; of objects: of the labels and of
            1000 images at most of each split), the same on every machine and whatever fits into memory.
    """

    name: str
    train: ImageSet
    val: ImageSet
    classes: tuple[str, ...]
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    open_test: Callable[[], ImageSet | None]
    notes: tuple[str, ...] = ()
    view: View | None = None
    fingerprint: str = ""

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def preprocessing(self) -> Preprocessing:
        """How the network's input is made, for whoever runs the exported network."""
        return Preprocessing(self.input_size, self.mean, self.std, self.view)

    @property
    def resolution(self) -> float:
        """What one held-out image is worth, in points of accuracy."""
        return 100 / len(self.val)

    def load_test(self) -> ImageSet:
        """The test images, read now and not before: only a final figure may use them.

        Raises:
            DataError: the data set has no test split.
        """
        test = self.open_test()
        if test is None:
            raise DataError(f"{self.name} has no test images; add a test split to get a final accuracy")
        return test


def as_targets(labels: torch.Tensor) -> torch.Tensor:
    """Labels as losses take them: whole numbers as int64, others as float32."""
    return labels.float() if labels.is_floating_point() else labels.long()


def are_masks(labels: torch.Tensor, size: Sequence[int]) -> bool:
    """Whether labels are a class at each pixel of images of ``size`` (H, W)."""
    return not labels.is_floating_point() and tuple(labels.shape[1:]) == tuple(size)


def are_values(labels: torch.Tensor, size: Sequence[int]) -> bool:
    """Whether labels are neither a class an image nor masks: what they say, a task of one's own knows."""
    return labels.is_floating_point() or (labels.ndim != 1 and not are_masks(labels, size))


def held_out_share(count: int) -> float:
    """Which share of ``count`` training images to hold out: a tenth, more of few, at most three tenths.

    On few held-out images networks that differ by a point look alike.
    """
    return min(LARGEST_SHARE, max(SMALLEST_SHARE, ENOUGH_HELD_OUT / count))


def check_names(classes: Sequence[str], what: str) -> None:
    """Raise :class:`DataError` naming the first class whose name no file of results could hold."""
    for name in classes:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(
                f"{what}: the class {ascii(name)} has a name that is not UTF-8; rename it"
            ) from None


def check_labels(labels: npt.NDArray[np.int64], num_classes: int, what: str) -> None:
    """Raise :class:`DataError` naming the first label outside 0..num_classes-1."""
    bad = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(bad):
        raise DataError(
            f"{what}: label {int(labels[bad[0]])} of image {int(bad[0])} is out of range, and {len(bad) - 1} "
            f"more; allowed: 0..{num_classes - 1}"
        )


def stratified_split(
    labels: npt.NDArray[np.int64],
    fraction: float,
    seed: int = SPLIT_SEED,
    *,
    classes: Sequence[str] | None = None,
    copies: Sequence[Sequence[int]] = (),
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Indices (kept, held out), each ascending; ``fraction`` of every class is held out, at least one image.

    Args:
        labels: (N,) of the images.
        fraction: share to hold out.
        seed: of the draw.
        classes: names by label, for the error.
        copies: groups of indices of equal images. Those of one class stay on one side, unless the whole
            class is one image.

    Raises:
        DataError: a class has fewer than two images.
    """
    rng = np.random.default_rng(seed)
    origin = np.arange(len(labels))
    for group in copies:
        for label in np.unique(labels[list(group)]):
            alike = [index for index in group if labels[index] == label]
            origin[alike] = min(alike)
    held: list[int] = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            name = repr(classes[int(label)]) if classes is not None else int(label)
            raise DataError(
                f"class {name} has {len(members)} image; a held-out split needs at least two of each class"
            )
        own = origin[members] if len(np.unique(origin[members])) > 1 else members
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        groups: list[list[int]] = [
            members[own == first].tolist() for first in rng.permutation(np.unique(own))
        ]
        smallest = min(groups, key=len)
        chosen: list[int] = []
        for same in groups:
            if len(chosen) + len(same) <= count:
                chosen += same
        held += chosen if chosen else smallest
    held_out = np.sort(np.array(held, dtype=np.int64))
    return np.setdiff1d(np.arange(len(labels)), held_out), held_out


def channel_statistics(images: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of (N, C, H, W) images, as 0..1.

    Of uint8 from a histogram of the 256 values: exact, and no float copy of the data.
    """
    values = np.arange(256) / 255.0
    means, deviations = [], []
    for channel in range(images.shape[1]):
        plane = images[:, channel].reshape(-1)
        if images.dtype == torch.uint8:
            counts = torch.bincount(plane.to(torch.int32), minlength=256).numpy()
            mean = float((counts * values).sum() / counts.sum())
            variance = float((counts * (values - mean) ** 2).sum() / counts.sum())
        else:
            mean, variance = float(plane.double().mean()), float(plane.double().var(correction=0))
        means.append(mean)
        deviations.append(max(variance**0.5, 1e-3))
    return tuple(means), tuple(deviations)
