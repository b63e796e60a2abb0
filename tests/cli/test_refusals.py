"""Whatever is wrong: one line, an exit code that says whose fault it is, and JSON where it is asked for."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from bcnet_deploy.cli.main import COMMANDS, cli


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def commands(
    group: click.Command, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if isinstance(group, click.Group):
        context = click.Context(group)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            yield from commands(command, (*path, name))
    else:
        yield path, group


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an estimated table, and nothing else."""
    folder = tmp_path_factory.mktemp("refusals")
    line = "profile --model demo --data digits --device t4 --estimate --levels 4 -q --run-dir"
    assert call(*line.split(), str(folder / "run")).exit_code == 0
    (folder / "damaged.json").write_text("{")
    (folder / "damaged.yaml").write_text("a: [1")
    return folder


@pytest.fixture(autouse=True)
def there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


WRONG = """
inspect nosuch
inspect no:such
inspect nosuch.py:net
inspect demo --input-size abc
inspect demo --levels 100000
inspect demo --min-level 30
inspect demo --weights nosuch.pth
inspect demo --num-classes abc
inspect demo --nosuch
inspect
devices nosuch
devices --new ../x
devices --new x --kind toaster
devices --new x --runtime nosuch
profile --device nosuch --run-dir run
profile --device ../../x --run-dir run
profile --devices t4,nosuch --run-dir run
profile --budget 5 --run-dir run
profile --table nosuch.json --device t4 --run-dir run
profile --rebase nosuch.json --device cpu --run-dir run
profile --model nosuch --run-dir new
profile --model demo --data nosuch --run-dir new
profile --model demo --weights nosuch.pth --run-dir new
train --config nosuch --run-dir run
train --set epochs=0 --run-dir run
train --set nosuch=1 --run-dir run
train --set epochs --run-dir run
train --compute toaster --run-dir run
train --importance nosuch --run-dir run
search --run-dir run
search --latency 5 --run-dir run
search --latency =5ms --run-dir run
search --macs 1e30G --run-dir run
search --macs 0.5x --macs 0.6x --run-dir run
search --macs 0.5x --confidence 7 --run-dir run
search --macs 0.5x --evaluations 0 --run-dir run
search --macs 0.5x --seed -5 --run-dir run
search --macs 0.5x --strategy nosuch --run-dir run
search --macs 0.5x --scores nosuch --run-dir run
search --macs 0.5x --importance nosuch --run-dir run
retrain --network nosuch --run-dir run
retrain --widths nosuch.yaml --run-dir run
export --engine nosuch --run-dir run
export --opset 5 --run-dir run
export --device nosuch --run-dir run
bench --rounds 0 --run-dir run
bench --batches 100000000 --run-dir run
bench --threads 100000 --run-dir run
bench --device nosuch --run-dir run
run --config nosuch --run-dir new
run --device nosuch --run-dir new
run --data nosuch --run-dir new
run --latency 5 --run-dir new
run --table nosuch.json --run-dir new
run --levels 99999 --run-dir new
table show nosuch.json
table merge nosuch.json --out x.json
table to-csv nosuch.json --out x.csv
table from-csv nosuch.csv --out x.json
table from-ofa nosuch.yaml --device t4 --out x.json
table nosuch
nosuch
"""
FAILED = """
search --macs 1 --run-dir run
search --macs 0.5x --run-dir nowhere
search --latency l4=5ms --run-dir run
train --levels 7 --run-dir run
profile --model mobilenet_v2 --run-dir run
profile --device damaged.yaml --run-dir run
export --run-dir run
table show damaged.json
inspect vit_b_16
inspect demo --weights damaged.json
"""


@pytest.mark.parametrize(
    ("line", "code"),
    [(line, 2) for line in WRONG.strip().splitlines()] + [(line, 1) for line in FAILED.strip().splitlines()],
)
def test_wrong_usage_and_failures_are_told_apart(place: Path, line: str, code: int) -> None:
    before = sorted(path.name for path in place.iterdir())
    result = call(*line.split(), *(["--json"] if line.split()[0] in COMMANDS else []))
    assert result.exit_code == code, (result.stderr, result.exception)
    assert result.stderr.startswith("bcnet-deploy: error: ") and result.stderr.count("\n") == 1
    if line.split()[0] in COMMANDS:
        said = json.loads(result.stdout)["error"]
        assert result.stderr == f"bcnet-deploy: error: {said['message']}\n"
        assert said["type"].endswith("Error") and said["type"].isidentifier()
    assert sorted(path.name for path in place.iterdir()) == before


def test_every_command_has_json() -> None:
    found = dict(commands(cli))
    assert len(found) == len(COMMANDS) + 4  # table is five
    for path, command in found.items():
        assert any("--json" in param.opts for param in command.params), path


def test_tables_say_in_json_what_was_written(place: Path, tmp_path: Path) -> None:
    table = "run/latency/t4.json"
    for line in (
        f"table show {table}", f"table merge {table} --out {tmp_path / 'm.json'}",

    ):  # fmt: skip
        result = call(*line.split(), "--json")
        assert result.exit_code == 0, result.output
        said = json.loads(result.stdout)
        assert said["device"] == "t4" and Path(said["path"]).is_file()
    assert len(said["networks"]) == len(json.loads((place / table).read_text())["networks"]) == 1


@pytest.mark.parametrize("option", ["--macs", "--run-dir", "--weights"])
@pytest.mark.parametrize("value", ["x" * 5000, "\udcff", "a\nb", "[/red]"])
def test_odd_values_are_one_line(place: Path, option: str, value: str) -> None:
    more = [] if option == "--run-dir" else ["--run-dir", "run"]
    result = call("search", option, value, *more)
    assert result.exit_code in (1, 2) and result.stderr.count("\n") == 1, result.exception


def test_a_model_that_cannot_be_kept_is_not_wrong_usage(place: Path) -> None:
    """A value in the run's own file is not an option: exit code 1."""
    shutil.copytree(place / "run", place / "kept")
    text = (place / "kept" / "run.yaml").read_text().replace("device: t4", "device: toaster")
    (place / "kept" / "run.yaml").write_text(text)
    try:
        for line in ("search --latency 0.5x", "bench", "profile --estimate"):
            result = call(*line.split(), "--run-dir", "kept")
            assert result.exit_code == 1 and "toaster" in result.stderr, result.output
    finally:
        shutil.rmtree(place / "kept")


def test_stopped_before_the_first_step_it_says_so_and_exits_with_130(place: Path) -> None:
    """SIGTERM, as a job scheduler sends it, at a moment when no step has begun."""
    (place / "slow.py").write_text("import time, pathlib\npathlib.Path('begun').touch()\ntime.sleep(60)\n")
    command = [sys.executable, "-m", "bcnet_deploy", "inspect", "slow:net", "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
    ) as process:
        end = time.monotonic() + 60
        while not (place / "begun").exists() and time.monotonic() < end:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        out, error = process.communicate(timeout=60)
    for name in ("begun", "slow.py"):
        (place / name).unlink()
    assert process.returncode == 130, error
    assert "run the same command again" in error and error.count("\n") == 1
    assert json.loads(out)["error"]["type"] == "Interrupted"
