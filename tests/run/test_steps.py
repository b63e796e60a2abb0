"""One implementation a step: what the command, ``run`` or Python did, the others find done."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from torch import nn

import bcnet_deploy as bd
from bcnet_deploy.cli.main import cli
from examples.doors.strategy import anneal
from tests.run.tinynet import MODEL

TRAINING = {"recipe": "digits", "epochs": 1, "augment": "none"}
SEARCH = {"latency": "0.8x", "confidence": 0.5, "evaluations": 6, "population_size": 4}
BENCH = {"rounds": 2, "runs": 3, "batches": [1]}
CONFIG = {
    "model": "tinynet:net", "input_size": "1x16x16", "levels": 4, "data": "digits", "device": "cpu-1thread",
    "networks": ["found"], "profile": {"estimate": True}, "train": TRAINING, "retrain": TRAINING,
    "search": SEARCH, "bench": BENCH,
}  # fmt: skip
STEPS = ("profile", "train", "search", "retrain", "export", "bench", "report")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tinynet.py").write_text(MODEL)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.set_num_threads(1)
    return tmp_path


def call(*arguments: str) -> Result:
    result = CliRunner().invoke(cli, [*arguments, "--run-dir", "run"])
    assert result.exit_code == 0, result.output
    return result


def by_command(step: str) -> bool:
    """Whether the command had to work; without settings: the run has kept them."""
    more = {"profile": ["--estimate"], "report": []}.get(step, [])
    data = json.loads(call(step, "--json", *more).stdout)
    return bool(data["tables"][0]["ran"] if step == "profile" else data.get("ran", True))


def by_python(step: str) -> bool:
    run = bd.Run("run")
    settings: dict[str, Any] = {"estimate": True} if step == "profile" else {}
    return bool(getattr(getattr(run, step)(**settings), "ran", True))


def budgets_of(place: Path) -> list[str]:
    widths = yaml.safe_load((place / "run" / "search" / "widths.yaml").read_text())
    return [budget["cost"] for budget in widths["budgets"]]


def by_run() -> list[str]:
    return list(json.loads(call("run", "--json").stdout)["steps_run"])


def test_commands_and_python_find_the_work_of_run_done(place: Path) -> None:
    first = json.loads(call("run", "--config", "tiny.yaml", "--json").stdout)["steps_run"]
    assert first == ["profile", "train", "search", "retrain-found", "export-found", "bench"]
    for step in STEPS[:-1]:
        assert not by_command(step), step
        assert not by_python(step), step
    assert by_run() == []


def test_run_finds_the_work_of_commands_and_python_done(place: Path) -> None:
    about = ["--model", "tinynet:net", "--input-size", "1x16x16", "--levels", "4"]
    call("profile", *about, "--device", "cpu-1thread", "--estimate", "--data", "digits")
    call("train", "--set", "epochs=1", "--set", "augment=none", "--config", "digits")
    run = bd.Run("run")
    found = run.search(**SEARCH)
    assert found.ran and found.accuracy > 0 and set(found.widths) == {"0", "3"}
    call("retrain", "--set", "epochs=1", "--set", "augment=none", "--config", "digits")
    assert run.export().ran
    call("bench", "--rounds", "2", "--runs", "3", "--batches", "1")
    done = by_run()
    # Full and uniform were nobody's wish before; measured is what there is to measure then.
    assert done == ["retrain-full", "retrain-uniform", "export-full", "export-uniform", "bench"]
    assert by_run() == []


def test_another_budget_by_command_is_what_run_goes_on_with(place: Path) -> None:
    call("run", "--config", "tiny.yaml")
    call("search", "--macs", "0.1x")
    kept = yaml.safe_load((place / "run" / "run.yaml").read_text())["steps"]["search"]
    assert kept["macs"] == "0.1x" and "latency" not in kept
    assert by_run() == ["retrain-found", "export-found", "bench"]
    assert budgets_of(place) == ["macs"]
    call("run", "--params", "0.5x")
    assert budgets_of(place) == ["params"]


def test_learned_channel_steps_go_the_whole_way(place: Path) -> None:
    call("run", "--config", "tiny.yaml")
    again = json.loads(call("run", "--channel-steps", "learned", "--json").stdout)["steps_run"]
    assert again[0] == "search" and not {"profile", "train"} & set(again)
    assert not by_command("search") and not by_python("search")
    widths = yaml.safe_load((place / "run" / "search" / "widths.yaml").read_text())["widths"]
    measured = json.loads((place / "run" / "bench" / "bench.json").read_text())
    assert measured["networks"]["found"]["widths"] == widths


def test_what_python_is_given_is_kept_as_a_commands_options(place: Path) -> None:
    call("run", "--config", "tiny.yaml")
    run = bd.Run("run")
    before = run.directory.load().steps
    with pytest.raises(bd.InfeasibleError):
        run.search(latency="1us")
    with pytest.raises(bd.CheckpointError):
        run.train(batch_size=32)
    assert run.directory.load().steps == before, "what was refused does not stay"
    walk = functools.partial(anneal, hot=0.1)
    assert run.search(macs="0.3x", strategy=walk).ran and budgets_of(place) == ["macs"]
    run.retrain("full", compute="cpu")
    run.export("full")
    kept = run.directory.load().steps
    assert "network" not in kept["export"] and not {"network", "compute"} & set(kept["retrain"])
    assert kept["search"]["macs"] == "0.3x" and "latency" not in kept["search"]
    assert kept["search"]["evaluations"] == SEARCH["evaluations"]
    table = run.profile(table=place / "run" / "latency" / "cpu-1thread.json")
    assert table.ran and not table.table.differences()


def test_a_whole_run_from_arrays_and_a_module_of_ones_own(place: Path) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 255, (240, 1, 8, 8), dtype=np.uint8)
    labels = np.arange(240) % 3
    images[labels == 1, :, :4] //= 8
    images[labels == 2, :, :, :4] //= 8
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(64, 3),
    )  # fmt: skip
    run = bd.Run("mine", model=model, data=(images, labels), device="cpu-1thread", levels=8)
    assert run.profile(estimate=True).full_ms > 0
    run.train(epochs=2, batch_size=32, augment="none")
    run.search(macs="0.5x", evaluations=5, population_size=4)
    run.retrain(epochs=4, batch_size=32, augment="none")
    exported = run.export(engine="ort")
    assert [path.suffix for path in exported.files] == [".ort", ".json", ".onnx"]
    measured = run.bench(rounds=1, runs=3, batches=(1,)).measured.networks["found"]
    assert measured.runtimes["onnxruntime-cpu"].latency.median_ms > 0
    assert "mine" in str(run.report().path)
    again = bd.Run("mine", model=model, data=(images, labels))
    assert not again.train().ran and not again.search().ran
    refused = CliRunner().invoke(cli, ["retrain", "--network", "full", "--run-dir", "mine"])
    assert refused.exit_code == 1 and "from Python" in refused.output


def test_a_wrong_number_of_classes_begins_no_run(place: Path) -> None:
    images, labels = np.zeros((30, 1, 16, 16), np.uint8), np.arange(30) % 3
    for data in ("digits", (images, labels)):
        with pytest.raises(bd.DataError, match="classes, the model tells 4 apart"):
            bd.Run("wrong", model="tinynet:net", data=data, input_size=(1, 16, 16), num_classes=4)
    assert not (place / "wrong" / "run.yaml").exists()
    run = bd.Run("wrong", model="tinynet:net", data="digits", input_size=(1, 16, 16))
    assert run.directory.load().model.num_classes == 10


def test_data_of_nobodys_choice_is_refused(place: Path) -> None:
    call("profile", "--model", "tinynet:net", "--input-size", "1x16x16", "--estimate")
    for step in ("train", "retrain"):
        result = CliRunner().invoke(cli, [step, "--run-dir", "run"])
        assert result.exit_code == 1 and "no data is named" in result.output and "--data" in result.output
    assert not (place / "run" / "train").exists()


def test_a_directory_of_the_former_format_goes_on(place: Path) -> None:
    call("run", "--config", "tiny.yaml")
    config = yaml.safe_load((place / "run" / "run.yaml").read_text())
    former = {key: config[key] for key in ("model", "device", "data", "seed")}
    (place / "run" / "run.yaml").write_text(yaml.safe_dump({"format": 1, **former, "extra": {}}))
    assert bd.RunDir("run").load().data == "digits"
    call("search", "--latency", "0.9x", "--confidence", "0.5", "--evaluations", "4", "--population", "4")
    assert yaml.safe_load((place / "run" / "run.yaml").read_text())["format"] == 2
