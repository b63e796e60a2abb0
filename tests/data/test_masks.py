"""Images with masks: pairs by name, numbers checked at load, and every crop and flip on both alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bcnet_deploy.data import Augmentation, BatchLoader, DataSplits, PlainBatches, View, classes_of, load_data
from bcnet_deploy.data.augment import AUGMENTATIONS
from bcnet_deploy.data.pictures import decode, decode_mask
from bcnet_deploy.errors import DataError

CPU = torch.device("cpu")
SIZE = (3, 16, 16)
COLOURS = np.array([[0, 0, 0], [250, 0, 0], [0, 250, 0], [0, 0, 250]], dtype=np.uint8)


def scene(seed: int, size: tuple[int, int] = (16, 16)) -> np.ndarray:  # type: ignore[type-arg]
    """(H, W) classes 1..3 in large blocks: the colour of each pixel of the picture tells its class."""
    blocks = np.random.default_rng(seed).integers(1, 4, (2, 2), dtype=np.uint8)
    height, width = size
    return blocks.repeat(height // 2, axis=0).repeat(width // 2, axis=1)


def write(root: Path, counts: dict[str, int], size: tuple[int, int] = (16, 16)) -> Path:
    for number, (part, count) in enumerate(counts.items()):
        (root / part / "images").mkdir(parents=True)
        (root / part / "masks").mkdir()
        for index in range(count):
            mask = scene(1000 * number + index, size)
            picture = COLOURS[mask].copy()
            picture[0, 0] = (index, number, 0)  # no two alike
            Image.fromarray(picture).save(root / part / "images" / f"{index:03d}.png")
            Image.fromarray(mask).save(root / part / "masks" / f"{index:03d}.png")
    return root


def agree(images: torch.Tensor, masks: torch.Tensor) -> float:
    """Share of labelled pixels whose colour is their class's, where the colour is clear."""
    pixels = images.permute(0, 2, 3, 1).reshape(-1, 3).float()
    distances = torch.cdist(pixels, torch.from_numpy(COLOURS).float())
    clear = (distances.min(1).values < 30) & (masks.reshape(-1) != 255)
    return float((distances.argmin(1) == masks.reshape(-1))[clear].float().mean())


def raw(data: DataSplits, images: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    return (images * std + mean) * 255


@pytest.mark.parametrize("memory", [None, 10])
@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_images_and_masks_move_together(kind: str, memory: int | None, tmp_path: Path) -> None:
    data = load_data(str(write(tmp_path, {"train": 40, "test": 4}, (24, 32))), SIZE, memory_bytes=memory)
    assert data.classes == ("0", "1", "2", "3") and (data.train.memory is None) == (memory is not None)
    loader = BatchLoader(data.train, 8, Augmentation(kind, data.mean, data.std), CPU, seed=3)
    seen, outside = [], 0
    for _ in range(4):
        images, masks = loader.next_batch()
        assert masks.dtype == torch.int64 and masks.shape == (8, 16, 16)
        assert agree(raw(data, images), masks) > 0.97
        outside += int((masks == 255).sum())
        seen += [mask.numpy().tobytes() for mask in masks]
    assert (outside > 0) == (kind in ("crop", "crop-flip"))
    images, masks = PlainBatches(data.val, data, 8, CPU)[0]
    assert agree(raw(data, images), masks) > 0.97
    assert torch.equal(masks, data.val.labels[:8].long())
    assert len(data.load_test()) == 4 and len(data.train) + len(data.val) == 40


def test_a_mask_is_seen_through_the_same_box_as_its_picture(tmp_path: Path) -> None:
    """Oracle: the mask saved as a picture, seen by the picture's own nearest-neighbour view."""
    mask = np.random.default_rng(0).integers(0, 200, (60, 90), dtype=np.uint8)
    Image.fromarray(mask).save(tmp_path / "a.png")
    for target in ((1, 20, 20), (1, 60, 90), (1, 100, 96)):
        view = View(input_size=target, interpolation="nearest")
        for seed in (None, 1, 2):
            assert torch.equal(
                decode_mask(tmp_path / "a.png", view, seed), decode(tmp_path / "a.png", view, seed)[0]
            )


def test_palettes_and_names_of_classes(tmp_path: Path) -> None:
    write(tmp_path, {"train": 10, "val": 4, "test": 4})
    for path in (tmp_path / "train" / "masks").iterdir():
        with Image.open(path) as opened:
            image = opened.copy()
        image.putpalette([7 * n % 256 for n in range(768)])
        image.save(path)
    with Image.open(tmp_path / "train" / "masks" / "000.png") as image:
        assert image.mode == "P"
    (tmp_path / "classes.txt").write_text("ground\nred\ngreen\nblue\nnever seen\n\n")
    data = load_data(str(tmp_path), SIZE, num_classes=5)
    assert data.classes == ("ground", "red", "green", "blue", "never seen")
    assert (len(data.train), len(data.val), len(data.load_test())) == (10, 4, 4)
    assert classes_of(str(tmp_path), SIZE) == 5
    expected = torch.from_numpy(np.stack([scene(n) for n in range(10)]))
    assert torch.equal(data.train.labels, expected)


def changed(path: Path, change: Any) -> None:
    with Image.open(path) as image:
        values = np.asarray(image).copy()
    Image.fromarray(change(values)).save(path)


def binary(masks: Path) -> None:
    for path in masks.iterdir():
        changed(path, lambda mask: (mask > 1) * np.uint8(255))


MASK, TEST_MASK, TEST_IMAGE = "train/masks/003.png", "test/masks/003.png", "test/images/003.png"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / MASK).unlink(), r"1 files of .*train have no counterpart: 003 \(no mask\)"),
        (lambda root: (root / TEST_IMAGE).unlink(), r"003 \(no image\)"),
        (lambda root: changed(root / MASK, lambda m: m[:-1]), "it has 16x15 pixels, its image 16x16"),
        (lambda root: changed(root / TEST_MASK, lambda m: m + 9), "holds the number 1.; allowed: 0..3"),
        (lambda root: changed(root / MASK, lambda m: COLOURS[m]), "its mode is RGB; needed: one channel"),
        (lambda root: changed(root / MASK, lambda m: m.astype(np.uint16) * 999), "needed: class numbers"),
        (lambda root: (root / MASK).write_bytes(b"no"), "003.png does not fit its image: not an image"),
        (lambda root: binary(root / "train/masks"), "0 and 255 alone; .* save the foreground as 1"),
    ],
)
def test_masks_that_do_not_fit_are_refused_at_load(spoil: Any, message: str, tmp_path: Path) -> None:
    write(tmp_path, {"train": 6, "test": 4})
    spoil(tmp_path)
    for memory in (None, 10):
        with pytest.raises(DataError, match=message) as caught:
            load_data(str(tmp_path), SIZE, memory_bytes=memory)
        assert str(caught.value).isprintable()
