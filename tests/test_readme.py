"""What the README shows runs as it stands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from bcnet_deploy.cli.main import COMMANDS, cli

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def quick_start() -> str:
    found = re.search(r"```python\n(import bcnet_deploy.*?)```", README, re.S)
    assert found, "the README has a Python quick start"
    return found.group(1)


def test_the_quick_start_is_short_and_runs(tmp_path: Path) -> None:
    code = quick_start()
    assert len(code.strip().splitlines()) <= 15
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"^found: \{'stem.0': \d+, .*\} my-run/export/found.ort my-run/report.html$", done.stdout, re.M
    )
    assert (tmp_path / "my-run" / "export" / "found.ort").exists()


def test_the_readme_is_two_screens() -> None:
    assert len(README.splitlines()) <= 100


def test_the_model_of_the_page_on_ones_own_is_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "your-own.md").read_text("utf-8")
    code = re.search(r"```python\n(# mynet.py\n.*?)```", page, re.S)
    command = re.search(r"^\$ bcnet-deploy (inspect mynet:small .*)$", page, re.M)
    assert code and command
    (tmp_path / "mynet.py").write_text(code[1])
    monkeypatch.chdir(tmp_path)
    shown = CliRunner().invoke(cli, [*command[1].split(), "--json"])
    assert shown.exit_code == 0, shown.output
    data = json.loads(shown.stdout)
    assert [variable["channels"] for variable in data["variables"]] == [32, 64]


def test_every_command_line_shown_uses_options_that_exist() -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    lines = [
        (page.name, line.strip().removeprefix("$ "))
        for page in pages
        for line in re.findall(r"^\s*\$? ?(bcnet-deploy [^\n`]*)$", page.read_text("utf-8"), re.M)
    ]
    assert len(lines) >= 5
    for page, line in lines:
        words = line.split("#")[0].split()[1:]
        assert words[0] in COMMANDS or words[0].isupper(), f"{page}: {line}"
        if words[0] not in COMMANDS:
            continue
        shown = CliRunner().invoke(cli, [words[0], "--help"]).output
        for option in (word.split("=")[0] for word in words if word.startswith("--")):
            assert re.search(rf"{option}\b", shown), f"{page}: {line}: {option}"


def test_links_between_pages_lead_somewhere() -> None:
    for page in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion(shell: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "_BCNET_DEPLOY_COMPLETE": f"{shell}_source"}
    code = "from bcnet_deploy.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert "_BCNET_DEPLOY_COMPLETE" in done.stdout


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("re", {"plain,retrain", "plain,report"}),
        ("export --engine ", {"plain,onnx", "plain,ort", "plain,trt"}),
        ("export --which u", {"plain,uniform"}),
        ("export --precision fp", {"plain,fp32", "plain,fp16"}),
        ("run --device t", {"plain,t4"}),
        ("run --config ci", {"plain,cifar10_cpu", "plain,cifar10_quick"}),
        ("train --config dig", {"plain,digits"}),
        ("bench --device my.y", {"file,my.y"}),
    ],
)
def test_completion_offers_commands_and_values(line: str, offered: set[str]) -> None:
    words = f"bcnet-deploy {line}".split(" ")
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "_BCNET_DEPLOY_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1),
    }  # fmt: skip
    code = "from bcnet_deploy.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert offered <= set(done.stdout.split()) and "torch" not in done.stderr
