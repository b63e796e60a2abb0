"""From what the user names or gives to splits."""

from __future__ import annotations

import reprlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from bcnet_deploy import references
from bcnet_deploy.data.pictures import Interpolation, View
from bcnet_deploy.data.splits import DataSplits, check_names
from bcnet_deploy.errors import DataError, names_nothing, nearest

FEW = 200
"""With fewer held-out images, what one of them is worth is said."""

FORMS = (
    "'digits', 'digits-canvas', a folder with train/<class>/ and test/<class>/, a tar archive of one, "
    "'module:function', 'file.py:function'"
)


def load_data(
    reference: Any,
    input_size: tuple[int, int, int],
    *,
    num_classes: int | None = None,
    val_fraction: float | None = None,
    memory_bytes: int | None = None,
    interpolation: Interpolation = "bilinear",
    crop: float | None = None,
    name: str | None = None,
) -> DataSplits:
    """The data set that ``reference`` names or is.

    Args:
        reference: ``digits``, or ``digits-canvas`` (segmentation); a folder with ``train/<class>/`` and
            ``test/<class>/``, or a tar archive of one (also ``folder:PATH``); ``package.module:function`` or
            ``file.py:function``; or an object: (images, labels), a torch data set, a mapping of several
            (:data:`bcnet_deploy.data.given.CONTRACT`), or splits made before.
        input_size: (C, H, W) of the model; images are brought to it.
        num_classes: of the model, checked against the data.
        val_fraction: share of the training images held out for validation, in (0, 0.5];
            by default a tenth, more of few images (:func:`bcnet_deploy.data.splits.held_out_share`).
        memory_bytes: limit for decoded images in memory.
        interpolation, crop: of image files, see :class:`bcnet_deploy.data.pictures.View`.
        name: what messages and the run directory call an object.

    Raises:
        DataError: nothing is named, the reference names nothing, or its data is damaged or does not fit the
            model.
    """
    if reference is None:
        raise no_data()
    if val_fraction is not None and not 0 < val_fraction <= 0.5:
        raise DataError(f"the validation share is {val_fraction}; allowed: above 0, up to 0.5")
    size = (int(input_size[0]), int(input_size[1]), int(input_size[2]))
    view = View(input_size=size, interpolation=interpolation, crop=crop) if size[0] in (1, 3) else None
    if isinstance(reference, Path):
        reference = str(reference)
    if isinstance(reference, str):
        splits = _named(reference, size, view, val_fraction, memory_bytes)
    elif isinstance(reference, DataSplits):
        splits = reference
        if splits.input_size != size:
            raise DataError(f"the data is of size {splits.input_size}, the model takes {size}")
    else:
        from bcnet_deploy.data.given import load_given

        splits = load_given(reference, name, view, size, val_fraction, memory_bytes)
    check_names(splits.classes, splits.name)
    if num_classes is not None and splits.num_classes != num_classes:
        count = splits.num_classes
        raise DataError(
            f"{splits.name} has {count} classes, labels 0..{count - 1}; the model tells {num_classes} apart; "
            f"build it with num_classes={count} (--num-classes {count}); a run directory keeps its number, "
            "for another one give another --run-dir"
        )
    if len(splits.val) < FEW and splits is not reference:
        note = (
            f"{len(splits.val)} held-out images: one image is {splits.resolution:.1f} points of accuracy, "
            "and networks that differ by less look alike"
        )
        splits = replace(splits, notes=(*splits.notes, note))
    return splits


def no_data() -> DataError:
    """What is said where nobody has named any data: there is no silent default."""
    return DataError(f"no data is named; name it with --data (from Python data=...): {FORMS}")


def classes_of(reference: Any, input_size: tuple[int, int, int]) -> int:
    """How many classes the data has; of image folders only the folders' names are read.

    Raises:
        DataError: the reference names nothing, or what it names is no data.
    """
    path = _path(reference) if isinstance(reference, str | Path) else None
    if path is None:
        return load_data(reference, input_size).num_classes
    from bcnet_deploy.data.archives import unpack
    from bcnet_deploy.data.folders import class_names, has_masks

    root = unpack(path) if path.is_file() else path
    if has_masks(root):
        return load_data(reference, input_size).num_classes
    return len(class_names(root / "train"))


def _path(reference: str | Path) -> Path | None:
    """Of the folder or archive, where the reference names one."""
    path = Path(str(reference).removeprefix("folder:"))
    try:
        path = path.expanduser()
        there = path.exists()
    except (OSError, ValueError, RuntimeError):  # too long, with a NUL, of an unknown user
        there = False
    return path if there and str(reference) not in ("digits", "digits-canvas") else None


def _named(
    reference: str, size: tuple[int, int, int], view: View | None, val_fraction: float | None,
    memory_bytes: int | None,
) -> DataSplits:  # fmt: skip
    if reference == "digits":
        from bcnet_deploy.data.digits import load_digits

        return load_digits(size, val_fraction)
    if reference == "digits-canvas":
        from bcnet_deploy.data.canvas import load_canvases

        return load_canvases(size)
    if reference.endswith(".py"):
        raise DataError(f"{reference} is a Python file; name the function in it: {reference}:FUNCTION")
    if (path := _path(reference)) is not None:
        from bcnet_deploy.data.folders import load_folder

        return load_folder(
            path, view or View(input_size=size), val_fraction, memory_bytes=memory_bytes, name=reference
        )
    if references.is_reference(reference) and not reference.startswith("folder:"):
        from bcnet_deploy.data.given import load_given

        function = references.find(reference, "data", DataError)
        data = references.call(function, f"loading the data {reference!r}: {reference}", DataError)
        return load_given(data, reference, view, size, val_fraction, memory_bytes)
    raise names_nothing(
        DataError(
            f"no data {reprlib.repr(reference)}: there is no such file or folder"
            f"{nearest(reference, ['digits'])}; allowed: {FORMS}; name it with --data FOLDER_OR_TAR"
        )
    )
