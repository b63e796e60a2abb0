"""Image folders: ``train/<class>/*.jpg``, and ``val/`` and ``test/`` alike; ImageNet's and CIFAR's layout.

For segmentation ``train/images/*.jpg`` and ``train/masks/*.png``, and ``val/`` and ``test/`` alike.
"""

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

from bcnet_deploy import files
from bcnet_deploy.data.archives import unpack
from bcnet_deploy.data.pictures import (
    ONLY_IGNORED,
    SIXTEEN_BITS,
    UNREADABLE,
    Remark,
    View,
    class_numbers,
    decode,
    decode_mask,
    has_16_bits,
    may_be_transparent,
    upright_size,
)
from bcnet_deploy.data.splits import (
    DataSplits,
    ImageSet,
    MemoryImages,
    channel_statistics,
    check_names,
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
    """Images decoded each time they are used, for sets that do not fit into memory.

    Attributes:
        paths: (N,) image files.
        given: (N,) classes, or as many mask files.
        view: what is seen of them.
    """

    paths: tuple[Path, ...]
    given: torch.Tensor | tuple[Path, ...]
    view: View
    crops = True

    @property
    def memory(self) -> torch.Tensor | None:
        return None

    @property
    def labels(self) -> torch.Tensor:
        """(N,) classes; or (N, H, W) uint8: all the masks, read now."""
        if isinstance(self.given, torch.Tensor):
            return self.given
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            return torch.stack(list(pool.map(lambda index: self.target(index, None), range(len(self)))))

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int, augment_seed: int | None) -> torch.Tensor:
        try:
            return decode(self.paths[index], self.view, augment_seed)
        except UNREADABLE as error:
            raise DataError(
                f"cannot read image {self.paths[index]}: {error}; remove it or repair it and run again"
            ) from error

    def target(self, index: int, augment_seed: int | None) -> torch.Tensor:
        if isinstance(self.given, torch.Tensor):
            return self.given[index]
        try:
            return decode_mask(self.given[index], self.view, augment_seed)
        except UNREADABLE as error:
            raise DataError(
                f"cannot read mask {self.given[index]}: {error}; repair it and run again"
            ) from error

    def subset(self, indices: npt.NDArray[np.int64]) -> FileImages:
        given = self.given
        chosen = given[torch.from_numpy(indices)] if isinstance(given, torch.Tensor) else _at(given, indices)
        return FileImages(_at(self.paths, indices), chosen, self.view)


def _at(paths: tuple[Path, ...], indices: npt.NDArray[np.int64]) -> tuple[Path, ...]:
    return tuple(paths[int(i)] for i in indices)


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
    list_part = MaskListing.of if has_masks(root) else Listing.of
    train = list_part(root / "train", notes)
    val, test = (None if folder is None else list_part(folder, notes) for folder in _others(root, notes))
    listings = [part for part in (train, val, test) if part is not None]
    classes = train.classes_of(listings)
    limit = memory_bytes if memory_bytes is not None else int(MEMORY_SHARE * free_memory())
    count = sum(len(part.paths) for part in listings if part is not test)
    planes = view.input_size[0] + isinstance(train, MaskListing)
    in_memory = count * planes * int(np.prod(view.input_size[1:])) <= limit
    read = partial(_open, view=view, in_memory=in_memory, max_unreadable=max_unreadable)
    full, good = read(train, notes=notes)
    copies = _copies(root, train, good, val, test, notes)
    if val is not None:
        train_images, val_images = full, read(val, notes=notes)[0]
    else:
        fraction = held_out_share(len(full)) if val_fraction is None else val_fraction
        kept, held = stratified_split(train.labels[good], fraction, classes=classes, copies=copies)
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
        name=name or str(root), train=train_images, val=val_images, classes=classes,
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

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of the split."""
        return self.paths

    def classes_of(self, parts: Sequence[Listing]) -> tuple[str, ...]:
        """The classes' names. Raises :class:`DataError` where another split has others."""
        for part in parts:
            if odd := sorted(set(part.classes) ^ set(self.classes)):
                where = {name: (self if name in self.classes else part).folder.name for name in odd}
                named = ", ".join(f"{name} (only in {where[name]}/)" for name in odd[:5])
                raise DataError(
                    f"{len(odd)} classes of {part.folder} and {self.folder} differ: {named}; "
                    "name the folders alike, or add or remove them"
                )
        return self.classes

    def given(self, indices: npt.NDArray[np.int64]) -> torch.Tensor | tuple[Path, ...]:
        """What is to be learned of the images at ``indices``."""
        return torch.from_numpy(self.labels[indices])


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
    check_names(names, str(folder))
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


def _others(root: Path, notes: list[str]) -> tuple[Path | None, Path | None]:
    """The folders of (validation, test) as far as ``root`` has them."""
    val = next((root / n for n in ("val", "valid", "validation") if (root / n).is_dir()), None)
    if (root / "test").is_dir():
        return val, root / "test"
    if val is None:
        notes.append("no folder test/: there will be no accuracy on images that no step has used")
    else:
        notes.append(
            f"no folder test/: {val.name}/ is kept for the final accuracy, and validation images are "
            "held out of train/"
        )
    return None, val


# -- images and masks -----------------------------------------------------------------------------

CLASS_NAMES = "classes.txt"
"""Beside ``train/``: names of the classes of masks, one a line, in the order of their numbers."""


def has_masks(root: Path) -> bool:
    """Whether a data set's folder is one of images and masks."""
    return (root / "train" / "images").is_dir() and (root / "train" / "masks").is_dir()


@dataclass(frozen=True)
class MaskListing(Listing):
    """The images and masks of one split.

    A mask has its image's name and size, one channel of class numbers (or a palette's indices), and 255 where
    a pixel belongs to no class.

    Attributes:
        masks: of the images; ``labels`` are all 0.
    """

    masks: tuple[Path, ...] = ()

    @classmethod
    def of(cls, folder: Path, notes: list[str]) -> MaskListing:
        """What ``folder`` holds. Raises :class:`DataError` for an image without a mask, or the reverse."""
        left_out: Counter[str] = Counter()
        found = []
        for kind in ("images", "masks"):
            if not (folder / kind).is_dir():
                raise DataError(
                    f"{folder} has no folder {kind!r}; the layout is {folder.name}/images/<image> and "
                    f"{folder.name}/masks/<mask>"
                )
            paths = _images(folder / kind, left_out)
            by_name = {path.relative_to(folder / kind).with_suffix(""): path for path in paths}
            if len(by_name) < len(paths):
                raise DataError(f"two files in {folder / kind} have one name but for the suffix; rename one")
            found.append(by_name)
        if odd := sorted(found[0].keys() ^ found[1].keys()):
            named = ", ".join(f"{name} (no {'mask' if name in found[0] else 'image'})" for name in odd[:5])
            raise DataError(
                f"{len(odd)} files of {folder} have no counterpart: {named}; an image and its mask have the "
                "same name but for the suffix"
            )
        if not found[0]:
            raise DataError(f"{folder}/images has no image; add images ({', '.join(sorted(SUFFIXES))})")
        if left_out := +left_out:
            parts = ", ".join(f"{count} {why}" for why, count in sorted(left_out.items()))
            notes.append(f"{folder.name}/: files left out: {parts}")
        names = sorted(found[0])
        return cls(
            folder, (), tuple(found[0][name] for name in names), np.zeros(len(names), dtype=np.int64),
            tuple(found[1][name] for name in names),
        )  # fmt: skip

    @property
    def files(self) -> tuple[Path, ...]:
        return self.paths + self.masks

    def classes_of(self, parts: Sequence[Listing]) -> tuple[str, ...]:
        """Names from ``classes.txt``, or the numbers that training's masks hold.

        Raises:
            DataError: a mask that is none, of another size than its image, or with a number that is no class.
        """
        names = self._names()
        counted = [part.numbers() for part in parts if isinstance(part, MaskListing)]
        own = counted[0]
        if not names and set(own) <= {0, 255} and 255 in own:
            raise DataError(
                f"the masks in {self.folder} hold {'0 and ' * (0 in own)}255 alone; {ONLY_IGNORED}"
            )
        classes = names or tuple(map(str, range(max(n for n in own if n < 255) + 1)))
        for numbers in counted:
            for number, path in numbers.items():
                if len(classes) <= number < 255:
                    raise DataError(
                        f"mask {path} holds the number {number}; allowed: 0..{len(classes) - 1} for the "
                        f"{len(classes)} classes, and 255; {CLASS_NAMES} beside train/ may name more"
                    )
        return classes

    def _names(self) -> tuple[str, ...]:
        path = self.folder.parent / CLASS_NAMES
        lines = files.read_text(path, DataError, "class names").splitlines() if path.exists() else []
        return tuple(line.strip() for line in lines if line.strip())

    def numbers(self) -> dict[int, Path]:
        """The numbers in the masks, each with a mask that has it. Raises :class:`DataError`."""
        found: dict[int, Path] = {}

        def read(index: int) -> None:
            values = class_numbers(self.masks[index])
            size = upright_size(self.paths[index])
            if values.shape[::-1] != size:
                raise ValueError(
                    f"it has {values.shape[1]}x{values.shape[0]} pixels, its image {size[0]}x{size[1]}"
                )
            for number in np.flatnonzero(np.bincount(values.reshape(-1), minlength=256)).tolist():
                found.setdefault(number, self.masks[index])

        for index, reason in _unreadable(self.masks, read).items():
            raise DataError(
                f"mask {self.masks[index]} does not fit its image: {reason}; repair or remove both"
            )
        return found

    def given(self, indices: npt.NDArray[np.int64]) -> torch.Tensor | tuple[Path, ...]:
        return _at(self.masks, indices)


def _fingerprint(root: Path, parts: Iterable[Listing]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        for path in part.files:
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
    root: Path,
    train: Listing,
    good: npt.NDArray[np.int64],
    val: Listing | None,
    test: Listing | None,
    notes: list[str],
) -> list[list[int]]:
    """Groups of equal images of ``train`` among the ``good`` ones, by their place in these.

    Those, and copies between the splits, are said in ``notes``.
    """
    parts = [part for part in (train, val, test) if part is not None]
    paths = [train.paths[int(i)] for i in good] + [path for part in parts[1:] for path in part.paths]
    labels = np.concatenate([train.labels[good], *(part.labels for part in parts[1:])])
    place = np.repeat(np.arange(len(parts)), [len(good), *(len(part.paths) for part in parts[1:])])
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
    seen = FileImages(_at(paths, good), listing.given(good), view)
    if not in_memory:
        return seen, good
    return MemoryImages(images[torch.from_numpy(good)] if bad else images, seen.labels), good


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
