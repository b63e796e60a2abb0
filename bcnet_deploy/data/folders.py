"""Image folders: ``train/<class>/*.jpg``, and ``val/`` and ``test/`` alike; ImageNet's and CIFAR's layout."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError

from bcnet_deploy.data.archives import unpack
from bcnet_deploy.data.pictures import (
    SIXTEEN_BITS,
    UNREADABLE,
    Remark,
    View,
    decode,
    has_16_bits,
    may_be_transparent,
)
from bcnet_deploy.data.splits import (
    DataSplits,
    ImageSet,
    MemoryImages,
    channel_statistics,
    held_out_share,
    stratified_split,
)
from bcnet_deploy.errors import DataError

SUFFIXES = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff",
}  # fmt: skip
"""Of images, upper or lower case."""
SYSTEM_FOLDERS = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"}
SYSTEM_FILES = {"thumbs.db", "desktop.ini"}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MEMORY_SHARE = 0.3
"""Decoded images are kept in memory up to this share of what is free."""
_SAMPLE = 2**12


@dataclass(frozen=True)
class FileImages:
    """Images decoded each time they are used, for sets that do not fit into memory."""

    paths: tuple[Path, ...]
    labels: torch.Tensor
    view: View

    @property
    def memory(self) -> torch.Tensor | None:
        return None

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int, augment_seed: int | None) -> torch.Tensor:
        try:
            return decode(self.paths[index], self.view, augment_seed)
        except UNREADABLE as error:
            raise DataError(
                f"cannot read image {self.paths[index]}: {error}; remove it or repair it and run again"
            ) from error

    def subset(self, indices: npt.NDArray[np.int64]) -> FileImages:
        chosen = tuple(self.paths[int(i)] for i in indices)
        return FileImages(chosen, self.labels[torch.from_numpy(indices)], self.view)


def load_folder(
    root: Path,
    view: View,
    val_fraction: float | None = None,
    *,
    max_unreadable: float = 0.01,
    memory_bytes: int | None = None,
    name: str | None = None,
) -> DataSplits:
    """The data set in ``root``, or in a tar archive of such a folder.

    Validation images are held out of ``train/`` where there is no ``val/``, or where it serves as test.

    Args:
        root: has ``train/<class>/`` and, for the final figure, ``test/<class>/`` (or ``val/<class>/``).
        view: how pictures are brought to the model's input size.
        val_fraction: share of each class held out of ``train``; default: :func:`held_out_share`.
        max_unreadable: the share of images that may be unreadable; they are skipped and named.
        memory_bytes: decoded images are kept in memory up to this size; default: a share of what is free.

    Raises:
        DataError: a folder is missing or empty, too many images are unreadable, or the classes of the
            splits differ.
    """
    if root.is_file():
        root = unpack(root)
    notes: list[str] = []
    train = Listing.of(root / "train", notes)
    val, test = _other_parts(root, train, notes)
    listings = [part for part in (train, val, test) if part is not None]
    _compare(train, [part for part in listings if part is not train])
    limit = memory_bytes if memory_bytes is not None else int(MEMORY_SHARE * free_memory())
    count = sum(len(part.paths) for part in listings if part is not test)
    in_memory = count * int(np.prod(view.input_size)) <= limit
    read = partial(_open, view=view, in_memory=in_memory, max_unreadable=max_unreadable)
    full, good = read(train, notes=notes)
    copies = _copies(root, train.only(good), val, test, notes)
    if val is not None:
        train_images, val_images = full, read(val, notes=notes)[0]
    else:
        fraction = held_out_share(len(full)) if val_fraction is None else val_fraction
        kept, held = stratified_split(full.labels.numpy(), fraction, classes=train.classes, copies=copies)
        train_images, val_images = full.subset(kept), full.subset(held)

    def open_test() -> ImageSet | None:
        return None if test is None else read(test, notes=[])[0]

    if train_images.memory is not None:
        mean, std = channel_statistics(train_images.memory)
    elif view.mode == "RGB":
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    else:
        mean, std = (0.45,), (0.225,)
    return DataSplits(
        name=name or str(root), train=train_images, val=val_images, classes=train.classes,
        input_size=view.input_size, mean=mean, std=std, open_test=open_test, notes=tuple(notes), view=view,
        fingerprint=_fingerprint(root, listings),
    )  # fmt: skip


# -- what is there --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Listing:
    """The image files of one split, by class and name.

    Attributes:
        folder: of the split.
        classes: names of its class folders, sorted.
        paths, labels: of its images.
    """

    folder: Path
    classes: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: npt.NDArray[np.int64]

    @classmethod
    def of(cls, folder: Path, notes: list[str]) -> Listing:
        """What ``folder`` holds; what is left out and why goes to ``notes``.

        Hidden folders and files are left out: notebooks and file managers leave copies there.

        Raises:
            DataError: no such folder, fewer than two class folders, or one without images.
        """
        classes = class_names(folder)
        left_out: Counter[str] = Counter()
        found = [_images(folder / name, left_out) for name in classes]
        for entry in os.scandir(folder):
            if entry.is_dir() and _is_hidden(entry.name):
                left_out[_HIDDEN] += len(_images(Path(entry.path), Counter(), hidden=True))
            elif entry.is_file() and Path(entry.name).suffix.lower() in SUFFIXES:
                left_out[_HIDDEN if _is_hidden(entry.name) else "in no class folder"] += 1
        if empty := [name for name, paths in zip(classes, found, strict=True) if not paths]:
            raise DataError(
                f"{len(empty)} of {len(classes)} class folders in {folder} have no image: "
                f"{', '.join(empty[:5])}; add images ({', '.join(sorted(SUFFIXES))}) or remove the folders"
            )
        if left_out := +left_out:
            parts = ", ".join(f"{count} {why}" for why, count in sorted(left_out.items()))
            notes.append(f"{folder.name}/: files left out: {parts}")
        labels = np.repeat(np.arange(len(classes)), [len(paths) for paths in found])
        return cls(folder, classes, tuple(path for paths in found for path in paths), labels.astype(np.int64))

    def only(self, indices: npt.NDArray[np.int64]) -> Listing:
        """The images at ``indices``."""
        return Listing(
            self.folder, self.classes, tuple(self.paths[int(i)] for i in indices), self.labels[indices]
        )


def class_names(folder: Path) -> tuple[str, ...]:
    """Sorted names of the class folders. Raises :class:`DataError` where there are fewer than two."""
    if not folder.is_dir():
        raise DataError(
            f"{folder.parent} has no folder {folder.name!r}; "
            "the layout is train/<class>/<image> and test/<class>/<image>"
        )
    names = tuple(sorted(e.name for e in os.scandir(folder) if e.is_dir() and not _is_hidden(e.name)))
    if len(names) < 2:
        raise DataError(
            f"{folder} has {len(names)} class folder(s); at least two are needed: {folder}/<class>/"
        )
    return names


_HIDDEN = "images in hidden folders or files"


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


def _images(folder: Path, left_out: Counter[str], *, hidden: bool = False) -> list[Path]:
    """Sorted image files under ``folder``, through links, each real folder once; others are counted."""
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(folder, followlinks=True, onerror=_refuse):
        stat = os.stat(place)
        if (stat.st_dev, stat.st_ino) in seen:
            folders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        if not hidden:
            for name in [name for name in folders if _is_hidden(name)]:
                folders.remove(name)
                left_out[_HIDDEN] += len(_images(Path(place, name), Counter(), hidden=True))
        for name in names:
            path = Path(place, name)
            suffix = path.suffix.lower()
            if suffix in SUFFIXES and not hidden and _is_hidden(name):
                left_out[_HIDDEN] += 1
            elif suffix in SUFFIXES and path.is_file():
                found.append(path)
            elif not _is_hidden(name) and name.lower() not in SYSTEM_FILES:
                left_out[f"with the suffix {suffix}" if suffix else "without suffix"] += 1
    return sorted(found)


def _refuse(error: OSError) -> None:
    raise DataError(f"cannot read {error.filename}: {error.strerror}; make it readable or remove it")


def _other_parts(root: Path, train: Listing, notes: list[str]) -> tuple[Listing | None, Listing | None]:
    """(validation, test) as far as ``root`` has them."""
    val_root = next((root / n for n in ("val", "valid", "validation") if (root / n).is_dir()), None)
    test_root = root / "test" if (root / "test").is_dir() else None
    if test_root is not None:
        return None if val_root is None else Listing.of(val_root, notes), Listing.of(test_root, notes)
    if val_root is not None:
        notes.append(
            f"no folder test/: {val_root.name}/ is kept for the final accuracy, and validation images are "
            "held out of train/"
        )
        return None, Listing.of(val_root, notes)
    notes.append("no folder test/: there will be no accuracy on images that no step has used")
    return None, None


def _compare(train: Listing, others: Iterable[Listing]) -> None:
    """Raise :class:`DataError` where a split has other classes than training."""
    for part in others:
        if odd := sorted(set(part.classes) ^ set(train.classes)):
            named = ", ".join(
                f"{name} (only in {(train if name in train.classes else part).folder.name}/)"
                for name in odd[:5]
            )
            raise DataError(
                f"{len(odd)} classes of {part.folder} and {train.folder} differ: {named}; "
                "name the folders alike, or add or remove them"
            )


def _fingerprint(root: Path, parts: Iterable[Listing]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        for path in part.paths:
            digest.update(
                f"{path.relative_to(root)}\0{path.stat().st_size}\n".encode(errors="surrogateescape")
            )
    return digest.hexdigest()[:16]


# -- copies ---------------------------------------------------------------------------------------


def equal_files(paths: Sequence[Path]) -> list[list[int]]:
    """Groups of indices of files with the same content. Only files of equal size are read."""
    groups = [list(range(len(paths)))]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        keys: tuple[Callable[[Path], int | bytes], ...] = (_size, _ends, _content)
        for key in keys:
            finer = []
            for group in groups:
                by_key: dict[int | bytes, list[int]] = defaultdict(list)
                for index, value in zip(group, pool.map(key, [paths[i] for i in group]), strict=True):
                    by_key[value].append(index)
                finer += [same for same in by_key.values() if len(same) > 1]
            groups = finer
    return groups


def _size(path: Path) -> int:
    return path.stat().st_size


def _ends(path: Path) -> bytes:
    with path.open("rb") as file:
        first = file.read(_SAMPLE)
        file.seek(max(0, os.fstat(file.fileno()).st_size - _SAMPLE))
        return hashlib.sha256(first + file.read(_SAMPLE)).digest()


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _copies(
    root: Path, train: Listing, val: Listing | None, test: Listing | None, notes: list[str]
) -> list[list[int]]:
    """Groups of equal images of ``train``; those, and copies between the splits, are said in ``notes``."""
    parts = [part for part in (train, val, test) if part is not None]
    paths = [path for part in parts for path in part.paths]
    labels = np.concatenate([part.labels for part in parts])
    place = np.repeat(np.arange(len(parts)), [len(part.paths) for part in parts])
    groups = equal_files(paths)
    within = [mine for group in groups if len(mine := [i for i in group if place[i] == 0]) > 1]

    def example(group: Sequence[int]) -> str:
        return " = ".join(str(paths[i].relative_to(root)) for i in group[:2])

    if within:
        notes.append(
            f"{sum(map(len, within)) - len(within)} images of train/ are copies of others "
            f"({example(within[0])}); copies in one class stay on one side of a held-out split"
        )
    for number, part in enumerate(parts[1:], 1):
        shared = [group for group in groups if {0, number} <= set(place[group].tolist())]
        if shared:
            count = sum(int((place[group] == number).sum()) for group in shared)
            pair = [next(i for i in shared[0] if place[i] == wanted) for wanted in (0, number)]
            notes.append(
                f"{count} of {len(part.paths)} images of {part.folder.name}/ are in train/ too "
                f"({example(pair)}): accuracy on them says nothing; remove them from one of the two"
            )
    contradictory = [group for group in groups if len(set(labels[group].tolist())) > 1]
    if contradictory:
        notes.append(
            f"{len(contradictory)} images are in more than one class ({example(contradictory[0])}); "
            "remove the wrong ones"
        )
    return within


# -- reading --------------------------------------------------------------------------------------


def _open(
    listing: Listing, *, view: View, in_memory: bool, max_unreadable: float, notes: list[str]
) -> tuple[MemoryImages | FileImages, npt.NDArray[np.int64]]:
    """The images of a split, and the indices of those that can be read."""
    paths, name = listing.paths, listing.folder.name
    remarks: list[str] = []
    if in_memory:
        images = torch.empty((len(paths), *view.input_size), dtype=torch.uint8)

        def fill(index: int) -> None:
            images[index] = decode(paths[index], view, remark=remarks.append)

        bad = _unreadable(paths, fill)
    else:
        # Decoding a large set twice is too slow; headers show most damage, reading shows the rest.
        bad = _unreadable(paths, lambda index: _check_header(paths[index], remarks.append))
    notes += [
        f"{count} of {len(paths)} images of {name}/ {text}"
        for text, count in sorted(Counter(remarks).items())
    ]
    if bad:
        named = "; ".join(f"{paths[i]}: {reason}" for i, reason in list(bad.items())[:3])
        text = f"{len(bad)} of {len(paths)} images cannot be read ({named})"
        if len(bad) > max_unreadable * len(paths):
            raise DataError(f"{text}; at most {max_unreadable:.1%} may be; repair or remove them")
        notes.append(f"{text}; skipped")
    good = np.setdiff1d(np.arange(len(paths)), np.array(list(bad), dtype=np.int64))
    labels = torch.from_numpy(listing.labels[good])
    if in_memory:
        return MemoryImages(images[torch.from_numpy(good)] if bad else images, labels), good
    return FileImages(tuple(paths[i] for i in good), labels, view), good


def _unreadable(paths: Sequence[Path], read: Callable[[int], None]) -> dict[int, str]:
    """index -> reason of the images for which ``read(index)`` fails; Pillow decodes outside the GIL."""

    def attempt(index: int) -> str | None:
        try:
            read(index)
        except UnidentifiedImageError:
            return "not an image"  # Pillow's message repeats the path
        except UNREADABLE as error:
            return str(error) or type(error).__name__
        return None

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        reasons = list(pool.map(attempt, range(len(paths)), chunksize=64))
    return {index: reason for index, reason in enumerate(reasons) if reason is not None}


def _check_header(path: Path, remark: Remark) -> None:
    with Image.open(path) as image:
        if has_16_bits(image):
            remark(SIXTEEN_BITS)
        if may_be_transparent(image):
            remark("may have transparent parts, laid on white")
        image.verify()


def free_memory() -> int:
    """Bytes of memory that are free; 4 GiB where the system does not say."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 4 * 2**30
