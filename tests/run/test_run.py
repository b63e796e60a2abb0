"""The whole path on a tiny network: results fit together, nothing is done twice, kills change nothing."""

from __future__ import annotations

import functools
import html
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from rich.console import Console

from bcnet_deploy.bench.result import BenchResult
from bcnet_deploy.cli.main import cli
from bcnet_deploy.errors import CheckpointError, RunDirError
from bcnet_deploy.report.load import gather
from bcnet_deploy.run.directory import RunDir
from bcnet_deploy.run.display import StepsDisplay, one_step
from bcnet_deploy.run.engine import Done
from bcnet_deploy.train import SupernetResult, load_result
from tests.export.test_job import needs_rtx
from tests.run.tinynet import MODEL

CONFIG = {
    "model": "tinynet:net", "num_classes": 10, "input_size": [1, 16, 16], "levels": 4, "data": "digits",
    "device": "cpu-1thread", "estimate": True, "latency": "0.8x", "confidence": 0.5,
    "train": {"recipe": "digits", "epochs": 1, "augment": "none", "checkpoint_every": 3},
    "retrain": {"recipe": "digits", "epochs": 1, "augment": "none", "checkpoint_every": 3},
    "search": {"evaluations": 8, "population_size": 4}, "bench": {"rounds": 2, "runs": 3, "batches": [1]},
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flow")
    (folder / "tinynet.py").write_text(MODEL)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    return folder


def command(place: Path, run: str, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "bcnet_deploy", "run", "--config", str(place / "tiny.yaml"),
        "--run-dir", str(place / run), *more,
    ]  # fmt: skip


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}


def call(place: Path, run: str, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(place, run, *more), cwd=place, env=environment(), capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def done(place: Path) -> dict[str, Any]:
    """The undisturbed run's JSON."""
    finished = call(place, "whole", "--json")
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == "", "--json leaves standard error empty"
    return dict(json.loads(finished.stdout))


def outcome(run: Path) -> dict[str, Any]:
    widths = yaml.safe_load((run / "search" / "widths.yaml").read_text())["widths"]
    found: dict[str, Any] = {"widths": widths}
    for name in ("full", "uniform", "found"):
        result = json.loads((run / "retrain" / name / "result.json").read_text())
        found[name] = (result["widths"], result["test_top1"])
        found[f"{name} weights"] = (run / "retrain" / name / "weights.safetensors").read_bytes()
    return found


def test_every_step_leaves_its_result(place: Path, done: dict[str, Any]) -> None:
    run = place / "whole"
    assert [network["name"] for network in done["networks"]] == ["full", "uniform", "found"]
    assert done["steps_run"] == [
        "profile", "train", "search", "retrain-full", "retrain-uniform", "retrain-found", "export-full",
        "export-uniform", "export-found", "bench",
    ]  # fmt: skip
    assert all((run / "export" / f"{name}.onnx").exists() for name in ("full", "uniform", "found"))
    assert (run / "search" / "space.json").exists(), "'bcnet-deploy search' refuses budgets by it at once"
    log = json.loads((run / "search" / "search.json").read_text())["generations"]
    assert all("proposed_feasible" in generation for generation in log)
    assert done["estimated"] is True and "estimated" in (run / "report.html").read_text()
    page = (run / "report.html").read_text()
    assert "subtract mean and divide by std, by channel; mean 0." in page
    for label in ("model", "data", "report made with", "OS", "images"):
        assert f"<dt>{label}</dt>" in page, label


def test_the_summary_agrees_with_each_steps_own_file(place: Path, done: dict[str, Any]) -> None:
    run = place / "whole"
    bench = json.loads((run / "bench" / "bench.json").read_text())
    search = json.loads((run / "search" / "search.json").read_text())
    for network in done["networks"]:
        result = json.loads((run / "retrain" / network["name"] / "result.json").read_text())
        assert network["test_top1"] == pytest.approx(result["test_top1"] / 100)
        assert (network["macs"], network["params"]) == (result["macs"], result["params"])
        runtime = bench["networks"][network["name"]]["runtimes"]["onnxruntime-cpu"]
        assert network["measured_ms"] == runtime["latency"]["low_ms"]
        assert network["predicted_ms"] == pytest.approx(
            bench["networks"][network["name"]]["prediction"]["milliseconds"]
        )
        assert network["test_top1"] * result["test_images"] == pytest.approx(
            round(network["test_top1"] * result["test_images"])
        ), "an accuracy is a whole number of images"
    assert done["budget_ms"] == search["budgets"][0]["limit"]
    full, _, found = done["networks"]
    assert done["budget_ms"] == pytest.approx(0.8 * full["predicted_ms"])
    assert found["predicted_ms"] <= done["budget_ms"] < full["predicted_ms"]


def test_the_reports_marks_are_the_numbers_in_the_files(place: Path, done: dict[str, Any]) -> None:
    run = place / "whole"
    page = (run / "report.html").read_text()

    def values(figure: str) -> list[list[float | None]]:
        body = page.split(f'<figure id="{figure}">')[1].split("</figure>")[0].split('<svg class="narrow"')[0]
        return [json.loads(html.unescape(text)) for text in re.findall(r'data-values="([^"]*)"', body)]

    explained = yaml.safe_load((run / "search" / "widths.yaml").read_text())
    others = explained["compared_with"]
    assert values("plot-widths") == [
        [others["full"]["widths"][name], width, others["uniform"]["widths"][name]]
        for name, width in explained["widths"].items()
    ]
    measured = {(pair[0], pair[1]) for pair in values("plot-pairs")}
    assert measured == {(n["measured_ms"], n["predicted_ms"]) for n in done["networks"]}
    search = json.loads((run / "search" / "search.json").read_text())
    chosen = values("plot-front")[-1]
    believed = search["posterior"]["mean"]  # the scores are noisy: shown is what all of them say
    assert chosen[0] == search["costs"]["latency_ms"] and chosen[1] == pytest.approx(believed)
    curve = [json.loads(line) for line in (run / "train" / "curves.jsonl").read_text().splitlines()]
    losses = [pair[1] for pair in values("plot-curve-training-loss")]
    trained = [row["loss"] for row in curve if "loss" in row]
    assert losses[: len(trained)] == trained
    layers = sum(pair[0] or 0 for pair in values("plot-layers"))
    assert layers == pytest.approx(sum(n["predicted_ms"] for n in done["networks"]))


def test_uniform_keeps_the_budget_and_is_the_widest_that_does(place: Path, done: dict[str, Any]) -> None:
    from bcnet_deploy.lut import LatencyTable

    table = LatencyTable.load(place / "whole" / "latency" / "cpu-1thread.json")
    explained = yaml.safe_load((place / "whole" / "search" / "widths.yaml").read_text())
    uniform = explained["compared_with"]["uniform"]["widths"]
    shares = {uniform["0"] / 32, uniform["3"] / 64}
    assert len(shares) == 1, "one ratio for every layer"
    assert table.predict([uniform["0"], uniform["3"]])[0] <= done["budget_ms"]


def test_again_does_nothing(place: Path, done: dict[str, Any]) -> None:
    before = outcome(place / "whole")
    again = call(place, "whole")
    assert [line.split(": ")[-1] for line in again.stderr.splitlines()] == ["done already"] * 10
    assert "\x1b" not in again.stdout + again.stderr, "no progress noise without a terminal"
    assert "estimated" in again.stdout and "report:" in again.stdout
    assert outcome(place / "whole") == before


def test_another_budget_keeps_table_supernet_and_full_network(place: Path, done: dict[str, Any]) -> None:
    shutil.copytree(place / "whole", place / "tighter")
    ran = json.loads(call(place, "tighter", "--json", "--latency", "0.5x").stdout)["steps_run"]
    assert ran[0] == "search" and "retrain-full" not in ran and "retrain-found" in ran


def test_another_budget_is_measured_anew_in_every_precision(place: Path, done: dict[str, Any]) -> None:
    """The benchmark's networks are the search's: after another budget, and after an export was deleted."""
    shutil.copytree(place / "whole", place / "half")
    (place / "half.yaml").write_text(yaml.safe_dump({**CONFIG, "precision": "fp16"}))

    def again(*more: str) -> list[str]:
        finished = call(place, "half", "--config", str(place / "half.yaml"), "--json", *more)
        assert finished.returncode == 0, finished.stderr
        bench = json.loads((place / "half" / "bench" / "bench.json").read_text())["networks"]
        found = yaml.safe_load((place / "half" / "search" / "widths.yaml").read_text())["widths"]
        assert bench["found"]["widths"] == found and bench["found"]["precision"] == "fp16"
        return list(json.loads(finished.stdout)["steps_run"])

    assert again() == ["export-full", "export-uniform", "export-found", "bench"]
    assert "bench" in again("--latency", "0.7x")
    (place / "half" / "export" / "found-fp16.onnx").unlink()
    assert again("--latency", "0.7x")[0] == "export-found"


def test_an_engines_files_are_outputs_of_its_export(tmp_path: Path) -> None:
    from bcnet_deploy.run.export import exported_files
    from bcnet_deploy.run.settings import ExportSettings

    run = RunDir(tmp_path)
    names = [
        path.name
        for path in exported_files(
            run, ExportSettings(network="full", engine="ort", dynamic_batch=True, device="t4")
        )
    ]
    assert names == ["full-dynamic.ort", "full-dynamic.ort.json", "full-dynamic.onnx"]


@needs_rtx
def test_a_deleted_engine_is_built_again(tmp_path: Path) -> None:
    from bcnet_deploy.run.export import exported_files
    from bcnet_deploy.run.settings import ExportSettings

    settings = ExportSettings(engine="trt", device="t4")
    names = [path.name for path in exported_files(RunDir(tmp_path), settings)]
    assert names == ["found-t4-fp16.engine", "found-t4-fp16.engine.json", "found-t4-fp16.onnx"]


def test_a_cpus_time_does_not_pass_for_a_gpus(place: Path, done: dict[str, Any]) -> None:
    """A run for a device that is not here: this machine's time is named as such, and judges no budget."""
    shutil.copytree(place / "whole", place / "gpu")
    finished = call(place, "gpu", "--device", "t4", "--latency", "0.99x", "--json")
    assert finished.returncode == 0, finished.stderr
    data = json.loads(finished.stdout)
    assert "onnxruntime-cpu" in data["measured_departs"] and "t4" in data["measured_departs"]
    assert data["measured_share"] is None and data["measured_on"].startswith("onnxruntime-cpu, 1 thread")
    shown = call(place, "gpu", "--device", "t4", "--latency", "0.99x").stdout
    assert "no verdict on the budget" in shown and "(budget 0.99x)" not in shown
    assert "measured on" in shown and "here" in shown
    content = gather(RunDir(place / "gpu"))
    assert content.pairs == []
    page = (place / "gpu" / "report.html").read_text()
    assert "Measured here on onnxruntime-cpu" in page and "<th>measured here</th>" in page
    assert "faster than the full network, predicted" in page


def test_a_device_profile_of_ones_own_may_move_after_the_run(place: Path, done: dict[str, Any]) -> None:
    shutil.copytree(place / "whole", place / "board")
    text = (Path(os.getcwd()) / "profiles" / "cpu-1thread.yaml").read_text()
    file = place / "board.yaml"
    file.write_text(text.replace("name: cpu-1thread", "name: my-board"))
    finished = call(place, "board", "--device", str(file), "--json")
    assert finished.returncode == 0, finished.stderr
    assert "bench" in json.loads(finished.stdout)["steps_run"]
    file.unlink()
    again = call(place, "board", "--device", "my-board")
    assert again.returncode == 0, again.stderr
    assert [line.split(": ")[-1] for line in again.stderr.splitlines()] == ["done already"] * 10
    target = ["--run-dir", str(place / "board")]
    alone = ["bench", "--rounds", "1", "--runs", "2", "--batches", "", "--no-layers", "-q", *target]
    for arguments in (alone, ["profile", "--estimate", *target], ["profile", "--device", "t4x", *target]):
        finished = subprocess.run(
            [sys.executable, "-m", "bcnet_deploy", *arguments], cwd=place, env=environment(),
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert finished.returncode == (2 if "t4x" in arguments else 0), finished.stderr
        if "-q" in arguments:
            assert "my-board" in finished.stdout and "found" in finished.stdout, "quiet prints the result"


def test_another_model_is_refused_unless_forced(place: Path, done: dict[str, Any]) -> None:
    refused = call(place, "whole", "--seed", "5")
    assert refused.returncode == 1 and refused.stdout == ""
    assert (
        refused.stderr.count("\n") == 1 and "--force" in refused.stderr and "seed 0, not 5" in refused.stderr
    )
    assert (place / "whole" / "retrain" / "found" / "result.json").exists()


@pytest.mark.parametrize("seconds", [6.0])
def test_kill_then_the_same_command_gives_the_same_result(
    place: Path, done: dict[str, Any], seconds: float
) -> None:
    run = f"killed-{seconds}"
    for after in (seconds, seconds + 1.5):
        process = subprocess.Popen(
            command(place, run),
            cwd=place,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            process.wait(timeout=after)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
    finished = call(place, run)
    assert finished.returncode == 0, finished.stderr
    assert outcome(place / run) == outcome(place / "whole")


def test_ctrl_c_says_how_to_go_on_and_leaves_a_resumable_state(place: Path, done: dict[str, Any]) -> None:
    process = subprocess.Popen(
        command(place, "stopped"), cwd=place, env=environment(), stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
        # Shells start background jobs, such as a suite under nohup, with the signal ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stderr is not None
    first = process.stderr.readline()  # the first step is done: the program is well under way
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=120)
    assert process.returncode == 130, first + rest
    assert "interrupted; run the same command again" in rest and "Traceback" not in rest
    assert call(place, "stopped").returncode == 0
    assert outcome(place / "stopped") == outcome(place / "whole")


def test_the_report_of_a_part_of_a_run(place: Path, done: dict[str, Any], tmp_path: Path) -> None:
    for removed in ("bench", "retrain", "search", "train"):
        target = tmp_path / removed
        shutil.copytree(place / "whole", target)
        shutil.rmtree(target / removed)
        result = CliRunner().invoke(cli, ["report", "--run-dir", str(target)])
        assert result.exit_code == 0, result.output
    content = gather(RunDir(tmp_path / "search"))
    assert content.front is None and content.widths == []


def test_a_new_search_takes_the_former_networks_figures_out(
    place: Path, done: dict[str, Any], tmp_path: Path
) -> None:
    """``search`` alone after a whole run: the report shows nothing measured or trained at the old widths."""
    target = tmp_path / "searched"
    shutil.copytree(place / "whole", target)
    explained = yaml.safe_load((target / "search" / "widths.yaml").read_text())
    explained["widths"] = {name: width - 1 for name, width in explained["widths"].items()}
    (target / "search" / "widths.yaml").write_text(yaml.safe_dump(explained))
    content = gather(RunDir(target))
    found, full = content.network("found"), content.network("full")
    assert found is not None and full is not None
    assert found.test_metric is None and found.measured_ms is None and found.predicted_ms is not None
    assert full.test_metric is not None and full.measured_ms is not None
    assert [curve.run for curve in content.curves].count("found") == 0
    result = CliRunner().invoke(cli, ["report", "--run-dir", str(target)])
    assert result.exit_code == 0 and "retrain --network found" in result.stderr
    foreign = tmp_path / "page.html"
    foreign.write_text("my own page")
    out = ["report", "--run-dir", str(target), "--out", str(foreign)]
    refused = CliRunner().invoke(cli, out)
    assert refused.exit_code == 1 and "--force" in refused.stderr and foreign.read_text() == "my own page"
    for more in (["--force"], []):  # once it is a report, the next one may replace it
        assert CliRunner().invoke(cli, [*out, *more]).exit_code == 0
    page = (target / "report.html").read_text()
    assert "its training is left out" in page and "its measurement is left out" in page


def test_a_damaged_file_is_named(place: Path, done: dict[str, Any], tmp_path: Path) -> None:
    target = tmp_path / "damaged"
    shutil.copytree(place / "whole", target)
    (target / "bench" / "bench.json").write_text('{"networks": 3}')
    result = CliRunner().invoke(cli, ["report", "--run-dir", str(target)])
    assert result.exit_code == 1 and "is damaged, or of another version" in result.output
    (target / "bench" / "bench.json").write_text('{"networks"')
    result = CliRunner().invoke(cli, ["report", "--run-dir", str(target)])
    assert result.exit_code == 1 and "bench.json" in result.output


@pytest.mark.parametrize(
    ("file", "within", "read", "error"),
    [
        ("retrain/found/result.json", [], lambda path: load_result(path.parent), CheckpointError),
        ("train/supernet.json", ["result"], SupernetResult.load, CheckpointError),
        (
            "bench/bench.json",
            ["networks", "found", "runtimes", "onnxruntime-cpu"],
            BenchResult.load,
            RunDirError,
        ),
    ],
)
def test_a_result_with_any_value_of_another_kind_is_refused_by_name(
    place: Path, done: dict[str, Any], tmp_path: Path, file: str, within: list[str], read: Any, error: Any
) -> None:
    whole = place / "whole" / file
    read(whole)
    path = tmp_path / whole.name
    for key in functools.reduce(dict.__getitem__, within, json.loads(whole.read_text())):
        if key in ("val_top1", "test_top1", "digest", "config"):
            continue  # beside the result, or a second name
        data = json.loads(whole.read_text())
        functools.reduce(dict.__getitem__, within, data)[key] = {"a": [1e300]}
        path.write_text(json.dumps(data))
        with pytest.raises(error, match=re.escape(str(path))) as caught:
            read(path)
        assert "\n" not in str(caught.value), key


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "demmo"], ["demmo", "did you mean 'demo'"]),
        (["--model", "mobilnet_v2"], ["mobilnet_v2", "mobilenet_v2"]),
        (["--device", "t5"], ["t5", "t4"]),
        (["--latency", "fast"], ["fast", "'5ms'"]),
        (["--data", "nowhere"], ["nowhere"]),
    ],
)
def test_mistakes_are_one_line_and_cost_no_work(
    arguments: list[str], words: list[str], tmp_path: Path
) -> None:
    result = CliRunner().invoke(cli, ["run", "--run-dir", str(tmp_path / "run"), *arguments])
    assert result.exit_code == 2, result.output
    assert all(word in result.output for word in words), result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not (tmp_path / "run" / "latency").exists()


def test_a_run_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("format: 99\nmodel: {name: demo}\n")
    result = CliRunner().invoke(cli, ["run", "--run-dir", str(tmp_path)])
    assert result.exit_code == 1 and "format 99" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--engine", "trt"], ["is no GPU", "--device"]),
        (["--table", "nowhere.json"], ["nowhere.json", "leave --table out"]),
        (["--num-classes", "5"], ["10 classes", "tells 5 apart", "--num-classes 10"]),
        (["--num-classes", "20"], ["10 classes", "tells 20 apart", "--num-classes 10"]),
    ],
)
def test_mistakes_in_late_steps_cost_no_work(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["run", "--run-dir", str(tmp_path / "run"), *arguments])
    assert result.exit_code == (2 if "nowhere.json" in arguments else 1), result.output
    assert all(word in result.output for word in words), result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is a GPU here")
def test_a_gpu_that_is_not_here_names_the_options_of_run(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["run", "--run-dir", str(tmp_path / "run"), "--device", "t4"])
    assert result.exit_code == 1 and len(result.stderr.strip().splitlines()) == 1, result.stderr
    for words in ("bcnet-deploy run --device t4 --table FILE", "bcnet-deploy run --device t4 --estimate"):
        assert words in result.stderr, result.stderr


def test_a_value_that_is_none_of_those_allowed_is_wrong_usage(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["run", "--run-dir", str(tmp_path / "run"), "--engine", "tvm"])
    assert result.exit_code == 2 and len(result.stderr.strip().splitlines()) == 1
    assert "unknown engine 'tvm'" in result.stderr and "onnx, ort, trt" in result.stderr
    assert not (tmp_path / "run").exists()


def test_an_image_folder_without_train_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    result = CliRunner().invoke(
        cli, ["run", "--run-dir", str(tmp_path / "run"), "--data", str(tmp_path / "photos")]
    )
    assert result.exit_code == 1 and "no folder 'train'" in result.output
    assert not (tmp_path / "run").exists()


def test_a_loss_of_int8_that_nobody_can_measure_is_refused_at_once(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("model: demo\ntrain: {task: segmentation}\nexport: {precision: int8, max_loss: 0.01}\n")
    result = CliRunner().invoke(
        cli, ["run", "--run-dir", str(tmp_path / "run"), "--config", str(config), "--data", "digits"]
    )
    assert result.exit_code == 1 and "of classifiers alone" in result.output
    assert not (tmp_path / "run").exists()


def test_the_number_of_classes_is_the_datas(tmp_path: Path) -> None:
    from bcnet_deploy.run.preflight import describe_run

    for name in ("ann", "bob", "cat"):
        (tmp_path / "train" / name).mkdir(parents=True)
    run = RunDir(tmp_path / "run")
    assert describe_run(run, model="mobilenet_v2", data=str(tmp_path)).model.num_classes == 3
    assert describe_run(run, model="mobilenet_v2", num_classes=7, data="digits").model.num_classes == 7


def test_an_infeasible_budget_is_refused_before_training(place: Path, tmp_path: Path) -> None:
    refused = call(place, str(tmp_path / "run"), "--latency", "0.001x")
    assert refused.returncode == 1
    assert not (tmp_path / "run" / "train").exists()
    assert "Traceback" not in refused.stderr and "cannot be met" in refused.stderr


def test_the_precision_of_an_engine_is_the_devices() -> None:
    from bcnet_deploy.devices import load_device
    from bcnet_deploy.run.export import target_of
    from bcnet_deploy.run.settings import ExportSettings

    assert target_of(ExportSettings(engine="trt"), load_device("t4")).precision == "fp16"
    assert target_of(ExportSettings(), load_device("t4")).precision == "fp32"
    assert target_of(ExportSettings(precision="fp16"), load_device("cpu")).precision == "fp16"


def test_an_estimate_is_not_called_noisy(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from bcnet_deploy.devices import load_device
    from bcnet_deploy.lut.estimate import estimate_table
    from bcnet_deploy.models import ModelRef, build
    from bcnet_deploy.run.directory import RunConfig
    from bcnet_deploy.run.search import prepare
    from bcnet_deploy.run.settings import SearchSettings

    run = RunDir(tmp_path)
    ref = ModelRef("demo", num_classes=10, input_size=(1, 16, 16), levels=16)
    run.save(RunConfig(ref, device="t4"))
    _, space = build(ref)
    table = estimate_table(space, load_device("t4"))
    table.save(run.latency_table("t4"))
    full, narrowest = (float(table.predict(w)[0]) for w in (space.full, space.narrowest))
    settings = SearchSettings(latency=f"{1.1 * narrowest / full:.4f}x")
    prepare(run, settings, evaluating=False)
    assert not caplog.text, "shares of an estimate are held by its predictions: there is nothing to warn of"


@pytest.mark.parametrize(
    ("found", "uniform", "words"),
    [
        (90, 90, "Found: as accurate as uniform scaling"),
        (90.001, 90, "Found: as accurate as uniform scaling"),
        (91, 90, "Found: 1.00 points more than uniform scaling"),
        (89, 90, "Found: 1.00 points fewer than uniform scaling"),
    ],
)
def test_the_verdict_says_more_fewer_or_equal(found: float, uniform: float, words: str) -> None:
    from bcnet_deploy.cli.run import verdict
    from bcnet_deploy.report.content import Content, SummaryRow
    from bcnet_deploy.run.pipeline import PipelineResult

    networks = [SummaryRow("uniform", uniform), SummaryRow("found", found)]
    content = Content("t", "demo", "digits", "cpu", networks=networks)
    assert verdict(PipelineResult(content, Path("r.html"), [], 1.0)).startswith(words)


def test_brackets_in_names_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    from bcnet_deploy.cli.run import show
    from bcnet_deploy.report.content import Content, SummaryRow
    from bcnet_deploy.run.pipeline import PipelineResult

    networks = [SummaryRow("found", 90.0)]
    content = Content("t", "[red]net.py:f", "a[/b]", "cpu", metric="[dim]m", unit="[/u]", networks=networks)
    show(PipelineResult(content, Path("[x]/r.html"), [], 1.0))
    printed = capsys.readouterr().out
    for text in ("[red]net.py:f on a[/b]", "test [dim]m", "90 [/u]", "report: [x]/r.html"):
        assert text in printed
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=200, color_system=None)
    with one_step(terminal, "Training [/red][x]net") as progress:
        progress(0.5, "[/note]")
    assert "Training [/red][x]net" in screen.getvalue()
    title = r"table of \[red]"
    with StepsDisplay(terminal, {title: 1.0}).shown() as display:
        display.begin(title)
        display.end(title, Done("profile", True, 1.0))
    assert rf"[1/1] {title}: 1.0 s" in screen.getvalue()


def test_a_configuration_whose_data_is_elsewhere_names_the_option(tmp_path: Path) -> None:
    place = ["run", "--run-dir", str(tmp_path / "run"), "--config", "cifar10_cpu"]
    result = CliRunner().invoke(cli, place)
    assert result.exit_code == 1 and "--data FOLDER_OR_TAR" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
