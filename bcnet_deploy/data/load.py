"""From a data reference to splits."""

from __future__ import annotations

from pathlib import Path

from bcnet_deploy.data.splits import DataSplits
from bcnet_deploy.errors import DataError, nearest

VAL_FRACTION = 0.1
DIGITS_VAL_FRACTION = 0.3
"""A tenth of the digits would be 135 images, on which networks that differ by a point look alike."""


def load_data(
    reference: str,
    input_size: tuple[int, int, int],
    *,
    num_classes: int | None = None,
    val_fraction: float | None = None,
    memory_bytes: int | None = None,
) -> DataSplits:
    """The data set that ``reference`` names.

    Args:
        reference: ``digits``; a folder with ``train/<class>/`` and ``test/<class>/``, or a tar archive of
            one (also ``folder:PATH``); or ``package.module:function``.
        input_size: (C, H, W) of the model; images are brought to it.
        num_classes: of the model, checked against the data.
        val_fraction: share of the training images held out for validation, in (0, 0.5];
            by default 0.1, of the few digits 0.3.
        memory_bytes: limit for decoded images in memory.

    Raises:
        DataError: the reference names nothing, or its data is damaged or does not fit the model.
    """
    if val_fraction is None:
        val_fraction = DIGITS_VAL_FRACTION if reference == "digits" else VAL_FRACTION
    if not 0 < val_fraction <= 0.5:
        raise DataError(f"the validation share is {val_fraction}; allowed: above 0, up to 0.5")
    size = (int(input_size[0]), int(input_size[1]), int(input_size[2]))
    path = Path(reference.removeprefix("folder:")).expanduser()
    if reference == "digits":
        from bcnet_deploy.data.digits import load_digits

        splits = load_digits(size, val_fraction)
    elif path.exists():
        from bcnet_deploy.data.folders import load_folder

        splits = load_folder(path, size, val_fraction, memory_bytes=memory_bytes, name=reference)
    elif ":" in reference and not reference.startswith("folder:"):
        from bcnet_deploy.data.user import load_user

        splits = load_user(reference, size, val_fraction)
    else:
        raise DataError(
            f"no data {reference!r}: there is no such file or folder{nearest(reference, ['digits'])}; "
            "allowed: 'digits', a folder with train/<class>/ and test/<class>/, a tar archive of one, "
            "'module:function'; name it with --data FOLDER_OR_TAR"
        )
    if num_classes is not None and splits.num_classes != num_classes:
        count = splits.num_classes
        raise DataError(
            f"{reference} has {count} classes, labels 0..{count - 1}; the model tells {num_classes} apart; "
            f"build it with num_classes={count} (--num-classes {count}); a run directory keeps its number, "
            "for another one give another --run-dir"
        )
    return splits
