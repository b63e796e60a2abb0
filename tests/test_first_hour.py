"""A new user's first hour: own network, photos and device, every command, with README and docs alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from bcnet_deploy.cli.main import cli

ROOT = Path(__file__).resolve().parent.parent
CLASSES = ("disc", "ring", "square")
TRAIN, TEST = 40, 12


def block(first_line: str) -> str:
    """The block of docs/your-own.md that begins with this line."""
    page = (ROOT / "docs" / "your-own.md").read_text()
    found = re.search(rf"```\w+\n({re.escape(first_line)}.*?)```", page, re.DOTALL)
    assert found is not None, first_line
    return found.group(1)


def photo(kind: str, rng: np.random.Generator) -> Image.Image:
    """A shape of bright colour somewhere on a noisy background, of no fixed size or format."""
    height, width = rng.integers(60, 120, 2)
    y, x = np.mgrid[:height, :width]
    radius = rng.uniform(0.2, 0.32) * min(height, width)
    dy, dx = y - rng.uniform(radius, height - radius), x - rng.uniform(radius, width - radius)
    distance = np.hypot(dy, dx)
    inside = {
        "disc": distance < radius, "ring": (distance < radius) & (distance > 0.6 * radius),
        "square": np.maximum(abs(dy), abs(dx)) < 0.85 * radius,
    }[kind]  # fmt: skip
    pixels = rng.integers(0, 70, (height, width, 3))
    # Colour helps a network that sees the shape hardly yet.
    pixels[inside] += rng.integers(60, 120, 3) + 60 * np.eye(3, dtype=int)[CLASSES.index(kind)]
    return Image.fromarray(pixels.astype(np.uint8))


def call(*arguments: str) -> str:
    result = CliRunner().invoke(cli, list(arguments))
    assert result.exit_code == 0, (arguments, result.stderr, result.exception)
    return result.stdout


def said(*arguments: str) -> Any:
    return json.loads(call(*arguments, "--json"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hour")
    rng = np.random.default_rng(0)
    for split, count in (("train", TRAIN), ("test", TEST)):
        for kind in CLASSES:
            (folder / "photos" / split / kind).mkdir(parents=True)
            for index in range(count):
                path = folder / "photos" / split / kind / f"{index}.{'jpg' if index % 2 else 'png'}"
                photo(kind, rng).save(path)
    (folder / "mynet.py").write_text(block("# mynet.py"))
    (folder / "prepare.py").write_text(block("# prepare.py"))
    (folder / "my-board.yaml").write_text(block("name: my-board").replace("threads: 4", "threads: 1"))
    return folder


def accuracy_by_metadata(onnx_path: Path, photos: Path, prepare: Any) -> float:
    """Per cent of the pictures that are told right by someone who has the file alone."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(onnx_path), providers=["CPUExecutionProvider"])
    entries = session.get_modelmeta().custom_metadata_map
    how, names = json.loads(entries["bcnet.preprocessing"]), json.loads(entries["bcnet.class_names"])
    right = [
        names[int(session.run(None, {session.get_inputs()[0].name: prepare(path, how)})[0].argmax())]
        == path.parent.name
        for path in sorted(photos.rglob("*.*g"))
    ]
    assert len(right) == TEST * len(CLASSES)
    return 100 * sum(right) / len(right)


def test_the_first_hour(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))
    torch.set_num_threads(1)

    # What is there, and what the network becomes.
    assert "cpu" in [device["name"] for device in said("devices")["devices"]]
    assert said("doctor")["devices"]["cpu"]["measure"]
    shown = said("inspect", "mynet:small", "--input-size", "3x64x64")
    assert [row["channels"] for row in shown["variables"]] == [32, 64]

    # README's steps, each with what the one before suggests.
    about = ("--device", "my-board.yaml", "--model", "mynet:small", "--num-classes", "3")
    table = said("profile", *about, "--input-size", "3x64x64", "--budget", "6s")["tables"][0]
    assert table["device"] == "my-board" and table["source"] == "measured"
    trained = CliRunner().invoke(cli, ["train", "--data", "photos/", "--set", "epochs=8"])
    assert trained.exit_code == 0, trained.output
    assert "held-out images: one image is" in trained.stderr
    budget = re.search(r"Next: bcnet-deploy search --latency (\S+)", trained.stdout)
    assert budget is not None
    found = said("search", "--latency", budget.group(1))
    assert found["costs"]["latency_ms"] < table["full_ms"]
    retrained = said("retrain")
    assert retrained["test_images"] == TEST * len(CLASSES)
    exported = said("export")
    assert {Path(path).name for path in exported["files"]} >= {"found.onnx"}
    bench = said("bench", "--rounds", "2", "--runs", "5", "--no-layers")
    assert set(bench["networks"]) >= {"full", "found"}
    call("report")
    assert "mynet:small" in Path("bcnet-run/report.html").read_text()
    assert said("table", "show", "bcnet-run/latency/my-board.json")["device"] == "my-board"

    # The file alone, by the ten lines of the docs: the accuracy that the product states.
    import prepare  # type: ignore[import-not-found]

    by_file = accuracy_by_metadata(
        Path("bcnet-run/export/found.onnx"), place / "photos/test", prepare.prepare
    )
    assert by_file == pytest.approx(retrained["test_top1"], abs=1e-6)
    assert by_file > 60  # 33 by chance: it has learned something

    # The same in one command, of which the done steps are done.
    whole = said("run")
    assert not {"profile", "train", "search", "retrain-found", "export-found"} & set(whole["steps_run"])
    assert {row["name"] for row in whole["networks"]} == {"full", "uniform", "found"}
    assert said("run")["steps_run"] == []
