"""Pictures are read as a viewer shows them: by Pillow's own files, against pixels that are known."""

from __future__ import annotations

import io
import json
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from scipy import stats

from bcnet_deploy.data import Augmentation, PlainBatches, View, load_data
from bcnet_deploy.data.augment import crop_boxes
from bcnet_deploy.data.pictures import decode, decode_mask
from bcnet_deploy.errors import DataError

RGB, GREY = View(input_size=(3, 8, 6)), View(input_size=(1, 8, 6))


def pixels(path: Path, view: View = RGB) -> np.ndarray:  # type: ignore[type-arg]
    return decode(path, view).permute(1, 2, 0).numpy()


@pytest.fixture
def picture() -> Image.Image:
    """6 wide, 8 high, no two rows or columns alike."""
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (8, 6, 3), dtype=np.uint8))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(picture: Image.Image, orientation: int, tmp_path: Path) -> None:
    """Oracle: Pillow's own ImageOps.exif_transpose on the opened file."""
    lying = picture.transpose(Image.Transpose.TRANSPOSE) if orientation > 4 else picture
    exif = Image.Exif()
    exif[0x0112] = orientation
    for suffix in ("png", "jpg", "webp"):
        path = tmp_path / f"a.{suffix}"
        lying.save(path, exif=exif)
        with Image.open(path) as opened:
            expected = ImageOps.exif_transpose(opened).convert("RGB")
        assert expected.size == (6, 8)
        assert np.array_equal(pixels(path), np.asarray(expected))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_matter(picture: Image.Image, tmp_path: Path) -> None:
    for number, exif in enumerate((b"Exif\x00\x00nonsense", b"Exif\x00\x00MM\x00*\xff\xff\xff\xff", b"")):
        path = tmp_path / f"{number}.jpg"
        picture.save(path, exif=exif)
        assert pixels(path).shape == (8, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = 77
    picture.save(tmp_path / "odd.png", exif=exif)
    assert np.array_equal(pixels(tmp_path / "odd.png"), np.asarray(picture))


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_brought_to_8(suffix: str, channels: int, tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 48).astype(np.uint16).reshape(8, 6)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    seen = pixels(tmp_path / f"a.{suffix}", RGB if channels == 3 else GREY)
    assert seen.shape == (8, 6, channels)
    assert np.abs(seen.astype(float) - values[..., None] / 257).max() <= 0.5


def test_16_bit_colour_is_brought_to_8(tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(0, 65536, (8, 6, 3), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 6, 8, 16, 2, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    assert np.abs(pixels(tmp_path / "a.png").astype(float) - values / 257).max() <= 1


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bits_have_no_known_range(mode: str, tmp_path: Path) -> None:
    values = np.full((8, 6), 3, dtype=np.int32 if mode == "I" else np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="32 bits"):
        decode(tmp_path / "a.tif", GREY)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LA", "RGBA"])
def test_opaque_pictures_of_every_mode(picture: Image.Image, mode: str, tmp_path: Path) -> None:
    """Oracle: Pillow's conversion of the file to RGB, which is right where nothing is transparent."""
    path = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png")
    picture.convert(mode).save(path)
    with Image.open(path) as opened:
        assert opened.mode == mode
        expected = opened.convert("RGB")
    assert np.array_equal(pixels(path), np.asarray(expected))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "tRNS"])
def test_transparent_parts_are_white(mode: str, tmp_path: Path) -> None:
    """Half of each picture is transparent; the colour that is stored there must not show."""
    path = tmp_path / "a.png"
    alpha = np.zeros((8, 6), dtype=np.uint8)
    alpha[:4] = 255
    if mode == "P":
        image = Image.fromarray((alpha // 255).astype(np.uint8), "P")
        image.putpalette([0, 0, 200, 0, 100, 0])
        image.save(path, transparency=0)
        shown = (0, 100, 0)
    elif mode == "tRNS":
        colours = np.zeros((8, 6, 3), dtype=np.uint8)
        colours[:4] = (0, 100, 0)
        Image.fromarray(colours).save(path, transparency=(0, 0, 0))
        shown = (0, 100, 0)
    else:
        image = Image.new("RGB", (6, 8), (10, 10, 10)).convert(mode)
        image.putalpha(Image.fromarray(alpha))
        image.save(path)
        shown = (10, 10, 10)
    remarks: list[str] = []
    decode(path, RGB, remark=remarks.append)
    seen = pixels(path)
    assert (seen[:4] == shown).all() and (seen[4:] == 255).all()
    assert remarks == ["have transparent parts, laid on white"]


def test_what_the_metadata_say_is_what_decoding_does(tmp_path: Path) -> None:
    """The function in docs/your-own.md, which knows the metadata alone, makes the product's batches."""
    page = (Path(__file__).parents[2] / "docs" / "your-own.md").read_text()
    (code,) = re.findall(r"```python\n# prepare.py\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    rng = np.random.default_rng(2)
    exif = Image.Exif()
    exif[0x0112] = 6
    paths = []
    for index, size in enumerate(((10, 30), (97, 95), (300, 140), (96, 96), (12, 12), (20, 500))):
        for name in "ab":
            smooth = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize(size)
            if index == 3:
                smooth.putalpha(Image.fromarray(np.full(size, 130, dtype=np.uint8)))
            path = tmp_path / "train" / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            smooth.save(path, exif=exif)
            paths.append(path)
    for target, channels, options in (
        (96, 3, {"interpolation": "bicubic", "crop": 0.9}),
        (96, 3, {}),
        (96, 1, {"interpolation": "lanczos"}),
        (12, 3, {}),
    ):
        data = load_data(str(tmp_path), (channels, target, target), memory_bytes=10, **options)  # type: ignore[arg-type]
        said = json.loads(json.dumps(data.preprocessing.to_dict()))
        assert said["crop"] == options.get("crop", 0.875 if target == 96 else 1.0)
        for images in (data.train, data.val):
            batches = PlainBatches(images, data, 1, torch.device("cpu"))
            for index, path in enumerate(images.paths):  # type: ignore[attr-defined]
                own = names["prepare"](path, said)
                difference = (
                    np.abs(own - batches[index][0].numpy()) * np.array(said["std"])[:, None, None] * 255
                )
                assert difference.max() <= 4  # Pillow's shortcut for large pictures
                assert difference.mean() <= 0.5


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"crop": 0.0}, "crop is 0.0; allowed: above 0"),
        ({"crop": 1.5}, "crop is 1.5; allowed: up to 1"),
        ({"interpolation": "biliner"}, "did you mean 'bilinear'"),
        ({"input_size": (2, 8, 8)}, "1 or 3 channels; the model takes 2"),
        ({"input_size": (3, 0, 8)}, "input_size.1 is 0"),
    ],
)
def test_settings_of_a_view_are_checked(settings_: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        View(**{"input_size": (3, 8, 8), **settings_})  # type: ignore[arg-type]


# -- random crops ---------------------------------------------------------------------------------


@given(aspects=st.lists(st.floats(0.05, 20), min_size=1, max_size=30), seed=st.integers(0, 2**62))
@settings(max_examples=60, deadline=None)
def test_crops_lie_inside_and_have_the_stated_area_and_aspect(aspects: list[float], seed: int) -> None:
    boxes = crop_boxes(torch.tensor(aspects), torch.Generator().manual_seed(seed)).double().numpy()
    assert (boxes >= -1e-6).all() and (boxes <= 1 + 1e-6).all()
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    ratio = width * np.array(aspects) / height
    assert (ratio > 0.75 - 1e-4).all() and (ratio < 4 / 3 + 1e-4).all()
    # In the middle, where ten draws did not fit, it is as large as can be.
    assert ((width * height > 0.0799) | np.isclose(np.maximum(width, height), 1)).all()


def test_areas_of_crops_are_drawn_again_and_not_cut_down() -> None:
    """Oracle: rejection sampling in numpy, one image at a time."""
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(1)
    for aspect in (1.0, 1.6):
        boxes = crop_boxes(torch.full((3000,), aspect), generator).numpy()
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        expected = []
        while len(expected) < 3000:
            area, ratio = rng.uniform(0.08, 1), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
            if area * ratio / aspect <= 1 and area / ratio * aspect <= 1:
                expected.append(area)
        assert stats.ks_2samp(areas, expected).pvalue > 1e-3


def test_crops_of_files_and_of_images_in_memory_are_the_same_distribution(tmp_path: Path) -> None:
    """On a ramp, the span and the mean of a crop tell its width and its place."""
    ramp = np.tile(np.linspace(0, 255, 64).round().astype(np.uint8), (64, 1))
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    view = View(input_size=(1, 64, 64))
    files = np.array(
        [decode(tmp_path / "ramp.png", view, seed)[0, 0].numpy() for seed in range(600)], dtype=float
    )
    images = torch.from_numpy(ramp).expand(600, 1, 64, 64).contiguous()
    memory = Augmentation("resized-crop-flip", (0.0,), (1.0,))(images, torch.Generator().manual_seed(0))
    rows = memory[:, 0, 0].numpy() * 255
    for figure in (np.ptp, np.mean):
        assert stats.ks_2samp(figure(files, axis=1), figure(rows, axis=1)).pvalue > 1e-3


# -- what is said at load -------------------------------------------------------------------------


def test_conversions_are_said_and_counted(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / "train" / name).mkdir(parents=True)
        for index in range(6):
            grey = np.full((9, 9), 5000 * index + 7 * ord(name), dtype=np.uint16)
            Image.fromarray(grey).save(tmp_path / "train" / name / f"deep{index}.png")
            Image.new("RGBA", (9, 9), (index, 7, ord(name), 40 * index)).save(
                tmp_path / "train" / name / f"clear{index}.png"
            )
    for memory in (None, 10):
        notes = "; ".join(load_data(str(tmp_path), (3, 8, 8), memory_bytes=memory).notes)
        assert "12 of 24 images of train/ have 16 bits a channel, brought to 8" in notes
        assert "12 of 24 images of train/" in notes and "transparent parts, laid on white" in notes


def test_a_picture_that_lies_is_not_blurred_by_the_jpeg_shortcut(tmp_path: Path) -> None:
    """A long JPEG on its side: the fast decoder must not shrink it below the target."""
    stripes = np.zeros((64, 1024, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    Image.fromarray(stripes).save(stream, "JPEG", quality=100, exif=exif)
    (tmp_path / "a.jpg").write_bytes(stream.getvalue())
    seen = pixels(tmp_path / "a.jpg", View(input_size=(3, 512, 32)))
    assert seen.shape == (512, 32, 3)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("size", [(1001, 667), (2049, 257)])
def test_the_jpeg_shortcut_shows_the_part_that_the_mask_shows(
    size: tuple[int, int], orientation: int, tmp_path: Path
) -> None:
    """Its rounded sides have another aspect ratio, which would draw another crop now and then."""
    across, down = np.meshgrid(*(np.linspace(0, 200, side) for side in size))
    ramp = Image.fromarray(across.astype(np.uint8)), Image.fromarray(down.astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    view = View(input_size=(1, 16, 16))
    for name, picture in zip("ab", ramp, strict=True):
        picture.save(tmp_path / f"{name}.jpg", quality=95, exif=exif)
        turned = picture.transpose(Image.Transpose.ROTATE_270) if orientation == 6 else picture
        turned.save(tmp_path / f"{name}.png")
        for seed in (None, *range(300)):
            seen = decode(tmp_path / f"{name}.jpg", view, seed).float()
            mask = decode_mask(tmp_path / f"{name}.png", view, seed).float()
            assert float((seen.mean() - mask.mean()).abs()) < 4, seed
