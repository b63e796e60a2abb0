"""Data as objects: the user's own pixels and labels come back; what does not fit is one line."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

from bcnet_deploy.data import Augmentation, BatchLoader, DataSplits, PlainBatches, classes_of, load_data
from bcnet_deploy.errors import DataError

SIZE = (2, 6, 5)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (40, *SIZE), dtype=np.uint8)
LABELS = np.arange(40) % 4


def rows(data: DataSplits) -> list[tuple[bytes, str]]:
    """(pixels, class name) of training and validation images, sorted."""
    return sorted(
        (part.memory[i].numpy().tobytes(), data.classes[int(part.labels[i])])
        for part in (data.train, data.val)
        for i in range(len(part))
    )


EXPECTED = sorted((image.tobytes(), str(label)) for image, label in zip(IMAGES, LABELS, strict=True))


class Pairs(Dataset):  # type: ignore[type-arg]
    def __init__(self, images: Any = IMAGES, labels: Any = LABELS, **more: Any) -> None:
        self.images, self.own = images, labels
        self.__dict__.update(more)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.images[index], self.own[index]


@pytest.mark.parametrize(
    "given_",
    [
        (IMAGES, LABELS),
        [IMAGES, LABELS.tolist()],
        (torch.from_numpy(IMAGES), torch.from_numpy(LABELS)),
        {"train": (IMAGES, LABELS.astype(np.uint8))},
        {"train": lambda: (IMAGES, LABELS), "classes": ["0", "1", "2", "3"]},
        Pairs(),
        Pairs(labels=torch.from_numpy(LABELS)),
        TensorDataset(torch.from_numpy(IMAGES), torch.from_numpy(LABELS)),
        [(image, int(label)) for image, label in zip(IMAGES, LABELS, strict=True)],
    ],
    ids=["numpy", "list", "torch", "mapping", "function", "dataset", "dataset2", "tensors", "pairs"],
)
def test_every_form_gives_the_same_images_and_one_name(given_: Any) -> None:
    data = load_data(given_, SIZE, num_classes=4)
    assert rows(data) == EXPECTED and data.classes == ("0", "1", "2", "3")
    expected = load_data((IMAGES, LABELS), SIZE)
    assert data.name == expected.name and data.name.startswith("arrays-")
    assert torch.equal(data.val.memory, expected.val.memory)
    assert data.mean == pytest.approx((IMAGES / 255).mean(axis=(0, 2, 3)), abs=0.1)
    assert data.preprocessing.to_dict()["interpolation"] is None
    assert classes_of(given_, SIZE) == 4
    with pytest.raises(DataError, match="no test images"):
        data.load_test()
    assert load_data(data, SIZE) is data


def test_another_content_has_another_name() -> None:
    other = IMAGES.copy()
    other[3, 0, 0, 0] ^= 1
    names = {
        load_data(given_, SIZE).name
        for given_ in (
            (IMAGES, LABELS),
            (other, LABELS),
            (IMAGES, (LABELS + 1) % 4),
            (IMAGES[:-1], LABELS[:-1]),
        )
    }
    assert len(names) == 4
    assert load_data((IMAGES, LABELS), SIZE, name="mine").name == "mine"


def test_parts_and_copies_between_them() -> None:
    data = load_data(
        {"train": (IMAGES, LABELS), "val": (IMAGES[:3], LABELS[:3]), "test": Pairs(IMAGES[:5], LABELS[:5])},
        SIZE,
    )
    assert (len(data.train), len(data.val), len(data.load_test())) == (40, 3, 5)
    assert any("3 of 3 images of 'val' are in 'train' too" in note for note in data.notes)
    twice = load_data((np.concatenate([IMAGES, IMAGES]), np.concatenate([LABELS, LABELS])), SIZE)
    assert any("40 images of 'train' are copies of others" in note for note in twice.notes)
    one, two = ({image.numpy().tobytes() for image in part.memory} for part in (twice.train, twice.val))
    assert not one & two


@given(
    values=st.lists(st.integers(-3, 6) | st.integers(-(10**6), 10**6), min_size=1, max_size=6, unique=True)
)
@settings(max_examples=30, deadline=None)
def test_any_integers_are_labels(values: list[int]) -> None:
    """Output i stands for the i-th label, ascending; the names are the labels themselves."""
    labels = np.array(values)[np.arange(40) % len(values)]
    data = load_data((IMAGES, labels), SIZE, num_classes=len(values))
    assert data.classes == tuple(map(str, sorted(values)))
    assert rows(data) == sorted(
        (image.tobytes(), str(label)) for image, label in zip(IMAGES, labels, strict=True)
    )
    contiguous = sorted(values) == list(range(len(values)))
    assert any("output i stands for the i-th" in note for note in data.notes) != contiguous
    strange = {"train": (IMAGES, labels), "test": (IMAGES[:1], [10**7])}
    with pytest.raises(DataError, match="label 10000000 of image 0 is"):
        load_data(strange, SIZE).load_test()


def test_floats_are_kept_and_normalised_as_they_are() -> None:
    floats = RNG.random((40, *SIZE))
    data = load_data((floats, LABELS), SIZE)
    assert data.train.memory.dtype == torch.float32
    seen = torch.cat([data.train.memory, data.val.memory]).double().numpy()
    assert np.sort(seen.ravel()) == pytest.approx(np.sort(floats.ravel()), abs=1e-7)
    own = data.train.memory.double().numpy()
    assert data.mean == pytest.approx(own.mean(axis=(0, 2, 3)), abs=1e-6)
    assert data.std == pytest.approx(own.std(axis=(0, 2, 3)), abs=1e-6)
    for kind in ("none", "crop-flip", "resized-crop-flip"):
        loader = BatchLoader(data.train, 8, Augmentation(kind, data.mean, data.std), torch.device("cpu"))
        batch, _ = loader.next_batch()
        assert batch.dtype == torch.float32 and bool(batch.isfinite().all())
        assert len(np.unique(batch)) > 300  # not rounded to 256 values
    plain = torch.cat([images for images, _ in PlainBatches(data.val, data, 5, torch.device("cpu"))])
    expected = (data.val.memory - torch.tensor(data.mean)[:, None, None]) / torch.tensor(data.std)[
        :, None, None
    ]
    torch.testing.assert_close(plain, expected)


def test_grey_images_need_no_channel_axis() -> None:
    data = load_data((IMAGES[:, 0], LABELS), (1, 6, 5))
    assert data.train.memory.shape[1:] == (1, 6, 5)


def test_large_data_sets_are_read_image_by_image() -> None:
    memory = load_data(Pairs(targets=LABELS.tolist()), SIZE)
    data = load_data(Pairs(targets=LABELS.tolist()), SIZE, memory_bytes=100)
    assert data.train.memory is None and data.train.labels.tolist() == memory.train.labels.tolist()
    assert all(torch.equal(data.val.read(i, None), memory.val.memory[i]) for i in range(len(data.val)))
    loader = BatchLoader(
        data.train, 4, Augmentation("none", data.mean, data.std), torch.device("cpu"), workers=1
    )
    inside = BatchLoader(memory.train, 4, Augmentation("none", data.mean, data.std), torch.device("cpu"))
    assert torch.equal(loader.next_batch()[0], inside.next_batch()[0])
    loader.close()
    assert pickle.loads(pickle.dumps(data.val.labels)).tolist() == data.val.labels.tolist()


class Transformed(Pairs):
    """As torchvision's: ``targets`` are those before ``target_transform``."""

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.images[index], self.target_transform(self.own[index])


class Own(Pairs):
    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.images[index], self.own[index] // 2


@pytest.mark.parametrize(
    "given_",
    [
        Transformed(targets=LABELS.tolist(), target_transform=lambda label: label % 2),
        Transformed(
            targets=torch.from_numpy(LABELS), target_transform=lambda label: "wxyz".index("zyxw"[label])
        ),
        Transformed(targets=["w"] * 40, target_transform=lambda label: {0: 3, 1: 5, 2: 3, 3: 8}[label]),
        Own(targets=LABELS.tolist()),
        Pairs(targets=["w"] * 40),
        Pairs(targets=LABELS.tolist()[:7]),
    ],
)
def test_labels_of_a_large_data_set_are_those_of_its_items(given_: Any) -> None:
    memory, disk = (load_data(given_, SIZE, memory_bytes=size) for size in (None, 100))
    assert memory.train.memory is not None and disk.train.memory is None
    assert disk.classes == memory.classes
    for part in ("train", "val"):
        assert torch.equal(getattr(disk, part).labels, getattr(memory, part).labels)


def test_targets_kept_apart_spare_reading_the_images() -> None:
    read: list[int] = []

    class Counting(Transformed):
        def __getitem__(self, index: int) -> tuple[Any, Any]:
            read.append(index)
            return super().__getitem__(index)

    labels = np.arange(5000) % 4
    given_ = Counting(
        np.zeros((5000, *SIZE), np.uint8), labels, targets=labels, target_transform=lambda t: t % 2
    )
    assert load_data(given_, SIZE, memory_bytes=100).classes == ("0", "1")
    assert len(read) < 2100


def test_labels_as_tensors_of_any_kind() -> None:
    expected = load_data((IMAGES, LABELS / 7), SIZE)
    values = torch.from_numpy(LABELS / 7).requires_grad_()
    for given_ in ((IMAGES, values), (IMAGES, list(values)), Pairs(IMAGES, values)):
        assert torch.equal(load_data(given_, SIZE).train.labels, expected.train.labels)


def test_the_fingerprint_is_the_content_and_not_the_memory() -> None:
    one = load_data(Pairs(), SIZE)
    assert load_data(Pairs(), SIZE, memory_bytes=100).fingerprint == one.fingerprint
    assert load_data({"train": (IMAGES, LABELS)}, SIZE).fingerprint == one.fingerprint
    brighter, other = IMAGES.copy(), LABELS.copy()
    brighter[3, 0, 0, 0] ^= 1
    other[3] = 0
    for changed in ((brighter, LABELS), (IMAGES, other)):
        for memory in (None, 100):
            assert load_data(Pairs(*changed), SIZE, memory_bytes=memory).fingerprint != one.fingerprint


def test_pictures_of_a_data_set_are_read_like_files(tmp_path: Path) -> None:
    """torchvision's form: Pillow images of any size. Oracle: the same pictures in a folder."""
    rng = np.random.default_rng(4)
    pictures, labels = [], []
    for label in range(2):
        (tmp_path / "train" / "ab"[label]).mkdir(parents=True)
        for index in range(10):
            picture = Image.fromarray(rng.integers(0, 256, (11, 17, 3), dtype=np.uint8))
            picture.save(tmp_path / "train" / "ab"[label] / f"{index}.png")
            stream = io.BytesIO()
            picture.save(stream, "PNG")
            pictures.append(Image.open(stream))
            labels.append(label)
    data = load_data(Pairs(pictures, labels, classes=["a", "b"]), (3, 8, 8))
    folder = load_data(str(tmp_path), (3, 8, 8))
    assert data.classes == folder.classes == ("a", "b")
    assert torch.equal(data.train.memory, folder.train.memory)
    assert data.preprocessing.to_dict() == folder.preprocessing.to_dict()


class Failing(Pairs):
    def __getitem__(self, index: int) -> tuple[Any, Any]:
        if index == 7:
            raise KeyError("mine")
        return super().__getitem__(index)


class Random(Pairs):
    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return torch.rand(SIZE), 0


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        (None, "no data is named; name it with --data"),
        (3, "is int; needed"),
        ({"trian": (IMAGES, LABELS)}, "has the key 'trian'"),
        ({"test": (IMAGES, LABELS)}, "has no 'train'"),
        ((IMAGES.transpose(0, 2, 3, 1), LABELS), r"channels stand last: images.transpose\(0, 3, 1, 2\)"),
        ((IMAGES[:, :, :3], LABELS), "resize them"),
        ((IMAGES[:, :1], LABELS), r"of shape \(40, 1, 6, 5\); needed"),
        ((IMAGES.astype(np.float32), LABELS), "divide them by 255"),
        ((IMAGES / 127.5 - 1, LABELS), "as before normalisation"),
        ((IMAGES.astype(np.int64), LABELS), "torch.int64; needed: uint8 or floats"),
        ((np.full((40, *SIZE), np.nan), LABELS), "floats of nan"),
        ((IMAGES, LABELS[:5]), "for 40 images; needed: one integer"),
        ((IMAGES, np.full(40, np.nan)), "finite floats"),
        ((IMAGES, np.zeros((40, 5, 6), dtype=int)), r"masks \(40, 6, 5\) of class numbers"),
        ((IMAGES, np.full((40, 6, 5), 300)), "masks .* of class numbers"),
        ((IMAGES, np.where(np.arange(40 * 30).reshape(40, 6, 5) % 2, 255, 0)), "save the foreground as 1"),
        ({"train": (IMAGES, np.full((40, 6, 5), 7)), "classes": ["a"]}, "label 7 of image 0 is out of range"),
        ((IMAGES[:0], LABELS[:0]), "at least one image"),
        ((IMAGES[:0].astype(np.float32), LABELS[:0]), "at least one image"),
        ((IMAGES, torch.zeros(40, dtype=torch.bfloat16)), "do not make one array"),
        ((IMAGES, [[1], [1, 2]] * 20), "do not make one array"),
        (
            {"train": (IMAGES, LABELS), "classes": ["a", "b", "c", "Gr\udcfcn"]},
            "udcfcn' has a name that is not UTF-8",
        ),
        ((np.array(["x"]), LABELS), "images are ndarray"),
        ({"train": (IMAGES, LABELS), "classes": ["a"]}, "label 1 of image 1 is out of range"),
        ({"train": (IMAGES, LABELS), "classes": "abcd"}, "needed: a list of names"),
        ((IMAGES[:3], LABELS[:3]), "has 1 image; a held-out split needs"),
        (Failing(), "item 7 of the data set cannot be read: KeyError: 'mine'"),
        (Random(), "gives another image each time"),
        (Pairs(IMAGES, ["cat"] * 40), "labels are <U3"),
        (Pairs(IMAGES[:0], []), "is empty"),
        (TensorDataset(torch.from_numpy(IMAGES)), "needed: a pair"),
        (Pairs([Image.new("RGB", (5, 6))] * 40), "a model of 2 channels needs arrays"),
    ],
)
def test_what_does_not_fit_is_one_line_with_what_to_do(given_: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_data(given_, SIZE)
    assert str(caught.value).isprintable()


def test_a_function_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "own data.py").write_text(
        "import numpy as np\n"
        "def small():\n"
        "    images = np.random.default_rng(0).integers(0, 256, (80, 1, 3, 3), dtype=np.uint8)\n"
        "    return images, np.arange(80) % 2\n"
    )
    reference = f"{tmp_path}/own data.py:small"
    data = load_data(reference, (1, 3, 3))
    assert data.name == reference and data.num_classes == 2
    with pytest.raises(DataError, match="is a Python file; name the function in it"):
        load_data(f"{tmp_path}/own data.py", (1, 3, 3))
    with pytest.raises(DataError, match="has no function 'smal'; did you mean 'small'"):
        load_data(f"{tmp_path}/own data.py:smal", (1, 3, 3))


def test_masks_and_values_are_targets_too() -> None:
    masks = RNG.integers(0, 3, (40, 6, 5))
    masks[:, 0] = 255
    for given_ in ((IMAGES, masks), Pairs(IMAGES, masks), Pairs(IMAGES, torch.from_numpy(masks))):
        data = load_data(given_, SIZE, num_classes=3)
        assert data.train.labels.dtype == torch.uint8 and data.classes == ("0", "1", "2")
        expected = {image.tobytes(): mask for image, mask in zip(IMAGES, masks, strict=True)}
        for image, mask in zip(data.train.memory, data.train.labels, strict=True):
            assert (mask.numpy() == expected[image.numpy().tobytes()]).all()
        (batch, targets), *_ = PlainBatches(data.val, data, 8, torch.device("cpu"))
        assert targets.dtype == torch.int64 and targets.shape == (8, 6, 5)
    values = RNG.random((40, 2))
    data = load_data((IMAGES, values), SIZE)
    assert data.train.labels.dtype == torch.float32 and data.num_classes == 2
    loader = BatchLoader(data.train, 4, Augmentation("crop-flip", data.mean, data.std), torch.device("cpu"))
    assert loader.next_batch()[1].dtype == torch.float32


@pytest.mark.parametrize(
    ("labels", "classes", "outputs"),
    [
        (RNG.random((40, 3, 5)), ["a", "b"], 2),  # boxes: the names are the classes
        (RNG.random((40, 15)), ["a", "b"], 2),
        (RNG.integers(0, 9, (40, 4)), None, 4),  # several labels an image
        (RNG.random((40, 4)) < 0.5, None, 4),
        (RNG.random((40, 6, 5)), None, 1),  # depth
        (RNG.random((40, 2, 6, 5)), None, 2),  # flow
        (RNG.random(40), None, 1),
        (np.arange(40) % 2 == 0, None, 2),
    ],
)
def test_targets_of_any_shape(labels: Any, classes: list[str] | None, outputs: int) -> None:
    given_ = {"train": (IMAGES, labels), "test": (IMAGES[:4], labels[:4])}
    data = load_data(given_ | ({"classes": classes} if classes else {}), SIZE)
    assert data.num_classes == outputs
    expected = {image.tobytes(): label for image, label in zip(IMAGES, labels, strict=True)}
    for part in (data.train, data.val, data.load_test()):
        for image, label in zip(part.memory, part.labels, strict=True):  # type: ignore[arg-type]
            np.testing.assert_allclose(label.numpy(), expected[image.numpy().tobytes()], rtol=1e-6)


def test_targets_that_do_not_tell_the_outputs_or_change_their_shape() -> None:
    boxes = RNG.random((40, 3, 5))
    with pytest.raises(DataError, match=r"\(40, 3, 5\) do not tell how many classes .* give 'classes'"):
        load_data((IMAGES, boxes), SIZE)
    other = {"train": (IMAGES, boxes), "val": (IMAGES, boxes[:, :2]), "classes": ["a"]}
    with pytest.raises(DataError, match=r"'val': labels have the shape \(40, 2, 5\), not training's"):
        load_data(other, SIZE)


def test_arrays_read_backwards_or_of_another_byte_order() -> None:
    """As a flip, a camera or a file from elsewhere leaves them."""
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 255, (24, 3, 8, 8), dtype=np.uint8), np.arange(24) % 2
    plain = load_data((pixels, labels), (3, 8, 8))
    backwards = pixels[:, :, ::-1, ::-1].copy()[:, :, ::-1, ::-1]
    assert backwards.strides[-1] < 0
    other = (pixels / 255).astype(">f4")
    pairs = [(image, int(label)) for image, label in zip(backwards, labels, strict=True)]
    for given_ in ((backwards, labels), (other, labels), pairs):
        found = load_data(given_, (3, 8, 8))
        np.testing.assert_allclose(found.mean, plain.mean, atol=1e-6)
        np.testing.assert_allclose(found.std, plain.std, atol=1e-6)
