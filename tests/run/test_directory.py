"""What a search's widths.yaml names, and what is said of one that names nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bcnet_deploy import files
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
