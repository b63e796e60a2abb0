"""Batches: every image once an epoch, exact resumption, shards that join, augmentation by known pixels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from bcnet_deploy.data import Augmentation, BatchLoader, MemoryImages, PlainBatches, View
from bcnet_deploy.data.folders import load_folder
from bcnet_deploy.errors import CheckpointError, ConfigError, DataError
from bcnet_deploy.nn import recalibrate
from tests.train.helpers import splits

CPU = torch.device("cpu")


def numbered(count: int, size: int = 8) -> MemoryImages:
    """Image n is all n; its label is n."""
    values = torch.arange(count, dtype=torch.uint8)
    return MemoryImages(values[:, None, None, None].expand(count, 1, size, size).contiguous(), values.long())


def loader(count: int, batch: int, kind: str = "none", **options) -> BatchLoader:  # type: ignore[no-untyped-def]
    return BatchLoader(numbered(count), batch, Augmentation(kind, (0.0,), (1.0,)), CPU, **options)


@given(count=st.integers(4, 60), batch=st.integers(1, 9), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_an_epoch_has_every_image_at_most_once_and_epochs_differ(count: int, batch: int, seed: int) -> None:
    if count < batch:
        return
    source = loader(count, batch, seed=seed)
    epochs = [[source.next_batch()[1].tolist() for _ in range(source.batches_per_epoch)] for _ in range(2)]
    for epoch in epochs:
        flat = [label for labels in epoch for label in labels]
        assert len(flat) == len(set(flat)) == count // batch * batch
    assert count < 8 or epochs[0] != epochs[1]


@given(skip=st.integers(0, 20), kind=st.sampled_from(["none", "crop", "crop-flip", "resized-crop-flip"]))
@settings(max_examples=20, deadline=None)
def test_a_loader_goes_on_exactly(skip: int, kind: str) -> None:
    one, two = loader(40, 8, kind, seed=3), loader(40, 8, kind, seed=3)
    for _ in range(skip):
        one.next_batch()
    two.load_state_dict(one.state_dict())
    for _ in range(3):
        (x, y), (u, v) = one.next_batch(), two.next_batch()
        assert torch.equal(x, u) and torch.equal(y, v)


def test_shards_join_to_the_whole_batch() -> None:
    whole = loader(40, 12, seed=1)
    parts = [loader(40, 12, seed=1, rank=rank, world=3) for rank in range(3)]
    for _ in range(5):
        joined = torch.cat([part.next_batch()[1] for part in parts])
        assert torch.equal(joined, whole.next_batch()[1])


def test_bad_batches_and_states_are_refused() -> None:
    with pytest.raises(
        DataError, match="3 training images are fewer than a batch of 4; lower batch_size to 3"
    ):
        loader(3, 4)
    with pytest.raises(ConfigError, match="allowed: positive multiples of 2"):
        loader(9, 3, world=2)
    with pytest.raises(ConfigError, match="unknown augmentation 'flip'"):
        Augmentation("flip", (0.0,), (1.0,))
    with pytest.raises(CheckpointError, match="images = 40, this run has 41"):
        loader(41, 8).load_state_dict(loader(40, 8).state_dict())


def test_normalisation_is_the_usual_formula() -> None:
    images = torch.randint(0, 256, (4, 3, 5, 5), dtype=torch.uint8)
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    expected = (images / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(Augmentation("none", mean, std).normalise(images), expected)


def test_crops_shift_each_image_by_its_own_offset_and_flip_half() -> None:
    """Every result must be one of the 9 shifts of the padded image, or its mirror image."""
    images = torch.randint(1, 255, (64, 2, 8, 8), dtype=torch.uint8)
    out = Augmentation("crop-flip", (0.0, 0.0), (1.0, 1.0))(images, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
    used = []
    for before, after in zip(padded, (out * 255).round().to(torch.uint8), strict=True):
        shifts = {(dy, dx): before[:, dy : dy + 8, dx : dx + 8] for dy in range(3) for dx in range(3)}
        candidates = {(*key, flip): x.flip(2) if flip else x for key, x in shifts.items() for flip in (0, 1)}
        used += [key for key, candidate in candidates.items() if torch.equal(candidate, after)]
    assert len(used) == 64 and len({key[:2] for key in used}) == 9
    assert 16 < sum(key[2] for key in used) < 48
    only = Augmentation("crop", (0.0, 0.0), (1.0, 1.0))(images, torch.Generator().manual_seed(0))
    assert not torch.equal(only, out)


@pytest.mark.parametrize("size", [(128, 16), (16, 128)])
def test_crops_shift_by_an_eighth_of_each_side(size: tuple[int, int]) -> None:
    """Of ones with zeros around, at least 7/8 of each side are still seen."""
    images = torch.ones(500, 1, *size)
    moved = Augmentation("crop", (0.0,), (1.0,))(images, torch.Generator().manual_seed(0))[:, 0]
    for side, seen in zip(size, (moved.amax(2).sum(1), moved.amax(1).sum(1)), strict=True):
        assert int(seen.min()) == side - side // 8 and int(seen.max()) == side


def test_resized_crops_stay_inside_the_image() -> None:
    """A horizontal ramp: rows stay equal, values in range, and crops differ."""
    ramp = torch.arange(0, 256, 8, dtype=torch.uint8).expand(16, 1, 32, 32).contiguous()
    out = Augmentation("resized-crop-flip", (0.0,), (1.0,))(ramp, torch.Generator().manual_seed(1))
    assert out.shape == ramp.shape and float(out.min()) >= 0 and float(out.max()) <= 248 / 255 + 1e-6
    assert float((out - out[:, :, :1]).abs().max()) < 0.02
    spans = (out[:, 0, 0].amax(1) - out[:, 0, 0].amin(1)).tolist()
    assert max(spans) > 0.6 and min(spans) < 0.55


def test_files_are_read_ahead_by_workers_in_the_same_order(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for index in range(12):
            pixels = np.full((12, 12, 3), 10 * index, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "train" / name / f"{index}.png")
    data = load_folder(tmp_path, View(input_size=(3, 8, 8)), 0.2, memory_bytes=10)
    augmentation = Augmentation("resized-crop-flip", data.mean, data.std)
    runs = []
    for workers, start in ((0, 0), (2, 0), (0, 2)):
        source = BatchLoader(data.train, 4, augmentation, CPU, seed=2, workers=workers)
        source.load_state_dict({**source.state_dict(), "position": start})
        runs.append([source.next_batch() for _ in range(6 - start)])
    for (x, y), (u, v) in zip(runs[0], runs[1], strict=True):
        assert torch.equal(x, u) and torch.equal(y, v)
    for (x, y), (u, v) in zip(runs[0][2:], runs[2], strict=True):
        assert torch.equal(x, u) and torch.equal(y, v)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_one_line(workers: int, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for index in range(3):
            Image.new("RGB", (9, 9)).save(tmp_path / "train" / name / f"{index}.png")
    data = load_folder(tmp_path, View(input_size=(3, 8, 8)), 0.3, memory_bytes=10)
    for path in data.train.paths:  # type: ignore[attr-defined]
        path.write_bytes(b"gone")
    source = BatchLoader(data.train, 4, Augmentation("none", data.mean, data.std), CPU, workers=workers)
    with pytest.raises(DataError, match="^cannot read image .*png: .* run again$"):
        source.next_batch()


@pytest.mark.parametrize("held", [True, False])
def test_plain_batches_are_the_images_in_order(held: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not held:
        monkeypatch.setattr("bcnet_deploy.data.plain.HELD_BYTES", 0)
    data = splits()
    batches = PlainBatches(data.val, data, 24, CPU)
    assert [len(labels) for _, labels in batches] == [24, 24, 16] and batches.image_count == 64
    assert torch.equal(torch.cat([labels for _, labels in batches]), data.val.labels)
    again = torch.cat([images for images, _ in batches])
    expected = Augmentation("none", data.mean, data.std).normalise(data.val.memory)
    assert torch.equal(again, expected)
    some = PlainBatches(data.val, data, 24, CPU, limit=30)
    assert some.image_count == 30 and len(some) == 2 and len(set(some[0][1].tolist())) == 4
    assert len(some[0:2]) == 2
    with pytest.raises(IndexError):
        some[2]


def test_statistics_of_few_images_sorted_by_class_hold_what_classes_differ_by() -> None:
    """64 images, all fewer than the limit: batches of one class each would have no variance at all."""
    shades = torch.arange(4, dtype=torch.uint8).repeat_interleave(16)
    images = (60 * shades)[:, None, None, None].expand(64, 1, 8, 8).contiguous()
    data = replace(splits(), train=MemoryImages(images, shades.long()), mean=(0.0,), std=(1.0,))
    batches = PlainBatches(data.train, data, 16, CPU, limit=1000)
    assert batches.image_count == 64
    assert all(len(set(labels.tolist())) > 1 for _, labels in batches)
    norm = nn.BatchNorm2d(1)
    recalibrate(norm, (images for images, _ in batches))
    variance = float((images.float() / 255).var())
    assert norm.running_var is not None and float(norm.running_var) == pytest.approx(variance, rel=0.2)


@given(count=st.integers(1, 70), batch=st.integers(1, 17), limit=st.one_of(st.none(), st.integers(1, 80)))
@settings(max_examples=60, deadline=None)
def test_no_plain_batch_is_of_one_image_where_that_can_be_helped(
    count: int, batch: int, limit: int | None
) -> None:
    data = replace(splits(), train=numbered(count))
    batches = PlainBatches(data.train, data, batch, CPU, limit=limit)
    sizes = [len(labels) for _, labels in batches]
    assert sum(sizes) == batches.image_count == min(count, limit or count)
    assert len({int(label) for _, labels in batches for label in labels}) == sum(sizes)
    assert all(size <= batch + 1 for size in sizes) and set(sizes[:-1]) <= {batch}
    if batch > 1 and sum(sizes) > 1:
        assert min(sizes) > 1


@pytest.mark.parametrize("kind", ["none", "crop", "crop-flip", "resized-crop-flip"])
def test_masks_move_with_their_images(kind: str) -> None:
    """Images that show their own masks: they still do afterwards, and what is outside is labelled 255."""
    masks = torch.randint(0, 3, (12, 4, 4), generator=torch.Generator().manual_seed(0))
    masks = masks.repeat_interleave(8, 1).repeat_interleave(8, 2)
    data = MemoryImages((50 + 50 * masks[:, None]).to(torch.uint8), masks)
    source = BatchLoader(data, 12, Augmentation(kind, (0.0,), (1.0,)), CPU, seed=1)
    images, moved = source.next_batch()
    plain = BatchLoader(MemoryImages(data.images, torch.arange(12)), 12, source.augmentation, CPU, seed=1)
    assert torch.equal(plain.next_batch()[0], images)
    assert moved.shape == masks.shape and moved.dtype == torch.int64
    shown = (images[:, 0] * 255 - 50) / 50
    outside = moved == 255
    assert (shown[outside] == -1).all() and bool(outside.any()) == kind.startswith("crop")
    # Resizing blurs the images at edges, not the masks.
    same = (shown - moved).abs()[~outside] < 0.01
    assert float(same.float().mean()) > (0.7 if kind == "resized-crop-flip" else 0.9999)
    assert set(moved[~outside].tolist()) <= {0, 1, 2}
    order = source.indices(0)
    assert torch.equal(moved, masks[order]) == (kind == "none")


@pytest.mark.parametrize("width", [64, 144])
@pytest.mark.parametrize("kind", ["none", "crop", "crop-flip", "resized-crop-flip"])
def test_points_move_with_their_images(kind: str, width: int) -> None:
    """A bright square, and its middle as the target: it is where the square is afterwards."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.randint(10, 38, (64, 2), generator=generator)
    corners[:, 0] += (width - 64) // 2
    images = torch.zeros(64, 1, 48, width, dtype=torch.uint8)
    for image, (x, y) in zip(images, corners.tolist(), strict=True):
        image[0, y : y + 4, x : x + 4] = 255
    middles = (corners + 2) / torch.tensor([float(width), 48.0])
    data = MemoryImages(images, torch.stack([middles, middles], 1))
    source = BatchLoader(
        data, 64, Augmentation(kind, (0.0,), (1.0,)), CPU, seed=1, move=lambda t, moves: moves.points(t)
    )
    out, moved = source.next_batch()
    assert torch.equal(moved[:, 0], moved[:, 1])
    inside = ((moved[:, 0] > 0.1) & (moved[:, 0] < 0.9)).all(1)
    assert int(inside.sum()) > 15
    weights = out[:, 0] / out[:, 0].sum((1, 2), keepdim=True).clamp(min=1e-9)
    found = torch.stack(
        [
            (weights.sum(1) * (torch.arange(width) + 0.5)).sum(1) / width,
            (weights.sum(2) * (torch.arange(48) + 0.5)).sum(1) / 48,
        ],
        1,
    )
    # Resizing reflects what lies at the border, and moves the centre of a square by less than a pixel.
    torch.testing.assert_close(
        moved[inside, 0], found[inside], atol=0.012 if kind.startswith("resized") else 1e-5, rtol=0
    )


def test_values_at_each_pixel_move_by_a_task_and_stay_without_one() -> None:
    masks = torch.randint(0, 3, (12, 32, 32), generator=torch.Generator().manual_seed(0))
    data = MemoryImages((50 + 50 * masks[:, None]).to(torch.uint8), masks.float())
    augmentation = Augmentation("crop-flip", (0.0,), (1.0,))
    source = BatchLoader(data, 12, augmentation, CPU, move=lambda t, moves: moves.maps(t, outside=-1))
    images, moved = source.next_batch()
    torch.testing.assert_close((images[:, 0] * 255 - 50) / 50, moved)
    stays = BatchLoader(data, 12, augmentation, CPU)
    assert torch.equal(stays.next_batch()[1], data.labels[stays.indices(0)])
