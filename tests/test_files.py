"""Files are whole or absent; what cannot be read is said with its place."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import bcnet_deploy as bd
from bcnet_deploy import files
from bcnet_deploy.errors import nearest
from bcnet_deploy.rundir import ModelRef, RunConfig, RunDir


def test_a_failing_writer_leaves_the_former_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    files.write_json(path, {"kept": 1})
    with pytest.raises(ZeroDivisionError), files.replacing(path) as temporary:
        temporary.write_text("half of it")
        raise ZeroDivisionError
    assert files.read_json(path, bd.TableError, "table") == {"kept": 1}
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_not_a_number_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_permissions_are_those_of_ordinary_files(tmp_path: Path) -> None:
    files.write_text(tmp_path / "ours", "x")
    (tmp_path / "plain").write_text("x")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "plain").stat().st_mode
    )


def test_a_folder_that_cannot_be_made_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(bd.RunDirError, match="cannot write"):
        files.write_text(tmp_path / "file" / "inside", "x")


def test_a_kill_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    code = (
        "import sys; from bcnet_deploy import files\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    for n in range(100): files.write_json(sys.argv[1], list(range(n * 500)))\n"
    )
    for delay in (0.02, 0.05, 0.11, 0.2):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        while not path.exists():
            assert process.poll() is None
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        data = files.read_json(path, bd.TableError, "table")
        assert data == list(range(len(data)))


@pytest.mark.parametrize("content", ['{"a": 1,', "", "[1, 2", "{'a': 1}"])
def test_damaged_json_names_file_line_and_column(tmp_path: Path, content: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(content)
    with pytest.raises(
        bd.TableError, match=r"latency table .*t\.json is not valid JSON at line 1, column \d+"
    ):
        files.read_json(path, bd.TableError, "latency table")


def test_damaged_yaml_and_other_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("a: 1\nb: [1, 2\n")
    with pytest.raises(bd.DeviceError, match=r"profile .*p\.yaml is not valid YAML at line 3, column 1"):
        files.read_yaml(tmp_path / "p.yaml", bd.DeviceError, "profile")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(bd.DeviceError, match="cannot read profile"):
        files.read_yaml(tmp_path / "binary", bd.DeviceError, "profile")
    with pytest.raises(bd.DeviceError, match="no profile at"):
        files.read_yaml(tmp_path / "absent", bd.DeviceError, "profile")
    with pytest.raises(bd.DeviceError, match="cannot read profile"):
        files.read_text(tmp_path, bd.DeviceError, "profile")


def test_run_file_round_trip(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    assert not run.exists()
    config = RunConfig(
        ModelRef("demo", 10, (1, 8, 8), levels=8, min_level=1), device="t4", seed=3, extra={"a": 1}
    )
    run.save(config)
    assert run.load() == config


def test_run_file_defects(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    with pytest.raises(bd.MissingStepError, match="bcnet-deploy"):
        run.load()
    for text, message in [
        ("format: 2\nmodel: {name: demo}\n", "format 2.*reads 1"),
        ("- a\n", "format None"),
        ("format: 1\n", "keys"),
        ("format: 1\nmodel: {name: demo}\nsped: 1\n", "sped"),
        ("format: 1\nmodel: {nam: demo}\n", "nam"),
        ("format: [\n", "line"),
    ]:
        run.config_path.write_text(text)
        with pytest.raises(bd.RunDirError, match=message):
            run.load()


def test_a_missing_step_names_the_command(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    with pytest.raises(bd.MissingStepError, match="'bcnet-deploy search'"):
        run.require(run.widths, "found widths", "bcnet-deploy search")
    files.write_yaml(run.widths, {})
    assert run.require(run.widths, "found widths", "bcnet-deploy search") == run.widths


def test_every_error_is_one_of_ours_and_carries_an_exit_code() -> None:
    for name in bd.__all__:
        value = getattr(bd, name)
        if isinstance(value, type) and issubclass(value, Exception):
            assert issubclass(value, bd.BCNetError)
            assert value.exit_code == (2 if value is bd.errors.UsageError else 1)
            assert value.__doc__


def test_nearest_names() -> None:
    assert nearest("resnet5", ["resnet50", "vgg11"]) == "; did you mean 'resnet50'?"
    assert nearest("zzz", ["resnet50", "vgg11"]) == ""
