"""The export command on run directories: chaining, what is kept, what is refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result

from bcnet_deploy import files
from bcnet_deploy.cli.main import cli
from bcnet_deploy.data import load_data
from bcnet_deploy.data.plain import drawing_order
from bcnet_deploy.export import metadata as meta
from bcnet_deploy.models.ref import ModelRef, build
from bcnet_deploy.nn import save_subnet
from bcnet_deploy.run.directory import NETWORKS, RunConfig, RunDir
from bcnet_deploy.run.export import CALIBRATION_IMAGES, engines, warn_of_one_class
from bcnet_deploy.run.subnets import subnet_of

REF = ModelRef("demo", num_classes=10, input_size=(1, 8, 8), levels=4)
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed"
)


def searched(path: Path) -> RunDir:
    """A run directory on the digits after a search, with nothing trained."""
    run = RunDir(path)
    run.save(RunConfig(REF, device="cpu-1thread", data="digits"))
    _, space = build(REF)
    widths = space.random(1, np.random.default_rng(0))[0]
    named = {v.name: int(width) for v, width in zip(space.variables, widths, strict=True)}
    half = {v.name: int(width) for v, width in zip(space.variables, space.uniform(0.5), strict=True)}
    files.write_yaml(run.widths_file, {"widths": named, "compared_with": {"uniform": {"widths": half}}})
    return run


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return searched(tmp_path)


def export(run: RunDir, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["export", "--run-dir", str(run.path), *arguments])


def test_found_widths_are_exported_and_said_to_be_untrained(run: RunDir) -> None:
    result = export(run, "--json", "--force")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert "nothing was trained" in data["origin"]
    parity = data["onnx"]["parity"]
    assert parity["passed"]
    assert parity["inputs"] > 100
    assert parity["max_relative_error"] <= 1e-4
    described = meta.read(onnx.load(run.export / "found.onnx"))
    widths = files.read_yaml(run.widths_file, ValueError, "widths")["widths"]  # type: ignore[arg-type]
    assert described.widths == widths
    assert described.class_names == tuple("0123456789")
    assert described.preprocessing["channels"] == "grey"
    assert len(described.preprocessing["mean"]) == 1
    # The file's shapes are the widths: the oracle is the graph, not the metadata.
    shapes = {t.name: list(t.dims) for t in onnx.load(run.export / "found.onnx").graph.initializer}
    assert shapes["stem.0.weight"][0] == widths["stem.0"]
    listed = json.loads((run.export / "export.json").read_text())["exports"]
    assert listed["found.onnx"]["onnx"]["sha256"] == meta.sha256(run.export / "found.onnx")


def test_an_existing_file_is_kept_unless_forced(run: RunDir) -> None:
    run.export.mkdir()
    path = run.export / "found.onnx"
    path.write_bytes(b"of another program")
    result = export(run)
    assert result.exit_code == 1
    assert "exists already and is kept; give --force" in result.stderr
    assert result.stderr.count("\n") == 1
    assert path.read_bytes() == b"of another program"
    assert "wrote " in export(run, "--force").stdout
    made = path.read_bytes()
    refused = export(run, "--opset", "18")
    assert refused.exit_code == 1 and "give --force" in refused.stderr and path.read_bytes() == made
    assert "wrote " in export(run, "--opset", "18", "--force").stdout
    assert onnx.load(path).opset_import[0].version == 18


def test_the_same_export_again_is_done_already(run: RunDir) -> None:
    assert json.loads(export(run, "--json").stdout)["ran"]
    before = (run.export / "found.onnx").stat()
    result = export(run)
    assert result.exit_code == 0 and "there " in result.stdout and "wrote" not in result.stdout
    after = (run.export / "found.onnx").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    (run.export / "found.onnx").unlink()
    assert "wrote " in export(run).stdout


def test_retrained_weights_win(tmp_path: Path) -> None:
    run = searched(tmp_path)
    model, space = build(REF)
    widths = space.uniform(0.5)
    net = space.extract(model, widths)
    with torch.no_grad():
        next(net.parameters()).fill_(0.5)
    extra = {"mean": [0.1], "std": [0.2], "classes": list("abcdefghij")}
    save_subnet(run.retrained("uniform"), net, widths, space, REF, extra)
    source = subnet_of(run, "uniform")
    assert "retrained" in source.origin
    assert bool((next(source.module.parameters()) == 0.5).all())
    result = export(run, "--which", "uniform", "--json")
    assert result.exit_code == 0, result.output
    described = meta.read(onnx.load(run.export / "uniform.onnx"))
    assert described.class_names == tuple("abcdefghij")
    assert described.preprocessing["mean"] == [0.1]
    assert list(described.widths.values()) == widths.tolist()


def written(folder: Path) -> list[Path]:
    """All files but those of the lock that a writing command holds."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in (".lock", ".writer.json"))


def test_what_was_trained_before_a_new_search_is_refused(tmp_path: Path) -> None:
    run = searched(tmp_path)
    model, space = build(REF)
    widths = space.uniform(0.25)
    save_subnet(run.retrained("uniform"), space.extract(model, widths), widths, space, REF, {})
    before = written(tmp_path)
    result = export(run, "--which", "uniform", "--force")
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    assert "other widths than the search found" in result.stderr
    assert "bcnet-deploy retrain --network uniform" in result.stderr
    assert written(tmp_path) == before, "nothing is written"
    # Widths that the user gave to the retraining are no leftover of a search.
    own = {"widths_from": "own.yaml"}
    save_subnet(run.retrained("uniform"), space.extract(model, widths), widths, space, REF, own)
    result = export(run, "--which", "uniform", "--json")
    assert result.exit_code == 0, result.output
    assert "of your own" in json.loads(result.stdout)["origin"]


def test_the_supernets_slice_is_taken_and_recalibrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bcnet_deploy.nn import Supernet

    def load(run: RunDir) -> Supernet:
        supernet = Supernet(*run.build())
        with torch.no_grad():
            for parameter in supernet.parameters():
                parameter.add_(torch.arange(len(parameter)).reshape(-1, *[1] * (parameter.dim() - 1)) * 0.01)
        return supernet

    monkeypatch.setattr("bcnet_deploy.run.subnets.load_supernet", load)
    run = searched(tmp_path)
    source = subnet_of(run, "found")
    assert source.shared
    assert "not retrained" in source.origin
    result = export(run, "--json")
    assert result.exit_code == 0, result.output
    assert "recalibrated" in json.loads(result.stdout)["origin"]


def test_onnx_runtimes_own_format_computes_the_same(run: RunDir) -> None:
    import onnxruntime

    result = export(run, "--engine", "ort", "--dynamic-batch", "--force")
    assert result.exit_code == 0, result.output
    images = np.random.default_rng(0).standard_normal((5, 1, 8, 8)).astype(np.float32)
    outputs = [
        onnxruntime.InferenceSession(run.export / name, providers=["CPUExecutionProvider"]).run(
            None, {"input": images}
        )[0]
        for name in ("found-dynamic.onnx", "found-dynamic.ort")
    ]
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-4, atol=1e-6)


@needs_rtx
def test_an_engine_for_a_t4_on_any_machine(run: RunDir) -> None:
    result = export(run, "--engine", "trt", "--device", "t4", "--force", "--json")
    assert result.exit_code == 0, result.output
    engine = json.loads(result.stdout)["engine"]
    assert (engine["capability"], engine["precision"], engine["device"]) == ("7.5", "fp16", "t4")
    sidecar = json.loads((run.export / "found-t4-fp16.engine.json").read_text())
    assert sidecar["network"]["widths"] == meta.read(onnx.load(run.export / "found-t4-fp16.onnx")).widths
    assert sidecar["onnx_sha256"] == meta.sha256(run.export / "found-t4-fp16.onnx")
    refused = export(run, "--engine", "trt", "--device", "t4", "--precision", "fp32")
    assert refused.exit_code == 1
    assert "no FP32" in refused.stderr
    assert "--precision fp16" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--opset", "9"], "9 is not in the range 17<=x<=20"),
        (["--engine", "trt"], "is no GPU, which TensorRT needs; name one with --device"),
        (["--engine", "trt", "--device", "t44"], "did you mean 't4'"),
    ],
)
def test_bad_input_is_one_line(run: RunDir, arguments: list[str], message: str) -> None:
    result = export(run, *arguments)
    assert result.exit_code == (2 if len(arguments) != 2 or "--opset" in arguments else 1)
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "tvm"], "unknown engine 'tvm'; allowed are onnx, ort, trt"),
        (["--which", "best"], "unknown network 'best'; allowed are found, uniform, full"),
        (["--precision", "fp8"], "unknown precision 'fp8'"),
    ],
)
def test_wrong_usage_is_one_line_and_exits_with_2(run: RunDir, arguments: list[str], message: str) -> None:
    result = export(run, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_values_offered_are_those_the_export_takes() -> None:
    from bcnet_deploy.cli import choices
    from bcnet_deploy.devices import PRECISIONS

    assert set(choices.ENGINE.values) <= set(engines()) and set(choices.NETWORK.values) == set(NETWORKS)
    assert set(choices.PRECISION.values) == set(PRECISIONS)


def test_without_tensorrt_the_package_is_named(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    from bcnet_deploy.runtime import trt, trt_build

    monkeypatch.setattr(trt_build, "installed_flavours", lambda: ())
    monkeypatch.setattr(trt, "installed_flavours", lambda: ())
    result = export(run, "--engine", "trt", "--device", "t4")
    assert result.exit_code == 1
    assert "pip install tensorrt-rtx" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("text", ['{"exports": []}', "[1]", "{", '{"format": 9, "exports": {}}'])
def test_a_damaged_list_is_refused_before_any_work(tmp_path: Path, text: str) -> None:
    run = searched(tmp_path)
    run.export.mkdir()
    (run.export / "export.json").write_text(text)
    result = export(run)
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    assert "export.json" in result.stderr and "--force" in result.stderr
    assert [path.name for path in run.export.iterdir()] == ["export.json"]
    assert export(run, "--force", "--which", "full").exit_code == 0
    assert list(json.loads((run.export / "export.json").read_text())["exports"]) == ["full.onnx"]


def test_missing_steps_name_their_command(tmp_path: Path) -> None:
    empty = RunDir(tmp_path / "none")
    assert "bcnet-deploy run" in export(empty).stderr
    run = RunDir(tmp_path / "begun")
    run.save(RunConfig(REF))
    assert "run 'bcnet-deploy search' first" in export(run).stderr
    quiet = export(run, "--which", "full", "--quiet")
    assert quiet.exit_code == 0
    assert "wrote " in quiet.stdout and "parity" in quiet.stdout, "no progress, only the result"


def test_widths_of_another_model_are_refused(tmp_path: Path) -> None:
    run = searched(tmp_path)
    files.write_yaml(run.widths_file, {"widths": {"other": 3}})
    assert "of another model" in export(run).stderr
    files.write_yaml(run.widths_file, {"widths": {"stem.0": "many"}})
    assert "make it again with 'bcnet-deploy search --fresh'" in export(run).stderr
    files.write_yaml(run.widths_file, [1, 2])
    assert "make it again with 'bcnet-deploy search --fresh'" in export(run).stderr


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")
def test_an_ir_is_exported_with_all_its_files(run: RunDir) -> None:
    result = export(run, "--engine", "openvino", "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    names = {Path(file).name for file in data["files"]}
    assert names == {"found.xml", "found.xml.json", "found.bin", "found.onnx"}
    assert all(Path(file).exists() for file in data["files"])
    assert data["engine"]["flavour"] == "openvino"
    assert data["engine"]["parity"]["passed"]
    assert data["engine"]["parity"]["tolerance"] == 1e-4


def test_a_loss_of_int8_that_nobody_can_measure_is_refused(run: RunDir) -> None:
    """Labels of another task may be whole numbers, too."""
    run.keep(steps={"train": {"task": "segmentation"}})
    result = export(run, "--precision", "int8", "--max-loss", "0.01")
    assert result.exit_code == 1 and not (run.export / "found-int8.onnx").exists()
    assert "of classifiers alone" in result.output and "--keep-fp32" in result.output
    without = export(run, "--precision", "int8", "--json")
    assert without.exit_code == 0, without.output
    assert json.loads(without.stdout)["onnx"]["quantised"] is None


def test_int8_states_what_it_loses_on_held_out_images(run: RunDir, caplog: pytest.LogCaptureFixture) -> None:
    result = export(run, "--precision", "int8", "--json")
    assert result.exit_code == 0, result.output
    quantised = json.loads(result.stdout)["onnx"]["quantised"]
    assert 0 <= quantised["accuracy"] <= 1 and 0 <= quantised["fp32_accuracy"] <= 1
    assert quantised["kept_fp32"] == []
    assert 0 <= json.loads(result.stdout)["int8_test_accuracy"] <= 1, "stated of images that chose nothing"
    assert "about what chance gives" in caplog.text
    worst = quantised["weakest"][0]["layer"]
    kept = export(run, "--precision", "int8", "--keep-fp32", worst, "--force", "--json")
    assert kept.exit_code == 0, kept.output
    assert json.loads(kept.stdout)["onnx"]["quantised"]["kept_fp32"] == [worst]
    graph = onnx.load(run.export / "found-int8.onnx").graph
    assert f"{worst}.weight" in {tensor.name for tensor in graph.initializer}  # not its quantised form
    wrong = export(run, "--precision", "int8", "--keep-fp32", "nothing", "--force")
    assert wrong.exit_code == 1
    assert "the network has no layer 'nothing'" in wrong.stderr


def test_calibration_images_of_one_class_are_said(caplog: pytest.LogCaptureFixture) -> None:
    """Of 400 images of two classes all that are drawn for calibration are of the first."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (400, 1, 8, 8), dtype=np.uint8)
    labels = np.zeros(400, dtype=np.int64)
    labels[drawing_order(400)[CALIBRATION_IMAGES[0] :]] = 1
    both = labels.copy()
    both[drawing_order(400)[5]] = 1
    for given, said in ((both, False), (labels, True)):
        caplog.clear()
        data = {"train": (images, given), "val": (images[:20], given[:20]), "classes": ["cat", "dog"]}
        warn_of_one_class(load_data(data, (1, 8, 8)))
        assert ("all 128 calibration images are of one class, 'cat'" in caplog.text) is said


def test_an_export_whose_file_another_one_replaced_is_not_done(run: RunDir) -> None:
    """ONNX and ONNX Runtime share full.onnx: the first one told the figures of the second's file."""

    def opset() -> int:
        return int(onnx.load(run.export / "full.onnx").opset_import[0].version)

    full = ("--which", "full", "--engine", "onnx")
    assert export(run, *full, "--opset", "17").exit_code == 0
    assert export(run, *full, "--engine", "ort", "--opset", "18", "--force").exit_code == 0 and opset() == 18
    refused = export(run, *full, "--opset", "17")
    assert refused.exit_code == 1 and "took its place" in " ".join(refused.output.split()) and opset() == 18
    again = export(run, *full, "--opset", "17", "--force", "--json")
    assert json.loads(again.stdout)["ran"] and opset() == 17
    assert not json.loads(export(run, *full, "--opset", "17", "--json").stdout)["ran"]


@pytest.mark.parametrize("engine", ["onnx", "ort"])
def test_a_precision_that_no_file_has_is_refused_before_work(
    run: RunDir, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bcnet_deploy.run.export.subnet_of", None)
    refused = export(run, "--which", "full", "--engine", engine, "--precision", "bf16")
    assert refused.exit_code == 1 and "not bf16" in refused.output and "openvino" in refused.output
