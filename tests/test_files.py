"""Files are whole or absent; what cannot be read is said with its place."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

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


# -- logs -----------------------------------------------------------------------------------------


def rows_in(path: Path) -> list[int]:
    return [row["n"] for row in files.read_rows(path)]


def test_a_log_cut_anywhere_has_its_whole_lines_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = files.JsonLines(path, header={"of": "x"})
    log.append({"n": n, "text": "ä\n"} for n in range(3))
    log.close()
    content = path.read_bytes()
    for length in range(content.index(b"\n") + 1, len(content) + 1):
        path.write_bytes(content[:length])
        log = files.JsonLines(path, header={"of": "x"})
        whole = content[:length].count(b"\n") - 1
        assert [row["n"] for _, row in log.read()] == list(range(whole))
        log.append([{"n": 9}])
        log.close()
        assert [json.loads(line).get("n") for line in path.read_text().splitlines()] == [
            None, *range(whole), 9,
        ]  # fmt: skip


def test_a_log_of_something_else_is_refused_or_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for content in ('{"of": "y"}\n', "a user's file without a line break", "", "[1]\n", "\x00\x00\n"):
        path.write_text(content)
        with pytest.raises(bd.CheckpointError, match="delete"):
            files.JsonLines(path, header={"of": "x"})
        assert path.read_text() == content
        files.JsonLines(path, header={"of": "x"}, put_aside=True).close()
        assert path.read_text() == '{"of": "x"}\n'
        assert path.with_name("log.jsonl.old").read_text() == content


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[1, 2]", "list"), ("nonsense", "Expecting value"), ('{"n": NaN}', "NaN"), ("\x00\x00", "Expecting"),
        ('{"n": ' + "9" * 5000 + "}", "out of range"), ('{"n": 1e999}', "out of range"),
        ('{"n": ' + "[" * 100_000 + "}", "deep"), ('{"n": ' + "[" * 70 + "]" * 70 + "}", "deep"),
        ('{"n": "' + "x" * 2**20 + '"}', "longer"),
    ],
)  # fmt: skip
def test_a_damaged_line_is_named(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"n": 0}\n' + line + '\n{"n": 1}\n')
    with pytest.raises(bd.TableError, match=f"line 2: .*{reason}") as caught:
        files.read_rows(path, bd.TableError, "log")
    assert len(str(caught.value)) < 500


def test_a_log_is_cut_back_to_what_the_checkpoint_knows(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = files.JsonLines(path, durable=False)
    log.append([{"n": 0}])
    length = log.sync()
    log.append([{"n": 1}])
    log.close()
    log.close()
    files.JsonLines(path, keep_bytes=length).close()
    assert rows_in(path) == [0]
    with pytest.raises(bd.CheckpointError, match="the checkpoint was written with"):
        files.JsonLines(path, keep_bytes=length + 1)
    files.JsonLines(path, keep_bytes=0).close()
    assert rows_in(path) == []


def test_a_batch_of_lines_that_does_not_fit_on_the_disk_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = files.JsonLines(tmp_path / "log.jsonl")
    log.append([{"n": 0}])
    write, left = os.write, [20]

    def nearly_full(handle: int, data: Any) -> int:
        if not left[0]:
            raise OSError(28, "No space left on device")
        done = write(handle, data[: left[0]])
        left[0] -= done
        return done

    monkeypatch.setattr(os, "write", nearly_full)
    with pytest.raises(bd.RunDirError, match="No space left.*former lines are kept"):
        log.append({"n": n} for n in range(1, 9))
    monkeypatch.undo()
    assert rows_in(log.path) == [0]
    log.append([{"n": 1}])
    assert rows_in(log.path) == [0, 1]
