"""The command line as a whole: lists, suggestions, one-line errors, exit codes."""

from __future__ import annotations

import errno
import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner

import bcnet_deploy as bd
from bcnet_deploy.cli.common import json_option, quiet_option, run_dir_option
from bcnet_deploy.cli.main import COMMANDS, cli


@pytest.fixture
def runner() -> CliRunner:
    return CliRunner()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(runner: CliRunner, name: str) -> None:
    result = runner.invoke(cli, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage: cli" in result.output
    assert isinstance(importlib.import_module(COMMANDS[name][0]).command, click.Command)


def test_help_lists_every_command(runner: CliRunner) -> None:
    output = runner.invoke(cli, ["--help"]).output
    assert all(f"  {name} " in output for name in COMMANDS)
    assert bd.__version__ in runner.invoke(cli, ["--version"]).output


def test_an_unknown_command_is_a_usage_error_with_suggestions(runner: CliRunner) -> None:
    result = runner.invoke(cli, ["serach"])
    assert result.exit_code == 2
    assert "'serach'; did you mean 'search'" in result.output
    assert runner.invoke(cli, ["inspect"]).exit_code == 2
    assert runner.invoke(cli, ["inspect", "demo", "--levels", "0"]).exit_code == 2


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> dict[str, BaseException | None]:
    """A command ``probe`` that raises what the test puts under ``raises``."""
    behaviour: dict[str, BaseException | None] = {"raises": None}

    @click.command("probe")
    @run_dir_option
    @json_option
    @quiet_option
    def command(run_dir: object, as_json: bool, quiet: bool) -> None:
        if behaviour["raises"] is not None:
            raise behaviour["raises"]
        click.echo(f"{run_dir.path} {as_json} {quiet}")  # type: ignore[attr-defined]

    monkeypatch.setitem(COMMANDS, "probe", ("bcnet_probe", "A probe."))
    monkeypatch.setitem(sys.modules, "bcnet_probe", SimpleNamespace(command=command))
    return behaviour


def test_common_options(runner: CliRunner, probe: dict[str, BaseException | None]) -> None:
    assert runner.invoke(cli, ["probe"]).output == "bcnet-run False False\n"
    assert runner.invoke(cli, ["probe", "--run-dir", "a", "--json", "-q"]).output == "a True True\n"


def test_expected_errors_are_one_line_with_exit_code_1(
    runner: CliRunner, probe: dict[str, BaseException | None]
) -> None:
    probe["raises"] = bd.InfeasibleError("nothing fits 1ms; the least is 2ms")
    result = runner.invoke(cli, ["probe"])
    assert result.exit_code == 1
    assert result.stderr == "bcnet-deploy: error: nothing fits 1ms; the least is 2ms\n"
    assert result.stdout == ""


def test_an_interrupt_is_130_and_a_defect_keeps_its_traceback(
    runner: CliRunner, probe: dict[str, BaseException | None]
) -> None:
    probe["raises"] = KeyboardInterrupt()
    result = runner.invoke(cli, ["probe"])
    assert result.exit_code == 130
    assert "run the same command again" in result.stderr
    probe["raises"] = AssertionError("a defect of ours")
    result = runner.invoke(cli, ["probe"])
    assert isinstance(result.exception, AssertionError)


def test_failures_in_json(runner: CliRunner, probe: dict[str, BaseException | None]) -> None:
    probe["raises"] = bd.InfeasibleError("nothing fits\n1ms")
    result = runner.invoke(cli, ["probe", "--json"])
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {"error": {"type": "InfeasibleError", "message": "nothing fits 1ms"}}
    probe["raises"] = KeyboardInterrupt()
    result = runner.invoke(cli, ["probe", "--json"])
    assert result.exit_code == 130 and json.loads(result.stdout)["error"]["type"] == "Interrupted"
    result = runner.invoke(cli, ["probe", "--json", "--nosuch"])
    assert result.exit_code == 2 and json.loads(result.stdout)["error"]["type"] == "UsageError"
    assert "No such option '--nosuch'" in result.stderr and result.stderr.count("\n") == 1


def test_a_full_disk_anywhere_is_one_line(runner: CliRunner, probe: dict[str, BaseException | None]) -> None:
    """Temporary files and libraries raise what the system says."""
    probe["raises"] = OSError(errno.ENOSPC, "No space left on device", "/tmp/x")
    result = runner.invoke(cli, ["probe", "--json"])
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    said = json.loads(result.stdout)["error"]
    assert said["type"] == "RunDirError" and said["message"].startswith(
        "No space left on device (/tmp/x); free"
    )
    probe["raises"] = OSError(errno.EBADF, "Bad file descriptor")  # a defect of ours
    assert isinstance(runner.invoke(cli, ["probe"]).exception, OSError)


def test_models_complete_without_pytorch() -> None:
    from bcnet_deploy.cli.choices import model_names
    from bcnet_deploy.models import model_names as built

    assert model_names() == built()
    code = (
        "import sys; from bcnet_deploy.cli.choices import model_names; assert len(model_names()) > 80\n"
        "assert 'torch' not in sys.modules and 'torchvision' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("incomplete", "expected"),
    [
        ("mobilenet_v3", {"mobilenet_v3_large", "mobilenet_v3_small"}), ("nets.py:s", {"nets.py:small"}),
        ("nets.py:", {"nets.py:small", "nets.py:Large"}), ("absent.py:", set()),
    ],
)  # fmt: skip
def test_models_that_complete(
    incomplete: str, expected: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nets.py").write_text("def small(): pass\ndef _own(): pass\nclass Large: pass\n")
    monkeypatch.chdir(tmp_path)
    for name in ("train", "profile", "run"):
        command = importlib.import_module(COMMANDS[name][0]).command
        option = next(param for param in command.params if param.name == "model")
        found = option.shell_complete(click.Context(command), incomplete)
        assert {item.value for item in found} == expected


def test_as_a_module_with_exit_codes() -> None:
    """The real process: no traceback for an expected error."""
    command = [sys.executable, "-m", "bcnet_deploy", "inspect", "no_such_model"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("bcnet-deploy: error: no model is called 'no_such_model'")
    assert done.stderr.count("\n") == 1
