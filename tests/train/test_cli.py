"""The train and retrain commands, on the embedded digits and a tiny network."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner, Result

from bcnet_deploy.cli.main import cli
from bcnet_deploy.run.directory import RunDir
from bcnet_deploy.space import WidthSpace

MODEL = "tests.train.cli_model:net"
QUICK = ["--set", "epochs=1", "--set", "augment=none", "--quiet"]


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def train(run: Path, *more: str) -> Result:
    shape = ["--model", MODEL, "--num-classes", "10", "--input-size", "1x8x8", "--levels", "4"]
    return call("train", "--run-dir", str(run), "--data", "digits", *shape, *QUICK, *more)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("cli") / "run"
    result = train(run, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["steps"] == 14
    return run


def test_training_leaves_what_the_next_steps_read(trained: Path) -> None:
    names = {path.name for path in (trained / "train").iterdir()}
    assert {"supernet.safetensors", "supernet.json", "records.jsonl", "curves.jsonl"} <= names
    kept = WidthSpace.from_dict(json.loads((trained / "search" / "space.json").read_text())["space"])
    assert [v.channels for v in kept.variables] == [8, 12], "the search refuses budgets by it"
    assert yaml.safe_load((trained / "run.yaml").read_text())["model"]["levels"] == 4
    again = call("train", "--run-dir", str(trained), *QUICK)
    assert again.exit_code == 0 and "Done already (--fresh trains anew): 14 steps" in again.output


@pytest.mark.parametrize("device", ["t4", "cpu-1thread"])
def test_the_budget_that_is_suggested_can_be_kept(device: str, tmp_path: Path) -> None:
    """Of a network that launches bound, on a t4, half of the time is out of reach."""
    run, shape = tmp_path / "run", ["--model", MODEL, "--input-size", "1x8x8", "--levels", "4"]
    table = call("profile", "--run-dir", str(run), "--estimate", "--device", device, *shape, "--json")
    assert table.exit_code == 0, table.output
    done = call("train", "--run-dir", str(run), "--data", "digits", "--set", "epochs=1")
    budget = re.search(r"Next: bcnet-deploy search (--\w+ \S+)", done.stdout)
    assert budget is not None, done.output
    kept = call("search", "--run-dir", str(run), *budget.group(1).split(), "--dry-run", "--json")
    assert kept.exit_code == 0, kept.output


def test_retraining_takes_the_searchs_widths(trained: Path) -> None:
    missing = call("retrain", "--run-dir", str(trained), *QUICK)
    assert missing.exit_code == 1 and "run 'bcnet-deploy search' first" in missing.output
    (trained / "search").mkdir(exist_ok=True)  # training keeps the space there
    (trained / "search" / "widths.yaml").write_text(yaml.safe_dump({"widths": {"0": 4, "3": 6}}))
    found = call("retrain", "--run-dir", str(trained), *QUICK, "--json", "--inherit", "--distill")
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["widths"] == [4, 6] and json.loads(found.stdout)["test_images"] == 450
    text = yaml.safe_dump({"widths": [4, 6], "compared_with": {"uniform": {"widths": {"0": 2, "3": 3}}}})
    (trained / "search" / "widths.yaml").write_text(text)
    uniform = call("retrain", "--run-dir", str(trained), "--network", "uniform", *QUICK, "--json")
    assert json.loads(uniform.stdout)["widths"] == [2, 3]
    text = text.replace("'0': 2", "'0': 4")
    (trained / "search" / "widths.yaml").write_text(text)
    other = call("retrain", "--run-dir", str(trained), "--network", "uniform", *QUICK)
    assert other.exit_code == 1 and "start anew with --fresh" in other.output
    uniform = call("retrain", "--run-dir", str(trained), "--network", "uniform", *QUICK, "--json", "--fresh")
    assert json.loads(uniform.stdout)["widths"] == [4, 3]
    assert json.loads(uniform.stdout)["macs"] <= json.loads(found.stdout)["macs"]
    (trained / "search" / "widths.yaml").write_text(yaml.safe_dump({"widths": {"0": 4, "3": 6}}))
    absent = call("retrain", "--run-dir", str(trained), "--network", "uniform", *QUICK)
    assert absent.exit_code == 1 and "names no uniform network" in absent.output
    assert "'bcnet-deploy retrain --network uniform --widths FILE'" in absent.output
    assert (trained / "retrain" / "found" / "subnet.yaml").exists()
    full = call("retrain", "--run-dir", str(trained), "--network", "full", *QUICK)
    assert full.exit_code == 0 and "test top-1" in full.output


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["--levels", "7"], "holds a run of levels 4, not 7; leave it out", 1),
        (["--data", "digit"], "holds a run of data 'digits', not 'digit'", 1),
        (["--set", "epochs"], "allowed: KEY=VALUE", 2),
        (["--set", "epoch=3"], "unknown key 'epoch'; did you mean 'epochs'", 2),
        (["--config", "nothing"], "no recipe 'nothing'", 2),
        (["--compute", "cuda:77", "--fresh"], "usable CUDA GPU", 1),
        (["--set", "learning_rate=0.5"], "was trained with other settings (learning_rate: 0.1 -> 0.5)", 1),
    ],
)
def test_wrong_options_are_one_line(trained: Path, arguments: list[str], message: str, code: int) -> None:
    """2 where the option alone is wrong, 1 where it contradicts the run or this machine."""
    result = call("train", "--run-dir", str(trained), *QUICK, *arguments)
    assert result.exit_code == code and message in result.output
    assert result.output.startswith("bcnet-deploy: error:") and len(result.output.strip().splitlines()) == 1


def test_refused_settings_leave_the_run_as_it_was(trained: Path) -> None:
    call("train", "--run-dir", str(trained), *QUICK)
    kept = {path: path.read_bytes() for path in (trained / "run.yaml", trained / "steps" / "train.json")}
    refused = call("train", "--run-dir", str(trained), *QUICK, "--set", "learning_rate=0.5")
    assert refused.exit_code == 1 and "start anew with --fresh" in refused.output
    assert {path: path.read_bytes() for path in kept} == kept
    again = call("train", "--run-dir", str(trained), "--quiet", "--json")
    assert again.exit_code == 0 and json.loads(again.stdout)["ran"] is False


def test_widths_that_do_not_fit_are_refused(trained: Path, tmp_path: Path) -> None:
    for text, message in (
        ("{widths: {a: 1}}", "does not name the 2 width variables"),
        ("[4, 99]", "width 99 of variable 1"),
        ("5", "holds int; allowed"),
    ):
        (tmp_path / "w.yaml").write_text(text)
        result = call("retrain", "--run-dir", str(trained), "--widths", str(tmp_path / "w.yaml"), *QUICK)
        assert result.exit_code == 1 and message in result.output


@pytest.mark.parametrize(
    ("source", "classes"),
    [
        ("def net(num_classes=7): return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))", 7),
        ("def net(num_classes): return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))", 1000),
        ("def net(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 6))", 6),
    ],
)
def test_the_classes_of_ones_own_function_are_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, classes: int
) -> None:
    from bcnet_deploy.models import build_model, default_num_classes

    module = f"own{classes}"
    (tmp_path / f"{module}.py").write_text(f"from torch import nn\n{source}\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert default_num_classes(f"{module}:net") == classes
    out = build_model(f"{module}:net", num_classes=classes)(torch.zeros(1, 1, 8, 8))
    assert out.shape == (1, classes)


def test_profile_takes_the_functions_classes_and_train_refuses_other_data(tmp_path: Path) -> None:
    place = ["--run-dir", str(tmp_path)]
    shape = ["--model", "tests.train.cli_model:seven", "--input-size", "1x8x8", "--levels", "4"]
    made = call("profile", "--device", "cpu-1thread", "--estimate", *shape, *place)
    assert made.exit_code == 0 and "7 classes, as tests.train.cli_model:seven builds" in made.stderr
    assert yaml.safe_load((tmp_path / "run.yaml").read_text())["model"]["num_classes"] == 7
    result = call("train", "--data", "digits", *place, *QUICK)
    assert result.exit_code == 1 and result.output.count("\n") == 1
    assert "digits has 10 classes" in result.output and "--num-classes 10" in result.output


def test_training_begins_with_as_many_classes_as_the_data_has(tmp_path: Path) -> None:
    shape = ["--model", "tests.train.cli_model:seven", "--input-size", "1x8x8", "--levels", "4"]
    result = call("train", "--run-dir", str(tmp_path), "--data", "digits", *shape, *QUICK)
    assert result.exit_code == 0, result.output
    assert yaml.safe_load((tmp_path / "run.yaml").read_text())["model"]["num_classes"] == 10


def test_widths_of_ones_own_are_remembered_until_the_searchs_are_trained(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    assert train(run.path).exit_code == 0
    (tmp_path / "w.yaml").write_text("[4, 6]\n")
    run.search.mkdir(exist_ok=True)
    run.widths_file.write_text(yaml.safe_dump({"widths": {"0": 2, "3": 3}}))
    own = call("retrain", "--run-dir", str(run.path), "--widths", str(tmp_path / "w.yaml"), *QUICK)
    assert own.exit_code == 0, own.output
    assert run.given_widths("found") == {"0": 4, "3": 6} and run.outdated("found") == ""
    # The same widths found later are the search's, and the user's own again where given as such.
    found = yaml.safe_dump({"widths": {"0": 2, "3": 3}})
    run.widths_file.write_text(yaml.safe_dump({"widths": {"0": 4, "3": 6}}))
    assert call("retrain", "--run-dir", str(run.path), *QUICK).exit_code == 0
    assert run.given_widths("found") is None
    own = call("retrain", "--run-dir", str(run.path), "--widths", str(tmp_path / "w.yaml"), *QUICK)
    assert own.exit_code == 0 and run.given_widths("found") == {"0": 4, "3": 6}
    run.widths_file.write_text(found)
    refused = call("retrain", "--run-dir", str(run.path), *QUICK)
    assert refused.exit_code == 1 and "--fresh" in refused.output, "former weights are not lost in silence"
    assert run.given_widths("found") == {"0": 4, "3": 6}
    assert call("retrain", "--run-dir", str(run.path), *QUICK, "--fresh").exit_code == 0
    assert run.given_widths("found") is None and run.outdated("found") == ""
    run.widths_file.write_text(yaml.safe_dump({"widths": {"0": 2, "3": 6}}))
    assert run.outdated("found") == "'3' 3 then, 6 now"


def test_a_wrong_option_does_not_stay_in_the_run(tmp_path: Path) -> None:
    wrong = ["--model", MODEL, "--num-classes", "4", "--input-size", "1x8x8", "--levels", "4"]
    result = call("train", "--run-dir", str(tmp_path), "--data", "digits", *wrong, *QUICK)
    assert result.exit_code == 1 and "build it with num_classes=10 (--num-classes 10)" in result.output
    assert not (tmp_path / "run.yaml").exists()
    assert train(tmp_path).exit_code == 0


def test_a_run_needs_a_model(tmp_path: Path) -> None:
    result = call("train", "--run-dir", str(tmp_path / "new"))
    assert result.exit_code == 1 and "start one with" in result.output
