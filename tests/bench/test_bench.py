"""The benchmark: statistics by hand, networks that differ in known ways, the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from bcnet_deploy.bench import BenchSettings, bench, measure
from bcnet_deploy.bench.stats import noise_floor, summarise
from bcnet_deploy.cli.main import cli
from bcnet_deploy.devices import load_device
from bcnet_deploy.errors import ConfigError, EngineError, ExportError
from bcnet_deploy.export import export_onnx
from bcnet_deploy.runtime.ort import OnnxRuntime
from tests.export.nets import small
from tests.export.test_job import searched
from tests.profiler.fakes import FakeRunner, true_ms

ORT = ("onnxruntime",)
QUICK = BenchSettings(rounds=2, runs=4, warmup=1, batches=(1, 4))


def test_statistics_by_hand() -> None:
    times = np.array([[4.0, 1.0, 2.0, 3.0], [8.0, 5.0, 6.0, 7.0]])
    stats = summarise(times, np.random.default_rng(0))
    assert (stats.runs, stats.rounds) == (8, 2)
    assert stats.low_ms == 3.0  # the median of 1 and 5
    assert stats.median_ms == 4.5
    assert stats.p90_ms == pytest.approx(7.3)
    assert stats.spread == pytest.approx((7.3 - 1.7) / 4.5)
    assert stats.round_medians_ms == (2.5, 6.5)
    # Halves of two rounds are the rounds: low 1 and 5, over their mean.
    assert stats.noise_floor == pytest.approx(4 / 3)


@given(st.floats(0.01, 1e3), st.integers(2, 9), st.integers(1, 12))
def test_a_constant_time_has_no_noise(value: float, rounds: int, runs: int) -> None:
    assert noise_floor(np.full((rounds, runs), value), np.random.default_rng(0)) == pytest.approx(
        0, abs=1e-12
    )


def test_noise_scales_out_and_one_round_has_none() -> None:
    times = np.random.default_rng(0).gamma(9, size=(8, 20))
    rngs = [np.random.default_rng(1), np.random.default_rng(1)]
    assert noise_floor(times, rngs[0]) == pytest.approx(noise_floor(1000 * times, rngs[1]))
    assert noise_floor(times[:1], rngs[0]) is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("nets")
    for name, side in (("small", 12), ("large", 96)):
        export_onnx(small(), path / f"{name}.onnx", (3, side, side), parity_inputs=None)
    return path


def test_the_larger_input_takes_longer_on_every_statistic(folder: Path) -> None:
    networks = {name: folder / f"{name}.onnx" for name in ("small", "large")}
    notes: list[tuple[float, str]] = []
    result = bench(
        networks, "cpu-1thread", settings=QUICK, progress=lambda done, note: notes.append((done, note))
    )
    latencies = {name: result.networks[name].runtimes["onnxruntime-cpu"] for name in networks}
    for statistic in ("low_ms", "median_ms"):
        assert getattr(latencies["large"].latency, statistic) > getattr(latencies["small"].latency, statistic)
    for entry in latencies.values():
        assert entry.prediction_error is None
        assert [item.batch for item in entry.throughput] == [1, 4]
        for item in entry.throughput:
            assert item.images_per_second == pytest.approx(1000 * item.batch / item.latency_ms)
        # Modules of the network and nothing lost to unknown origins.
        names = [layer.name for layer in entry.layers]
        assert any(name.startswith("stem.0") for name in names)
        assert "(other)" not in names
    shares = [done for done, _ in notes]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)


def test_the_result_says_how_it_was_made(folder: Path, tmp_path: Path) -> None:
    result = bench({"small": folder / "small.onnx"}, "cpu-1thread", settings=QUICK)
    result.save(tmp_path / "bench.json")
    data = json.loads((tmp_path / "bench.json").read_text())
    assert data["settings"] | {"threads": 1, "warmup": 1, "rounds": 2, "runs": 4} == data["settings"]
    assert data["machine"]["runtime"] == "onnxruntime"
    assert data["machine"]["runtime_version"]
    assert {"cpu_model", "governor", "clock_mhz_before", "clock_mhz_after"} <= set(data["machine"])
    measured = set(data["networks"]["small"]["runtimes"])
    assert measured | set(data["absent"]) >= {
        "onnxruntime-cpu",
        "onnxruntime-cuda",
        "tensorrt",
        "openvino-cpu",
    }
    assert measured.isdisjoint(data["absent"])


@pytest.mark.parametrize("options", [{"rounds": 0}, {"runs": 0}, {"warmup": -1}, {"batches": (0,)}])
def test_settings_are_checked(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ConfigError, match=rf"bench: {name}.* is .*; allowed: from \d up"):
        BenchSettings(**options)


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no network to measure"):
        bench({}, "cpu-1thread")
    with pytest.raises(ExportError, match="no ONNX file at"):
        bench({"x": tmp_path / "x.onnx"}, "cpu-1thread")
    (tmp_path / "x.onnx").write_bytes(b"\xff\xff\xff")
    with pytest.raises(ExportError, match="is not an ONNX file"):
        bench({"x": tmp_path / "x.onnx"}, "cpu-1thread")


def test_a_network_that_the_runtime_refuses_is_one_line(tmp_path: Path) -> None:
    from tests.export.test_parity import _model

    (tmp_path / "x.onnx").write_bytes(_model("Nonsense", domain="own.domain"))
    with pytest.raises(EngineError) as caught:
        bench({"x": tmp_path / "x.onnx"}, load_device("cpu-1thread"), settings=QUICK)
    assert "\n" not in str(caught.value)


def test_what_another_runtime_refuses_is_left_out_and_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device's own runtime is OpenVINO here; what ONNX Runtime does not run must not end that."""
    right = OnnxRuntime.runner

    def refusing(self: OnnxRuntime, network: bytes, *given: Any, **more: Any) -> Any:
        if network == (folder / "large.onnx").read_bytes():
            raise EngineError("no kernel")
        return right(self, network, *given, **more)

    monkeypatch.setattr(OnnxRuntime, "runner", refusing)
    networks = {name: folder / f"{name}.onnx" for name in ("small", "large")}
    openvino = load_device("cpu-1thread").replace(runtime="openvino")
    options = BenchSettings(rounds=1, runs=2, warmup=1, batches=(), layers=False, patience_s=0)
    result = bench(networks, openvino, settings=options)
    measured = {name: sorted(network.runtimes) for name, network in result.networks.items()}
    assert measured == {"small": ["onnxruntime-cpu", "openvino-cpu"], "large": ["openvino-cpu"]}
    assert any("large was not measured on onnxruntime-cpu: no kernel" in note for note in result.notes)
    with pytest.raises(EngineError, match="no kernel"):
        bench({"large": networks["large"]}, "cpu-1thread", settings=replace(options, runtimes=ORT))


def test_what_no_patience_was_left_for_was_not_measured_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bcnet_deploy.bench.measure.Pace.is_steady", lambda self, milliseconds: False)
    options = replace(QUICK, batches=(), layers=False, runtimes=ORT, patience_s=0)
    assert bench({"small": folder / "small.onnx"}, "cpu-1thread", settings=options).settings[
        "measured_again"
    ] == 0  # fmt: skip


def test_the_command_measures_against_the_runs_table(tmp_path: Path) -> None:
    """Full, uniform and found of a run that was searched, against an estimated table."""
    run = searched(tmp_path)
    runner = CliRunner()
    options = ["--rounds", "2", "--runs", "4", "--batches", "1"]
    first = runner.invoke(cli, ["bench", "--run-dir", str(run.path), *options])
    assert first.exit_code == 0, first.output
    assert "nothing is predicted" in first.output
    table = ["profile", "--run-dir", str(run.path), "--device", "cpu-1thread", "--estimate", "--quiet"]
    made = runner.invoke(cli, table)
    assert made.exit_code == 0, made.output
    result = runner.invoke(cli, ["bench", "--run-dir", str(run.path), *options, "--json"])
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data.pop("ran") is True and data == json.loads(run.bench.read_text())
    assert set(data["networks"]) == {"full", "uniform", "found"}
    from bcnet_deploy.lut import LatencyTable

    loaded = LatencyTable.load(run.latency_table("cpu-1thread"))
    for network in data["networks"].values():
        widths = [network["widths"][variable.name] for variable in loaded.network.variables]
        prediction = network["prediction"]
        assert prediction["source"] == "estimated"
        assert prediction["milliseconds"] == pytest.approx(float(loaded.predict(widths)[0]))
        entry = network["runtimes"]["onnxruntime-cpu"]
        low = entry["latency"]["low_ms"]
        assert entry["prediction_error"] == pytest.approx(low / prediction["milliseconds"] - 1)
        predicted = [layer["predicted_ms"] for layer in entry["layers"]]
        assert None not in predicted
        assert [layer["name"] for layer in entry["layers"]] == [layer.name for layer in loaded.network.layers]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batches", "1,x"], "cannot read batch sizes '1,x'"),
        (["--rounds", "0"], "rounds is 0"),
        (["--threads", "0"], "threads is 0; allowed: from 1 up"),
        (["--device", "t5"], "did you mean 't4'"),
    ],
)
def test_bad_options_are_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    run = searched(tmp_path)
    result = CliRunner().invoke(cli, ["bench", "--run-dir", str(run.path), *arguments])
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_run_without_networks_names_the_steps(tmp_path: Path) -> None:
    from bcnet_deploy.run.directory import RunConfig, RunDir
    from tests.export.test_job import REF

    run = RunDir(tmp_path)
    run.save(RunConfig(REF, device="cpu-1thread"))
    result = CliRunner().invoke(cli, ["bench", "--run-dir", str(tmp_path)])
    assert result.exit_code == 1
    assert "'bcnet-deploy search' and 'bcnet-deploy export' first" in result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_here_is_said(folder: Path) -> None:
    result = bench({"small": folder / "small.onnx"}, "t4", settings=QUICK)
    assert any("T4" in note and "is not here (no GPU)" in note for note in result.notes)
    assert "onnxruntime-cpu" in result.networks["small"].runtimes
    assert "tensorrt" in result.absent


def test_the_file_of_the_devices_precision_is_measured(tmp_path: Path) -> None:
    from bcnet_deploy.run.bench import _exported

    run = searched(tmp_path)
    device = load_device("t4")  # FP16
    assert _exported(run, "found", device, []) is None
    run.export.mkdir()
    for name in ("found-int8.onnx", "found.onnx", "found-fp16.onnx"):
        (run.export / name).write_bytes(b"")
        found = _exported(run, "found", device, [])
        assert found is not None
        assert found.name == name
    assert _exported(run, "found", load_device("cpu"), []) == run.export / "found.onnx"


def test_what_departs_from_the_tables_conditions_is_not_compared(tmp_path: Path) -> None:
    run = searched(tmp_path)
    runner = CliRunner()
    place = ["--run-dir", str(run.path)]
    assert runner.invoke(cli, ["profile", "--device", "cpu-1thread", "--estimate", *place]).exit_code == 0
    quick = ["--rounds", "1", "--runs", "2", "--batches", "", "--no-layers", *place]
    result = runner.invoke(cli, ["bench", "--threads", "64", *quick])
    assert result.exit_code == 0, result.output
    assert "64 thread(s), not 1" in result.stdout and "UserWarning" not in result.output
    assert result.stderr.count("64 threads on") == 1
    assert "onnxruntime-cpu fp32" in result.stdout, "the runtime is not broken in two"
    made = runner.invoke(cli, ["report", "-q", *place])
    assert made.exit_code == 0 and "wrote " in made.stdout
    page = run.report.read_text()
    assert "Measured here on onnxruntime-cpu, 64 thread(s)" in page
    entry = json.loads(run.bench.read_text())["networks"]["found"]["runtimes"]["onnxruntime-cpu"]
    assert entry["prediction_error"] is None and entry["departs"] == "64 thread(s), not 1"


def test_an_export_of_a_former_search_is_not_measured(tmp_path: Path) -> None:
    from bcnet_deploy import files
    from bcnet_deploy.errors import RunDirError
    from bcnet_deploy.run.bench import _exported

    run = searched(tmp_path)
    assert CliRunner().invoke(cli, ["export", "--run-dir", str(run.path), "-q"]).exit_code == 0
    notes: list[str] = []
    assert _exported(run, "found", load_device("cpu"), notes) == run.export / "found.onnx" and not notes
    data = files.read_yaml(run.widths_file, RunDirError, "widths")
    data["widths"]["stem.0"] += 1
    files.write_yaml(run.widths_file, data)
    assert _exported(run, "found", load_device("cpu"), notes) is None
    assert "found.onnx" in notes[0] and "stem.0" in notes[0] and "export --force" in notes[0]


def test_what_a_slow_spell_disturbed_is_measured_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    def slow() -> float:
        """The spell lasts through all rounds of the second network, and a while longer."""
        nonlocal asked
        asked += 1
        return 1.5 if 6 < asked < 40 else 1.0

    def fake(data: bytes, **_: Any) -> FakeRunner:
        return FakeRunner(data, False, slow=slow)

    networks = {"small": folder / "small.onnx", "large": folder / "large.onnx"}
    monkeypatch.setattr(OnnxRuntime, "runner", lambda self, data, device, **_: fake(data))
    settings = BenchSettings(rounds=4, runs=3, warmup=0, batches=(), layers=False, runtimes=ORT)
    result = bench(networks, "cpu-1thread", settings=settings)
    for name, path in networks.items():
        times = result.networks[name].runtimes["onnxruntime-cpu"].latency
        assert times.round_medians_ms == pytest.approx([true_ms(path.read_bytes())] * 4)
    assert result.settings["measured_again"] > 0


def test_a_machine_of_another_speed_than_the_tables_is_waited_for_and_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = (folder / "small.onnx").read_bytes()
    lasts, spell = 40, 1.5
    asked = 0

    def slow() -> float:
        nonlocal asked
        asked += 1
        return spell if asked < lasts else 1.0

    def fake(data: bytes, **_: Any) -> FakeRunner:
        return FakeRunner(data, False, slow=slow)

    monkeypatch.setattr(OnnxRuntime, "runner", lambda self, data, device, **_: fake(data))
    monkeypatch.setattr(measure, "_usual_ms", lambda *_: true_ms(reference))
    networks = {"one": folder / "large.onnx"}
    settings = BenchSettings(
        rounds=3, runs=3, warmup=0, batches=(), layers=False, patience_s=2.0, runtimes=ORT
    )
    truth = true_ms((folder / "large.onnx").read_bytes())
    result = bench(networks, "cpu-1thread", settings=settings, reference=reference)
    assert result.networks["one"].runtimes["onnxruntime-cpu"].latency.low_ms == pytest.approx(truth)
    assert result.settings["speed"] == pytest.approx(1.0)
    assert not any("as long as when the table" in note for note in result.notes)
    for spell in (1.5, 0.8):
        lasts, asked = 10**9, 0
        result = bench(networks, "cpu-1thread", settings=settings, reference=reference)
        assert result.networks["one"].runtimes["onnxruntime-cpu"].latency.low_ms == pytest.approx(
            spell * truth
        )
        assert any(f"took {spell:.2f} times as long as when the table" in note for note in result.notes)
