"""The examples of both ways end with a measured network; parts of an installed package are known by name."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from bcnet_deploy.bench import BenchResult
from bcnet_deploy.cli.main import cli
from bcnet_deploy.runtime.registry import RUNTIMES
from bcnet_deploy.search.strategies import STRATEGIES
from bcnet_deploy.tasks import TASKS
from bcnet_deploy.train.samplers import SAMPLERS
from tests.run.tinynet import MODEL

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def run(*command: str | Path, folder: Path) -> str:
    """Its output, from a folder in which ``bcnet-deploy`` is this checkout's."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    (programs / "bcnet-deploy").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m bcnet_deploy "$@"\n')
    (programs / "bcnet-deploy").chmod(0o755)
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, capture_output=True, text=True, timeout=400,
        env={
            **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
            "PATH": f"{programs}:{os.environ['PATH']}",
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_whole(place: Path) -> None:
    """Every step left its result, and the measured network is the found one."""
    found = yaml.safe_load((place / "search" / "widths.yaml").read_text())["widths"]
    measured = BenchResult.load(place / "bench" / "bench.json").networks["found"]
    assert measured.widths == found
    assert measured.runtimes["onnxruntime-cpu"].latency.median_ms > 0
    assert (place / "export" / "found.ort").exists() and (place / "report.html").exists()


def test_the_whole_way_from_python(tmp_path: Path) -> None:
    text = run(sys.executable, EXAMPLES / "api" / "own_network.py", folder=tmp_path)
    assert "my-run/report.html" in text
    check_whole(tmp_path / "my-run")


def test_the_search_alone_from_python(tmp_path: Path) -> None:
    text = run(sys.executable, EXAMPLES / "api" / "own_scores.py", folder=tmp_path)
    counted = re.search(r"parameters: (\d+) = (\d+)", text)
    assert counted and counted[1] == counted[2]
    assert "latency_ms[t4]" in text and "latency_ms[cpu-1thread]" in text


def test_the_whole_way_by_commands(tmp_path: Path) -> None:
    text = run(EXAMPLES / "cli" / "steps.sh", folder=tmp_path)
    check_whole(tmp_path / "bcnet-run")
    found = yaml.safe_load((tmp_path / "bcnet-run" / "search" / "widths.yaml").read_text())["widths"]
    assert f"widths: {found}" in text


def test_the_whole_way_as_a_file(tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(EXAMPLES)
    run(
        "bcnet-deploy", "run", "--config", EXAMPLES / "cli" / "run.yaml", "--run-dir", "mine", folder=tmp_path
    )
    check_whole(tmp_path / "mine")
    widths = yaml.safe_load((tmp_path / "mine" / "search" / "widths.yaml").read_text())
    assert {budget["cost"] for budget in widths["budgets"]} == {"latency_ms", "macs"}


def test_parts_of_an_installed_package_are_known_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What pip leaves of a package with the page's entry points, and commands that name its parts."""
    page = (EXAMPLES / "doors" / "README.md").read_text("utf-8")
    block = re.search(r"```toml\n(.*?)```", page, re.S)
    assert block
    points = re.sub(r'\[project\.entry-points\."(.*)"\]', r"[\1]", block[1])
    points = points.replace('"', "").replace("my_package.", "examples.doors.")
    runtime = "\n[bcnet_deploy.runtimes]\nnumpy = examples.runtime.numpy_runtime:NumpyRuntime\n"
    info = tmp_path / "parts-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: parts\nVersion: 1\n")
    (info / "entry_points.txt").write_text(points + runtime)
    (tmp_path / "tinynet.py").write_text(MODEL)
    device = yaml.safe_load((EXAMPLES / "runtime" / "numpy-cpu.yaml").read_text()) | {"runtime": "numpy"}
    (tmp_path / "numpy-cpu.yaml").write_text(yaml.safe_dump(device))
    monkeypatch.chdir(tmp_path)
    for registry in (RUNTIMES, STRATEGIES, SAMPLERS, TASKS):
        monkeypatch.setattr(registry, "_known", dict(registry._known))
    for folder in (ROOT, tmp_path):
        monkeypatch.syspath_prepend(str(folder))

    def call(line: str) -> dict[str, object]:
        result = CliRunner().invoke(cli, [*line.split(), "--json"])
        assert result.exit_code == 0, result.output
        return dict(json.loads(result.stdout))

    call(
        "profile --model tinynet:net --input-size 1x16x16 --levels 4 --data digits --device numpy-cpu.yaml "
        "--budget 10s"
    )
    table = json.loads((tmp_path / "bcnet-run" / "latency" / "numpy-cpu.json").read_text())
    assert table["provenance"]["runtime"] == "numpy"
    trained = call("train --set epochs=1 --set rule=balanced --set task=balanced")
    assert trained["metric_name"] == "balanced accuracy"
    found = call("search --latency 0.8x --confidence 0.5 --evaluations 6 --strategy annealing")
    assert found["search"]["strategy"] == "annealing"  # type: ignore[index]
    call("export")
    measured = call("bench --rounds 1 --runs 2 --warmup 0 --batches 1 --no-layers")
    assert "numpy" in str(measured["networks"])
