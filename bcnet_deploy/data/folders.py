"""Image folders: ``train/<class>/*.jpg`` and ``test/`` (or ``val/``) alike; ImageNet's and CIFAR's layout."""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError

from bcnet_deploy.data.splits import (
    DataSplits,
    ImageSet,
    MemoryImages,
    channel_statistics,
    stratified_split,
)
from bcnet_deploy.errors import DataError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PHOTOGRAPH_SIZE = 96
MEMORY_SHARE = 0.3
"""Decoded images are kept in memory up to this share of what is free."""


@dataclass(frozen=True)
class FileImages:
    """Images decoded each time they are used, for sets that do not fit into memory."""

    paths: tuple[Path, ...]
    labels: torch.Tensor
    input_size: tuple[int, int, int]

    @property
    def memory(self) -> torch.Tensor | None:
        return None

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int, augment_seed: int | None) -> torch.Tensor:
        try:
            return decode(self.paths[index], self.input_size, augment_seed)
        except UNREADABLE as error:
            raise DataError(
                f"cannot read image {self.paths[index]}: {error}; remove it or repair it and run again"
            ) from error

    def subset(self, indices: npt.NDArray[np.int64]) -> FileImages:
        chosen = tuple(self.paths[int(i)] for i in indices)
        return FileImages(chosen, self.labels[torch.from_numpy(indices)], self.input_size)


UNREADABLE = (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError)


def decode(path: Path, input_size: tuple[int, int, int], augment_seed: int | None = None) -> torch.Tensor:
    """(C, H, W) uint8 of an image file.

    Without a seed: the centre of the target's aspect ratio, resized; of targets from
    :data:`PHOTOGRAPH_SIZE` pixels the inner 224/256. With one: a random-resized crop.
    Raises one of :data:`UNREADABLE`.
    """
    channels, height, width = input_size
    with Image.open(path) as image:
        if image.format == "JPEG":
            image.draft("RGB" if channels == 3 else "L", (2 * width, 2 * height))
        picture = image.convert("RGB" if channels == 3 else "L")
    if augment_seed is not None:
        picture = picture.resize(
            (width, height), Image.Resampling.BILINEAR, box=_crop_box(picture.size, augment_seed)
        )
    elif picture.size != (width, height):
        scale = min(picture.width / width, picture.height / height)
        # The usual evaluation crop for photographs; small pictures (CIFAR's) fill their frame.
        if min(width, height) >= PHOTOGRAPH_SIZE and scale > 1:
            scale *= 224 / 256
        left, top = (picture.width - width * scale) / 2, (picture.height - height * scale) / 2
        box = (left, top, left + width * scale, top + height * scale)
        picture = picture.resize((width, height), Image.Resampling.BILINEAR, box=box, reducing_gap=3.0)
    array = np.array(picture, dtype=np.uint8)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1)).contiguous()


def _crop_box(size: tuple[int, int], seed: int) -> tuple[float, float, float, float]:
    """A box of 8-100% of the area and aspect ratio 3/4-4/3 (the usual ImageNet crop)."""
    rng = np.random.default_rng(seed)
    width, height = size
    for _ in range(10):
        area = width * height * rng.uniform(0.08, 1.0)
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = (area * ratio) ** 0.5, (area / ratio) ** 0.5
        if w <= width and h <= height:
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            return left, top, left + w, top + h
    return 0.0, 0.0, float(width), float(height)


def load_folder(
    root: Path,
    input_size: tuple[int, int, int],
    val_fraction: float,
    *,
    max_unreadable: float = 0.01,
    memory_bytes: int | None = None,
    name: str | None = None,
) -> DataSplits:
    """The data set in ``root``, or in a tar archive of such a folder.

    Args:
        root: has ``train/<class>/`` and, for the final figure, ``test/<class>/`` (or ``val/<class>/``).
        input_size: (C, H, W) the images are brought to; C is 1 or 3.
        val_fraction: share of each class held out of ``train``.
        max_unreadable: the share of images that may be unreadable; they are skipped and named.
        memory_bytes: decoded images are kept in memory up to this size; default: a share of what is free.

    Raises:
        DataError: a folder is missing or empty, too many images are unreadable, or the classes of the
            two splits differ.
    """
    if input_size[0] not in (1, 3):
        raise DataError(f"image folders give 1 or 3 channels; the model takes {input_size[0]}")
    if root.is_file():
        root = unpack(root)
    train_root = root / "train"
    if not train_root.is_dir():
        raise DataError(
            f"{root} has no folder 'train'; the layout is train/<class>/<image> and test/<class>/<image>"
        )
    classes = class_names(train_root)
    paths, labels = list_images(train_root, classes)
    limit = memory_bytes if memory_bytes is not None else int(MEMORY_SHARE * free_memory())
    in_memory = len(paths) * int(np.prod(input_size)) <= limit
    notes: list[str] = []
    images = _open(paths, labels, input_size, in_memory, max_unreadable, notes)
    kept, held = stratified_split(images.labels.numpy(), val_fraction, classes=classes)
    train, val = images.subset(kept), images.subset(held)

    def open_test() -> ImageSet | None:
        folder = next((root / n for n in ("test", "val") if (root / n).is_dir()), None)
        if folder is None:
            return None
        if (found := class_names(folder)) != classes:
            odd = sorted(set(found) ^ set(classes))
            raise DataError(f"the classes of {folder} and {train_root} differ: {', '.join(odd[:5])}")
        return _open(*list_images(folder, classes), input_size, in_memory, max_unreadable, [])

    if train.memory is not None:
        mean, std = channel_statistics(train.memory)
    elif input_size[0] == 3:
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    else:
        mean, std = (0.45,), (0.225,)
    return DataSplits(
        name=name or str(root), train=train, val=val, classes=classes, input_size=input_size, mean=mean,
        std=std, open_test=open_test, notes=tuple(notes),
    )  # fmt: skip


def class_names(folder: Path) -> tuple[str, ...]:
    """Sorted names of the class folders. Raises :class:`DataError` if there are fewer than two."""
    names = tuple(sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith(".")))
    if len(names) < 2:
        raise DataError(
            f"{folder} has {len(names)} class folder(s); at least two are needed: {folder}/<class>/"
        )
    return names


def list_images(folder: Path, classes: Sequence[str]) -> tuple[list[Path], npt.NDArray[np.int64]]:
    """Sorted image paths and their labels. Raises :class:`DataError` naming the empty class folders."""
    paths: list[Path] = []
    labels: list[int] = []
    empty: list[str] = []
    for label, name in enumerate(classes):
        found = sorted(p for p in (folder / name).rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not found:
            empty.append(name)
        paths += found
        labels += [label] * len(found)
    if empty:
        raise DataError(
            f"{len(empty)} of {len(classes)} class folders in {folder} have no image: "
            f"{', '.join(empty[:5])}; add images ({', '.join(sorted(SUFFIXES))}) or remove the folders"
        )
    return paths, np.array(labels, dtype=np.int64)


def _open(
    paths: list[Path],
    labels: npt.NDArray[np.int64],
    input_size: tuple[int, int, int],
    in_memory: bool,
    max_unreadable: float,
    notes: list[str],
) -> MemoryImages | FileImages:
    if not in_memory:
        # Decoding a large set twice is too slow; headers show most damage, reading shows the rest.
        bad = _unreadable(paths, _check_header)
    else:
        images = torch.empty((len(paths), *input_size), dtype=torch.uint8)

        def fill(index: int) -> None:
            images[index] = decode(paths[index], input_size)

        bad = _unreadable(paths, lambda path, index: fill(index))
    if bad:
        named = "; ".join(f"{paths[i]}: {reason}" for i, reason in list(bad.items())[:3])
        text = f"{len(bad)} of {len(paths)} images cannot be read ({named})"
        if len(bad) > max_unreadable * len(paths):
            raise DataError(f"{text}; at most {max_unreadable:.1%} may be; repair or remove them")
        notes.append(f"{text}; skipped")
    good = np.setdiff1d(np.arange(len(paths)), np.array(list(bad), dtype=np.int64))
    if in_memory:
        return MemoryImages(images[torch.from_numpy(good)] if bad else images, torch.from_numpy(labels[good]))
    return FileImages(tuple(paths[i] for i in good), torch.from_numpy(labels[good]), input_size)


def _unreadable(paths: Sequence[Path], read: Any) -> dict[int, str]:
    """index -> reason of the images for which ``read(path, index)`` fails; Pillow decodes outside the GIL."""

    def attempt(index: int) -> str | None:
        try:
            read(paths[index], index)
        except UnidentifiedImageError:
            return "not an image"  # Pillow's message repeats the path
        except UNREADABLE as error:
            return str(error) or type(error).__name__
        return None

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        reasons = list(pool.map(attempt, range(len(paths)), chunksize=64))
    return {index: reason for index, reason in enumerate(reasons) if reason is not None}


def _check_header(path: Path, index: int) -> None:
    with Image.open(path) as image:
        image.verify()


def free_memory() -> int:
    """Bytes of memory that are free; 4 GiB where the system does not say."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 4 * 2**30


def cache_folder() -> Path:
    """Where archives are unpacked: ``$BCNET_CACHE``, or the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bcnet-deploy"
    return Path(os.environ.get("BCNET_CACHE") or default)


def _unpack_into(archive: Path, target: Path) -> None:
    """Unpack beside ``target`` and move it there whole: several processes (torchrun's) may do so at once."""
    with tempfile.TemporaryDirectory(prefix=f"{target.name}-", dir=target.parent) as folder:
        fresh = Path(folder) / "files"
        with tarfile.open(archive) as tar:
            tar.extractall(fresh, filter="data")
        (fresh / ".complete").touch()
        try:
            fresh.rename(target)
        except OSError:
            if (target / ".complete").exists():
                return  # another process was quicker
            shutil.rmtree(target, ignore_errors=True)  # what a killed older version left
            fresh.rename(target)


def unpack(archive: Path) -> Path:
    """The folder with ``train/`` in it, from a tar archive; unpacked once into :func:`cache_folder`.

    Raises:
        DataError: it is no tar archive, or it holds no folder ``train``.
    """
    stat = archive.stat()
    key = hashlib.sha256(f"{archive.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:12]
    target = cache_folder() / f"{archive.name.split('.')[0]}-{key}"
    if not (target / ".complete").exists():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _unpack_into(archive, target)
        except (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error) as error:
            raise DataError(f"{archive} is not a readable tar archive of an image folder: {error}") from error
        except OSError as error:
            raise DataError(
                f"cannot unpack {archive} into {target}: {error}; set BCNET_CACHE to a folder with space"
            ) from error
    for candidate in (target, *sorted(p for p in target.iterdir() if p.is_dir())):
        if (candidate / "train").is_dir():
            return candidate
    raise DataError(f"{archive} holds no folder 'train'; the layout is train/<class>/<image>")
