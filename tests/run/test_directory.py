"""What a search's widths.yaml names, what is said of one that names nothing, and the data that is kept."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bcnet_deploy import files
from bcnet_deploy.data.folders import IMAGENET_MEAN
from bcnet_deploy.errors import MissingStepError, RunDirError, WidthError
from bcnet_deploy.models.ref import ModelRef
from bcnet_deploy.run.directory import RunConfig, RunDir
from bcnet_deploy.space import WidthSpace
from tests.lut.fakes import TinyNet

SPACE = WidthSpace.from_model(TinyNet().eval(), (3, 16, 16), 4)
NAMES = [variable.name for variable in SPACE.variables]


def written(tmp_path: Path, data: Any) -> RunDir:
    run = RunDir(tmp_path)
    files.write_yaml(run.widths_file, data)
    return run


def by_name(row: Any) -> dict[str, int]:
    return dict(zip(NAMES, map(int, row), strict=True))


def test_rows_are_in_the_spaces_order(tmp_path: Path) -> None:
    half, narrow = by_name(SPACE.uniform(0.5)), by_name(SPACE.narrowest)
    turned = dict(reversed(half.items()))
    run = written(tmp_path, {"widths": turned, "compared_with": {"uniform": {"widths": narrow}}})
    assert run.searched("found") == half
    assert run.widths("found", SPACE).tolist() == SPACE.uniform(0.5).tolist()
    assert run.widths("uniform", SPACE).tolist() == SPACE.narrowest.tolist()
    assert run.widths("full", SPACE).tolist() == SPACE.full.tolist()


def test_none_where_there_is_none(tmp_path: Path) -> None:
    assert RunDir(tmp_path / "empty").searched("found") is None
    with pytest.raises(MissingStepError, match="bcnet-deploy search"):
        RunDir(tmp_path / "empty").widths("found", SPACE)
    for compared in ({}, {"compared_with": {}}, {"compared_with": {"uniform": None}}):
        run = written(tmp_path, {"widths": by_name(SPACE.full), **compared})
        assert run.searched("uniform") is None
        with pytest.raises(MissingStepError, match="names no uniform"):
            run.widths("uniform", SPACE)


@pytest.mark.parametrize("data", [[1, 2], "text", {"widths": {"stem.0": "many"}}, {"widths": [1]}, {}])
def test_a_damaged_file_is_said(tmp_path: Path, data: Any) -> None:
    with pytest.raises(RunDirError, match="make it again"):
        written(tmp_path, data).widths("found", SPACE)


def test_widths_of_another_model_are_said(tmp_path: Path) -> None:
    more = {**by_name(SPACE.full), "head.9": 3}
    fewer = dict(list(by_name(SPACE.full).items())[1:])
    for widths, odd in ((more, "head.9"), (fewer, NAMES[0])):
        with pytest.raises(RunDirError, match=f"another model.*'{odd}'"):
            written(tmp_path, {"widths": widths}).widths("found", SPACE)
    with pytest.raises(WidthError):
        written(tmp_path, {"widths": {**by_name(SPACE.full), NAMES[0]: 10**6}}).widths("found", SPACE)


def test_a_space_is_read_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path)
    run.save(RunConfig(ModelRef("demo", 10, (1, 16, 16), levels=4)))

    def full(self: RunDir, space: object) -> None:
        raise RunDirError("cannot write: Read-only file system")

    monkeypatch.setattr(RunDir, "keep_space", full)
    assert run.space().levels == 4


@pytest.fixture
def pictures(tmp_path: Path) -> RunDir:
    """A run on a folder of pictures of two classes, dark and bright."""
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for number, name in enumerate("ab"):
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for index in range(10):
                pixels = rng.integers(0, 40, (16, 16, 3)) + 90 * number
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    run = RunDir(tmp_path / "run")
    run.save(RunConfig(ModelRef("demo", 2, (3, 16, 16)), data=str(tmp_path / "images")))
    return run


def test_means_are_those_of_the_first_step_whatever_fits_into_memory(
    pictures: RunDir, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = pictures.data()
    monkeypatch.setattr("bcnet_deploy.data.folders.free_memory", lambda: 1000)
    later = RunDir(pictures.path).data()
    assert first.train.memory is not None and later.train.memory is None
    assert (later.mean, later.std) == (first.mean, first.std)
    assert later.preprocessing == first.preprocessing
    pictures.data_file.unlink()
    assert pictures.data().mean == IMAGENET_MEAN, "else they would be those for large sets"
    monkeypatch.undo()
    assert pictures.data().mean == IMAGENET_MEAN and not caplog.text


def test_other_images_than_the_former_steps_had_are_said_once(
    pictures: RunDir, caplog: pytest.LogCaptureFixture
) -> None:
    first = pictures.data()
    images = Path(first.name) / "train"
    for index in range(5):
        (images / "a" / f"{index}.png").rename(images / "b" / f"new{index}.png")
    (images / "a" / "9.png").unlink()
    now = pictures.data()
    assert now.mean != first.mean and now.fingerprint != first.fingerprint
    (said,) = caplog.messages
    assert f"the images or labels of {images.parent} are not those" in said and "--fresh" in said
    assert pictures.data().mean == now.mean and len(caplog.messages) == 1


def test_other_data_is_no_change_of_the_data(
    pictures: RunDir, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = pictures.data()
    shutil.copytree(first.name, tmp_path / "copy")
    (tmp_path / "copy" / "train" / "a" / "0.png").unlink()
    pictures.keep(data=str(tmp_path / "copy"))
    assert pictures.data().mean != first.mean
    pictures.keep(model=ModelRef("demo", 2, (3, 24, 24)))
    assert pictures.data().input_size == (3, 24, 24) and not caplog.text


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"mean": [1], "std": [1]}', '{"mean": 3}', "null"])
def test_a_damaged_description_of_the_data_counts_as_none(pictures: RunDir, text: str) -> None:
    first = pictures.data()
    files.write_text(pictures.data_file, text)
    assert pictures.data().mean == first.mean
    assert files.read_json(pictures.data_file, RunDirError, "data")["mean"] == list(first.mean)


def test_data_without_a_fingerprint_is_neither_kept_nor_compared(pictures: RunDir) -> None:
    splits = replace(pictures.data(), fingerprint="")
    pictures.data_file.unlink()
    pictures.given.data = splits
    assert pictures.data() is splits and not pictures.data_file.exists()
