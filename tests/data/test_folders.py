"""Folders and archives as people and their tools leave them: nothing is left out in silence."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bcnet_deploy.data import DataSplits, View, classes_of, load_data
from bcnet_deploy.data.archives import unpack
from bcnet_deploy.data.folders import equal_files, load_folder
from bcnet_deploy.data.splits import held_out_share, stratified_split
from bcnet_deploy.errors import DataError

SIZE = (3, 8, 8)
PARTS = {"train/a": 20, "train/b": 20, "test/a": 5, "test/b": 5}


def write(root: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """No two images alike."""
    rng = np.random.default_rng(seed)
    for place, count in counts.items():
        (root / place).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / place / f"{index:03d}.png")
    return root


def contents(images: torch.Tensor) -> list[bytes]:
    return [image.numpy().tobytes() for image in images]


def notes(data: DataSplits) -> str:
    return "; ".join(data.notes)


def test_hidden_folders_and_files_are_left_out_and_said(tmp_path: Path) -> None:
    write(tmp_path, PARTS)
    expected = load_data(str(tmp_path), SIZE)
    for part in ("train", "test"):
        for place in (".ipynb_checkpoints", ".Trash", "__MACOSX", "@eaDir"):
            for folder in (tmp_path / part, tmp_path / part / "a", tmp_path / part / "b" / "deep" / "er"):
                (folder / place).mkdir(parents=True)
                shutil.copy(tmp_path / "train" / "b" / "000.png", folder / place / "copy.png")
        shutil.copy(tmp_path / "train" / "a" / "000.png", tmp_path / part / "b" / "._000.png")
        for name in ("Thumbs.db", ".DS_Store", "desktop.ini"):
            (tmp_path / part / "a" / name).write_bytes(b"system")
    data = load_data(str(tmp_path), SIZE)
    assert data.classes == ("a", "b")
    assert torch.equal(data.train.memory, expected.train.memory)
    assert torch.equal(data.val.memory, expected.val.memory)
    assert torch.equal(data.load_test().memory, expected.load_test().memory)
    for part in ("train", "test"):
        assert f"{part}/: files left out: 13 images in hidden folders or files" in data.notes


def test_what_is_no_image_by_its_name_is_counted(tmp_path: Path) -> None:
    write(tmp_path, PARTS)
    (tmp_path / "train" / "a" / "0.heic").write_bytes(b"x")
    (tmp_path / "train" / "a" / "1.HEIC").write_bytes(b"x")
    (tmp_path / "train" / "b" / "labels.txt").write_text("x")
    (tmp_path / "train" / "b" / "README").write_text("x")
    (tmp_path / "train" / "b" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    shutil.copy(tmp_path / "train" / "a" / "000.png", tmp_path / "train" / "loose.png")
    assert (
        "train/: files left out: 1 in no class folder, 2 with the suffix .heic, 1 with the suffix .png, "
        "1 with the suffix .txt, 1 without suffix"
    ) in load_data(str(tmp_path), SIZE).notes


def test_suffixes_of_any_case_and_links(tmp_path: Path) -> None:
    write(tmp_path, {"test/a": 3, "test/b": 3, "elsewhere/more": 3})
    rng = np.random.default_rng(5)
    suffixes = ("jpg", "JPG", "jpeg", "JPEG", "Jfif", "jfif", "PNG", "BMP", "WebP", "TIFF", "ppm")
    for name in "ab":
        (tmp_path / "train" / name).mkdir(parents=True)
        for index, suffix in enumerate(suffixes):
            image = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
            kind = "JPEG" if suffix.lower() == "jfif" else None
            image.save(tmp_path / "train" / name / f"{index}.{suffix}", format=kind)
    (tmp_path / "train" / "a" / "link").symlink_to(tmp_path / "elsewhere" / "more")
    (tmp_path / "train" / "a" / "round").symlink_to(tmp_path / "train" / "a")
    data = load_data(str(tmp_path), SIZE)
    assert len(data.train) + len(data.val) == 2 * len(suffixes) + 3


def test_a_val_folder_beside_test_is_the_validation_set(tmp_path: Path) -> None:
    for name in ("val", "valid", "validation"):
        root = write(tmp_path / name, {**PARTS, f"{name}/a": 7, f"{name}/b": 7})
        data = load_data(str(root), SIZE)
        assert (len(data.train), len(data.val), len(data.load_test())) == (40, 14, 10)
        expected = [np.asarray(Image.open(path)).tobytes() for path in sorted((root / name).rglob("*.png"))]
        assert [image.permute(1, 2, 0).numpy().tobytes() for image in data.val.memory] == expected
    alone = load_data(
        str(write(tmp_path / "alone", {"train/a": 20, "train/b": 20, "val/a": 3, "val/b": 3})), SIZE
    )
    assert len(alone.load_test()) == 6 and len(alone.train) + len(alone.val) == 40
    assert "val/ is kept for the final accuracy" in notes(alone)


def test_what_later_steps_would_miss_is_said_or_refused_at_load(tmp_path: Path) -> None:
    write(tmp_path, {"train/disc": 4, "train/ring": 4})
    assert "no folder test/" in notes(load_data(str(tmp_path), SIZE))
    write(tmp_path, {"test/disk": 2, "test/ring": 2})
    with pytest.raises(DataError, match=r"disc \(only in train/\), disk \(only in test/\)"):
        load_data(str(tmp_path), SIZE)
    (tmp_path / "test" / "disk").rename(tmp_path / "test" / "disc")
    shutil.rmtree(tmp_path / "test" / "ring")
    (tmp_path / "test" / "ring").mkdir()
    with pytest.raises(DataError, match="1 of 2 class folders in .*test have no image: ring"):
        load_data(str(tmp_path), SIZE)
    assert classes_of(str(tmp_path), SIZE) == 2


# -- copies ---------------------------------------------------------------------------------------


@given(data=st.lists(st.binary(max_size=3), max_size=12), long=st.booleans())
@settings(max_examples=60, deadline=None)
def test_equal_files_are_those_with_equal_content(
    tmp_path_factory: pytest.TempPathFactory, data: list[bytes], long: bool
) -> None:
    """Oracle: comparing all pairs. Long files differ in the middle alone, where no sample looks."""
    folder = tmp_path_factory.mktemp("files")
    paths = [folder / str(index) for index in range(len(data))]
    for path, content in zip(paths, data, strict=True):
        path.write_bytes(b"x" * 9000 + content + b"y" * 9000 if long else content)
    expected = {frozenset(i for i, other in enumerate(data) if other == one) for one in data}
    assert set(map(frozenset, equal_files(paths))) == {group for group in expected if len(group) > 1}


def test_copies_are_said_and_never_on_both_sides_of_the_held_out_split(tmp_path: Path) -> None:
    write(tmp_path, PARTS)
    for name in "ab":
        for index in range(0, 20, 2):
            source = tmp_path / "train" / name / f"{index:03d}.png"
            shutil.copy(source, source.with_name(f"copy-{index}.png"))
    data = load_data(str(tmp_path), SIZE)
    train, val = contents(data.train.memory), contents(data.val.memory)
    assert len(train) + len(val) == 60 and not set(train) & set(val)
    assert 14 <= len(val) <= 18
    assert "20 images of train/ are copies of others (train/a/000.png = train/a/copy-0.png)" in notes(data)
    assert not any("too" in note for note in data.notes)


def test_test_images_that_are_trained_on_are_counted(tmp_path: Path) -> None:
    write(tmp_path, {**PARTS, "val/a": 4, "val/b": 4})
    shutil.copy(tmp_path / "train" / "a" / "003.png", tmp_path / "test" / "a" / "x.png")
    shutil.copy(tmp_path / "train" / "a" / "003.png", tmp_path / "test" / "a" / "y.png")
    shutil.copy(tmp_path / "train" / "b" / "001.png", tmp_path / "val" / "a" / "z.png")
    said = notes(load_data(str(tmp_path), SIZE))
    assert "2 of 12 images of test/ are in train/ too (train/a/003.png = test/a/x.png)" in said
    assert "1 of 9 images of val/ are in train/ too (train/b/001.png = val/a/z.png)" in said
    assert "1 images are in more than one class" in said


@given(
    labels=st.lists(st.integers(0, 2), min_size=2, max_size=40),
    fraction=st.floats(0.05, 0.5),
    seed=st.integers(0, 99),
)
def test_splits_keep_copies_together(labels: list[int], fraction: float, seed: int) -> None:
    counts = np.bincount(labels, minlength=3)
    if (counts == 1).any():
        return
    contents = np.random.default_rng(seed).integers(0, 12, len(labels))
    copies = [np.flatnonzero(contents == value).tolist() for value in np.unique(contents)]
    kept, held = stratified_split(np.array(labels), fraction, copies=copies)
    assert sorted([*kept, *held]) == list(range(len(labels)))
    for label in np.flatnonzero(counts):
        mine = {
            side: [int(i) for i in indices if labels[i] == label]
            for side, indices in (("k", kept), ("h", held))
        }
        assert mine["k"] and mine["h"]
        if len({contents[i] for i in range(len(labels)) if labels[i] == label}) > 1:
            assert not {contents[i] for i in mine["k"]} & {contents[i] for i in mine["h"]}


# -- few images -----------------------------------------------------------------------------------


def test_of_few_images_more_are_held_out_and_their_weight_is_said(tmp_path: Path) -> None:
    data = load_data(str(write(tmp_path, {"train/a": 54, "train/b": 54})), SIZE)
    assert len(data.val) == 32
    assert "32 held-out images: one image is 3.1 points of accuracy" in notes(data)
    assert data.resolution == pytest.approx(100 / 32)
    assert held_out_share(100) == 0.3 and held_out_share(2_500) == 0.2 and held_out_share(10**6) == 0.1
    assert len(load_data(str(tmp_path), SIZE, val_fraction=0.1).val) == 10


# -- identity -------------------------------------------------------------------------------------


def test_the_fingerprint_is_the_content_and_not_the_place_or_the_memory(tmp_path: Path) -> None:
    one = load_data(str(write(tmp_path / "one", PARTS)), SIZE)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert load_data(str(tmp_path / "two"), SIZE, memory_bytes=10).fingerprint == one.fingerprint
    (tmp_path / "two" / "test" / "a" / "000.png").rename(tmp_path / "two" / "test" / "a" / "new.png")
    assert load_data(str(tmp_path / "two"), SIZE).fingerprint != one.fingerprint


# -- archives -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["", "gz", "bz2", "xz"])
def test_an_archive_that_was_cut_off_is_refused_at_every_length(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also at the boundary of an entry, where tarfile says nothing, and twice: nothing is kept of it."""
    monkeypatch.setenv("BCNET_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "set", {"train/a": 4, "train/b": 4})
    whole = tmp_path / "whole.tar"
    with tarfile.open(whole, f"w:{kind}") as tar:
        tar.add(tmp_path / "set", "set")
    content = whole.read_bytes()
    with tarfile.open(whole) as tar:
        entries = [entry.offset for entry in tar] if kind == "" else []
        ends = [tar.offset] if kind == "" else [len(content)]
    lengths = {*entries, *(int(share * ends[0]) for share in np.linspace(0.05, 0.999, 30))}
    cut = tmp_path / "cut.tar"
    for length in sorted(lengths):
        cut.write_bytes(content[:length])
        for _ in range(2):
            with pytest.raises(DataError, match="not a readable tar archive"):
                load_data(str(cut), SIZE)
    cut.write_bytes(content)
    assert len(load_data(str(cut), SIZE).train) == 6


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_an_archive_with_another_checksum_is_refused_and_not_the_disk(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BCNET_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "set", {"train/a": 4, "train/b": 4})
    with tarfile.open(tmp_path / "whole.tar", f"w:{kind}") as tar:
        tar.add(tmp_path / "set", "set")
    whole = (tmp_path / "whole.tar").read_bytes()
    for place in (-6, len(whole) // 2):
        content = bytearray(whole)
        content[place] ^= 16
        (tmp_path / "damaged.tar").write_bytes(content)
        with pytest.raises(DataError, match="not a readable tar archive") as caught:
            unpack(tmp_path / "damaged.tar")
        assert "BCNET_CACHE" not in str(caught.value)
    (tmp_path / "whole.tar").write_bytes(whole)
    monkeypatch.setenv("BCNET_CACHE", str(tmp_path / "set" / "train" / "a" / "000.png"))
    with pytest.raises(DataError, match="set BCNET_CACHE"):
        unpack(tmp_path / "whole.tar")


def test_a_class_whose_name_is_not_utf8_is_refused_at_once(tmp_path: Path) -> None:
    write(tmp_path, {"train/a": 4, "train/b": 4})
    os.rename(tmp_path / "train" / "a", os.fsencode(tmp_path / "train") + b"/Gr\xfcn")
    for load in (load_data, classes_of):
        with pytest.raises(DataError, match=r"train: the class 'Gr\\udcfcn' has a name that is not UTF-8"):
            load(str(tmp_path), SIZE)


def test_an_archive_with_a_damaged_entry_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BCNET_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "set", {"train/a": 4, "train/b": 4})
    with tarfile.open(tmp_path / "whole.tar", "w") as tar:
        tar.add(tmp_path / "set", "set")
    content = bytearray((tmp_path / "whole.tar").read_bytes())
    with tarfile.open(tmp_path / "whole.tar") as tar:
        offsets = [entry.offset for entry in tar][1:]
    for offset in offsets:
        damaged = bytes(content[:offset]) + b"\xff" * 20 + bytes(content[offset + 20 :])
        (tmp_path / "damaged.tar").write_bytes(damaged)
        with pytest.raises(DataError, match="not a readable tar archive.*no end"):
            unpack(tmp_path / "damaged.tar")


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_whatever_a_folder_holds_it_is_loaded_or_refused_on_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("folder")
    image = Image.new("RGB", (9, 9), (1, 2, 3))
    names = st.sampled_from(["a", "b", "ü\n", ".x", "__MACOSX", "[red]", "CON", " ", "a b", "\udcff"])
    places = data.draw(st.lists(st.tuples(st.sampled_from(["train", "test", "val", ""]), names), max_size=8))
    for part, name in places:
        folder = root / part / name
        if folder.is_file():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(data.draw(st.integers(0, 3))):
            kind = data.draw(st.sampled_from(["png", "text", "empty", "cut", "folder", "link", "huge"]))
            path = (
                folder / f"{data.draw(names)}{index}.{data.draw(st.sampled_from(['png', 'JPG', 'txt', '']))}"
            )
            if path.exists() or path.is_symlink():
                continue
            if kind == "folder":
                path.mkdir()
            elif kind == "link":
                path.symlink_to(path)
            elif kind == "huge":
                path.write_bytes(b"P6 100000 100000 255\n")
            elif kind in ("png", "cut"):
                with path.open("wb") as file:
                    image.save(file, "PNG")
                if kind == "cut":
                    path.write_bytes(path.read_bytes()[:50])
            else:
                path.write_bytes(b"some text" if kind == "text" else b"")
    try:
        loaded = load_folder(
            root, View(input_size=SIZE), max_unreadable=data.draw(st.sampled_from([0.01, 1.0]))
        )
    except DataError as error:
        assert str(error).isprintable()
    else:
        assert len(loaded.train) and len(loaded.val)
