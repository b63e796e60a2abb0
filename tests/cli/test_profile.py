"""profile, devices and table as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from bcnet_deploy.cli.main import cli
from bcnet_deploy.devices import known_devices
from bcnet_deploy.lut import LatencyTable
from bcnet_deploy.runtime.machine import gpu_name
from tests.lut.test_convert import OFA


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def estimated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("estimated") / "run"
    result = call("profile", "--device", "t4", "--model", "demo", "--estimate", "--run-dir", run_dir)
    assert result.exit_code == 0, result.output
    assert "ESTIMATED" in result.output
    assert "Nothing was measured" in result.output
    return run_dir


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("measured") / "run"
    arguments = ("--model", "demo", "--levels", "4", "--budget", "4s", "--run-dir", run_dir)
    result = call("profile", "--device", "cpu-1thread", *arguments)
    assert result.exit_code == 0, result.output
    assert "1 thread(s), onnxruntime" in result.output
    assert "accuracy" in result.output
    return run_dir


# -- profile ------------------------------------------------------------------------------------


def test_an_estimate_leaves_a_run(estimated: Path) -> None:
    run = yaml.safe_load((estimated / "run.yaml").read_text())
    assert run["device"] == "t4"
    assert run["model"]["name"] == "demo"
    assert LatencyTable.load(estimated / "latency" / "t4.json").estimated


def test_a_measured_table_says_how_accurate_it_is(measured: Path) -> None:
    table = LatencyTable.load(measured / "latency" / "cpu-1thread.json")
    assert table.source == "measured"
    assert table.complete
    assert table.provenance["threads"] == 1
    assert {"mape", "within_5", "within_10", "kendall", "noise_floor"} <= set(table.network.accuracy)


def test_the_same_command_again_measures_nothing(measured: Path) -> None:
    log = measured / "latency" / "cpu-1thread.samples.jsonl"
    before = log.read_bytes()
    result = call("profile", "--budget", "4s", "--run-dir", measured, "--json")
    assert result.exit_code == 0, result.output
    assert log.read_bytes() == before
    (table,) = json.loads(result.output)["tables"]
    assert table["source"] == "measured"
    assert table["device"] == "cpu-1thread"


def test_a_table_of_another_machine_is_rebased(measured: Path, tmp_path: Path) -> None:
    table = json.loads((measured / "latency" / "cpu-1thread.json").read_text())
    table["provenance"]["cpu_model"] = "Z80"
    old = tmp_path / "old.json"
    old.write_text(json.dumps(table))
    run_dir = tmp_path / "run"
    arguments = ("--model", "demo", "--levels", "4", "--device", "cpu-1thread", "--run-dir", run_dir)
    result = call("profile", *arguments, "--rebase", old, "--budget", "3s", "--json")
    assert result.exit_code == 0, result.output
    (made,) = json.loads(result.stdout)["tables"]
    assert made["provenance"]["rebased_from"]["cpu_model"] == "Z80"
    assert made["accuracy"]["networks"] >= 3
    refused = call("profile", "--run-dir", run_dir, "--rebase", old, "--estimate")
    assert refused.exit_code in (1, 2)
    assert "a rebased table is measured" in refused.output


def test_a_new_device_is_written_and_measured_without_a_data_sheet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "wrote my-board.yaml" in call("devices", "--new", "my-board").output
    assert call("devices", "my-board.yaml", "--json").exit_code == 0
    assert call("devices", "my-board.yaml").exit_code == 0
    again = call("devices", "--new", "my-board")
    assert again.exit_code == 1
    assert "there is a device 'my-board' already" in again.output
    assert call("devices", "--new", "t4").exit_code == 1
    assert call("devices", "--new", "../x").exit_code == 2
    result = call(
        "profile", "--device", "my-board.yaml", "--model", "demo", "--levels", "4", "--budget", "3s"
    )
    assert result.exit_code == 0, result.output
    refused = call("profile", "--device", "my-board", "--estimate")
    assert refused.exit_code == 1
    assert "'my-board' has no peak_tflops" in refused.output


@pytest.mark.skipif(gpu_name() is not None, reason="a GPU is here")
def test_a_device_that_is_not_here_offers_both_ways(tmp_path: Path) -> None:
    result = call("profile", "--device", "t4", "--model", "demo", "--run-dir", tmp_path / "run")
    assert result.exit_code == 1
    assert "no GPU" in result.output
    assert "'bcnet-deploy profile --device t4 --model demo' on its host" in result.output
    assert "'bcnet-deploy profile --device t4 --model demo --estimate'" in result.output
    assert result.output.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_no_device_at_all(tmp_path: Path) -> None:
    result = call("profile", "--devices", ",", "--model", "demo", "--run-dir", tmp_path / "run")
    assert result.exit_code == 2
    assert "give the name of a device" in result.output


def test_another_gpu_is_named_and_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bcnet_deploy.runtime.machine.gpu_name", lambda: "NVIDIA H200")
    result = call("profile", "--device", "t4", "--model", "demo", "--run-dir", tmp_path / "run")
    assert result.exit_code == 1
    assert "the GPU of this machine is NVIDIA H200" in result.output


def test_several_devices(tmp_path: Path) -> None:
    result = call(
        "profile",
        "--devices",
        "t4,l4",
        "--model",
        "demo",
        "--estimate",
        "--run-dir",
        tmp_path / "run",
        "--json",
    )
    assert result.exit_code == 0, result.output
    tables = json.loads(result.output)["tables"]
    assert [(table["device"], table["source"]) for table in tables] == [
        ("t4", "estimated"),
        ("l4", "estimated"),
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--device", "rtx4090"), 2, "did you mean 'rtx-4090'"),
        (("--device", "absent.yaml"), 2, "no device profile at absent.yaml"),
        (("--device", "cpu", "--devices", "cpu,t4"), 2, "either --device or --devices"),
        (("--budget", "soon"), 2, "cannot read 'soon'"),
        (("--budget", "-5s"), 2, "-5s"),
        (("--input-size", "big"), 2, "input size 'big'"),
        (("--device", "t4", "--estimate", "--model", "mobilenetv2"), 2, "did you mean 'mobilenet_v2'"),
    ],
)
def test_wrong_arguments(tmp_path: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    result = call("profile", *arguments, "--run-dir", tmp_path / "run")
    assert result.exit_code == code
    assert message in result.output
    assert "Traceback" not in result.output


def test_another_model_wants_another_run(estimated: Path) -> None:
    result = call(
        "profile", "--device", "t4", "--estimate", "--model", "mobilenet_v2", "--run-dir", estimated
    )
    assert result.exit_code == 1
    assert "holds a run of model 'demo', not 'mobilenet_v2'" in result.output
    assert "another --run-dir" in result.output


def test_another_device_becomes_the_runs_not_in_silence(tmp_path: Path) -> None:
    run = ("--run-dir", tmp_path / "run")
    call("profile", "--device", "l4", "--estimate", "--model", "demo", *run)
    result = call("profile", "--device", "t4", "--estimate", *run)
    assert result.exit_code == 0 and "the run's device is now t4, it was l4" in result.stderr
    again = call("profile", "--device", "t4", "--estimate", *run)
    assert "it was" not in again.stderr


def test_one_way_to_a_table_replaces_another(tmp_path: Path) -> None:
    """What the run has kept of an earlier call does not contradict what is asked for now."""
    run = ("--run-dir", tmp_path / "run")
    call("profile", "--device", "t4", "--estimate", "--model", "demo", *run)
    table = tmp_path / "t4.json"
    table.write_bytes((tmp_path / "run" / "latency" / "t4.json").read_bytes())
    for options in (("--table", table), ("--estimate",), ("--table", table)):
        result = call("profile", "--device", "t4", *options, *run)
        assert result.exit_code == 0, result.output
    both = call("profile", "--device", "t4", "--table", table, "--estimate", *run)
    assert both.exit_code == 2 and "give one of them" in both.stderr


def test_zero_threads_in_a_profile_of_ones_own(tmp_path: Path) -> None:
    data = yaml.safe_load(known_devices()["cpu"].read_text())
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**data, "threads": 0}))
    result = call("profile", "--device", path, "--model", "demo", "--run-dir", tmp_path / "run")
    assert result.exit_code == 1
    assert "threads is 0; allowed: from 1 up" in result.output


# -- devices ------------------------------------------------------------------------------------


def test_devices_are_listed() -> None:
    result = call("devices", "--json")
    assert {"cpu", "cpu-1thread", "t4", "jetson-orin"} <= {
        d["name"] for d in json.loads(result.output)["devices"]
    }
    assert "NVIDIA T4" in call("devices").output


def test_one_device_shows_its_sources() -> None:
    output = call("devices", "t4").output
    assert "datasheet" in output
    assert call("devices", "t5").exit_code == 2


# -- table --------------------------------------------------------------------------------------


def test_show(estimated: Path, measured: Path) -> None:
    path = estimated / "latency" / "t4.json"
    output = call("table", "show", path, "--layers").output
    assert "ESTIMATED" in output
    assert "(estimated)" in output
    assert ": demo at 1x16x16 on t4" in output, "by the name that was given, not the class's"
    data = json.loads(
        call("table", "show", measured / "latency" / "cpu-1thread.json", "--json", "--layers").output
    )
    table = LatencyTable.load(measured / "latency" / "cpu-1thread.json")
    full = [variable.channels for variable in table.network.variables]
    assert sum(data["layers_ms"].values()) == pytest.approx(float(table.predict(full)[0]), rel=1e-4)
    assert call("table", "show", estimated / "absent.json").exit_code == 2


def test_csv_there_and_back(measured: Path, tmp_path: Path) -> None:
    path = measured / "latency" / "cpu-1thread.json"
    assert call("table", "to-csv", path, "--out", tmp_path / "t.csv").exit_code == 0
    assert call("table", "from-csv", tmp_path / "t.csv", "--out", tmp_path / "t.json").exit_code == 0
    assert set(LatencyTable.load(tmp_path / "t.json").entries) == set(LatencyTable.load(path).entries)


def test_once_for_all(tmp_path: Path) -> None:
    (tmp_path / "ofa.yaml").write_text(OFA)
    result = call(
        "table", "from-ofa", tmp_path / "ofa.yaml", "--device", "note10", "--out", tmp_path / "t.json"
    )
    assert result.exit_code == 0, result.output
    assert "5 entries of note10" in result.output


def test_merge(measured: Path, estimated: Path, tmp_path: Path) -> None:
    path = measured / "latency" / "cpu-1thread.json"
    result = call("table", "merge", path, path, "--out", tmp_path / "both.json")
    assert result.exit_code == 0, result.output
    assert LatencyTable.load(tmp_path / "both.json").networks[0].model_name
    result = call("table", "merge", path, estimated / "latency" / "t4.json", "--out", tmp_path / "no.json")
    assert result.exit_code == 1
    assert "different device" in result.output


def test_more_threads_than_cores_is_a_warning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from bcnet_deploy.cli.common import warn_of_threads

    warn_of_threads(4096)
    assert "warning: 4096 threads on" in capsys.readouterr().err
    warn_of_threads(1)
    assert capsys.readouterr().err == ""


# -- what the network returns --------------------------------------------------------------------

RETURNS = """
import torch
from torch import nn
from bcnet_deploy.tasks import make_task


class Out(nn.Module):
    def __init__(self, n, kind):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head, self.kind = nn.Linear(8, n), kind

    def forward(self, x):
        y = self.head(self.body(x))
        return {"pair": (y, y), "named": {"logits": y}, "scalar": y[:, 0]}[self.kind]


def pair(num_classes=10):
    return Out(num_classes, "pair")


def named(num_classes=10):
    return Out(num_classes, "named")


def scalar(num_classes=10):
    return Out(num_classes, "scalar")


def both():
    cross = nn.functional.cross_entropy
    return make_task(
        lambda outputs, labels: sum(cross(one, labels) for one in outputs),
        lambda outputs, labels: 100 * float((outputs[0].argmax(1) == labels).float().mean()),
        metric_name="both",
    )


def data():
    images = torch.randint(0, 255, (32, 1, 16, 16), dtype=torch.uint8).numpy()
    return {"train": (images, torch.arange(32).numpy() % 10)}
"""


@pytest.fixture
def returning(tmp_path: Path) -> str:
    """The file of networks that return this and that."""
    (tmp_path / "returns.py").write_text(RETURNS)
    return str(tmp_path / "returns.py")


def table_of(model: str, run_dir: Path, *more: str) -> Result:
    return call(
        "profile", "--model", model, "--device", "t4", "--estimate", "--input-size", "1x16x16",
        "--run-dir", run_dir, *more,
    )  # fmt: skip


@pytest.mark.parametrize(("kind", "said"), [("pair", "tuple of (2, 10), (2, 10)"), ("scalar", "(2,)")])
def test_outputs_that_no_task_can_train_are_refused_before_measuring(
    returning: str, tmp_path: Path, kind: str, said: str
) -> None:
    result = table_of(f"{returning}:{kind}", tmp_path / "run")
    assert result.exit_code == 1
    assert said in result.output
    assert "--task module:function" in " ".join(result.output.split())
    assert not (tmp_path / "run" / "latency" / "t4.json").exists()


def test_a_table_alone_needs_no_task(returning: str, tmp_path: Path) -> None:
    result = table_of(f"{returning}:pair", tmp_path / "run", "--task", "none")
    assert result.exit_code == 0, result.output


def test_the_task_of_the_table_is_the_trainings(returning: str, tmp_path: Path) -> None:
    result = table_of(f"{returning}:pair", tmp_path / "run", "--task", f"{returning}:both")
    assert result.exit_code == 0, result.output
    result = call(
        "train", "--run-dir", tmp_path / "run", "--data", f"{returning}:data", "--set", "epochs=1",
        "--set", "batch_size=8", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["metric_name"] == "both"


def test_a_task_that_does_not_fit_is_refused_before_measuring(returning: str, tmp_path: Path) -> None:
    result = table_of(f"{returning}:named", tmp_path / "run", "--task", "segmentation")
    assert result.exit_code == 1
    assert "segmentation needs (N, classes, H, W)" in " ".join(result.output.split())
    # What was refused is not kept.
    assert table_of(f"{returning}:named", tmp_path / "run").exit_code == 0
