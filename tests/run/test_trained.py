"""From trained weights: nothing starts over, and the original stands beside what was made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import ResNet18_Weights

import bcnet_deploy as bd
from bcnet_deploy.cli.main import cli
from bcnet_deploy.data import PlainBatches, load_data
from bcnet_deploy.models import build_model
from bcnet_deploy.train import TrainConfig, evaluate_network, retrain
from tests.run.tinynet import MODEL

SIZE = (1, 16, 16)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a user's model and its weights after a few epochs on the digits."""
    place = tmp_path_factory.mktemp("trained")
    (place / "tinynet.py").write_text(MODEL)
    torch.set_num_threads(1)
    model = build_model(f"{place / 'tinynet.py'}:net", num_classes=10)
    space = bd.WidthSpace.from_model(model, SIZE, 8)
    splits = load_data("digits", SIZE)
    config = TrainConfig.load("digits").replace(epochs=6, augment="none")
    ref = {"name": f"{place / 'tinynet.py'}:net", "num_classes": 10, "input_size": list(SIZE), "levels": 8}
    retrain(model, space, space.full, splits, config, place / "base", model_ref=ref)
    from bcnet_deploy.nn import load_subnet

    network, _ = load_subnet(place / "base")
    save_file(dict(network.state_dict()), str(place / "net.safetensors"))
    return place


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tinynet.py").write_text(MODEL)
    (tmp_path / "net.safetensors").write_bytes((trained / "net.safetensors").read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def call(*arguments: str) -> Result:
    result = CliRunner().invoke(cli, [*arguments, "--run-dir", "run"])
    assert result.exit_code == 0, result.output
    return result


def original_top1(place: Path) -> float:
    model = build_model("tinynet:net", num_classes=10, weights=place / "net.safetensors").eval()
    splits = load_data("digits", SIZE)
    images = splits.open_test()
    assert images is not None
    batches = PlainBatches(images, splits, 64, torch.device("cpu"))
    return evaluate_network(model, batches)[0]


def test_one_command_from_weights_to_a_measured_network_without_a_supernet(place: Path) -> None:
    config = {
        "model": "tinynet:net", "weights": "net.safetensors", "input_size": "1x16x16", "levels": 8,
        "data": "digits", "device": "cpu-1thread", "macs": "0.4x", "profile": {"estimate": True},
        "search": {"evaluations": 12, "population_size": 4}, "retrain": {"epochs": 1, "augment": "none"},
        "bench": {"rounds": 1, "runs": 2, "batches": [1]},
    }  # fmt: skip
    (place / "trained.yaml").write_text(yaml.safe_dump(config))
    data = json.loads(call("run", "--config", "trained.yaml", "--json").stdout)
    assert "train" not in data["steps_run"] and not (place / "run" / "train").exists()
    rows = {network["name"]: network for network in data["networks"]}
    assert 100 * rows["full"]["test_top1"] == pytest.approx(original_top1(place), abs=1e-6)
    original = json.loads((place / "run" / "retrain" / "full" / "result.json").read_text())
    assert original["steps"] == 0, "the original is measured, not trained"
    found = json.loads((place / "run" / "retrain" / "found" / "result.json").read_text())
    assert (
        found["inherited"] and found["config"]["learning_rate"] == TrainConfig.load("finetune").learning_rate
    )
    widths = yaml.safe_load((place / "run" / "search" / "widths.yaml").read_text())
    assert "nothing trained" in widths["provenance"]["supernet"]["scored"]
    full = widths["compared_with"]["full"]["scores"]["accuracy"]
    assert full > 80, "the whole network's slice scores what the network does"
    again = json.loads(call("run", "--json").stdout)
    assert again["steps_run"] == []
    assert not json.loads(call("search", "--json").stdout)["ran"]


def test_fine_tuning_keeps_more_than_starting_over(place: Path) -> None:
    run = bd.Run(
        "run", model="tinynet:net", weights="net.safetensors", data="digits", input_size=SIZE, levels=8,
        device="cpu-1thread",
    )  # fmt: skip
    run.profile(estimate=True)
    run.search(macs="0.4x", evaluations=10, population_size=4)
    tuned = run.retrain(epochs=1, augment="none").trained.test_metric
    scratch = run.retrain(start="scratch", recipe="digits", epochs=1, augment="none", fresh=True)
    assert tuned is not None and scratch.test_top1 is not None
    assert tuned > scratch.test_top1 + 10


def test_networks_scored_after_a_short_training(place: Path) -> None:
    config = {
        "model": "tinynet:net", "weights": "net.safetensors", "input_size": "1x16x16", "levels": 8,
        "data": "digits", "device": "cpu-1thread", "macs": "0.4x", "profile": {"estimate": True},
        "search": {"scores": "tuned", "tune_steps": 3, "evaluations": 4},
        "retrain": {"epochs": 1, "augment": "none"}, "bench": {"rounds": 1, "runs": 2, "batches": [1]},
    }  # fmt: skip
    (place / "tuned.yaml").write_text(yaml.safe_dump(config))
    data = json.loads(call("run", "--config", "tuned.yaml", "--json").stdout)
    assert "train" not in data["steps_run"] and "search" in data["steps_run"]
    widths = yaml.safe_load((place / "run" / "search" / "widths.yaml").read_text())
    assert "each fine-tuned for 3 steps" in widths["provenance"]["supernet"]["scored"]
    assert widths["search"]["evaluations"] == 4
    assert widths["costs"]["macs"] <= 0.4 * widths["compared_with"]["full"]["costs"]["macs"]
    assert not json.loads(call("search", "--scores", "tuned", "--json").stdout)["ran"]
    other = json.loads(call("search", "--scores", "tuned", "--tune-steps", "4", "--json").stdout)
    assert other["ran"], "another length is another score"


def test_a_trained_module_from_python_is_enough(place: Path) -> None:
    model = build_model("tinynet:net", num_classes=10, weights=place / "net.safetensors")
    run = bd.Run(
        "run", model=model, weights=True, data="digits", input_size=SIZE, levels=8, device="cpu-1thread"
    )
    run.profile(estimate=True)
    assert run.search(macs="0.5x", evaluations=6, population_size=4).accuracy > 20
    supernet = run.train(epochs=0.3)
    assert supernet.ran and run.search(macs="0.5x", evaluations=6, population_size=4).ran
    refused = CliRunner().invoke(cli, ["search", "--macs", "0.3x", "--run-dir", "run"])
    assert refused.exit_code == 1 and "from Python" in refused.output


def test_weights_of_another_model_are_refused_before_any_work(place: Path) -> None:
    save_file({"other.weight": torch.zeros(3)}, str(place / "other.safetensors"))
    about = ["--model", "tinynet:net", "--input-size", "1x16x16", "--weights", "other.safetensors"]
    for step in (["inspect", "tinynet:net", "--input-size", "1x16x16", "--weights", "other.safetensors"],):
        result = CliRunner().invoke(cli, step)
        assert result.exit_code == 1 and "other.safetensors" in result.output
    result = CliRunner().invoke(cli, ["run", *about, "--data", "digits", "--run-dir", "run", "--estimate"])
    assert result.exit_code == 1 and "other.safetensors" in result.output
    assert not (place / "run" / "latency").exists()


def test_without_weights_pruned_scores_are_refused(place: Path) -> None:
    call("profile", "--model", "tinynet:net", "--input-size", "1x16x16", "--estimate", "--data", "digits")
    result = CliRunner().invoke(cli, ["search", "--macs", "0.5x", "--scores", "pruned", "--run-dir", "run"])
    assert result.exit_code == 1 and "--weights" in result.output


def test_weights_may_be_named_after_the_table_was_made(place: Path) -> None:
    call("profile", "--model", "tinynet:net", "--input-size", "1x16x16", "--estimate", "--data", "digits")
    call(
        "search", "--macs", "0.5x", "--weights", "net.safetensors", "--evaluations", "4", "--population", "4"
    )
    assert bd.RunDir("run").load().model.weights == str(place / "net.safetensors")
    assert not json.loads(call("profile", "--estimate", "--json").stdout)["tables"][0]["ran"]


def test_scores_on_other_images_are_not_taken_for_scores_on_these(place: Path) -> None:
    """Here the labels were wrong at first. A run with a search keeps its data: the run file is changed."""
    (place / "tinydata.py").write_text(
        "import numpy as np\nfrom sklearn.datasets import load_digits\n"
        "def right(wrong=0):\n"
        "    digits = load_digits()\n"
        "    images = np.kron(digits.images / 16, np.ones((2, 2))).astype(np.float32)[:, None]\n"
        "    return {'train': (images, (digits.target + wrong) % 10)}\n"
        "def wrong():\n    return right(1)\n"
    )
    about = ["--model", "tinynet:net", "--input-size", "1x16x16", "--weights", "net.safetensors"]
    search = ["search", "--macs", "0.8x", "--evaluations", "4", "--population", "4", "--json"]
    call("profile", *about, "--estimate", "--data", "tinydata:wrong")
    before = json.loads(call(*search).stdout)
    another = ["profile", "--estimate", "--data", "tinydata:right", "--run-dir", "run"]
    refused = CliRunner().invoke(cli, another)
    assert refused.exit_code == 1 and "of data 'tinydata:wrong', not 'tinydata:right'" in refused.output
    bd.RunDir("run").keep(data="tinydata:right")
    after = json.loads(call(*search).stdout)
    anew = json.loads(call(*search, "--fresh").stdout)
    assert after["ran"] and after["posterior"] == anew["posterior"] != before["posterior"]


def test_narrowed_in_steps(place: Path) -> None:
    run = bd.Run(
        "run", model="tinynet:net", weights="net.safetensors", data="digits", input_size=SIZE, levels=8,
        device="cpu-1thread",
    )  # fmt: skip
    widths = place / "widths.yaml"
    space = run.directory.space()
    widths.write_text(yaml.safe_dump({v.name: max(v.step, v.channels // 4) for v in space.variables}))
    result = run.retrain(widths=str(widths), steps=2, epochs=1, augment="none")
    first = json.loads((result.folder / "step-1" / "result.json").read_text())
    assert first["macs"] > result.trained.macs and first["steps"] == result.trained.steps
    assert not run.retrain(widths=str(widths), steps=2, epochs=1, augment="none").ran
    with pytest.raises(bd.ConfigError, match="steps is 2, but training starts from scratch"):
        run.retrain(widths=str(widths), steps=2, start="scratch")


def test_published_weights_get_images_as_they_were_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against torchvision's own transform of the pictures, each of one colour."""
    monkeypatch.chdir(tmp_path)
    colours = {"a": (10, 100, 200), "b": (250, 30, 60)}
    for split, count in (("train", 3), ("test", 1)):
        for label, colour in colours.items():
            folder = tmp_path / "photos" / split / label
            folder.mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (40 + index, 36), colour).save(folder / f"{index}.png")
    about: dict[str, Any] = {"model": "resnet18", "data": "photos", "input_size": (3, 32, 32)}
    run = bd.Run("published", weights="pretrained", **about)
    splits = run.directory.data(checked=False)
    batches = PlainBatches(splits.train, splits, 8, torch.device("cpu"))
    transform = ResNet18_Weights.DEFAULT.transforms()
    for images, labels in batches:
        for image, label in zip(images, labels, strict=True):
            expected = transform(Image.new("RGB", (300, 300), colours[splits.classes[int(label)]]))
            torch.testing.assert_close(image[:, 0, 0], expected[:, 0, 0], rtol=0, atol=1e-5)
    assert "normalised as for the published weights: mean 0.485, 0.456, 0.406" in splits.notes[-1]
    own = bd.Run("own", **about).directory.data(checked=False)
    assert own.mean != splits.mean and not any("published" in note for note in own.notes)
