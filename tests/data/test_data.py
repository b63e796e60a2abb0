"""Data sets: what is held out, what is refused, and that test images wait for the end."""

from __future__ import annotations

import io
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bcnet_deploy.data import View, load_data
from bcnet_deploy.data.archives import unpack
from bcnet_deploy.data.folders import FileImages, load_folder
from bcnet_deploy.data.pictures import decode
from bcnet_deploy.data.splits import channel_statistics, stratified_split
from bcnet_deploy.errors import DataError

SMALL = View(input_size=(3, 8, 8))


def write_images(root: Path, counts: dict[str, int], size: tuple[int, int] = (10, 8)) -> Path:
    """Grey images whose brightness tells them apart: ``root/<split>/<class>/<n>.png``."""
    for place, count in counts.items():
        (root / place).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            Image.new("RGB", size, (index, index, index)).save(root / place / f"{index:04d}.png")
    return root


def brightness(images: torch.Tensor) -> list[int]:
    return images[:, 0, 0, 0].tolist()


def test_digits_have_every_image_once_and_fixed_splits() -> None:
    one, two = load_data("digits", (1, 8, 8)), load_data("digits", (1, 8, 8))
    assert torch.equal(one.train.memory, two.train.memory) and torch.equal(one.val.labels, two.val.labels)
    parts = (one.train, one.val, one.load_test())
    assert sum(map(len, parts)) == 1797 and one.num_classes == 10
    from sklearn.datasets import load_digits

    ours = sorted(tuple(row) for part in parts for row in part.memory.reshape(len(part), -1).tolist())
    theirs = np.round(load_digits().images * 255 / 16).astype(int).reshape(1797, -1)
    assert ours == sorted(map(tuple, theirs.tolist()))
    counts = torch.bincount(one.val.labels, minlength=10)
    assert int(counts.min()) >= 39 and int(counts.max()) <= 42


def test_digits_fit_models_of_other_sizes() -> None:
    data = load_data("digits", (3, 32, 32))
    assert data.train.memory.shape[1:] == (3, 32, 32) and len(data.mean) == 3
    assert torch.equal(data.train.memory[:, 0], data.train.memory[:, 2])


@given(counts=st.lists(st.integers(2, 60), min_size=1, max_size=6), fraction=st.floats(0.01, 0.5))
def test_splits_hold_out_each_classs_share(counts: list[int], fraction: float) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    kept, held = stratified_split(labels, fraction)
    assert sorted([*kept, *held]) == list(range(len(labels)))
    for label, count in enumerate(counts):
        number = int((labels[held] == label).sum())
        assert 1 <= number < count and abs(number - fraction * count) <= 1


@settings(max_examples=20)
@given(data=st.lists(st.integers(0, 255), min_size=16, max_size=16))
def test_statistics_equal_numpys(data: list[int]) -> None:
    images = np.array(data, dtype=np.uint8).reshape(2, 2, 2, 2)
    mean, std = channel_statistics(torch.from_numpy(images))
    scaled = images / 255
    assert mean == pytest.approx(scaled.mean(axis=(0, 2, 3)))
    assert std == pytest.approx(np.maximum(scaled.std(axis=(0, 2, 3)), 1e-3))


def test_folders_are_read_sorted_and_test_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path, {"train/b": 10, "train/a": 20, "test/a": 3, "test/b": 4})
    read: list[Path] = []
    monkeypatch.setattr(
        "bcnet_deploy.data.folders.decode",
        lambda path, *rest, **more: (read.append(path), decode(path, *rest, **more))[1],
    )
    data = load_data(str(tmp_path), (3, 8, 8), val_fraction=0.2)
    assert data.classes == ("a", "b") and len(data.train) == 24 and len(data.val) == 6
    assert sorted(brightness(data.train.memory) + brightness(data.val.memory)) == sorted(
        [*range(20), *range(10)]
    )
    assert not any("test" in path.parts for path in read)
    assert sorted(data.load_test().labels.tolist()) == [0] * 3 + [1] * 4


def test_large_folders_are_read_image_by_image(tmp_path: Path) -> None:
    write_images(tmp_path, {"train/a": 12, "train/b": 12})
    data = load_folder(tmp_path, SMALL, 0.25, memory_bytes=1000)
    small = load_folder(tmp_path, SMALL, 0.25)
    assert isinstance(data.train, FileImages) and small.train.memory is not None
    read = torch.stack([data.train.read(i, None) for i in range(len(data.train))])
    assert torch.equal(read, small.train.memory)
    assert data.mean == pytest.approx((0.485, 0.456, 0.406))
    with pytest.raises(DataError, match="no test images"):
        data.load_test()


def test_decoding_keeps_the_aspect_ratio_and_cuts_the_middle(tmp_path: Path) -> None:
    """Stripes: black, white, black thirds of a wide image; a square target sees the middle."""
    pixels = np.zeros((20, 60, 3), dtype=np.uint8)
    pixels[:, 20:40] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    view = View(input_size=(3, 10, 10))
    middle = decode(tmp_path / "wide.png", view)
    assert int(middle[:, :, 1:-1].min()) == 255 and int(middle.min()) > 200  # the filter blurs the edges
    assert decode(tmp_path / "wide.png", View(input_size=(1, 10, 10))).shape == (1, 10, 10)
    crops = {decode(tmp_path / "wide.png", view, seed).float().mean().item() for seed in range(8)}
    assert len(crops) > 4
    again = decode(tmp_path / "wide.png", view, 3)
    assert torch.equal(again, decode(tmp_path / "wide.png", view, 3))


def test_archives_are_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_images(tmp_path / "source", {"train/a": 4, "train/b": 4})
    with tarfile.open(tmp_path / "set.tar.xz", "w:xz") as tar:
        tar.add(source, "set")
    monkeypatch.setenv("BCNET_CACHE", str(tmp_path / "cache"))
    assert len(load_data(str(tmp_path / "set.tar.xz"), (3, 8, 8)).train) == 6
    (unpacked,) = (tmp_path / "cache").iterdir()
    stamp = (unpacked / ".whole").stat().st_mtime_ns
    load_data(f"folder:{tmp_path / 'set.tar.xz'}", (3, 8, 8))
    assert (unpacked / ".whole").stat().st_mtime_ns == stamp
    (tmp_path / "broken.tar").write_bytes(b"no archive")
    with pytest.raises(DataError, match="not a readable tar archive"):
        load_data(str(tmp_path / "broken.tar"), (3, 8, 8))


def test_an_archive_may_be_unpacked_by_several_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever comes second finds all files whole, and what a killed unpacking left does not count."""
    source = write_images(tmp_path / "source", {"train/a": 20, "train/b": 20})
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        tar.add(source, "set")
    monkeypatch.setenv("BCNET_CACHE", str(tmp_path / "cache"))
    with ThreadPoolExecutor(4) as pool:
        (found,) = set(pool.map(unpack, [tmp_path / "set.tar"] * 8))
    assert [*(tmp_path / "cache").iterdir()] == [found.parent]
    (found.parent / ".whole").unlink()
    (found / "train" / "a" / "0003.png").write_bytes(b"half a pict")
    assert unpack(tmp_path / "set.tar") == found
    assert len(load_folder(found, SMALL, 0.1).train) == 36


def test_archives_cannot_write_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        entry = tarfile.TarInfo("../../outside.txt")
        entry.size = 2
        tar.addfile(entry, io.BytesIO(b"no"))
    monkeypatch.setenv("BCNET_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataError, match="not a readable tar archive"):
        load_data(str(tmp_path / "evil.tar"), (3, 8, 8))
    assert not (tmp_path / "outside.txt").exists()


def test_unreadable_images_are_named_counted_and_limited(tmp_path: Path) -> None:
    write_images(tmp_path, {"train/a": 150, "train/b": 150})
    for number in (3, 4):
        (tmp_path / "train" / "a" / f"000{number}.png").write_bytes(b"not a picture")
    data = load_data(str(tmp_path), (3, 8, 8))
    assert len(data.train) + len(data.val) == 298
    (note,) = [note for note in data.notes if "read" in note]
    assert "2 of 300 images cannot be read" in note and "0003.png" in note and "skipped" in note
    for memory in (None, 1000):
        with pytest.raises(DataError, match=r"2 of 300 images .*0003.png.* at most 0.5% may be"):
            load_folder(tmp_path, SMALL, 0.1, max_unreadable=0.005, memory_bytes=memory)


def test_damage_that_headers_hide_is_named_when_it_is_read(tmp_path: Path) -> None:
    write_images(tmp_path, {"train/a": 4, "train/b": 4})
    data = load_folder(tmp_path, SMALL, 0.25, memory_bytes=10)
    victim = data.train.paths[0]  # type: ignore[attr-defined]
    victim.write_bytes(victim.read_bytes()[:40])
    with pytest.raises(DataError, match=f"cannot read image .*{victim.name}"):
        data.train.read(0, None)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"train/a": 3, "train/b": 0}, "1 of 2 class folders in .* have no image: b; add images"),
        ({"train/a": 3}, "has 1 class folder"),
        ({"pictures/a": 3}, "has no folder 'train'; the layout is"),
        ({"train/a": 3, "train/b": 1}, "class 'b' has 1 image; a held-out split needs at least two"),
    ],
)
def test_folders_that_do_not_fit_are_refused(counts: dict[str, int], message: str, tmp_path: Path) -> None:
    write_images(tmp_path, counts)
    with pytest.raises(DataError, match=message):
        load_data(str(tmp_path), (3, 8, 8))


def test_test_classes_must_be_those_of_training(tmp_path: Path) -> None:
    write_images(tmp_path, {"train/a": 3, "train/b": 3, "val/a": 1, "val/c": 1})
    message = r"2 classes of .*val and .*train differ: b \(only in train/\), c \(only in val/\)"
    with pytest.raises(DataError, match=message):
        load_data(str(tmp_path), (3, 8, 8))


USER = """
import numpy as np
rng = np.random.default_rng(0)
def part(n, classes=3, dtype=np.uint8):
    return rng.integers(0, 255, (n, 1, 8, 8)).astype(dtype), np.arange(n) % classes
opened = []
def test():
    opened.append(1)
    return part(6)
def good(): return {"train": part(30), "test": test, "classes": ["x", "y", "z"]}
def with_val(): return {"train": part(30), "val": part(9)}
def not_mapping(): return 3
def no_pair(): return {"train": 3}
def floats(): return {"train": part(30, dtype=np.float32)}
def out_of_range(): return {"train": part(30, classes=4), "classes": ["x", "y", "z"]}
def lengths(): return {"train": (part(30)[0], np.zeros(3, dtype=int))}
def fails(): raise KeyError("mine")
"""


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"user_data_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(USER)
    monkeypatch.chdir(tmp_path)
    return name


def test_user_functions_give_data(user: str) -> None:
    data = load_data(f"{user}:good", (1, 8, 8), num_classes=3, val_fraction=0.2)
    assert data.classes == ("x", "y", "z") and (len(data.train), len(data.val)) == (24, 6)
    import sys

    assert sys.modules[user].opened == []
    assert len(data.load_test()) == 6 and sys.modules[user].opened == [1]
    data = load_data(f"{user}:with_val", (1, 8, 8))
    assert (len(data.train), len(data.val)) == (30, 9)
    with pytest.raises(DataError, match="no test images"):
        data.load_test()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("not_mapping", "'train'.* is int; needed: .images, labels"),
        ("no_pair", "'train'.* is int; needed: .images, labels."),
        ("floats", r"floats of 0..254; needed: uint8 or floats of 0..1; divide them by 255"),
        ("out_of_range", r"label 3 of image 3 is out of range, and 6 more; allowed: 0..2"),
        ("lengths", "for 30 images; needed: one integer for each image"),
        ("fails", "KeyError: 'mine'"),
        ("missing", "has no function 'missing'"),
    ],
)
def test_user_functions_that_do_not_fit_are_refused(user: str, function: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(f"{user}:{function}", (1, 8, 8))


def test_references_that_name_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data 'digit': .* did you mean 'digits'"):
        load_data("digit", (1, 8, 8))
    with pytest.raises(DataError, match="no Python module 'no_such_module_here' for the data"):
        load_data("no_such_module_here:f", (1, 8, 8))
    with pytest.raises(DataError, match="digits has 10 classes, labels 0..9; the model tells 4 apart"):
        load_data("digits", (1, 8, 8), num_classes=4)
    with pytest.raises(DataError, match="digits has 10 classes.*tells 20 apart.*--num-classes 10"):
        load_data("digits", (1, 8, 8), num_classes=20)
    with pytest.raises(DataError, match="validation share is 0.9; allowed"):
        load_data("digits", (1, 8, 8), val_fraction=0.9)


def test_cifar_reads_as_the_shared_folder_says(shared_data: Path) -> None:
    """A sample of the real archive: the names of its classes and sizes of its images."""
    with tarfile.open(shared_data / "cifar10-imagefolder.tar.xz") as tar:
        member = next(entry for entry in tar if entry.isfile())
        file = tar.extractfile(member)
        assert file is not None
        with Image.open(io.BytesIO(file.read())) as image:
            assert image.size == (32, 32) and member.name.endswith(".jpg")


@pytest.fixture
def shared_data() -> Path:
    import os

    root = Path(__file__).resolve().parents[2]
    folder = Path(os.environ.get("BCNET_SHARED_DATA") or root.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; set BCNET_SHARED_DATA")
    return folder
