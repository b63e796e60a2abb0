"""What a run is about: by which name its data is kept, and when it may be named anew."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from bcnet_deploy.errors import RunDirError
from bcnet_deploy.models.ref import ModelRef
from bcnet_deploy.run.directory import RunConfig, RunDir
from bcnet_deploy.run.preflight import describe_run, from_anywhere, start

REF = ModelRef("demo", num_classes=2, input_size=(3, 16, 16))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two working directories with a folder ``imgs`` each, one of dark and one of bright images."""
    for where, value in (("dark", 30), ("bright", 200)):
        for split in ("train", "test"):
            for name in "xy":
                folder = tmp_path / where / "imgs" / split / name
                folder.mkdir(parents=True)
                for index in range(8):
                    Image.new("RGB", (16, 16), (value, index, 0)).save(folder / f"{index}.png")
    monkeypatch.chdir(tmp_path / "dark")
    return tmp_path


def begun(place: Path, data: str) -> RunDir:
    run = RunDir(place / "run")
    start(run, describe_run(run, model="demo", num_classes=2, input_size=(3, 16, 16), data=data))
    return run


@pytest.mark.parametrize("typed", ["imgs", "./imgs", "folder:imgs", "../dark/imgs"])
def test_data_is_the_same_from_another_working_directory(
    place: Path, monkeypatch: pytest.MonkeyPatch, typed: str
) -> None:
    run = begun(place, typed)
    assert run.load().data == str(place / "dark" / "imgs")
    assert describe_run(run, data="imgs") == run.load()
    monkeypatch.chdir(place / "bright")
    assert run.data().mean[0] == pytest.approx(30 / 255, abs=0.01)
    run.widths_file.parent.mkdir()
    run.widths_file.write_text("")
    with pytest.raises(RunDirError, match="not 'imgs'"):
        describe_run(run, data="imgs")


def test_what_is_no_file_stays_as_it_was_typed(place: Path) -> None:
    (place / "dark" / "digits").mkdir()
    (place / "dark" / "my.py").write_text("")
    (place / "dark" / "d.tar").write_text("")
    here = place / "dark"
    for typed, kept in [
        ("digits", "digits"), ("digits-canvas", "digits-canvas"), ("package.module:function",) * 2,
        ("object:arrays",) * 2, ("nosuch",) * 2, ("nosuch.py:data",) * 2, ("x" * 5000,) * 2, ("a\0b",) * 2,
        ("~nobody-of-this-name/x",) * 2, ("folder:digits", str(here / "digits")),
        ("my.py:data", f"{here / 'my.py'}:data"), ("d.tar", str(here / "d.tar")),
    ]:  # fmt: skip
        assert from_anywhere(typed) == kept
    assert from_anywhere(None) is None


def test_a_run_whose_data_was_kept_as_it_was_typed_goes_on(place: Path) -> None:
    run = RunDir(place / "run")
    run.save(RunConfig(REF, data="imgs"))
    run.widths_file.parent.mkdir()
    run.widths_file.write_text("")
    before = run.load()
    for same in ("imgs", "folder:imgs", str(place / "dark" / "imgs")):
        assert describe_run(run, data=same) == before, "finished steps stay finished"
    with pytest.raises(RunDirError, match="of data 'imgs', not '../bright/imgs'"):
        describe_run(run, data="../bright/imgs")


@pytest.mark.parametrize(
    "made",
    ["train/checkpoint.safetensors", "search/widths.yaml"]
    + [f"retrain/{which}/result.json" for which in ("full", "uniform", "found")],
)
def test_figures_of_two_data_sets_do_not_stand_in_one_run(place: Path, made: str) -> None:
    run = begun(place, "imgs")
    other = str(place / "bright" / "imgs")
    assert describe_run(run, data=other).data == other, "nothing was made of the first data yet"
    (run / made).parent.mkdir(parents=True)
    (run / made).write_text("")
    with pytest.raises(RunDirError, match="--force"):
        describe_run(run, data=other)
