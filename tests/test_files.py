"""Files are whole or absent; what cannot be read is said with its place."""

from __future__ import annotations

import itertools
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

import bcnet_deploy as bd
from bcnet_deploy import files
from bcnet_deploy.errors import CheckpointError, ConfigError, RunDirError, nearest
from bcnet_deploy.models.ref import ModelRef
from bcnet_deploy.run.directory import RunConfig, RunDir


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


def test_what_does_not_come_apart_names_the_file() -> None:
    def refused(take: Callable[[], object]) -> str:
        with pytest.raises(CheckpointError) as caught, files.malformed("x.json", CheckpointError, "do this"):
            take()
        return str(caught.value)

    data: Any = {"a": "b", "n": 10**30}
    assert refused(lambda: data["no"]) == (
        "x.json is damaged, or of another version (the key 'no' is missing); do this"
    )
    for take in (
        lambda: data[0], lambda: data["a"].c, lambda: int(data["a"]), lambda: data["a"][5],
        lambda: np.array([data["n"]], dtype=np.int64), lambda: data["n"] / 0,
        lambda: torch.zeros(2) @ torch.zeros(3),
    ):  # fmt: skip
        said = refused(take)
        assert said.startswith("x.json is damaged") and said.endswith("do this") and "\n" not in said

    def ours(error: Exception) -> None:
        raise error

    # A setting of the file is named with it; what says all itself stays as it is.
    assert refused(lambda: ours(ConfigError("rounds is 0"))) == "x.json: rounds is 0; do this"
    assert refused(lambda: ours(CheckpointError("as it is"))) == "as it is"
    with pytest.raises(RunDirError, match="^disk full$"), files.malformed("x", CheckpointError, "do this"):
        raise RunDirError("disk full")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"latency": [{"interval_ms": [0.1, -1]}]}, "interval_ms is -1; allowed: 0 to 1e.09"),
        ({"predicted_ms": 1e10}, "predicted_ms is 1e.10"),
        ({"costs": {"macs": -3}}, "macs is -3"),
        ({"weight_bytes": -1.0}, "weight_bytes is -1"),
        ({"source": 10**30}, "source is 1e.30"),
        ([{"scores": {"accuracy": 255}}], "accuracy is 255; allowed: -10 to 110"),
    ],
)
def test_figures_that_cannot_be_are_refused_by_their_key(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        files.check_figures(data, (-10, 110))
    files.check_figures({"gain": -3.0, "accuracy": 101.5, "predicted_ms": None, "flag": True}, (-10, 110))


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
        ModelRef("demo", 10, (1, 8, 8), levels=8, min_level=1), device="t4", seed=3,
        steps={"search": {"latency": ["5ms", "cpu=0.5x"], "pareto": True}},
    )  # fmt: skip
    run.save(config)
    assert run.load() == config
    assert files.read_yaml(run.config_path, bd.RunDirError, "run file")["format"] == 2


def test_a_run_file_of_format_1_is_read_and_written_as_2(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    former = (
        "format: 1\nmodel: {name: demo, num_classes: 10, input_size: [1, 8, 8], levels: 8, min_level: 1}\n"
        "device: t4\ndata: digits\nseed: 3\nextra: {a: 1}\n"
    )
    run.config_path.write_text(former)
    model = ModelRef("demo", 10, (1, 8, 8), levels=8, min_level=1)
    config = RunConfig(model, device="t4", data="digits", seed=3)
    assert run.load() == config and config.steps == {}
    assert run.config_path.read_text() == former, "reading changes nothing"
    run.keep(steps={"search": {"latency": "5ms"}})
    now = files.read_yaml(run.config_path, bd.RunDirError, "run file")
    assert now["format"] == 2 and "extra" not in now and now["steps"] == {"search": {"latency": "5ms"}}
    assert RunDir(tmp_path).load() == RunConfig(
        model, device="t4", data="digits", seed=3, steps={"search": {"latency": "5ms"}}
    )
    # What the former version's defaults were, where a file leaves keys out.
    run.config_path.write_text("format: 1\nmodel: {name: demo}\n")
    assert (run.load().device, run.load().data, run.load().seed) == ("cpu", "digits", 0)
    assert run.load().model == ModelRef("demo", 1000, (3, 224, 224), levels=20, min_level=0)


def test_run_file_defects(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    with pytest.raises(bd.MissingStepError, match="bcnet-deploy"):
        run.load()
    for text, message in [
        ("format: 3\nmodel: {name: demo}\n", "format 3.*reads 1 and 2"),
        ("- a\n", "format None"),
        ("format: 1\n", "model"),
        ("format: 2\nmodel: {name: demo}\nextra: {}\n", "extra"),
        ("format: 1\nmodel: {name: demo}\nsteps: [1]\n", "steps"),
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
        run.require(run.widths_file, "found widths", "bcnet-deploy search")
    files.write_yaml(run.widths_file, {})
    assert run.require(run.widths_file, "found widths", "bcnet-deploy search") == run.widths_file


def test_every_error_is_one_of_ours_and_carries_an_exit_code() -> None:
    for name in bd.__all__:
        value = getattr(bd, name)
        if isinstance(value, type) and issubclass(value, Exception):
            assert issubclass(value, bd.BCNetError)
            assert value.exit_code == (2 if issubclass(value, bd.errors.UsageError) else 1)
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


# -- permissions and full disks -------------------------------------------------------------------


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """The kernel refuses to let any file of this process grow beyond ``size`` bytes: a full disk."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


def test_tensors_come_back_with_their_text_and_ordinary_permissions(tmp_path: Path) -> None:
    import torch

    given = {"a": torch.arange(6).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}
    for mask in (0o022, 0o077, 0o002):
        before = os.umask(mask)
        try:
            files.write_tensors(tmp_path / "w.safetensors", given, {"note": "x"})
            (tmp_path / "plain").write_text("x")
        finally:
            os.umask(before)
        modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("w.safetensors", "plain")}
        assert len(modes) == 1
        (tmp_path / "plain").unlink()
    tensors, text = files.read_tensors(tmp_path / "w.safetensors", bd.CheckpointError, "weights")
    assert text == {"note": "x"} and tensors.keys() == given.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in given.items())


@pytest.mark.parametrize("kind", ["text", "json", "yaml", "tensors"])
def test_a_full_disk_is_a_typed_error_and_keeps_the_former_file(tmp_path: Path, kind: str) -> None:
    import torch

    path = tmp_path / "file"

    def write(count: int) -> None:
        if kind == "tensors":
            files.write_tensors(path, {"a": torch.zeros(count)})
        elif kind == "text":
            files.write_text(path, "x" * count)
        else:
            (files.write_json if kind == "json" else files.write_yaml)(path, ["text"] * count)

    write(10)
    former = path.read_bytes()
    with no_file_beyond(4000), pytest.raises(bd.RunDirError, match="cannot write .*unchanged"):
        write(5_000)
    assert path.read_bytes() == former
    assert list(tmp_path.iterdir()) == [path]
    write(5_000)


# -- hostile files --------------------------------------------------------------------------------

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in itertools.pairwise("abcdefghijklmno")
)
HOSTILE_YAML = {
    "bomb": (BOMB, "values, aliases written out"),
    "endless": ("a: &a [*a]", "alias"),
    "no anchor": ("a: *b", "alias"),
    "deep flow": ("[" * 100_000, "deep"),
    "deep block": ("- " * 5_000 + "x", "deep"),
    "deep by aliases": (
        "a0: &a0 [x]\n" + "".join(f"a{n + 1}: &a{n + 1} [*a{n}]\n" for n in range(200)), "deep",
    ),
    "long number": ("a: " + "9" * 5_000, "the number 9999"),
    "large number": ("a: " + "9" * 400, "out of range"),
    "infinite": ("a: .inf", "not finite"),
    "not a number": ("a: .nan", "not finite"),
    "a set": ("a: !!set {b, c}", "set"),
    "bytes": ("a: !!binary aGVsbG8=", "bytes"),
    "code": ("a: !!python/object/apply:os.system ['true']", "constructor"),
    "an impossible date, tagged": ("a: !!timestamp 2020-13-45", "month"),
    "a tag without sense": ("a: !!int b", "invalid literal"),
    "NUL": ("a: b\x00", "not valid YAML"),
    "a key that is a list": ("? [a]\n: b", "unhashable"),
    "large": ("a: " + "x" * files.MAX_YAML_BYTES, "larger than"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_YAML)
def test_hostile_yaml_is_refused_at_once_on_one_line(tmp_path: Path, name: str) -> None:
    text, reason = HOSTILE_YAML[name]
    path = tmp_path / "p.yaml"
    path.write_text(text)
    began = time.process_time()
    with pytest.raises(bd.DeviceError, match=f"profile .*p.yaml .*{reason}") as caught:
        files.read_yaml(path, bd.DeviceError, "profile")
    assert time.process_time() - began < 2
    assert len(str(caught.value)) < 1000 and "\n" not in str(caught.value)


def test_dates_are_text_and_aliases_of_reason_are_written_out(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("a: 2020-13-45\nb: 2020-01-31\nc: &c {d: 1}\ne: [*c, *c]\nf: {<<: *c, g: 2}\n")
    found = files.read_yaml(path, bd.DeviceError, "profile")
    assert found == {
        "a": "2020-13-45", "b": "2020-01-31", "c": {"d": 1}, "e": [{"d": 1}] * 2, "f": {"d": 1, "g": 2},
    }  # fmt: skip
    files.write_yaml(path, found)
    assert "*" not in path.read_text()
    assert files.read_yaml(path, bd.DeviceError, "profile") == found


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "deep"), ("[" * 70 + "]" * 70, "deep"), ('{"a":' * 5_000, "deep"),
        ("9" * 5_000, "out of range"), ("-" + "9" * 400, "out of range"), ("[1e999]", "out of range"),
        ("NaN", "out of range"), ("[-Infinity]", "out of range"), ("\x00", "not valid JSON"),
        ('{"a": "\\ud800', "not valid JSON"),
    ],
)  # fmt: skip
def test_hostile_json_is_refused_on_one_line(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(bd.TableError, match=f"table .*t.json .*{reason}") as caught:
        files.read_json(path, bd.TableError, "table")
    assert len(str(caught.value)) < 1000 and "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [files.read_json, files.read_yaml, files.read_tensors, files.read_rows])
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path, read: Any) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "folder").mkdir()
    (tmp_path / "pipe\n[red]\x1b").symlink_to(tmp_path / "pipe")
    for name in ("pipe", "folder", "pipe\n[red]\x1b"):
        with pytest.raises(bd.TableError, match="regular file") as caught:
            read(tmp_path / name, bd.TableError, "table")
        assert str(caught.value).isprintable()
    if read is not files.read_rows:
        for name in ("loop", "nul\x00", "x" * 300):
            with pytest.raises(bd.TableError, match="table") as caught:
                read(tmp_path / name, bd.TableError, "table")
            assert str(caught.value).isprintable()
    with pytest.raises(bd.RunDirError):
        files.write_text(tmp_path / "nul\x00", "x")


WHOLE = st.integers(-(2**63) + 1, 2**63 - 1)
VALUES = st.recursive(
    st.none() | st.booleans() | WHOLE | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)


@given(value=VALUES)
@settings(deadline=None)
def test_what_is_written_is_read_back(value: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        files.write_json(path, value)
        assert files.read_json(path, bd.TableError, "table") == value
        log = files.JsonLines(path, keep_bytes=0)
        log.append([{"a": value}, {"b": value}])
        log.close()
        assert files.read_rows(path) == [{"a": value}, {"b": value}]


@given(value=VALUES)
@example(value=["a\x85b", "a\u2028b\u2029", "a\r\nb", "\x85", {"a\u2028": " \n\x85 "}])
@settings(deadline=None)
def test_what_is_written_as_yaml_is_read_back(value: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        files.write_yaml(path, value)
        assert files.read_yaml(path, bd.TableError, "table") == value


def test_yaml_is_for_people_and_of_text_that_can_be_read(tmp_path: Path) -> None:
    files.write_yaml(tmp_path / "x.yaml", {"größe": "für – 号"})
    assert (tmp_path / "x.yaml").read_text() == "größe: für – 号\n"
    for value in ({"data": "Gr\udcfcn"}, {"Gr\udcfcn": 1}, ["\ud83d"]):
        with pytest.raises(RunDirError, match=r"the text '.*\\ud.*' is not UTF-8") as caught:
            files.write_yaml(tmp_path / "x.yaml", value)
        assert str(caught.value).isprintable()
    assert [path.name for path in tmp_path.iterdir()] == ["x.yaml"]


@given(value=VALUES)
@settings(deadline=None)
def test_yaml_is_read_as_the_pure_reader_reads_it(value: Any) -> None:
    text = yaml.safe_dump(value, allow_unicode=True)
    try:
        expected = yaml.safe_load(text)
    except yaml.YAMLError:
        return
    assert files.parse_yaml(text, bd.TableError, "table") == expected


PIECES = st.sampled_from(
    [
        "{", "}", "[", "]", ":", ": ", ",", "- ", "\n", " ", "  ", '"', "'", "&a ", "*a", "<<", "!!",
        "!!int ",
        "? ", "|\n", ">", "%", "@", "#", "---\n", "...", "1", "9" * 30, "1e999", "NaN", ".inf", "null",
        "true",
        "2020-13-45", "0x", "0b2", "1:99", "\\u", "\ud800", "\x00", "\x85", "\ufeff", "é", "a", "=", "~",
    ]
)  # fmt: skip


@given(content=st.lists(PIECES).map("".join) | st.text() | st.binary())
@settings(max_examples=300, deadline=None)
def test_whatever_a_file_holds_it_is_read_or_refused_on_one_line(content: str | bytes) -> None:
    data = content.encode(errors="surrogatepass") if isinstance(content, str) else content
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        for whole in (data, data + b"\n"):
            path.write_bytes(whole)
            for read in (files.read_json, files.read_yaml, files.read_tensors, files.read_rows):
                try:
                    read(path, bd.TableError, "table")  # type: ignore[operator]
                except bd.TableError as error:
                    assert str(error).isprintable() and 0 < len(str(error)) <= 2000


@given(text=st.text(st.characters(), max_size=4000))
def test_a_message_is_one_printable_line(text: str) -> None:
    message = str(bd.BCNetError(text))
    assert message.isprintable() and len(message) <= 12 * 2000
    if text.isprintable() and len(text) <= 2000:
        assert message == text
