"""Export to ONNX. The oracles: PyTorch, ONNX's reference evaluator, and the file as onnx reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnxruntime
import pytest
import torch
import torchvision
from torch import nn

from bcnet_deploy.errors import ExportError, NonFiniteWeightError, RunDirError
from bcnet_deploy.export import ModelMetadata, export_onnx
from bcnet_deploy.export import metadata as meta
from bcnet_deploy.export.onnx import trace
from tests.export.nets import pictures, small

SIZE = (3, 12, 12)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return small()


@pytest.mark.parametrize("batch", [1, 3, None])
@pytest.mark.parametrize("opset", [17, 20])
def test_fp32_computes_what_pytorch_does(
    net: nn.Module, tmp_path: Path, batch: int | None, opset: int
) -> None:
    result = export_onnx(net, tmp_path / "n.onnx", SIZE, parity_inputs=pictures(7), batch=batch, opset=opset)
    assert result.parity is not None
    assert result.parity.max_relative_error <= 1e-5
    assert result.parity.top1_agreement == 1.0
    model = onnx.load(result.path)
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [opset]
    dim = model.graph.input[0].type.tensor_type.shape.dim[0]
    assert (dim.dim_value or None) == batch
    # An oracle beside ONNX Runtime: onnx's own evaluator of the standard.
    images = pictures(batch or 2, seed=3)
    (outputs,) = onnx.reference.ReferenceEvaluator(model).run(None, {"input": images})
    with torch.inference_mode():
        expected = net(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)


def test_batch_norms_are_folded_also_behind_linear_layers(net: nn.Module, tmp_path: Path) -> None:
    result = export_onnx(net, tmp_path / "n.onnx", SIZE, parity_inputs=pictures())
    # The one in front of a ReLU after a concatenation has no layer to go into.
    assert result.operators["BatchNormalization"] == 1
    assert result.operators["Conv"] == 4
    assert "Identity" not in result.operators
    assert "Constant" not in result.operators


def test_every_tensor_has_a_shape_and_weights_keep_their_names(net: nn.Module, tmp_path: Path) -> None:
    path = export_onnx(net, tmp_path / "n.onnx", SIZE, parity_inputs=None).path
    graph = onnx.load(path).graph
    shaped = {value.name for value in [*graph.value_info, *graph.output]}
    assert {name for node in graph.node for name in node.output} <= shaped
    names = {tensor.name for tensor in graph.initializer}
    assert {"stem.0.weight", "stem.0.bias", "deep.0.weight", "gate.1.weight", "classifier.bias"} <= names


def test_the_module_is_left_as_it_was(net: nn.Module, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.train()
    try:
        export_onnx(net, tmp_path / "n.onnx", SIZE, parity_inputs=pictures(4))
        assert net.training
    finally:
        net.eval()
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert all(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_metadata_are_kept_in_every_precision(net: nn.Module, tmp_path: Path, precision: str) -> None:
    given = ModelMetadata(
        model={"name": "small"}, which="found", widths={"stem.0": 8}, fingerprint="abc",
        preprocessing={"mean": [0.5], "std": [0.25]}, class_names=("cat", "dög", "c", "d", "e"),
    )  # fmt: skip
    result = export_onnx(
        net, tmp_path / "n.onnx", SIZE, parity_inputs=pictures(), precision=precision, metadata=given  # type: ignore[arg-type]
    )  # fmt: skip
    read = meta.read(onnx.load(result.path))
    assert read.precision == precision
    assert (read.model, read.widths, read.class_names) == (given.model, given.widths, given.class_names)
    import onnxruntime

    session = onnxruntime.InferenceSession(result.path, providers=["CPUExecutionProvider"])
    assert meta.read(session.get_modelmeta().custom_metadata_map) == read
    assert [i.type for i in session.get_inputs()] == ["tensor(float)"]
    assert [o.type for o in session.get_outputs()] == ["tensor(float)"]


@pytest.mark.parametrize(("precision", "target"), [("fp16", "ort"), ("int8", "ort"), ("int8", "trt")])
def test_lower_precisions_compute_with_it_and_agree(
    net: nn.Module, tmp_path: Path, precision: str, target: str
) -> None:
    result = export_onnx(
        net, tmp_path / "n.onnx", SIZE, parity_inputs=pictures(), precision=precision, target=target  # type: ignore[arg-type]
    )  # fmt: skip
    assert result.parity is not None
    assert result.parity.passed
    assert result.parity.max_relative_error > 1e-6  # it is not FP32 under another name
    types = {tensor.data_type for tensor in onnx.load(result.path).graph.initializer}
    if precision == "fp16":
        assert onnx.TensorProto.FLOAT16 in types
        assert onnx.TensorProto.FLOAT not in types
    else:
        assert onnx.TensorProto.INT8 in types
        assert result.operators["QuantizeLinear"] > 5
        biases = onnx.TensorProto.INT32 in types
        assert biases == (target == "ort")  # TensorRT takes no quantised bias


def test_failing_parity_fails_the_export_and_keeps_the_former_file(net: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "n.onnx"
    path.write_bytes(b"former")
    with pytest.raises(ExportError, match=r"does not compute.*max abs error.*Nothing was written"):
        export_onnx(net, path, SIZE, parity_inputs=pictures(), tolerance=1e-12)
    assert path.read_bytes() == b"former"
    assert [entry.name for entry in tmp_path.iterdir()] == ["n.onnx"]


def test_weights_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    broken = small()
    name = next(iter(broken.state_dict()))
    broken.state_dict()[name].flatten()[0] = float("nan")
    with pytest.raises(NonFiniteWeightError, match=f"'{name}' .* 1 NaN or infinite value"):
        export_onnx(broken, tmp_path / "n.onnx", SIZE, parity_inputs=pictures(2))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp8"}, "unknown precision 'fp8'.*fp32, fp16, int8"),
        ({"opset": 12}, "opset 12.*17 to 20"),
        ({"batch": 0}, "batch of 0"),
        ({"parity_inputs": pictures(2, side=10)}, "parity inputs have shape"),
        ({"parity_inputs": None, "precision": "int8"}, "calibration"),
        ({"precision": "int8", "target": "trt", "opset": 17}, "opset 19"),
        ({"calibration_inputs": np.full((2, 3, 12, 12), np.nan, np.float32), "precision": "int8"}, "finite"),
    ],
)
def test_bad_arguments_are_named(net: nn.Module, tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        export_onnx(net, tmp_path / "n.onnx", SIZE, **{"parity_inputs": pictures(2), **options})
    assert not (tmp_path / "n.onnx").exists()


def test_modules_that_cannot_be_exported_say_why(tmp_path: Path) -> None:
    class Nothing(nn.Module):
        def forward(self, x: torch.Tensor) -> list[str]:
            return ["no tensor"]

    with pytest.raises(ExportError, match="returns a list without a tensor"):
        export_onnx(Nothing(), tmp_path / "n.onnx", SIZE, parity_inputs=None)
    with pytest.raises(ExportError, match="does not run on inputs of"):
        export_onnx(nn.Conv2d(4, 4, 1), tmp_path / "n.onnx", SIZE, parity_inputs=None)


class Several(nn.Module):
    """A mapping within a tuple, as detectors return."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.box, self.score = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        y = self.body(x).relu()
        return self.box(y).flatten(2), {"scores": self.score(y), "mean level": y.mean((1, 2, 3))}


@pytest.mark.parametrize("batch", [1, None])
def test_every_tensor_of_the_outputs_becomes_an_output(tmp_path: Path, batch: int | None) -> None:
    torch.manual_seed(0)
    module, inputs = Several().eval(), pictures(3)
    result = export_onnx(module, tmp_path / "n.onnx", SIZE, parity_inputs=inputs, batch=batch)
    assert result.parity is not None and result.parity.passed
    session = onnxruntime.InferenceSession(result.path, providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_outputs()] == [
        "output_0",
        "output_1_scores",
        "output_1_mean_level",
    ]
    found = session.run(None, {"input": inputs[:1]})
    with torch.no_grad():
        boxes, others = module(torch.from_numpy(inputs[:1]))
    for own, theirs in zip(found, (boxes, *others.values()), strict=True):
        np.testing.assert_allclose(own, theirs.numpy(), rtol=0, atol=1e-5)
    nodes = {node.name for node in onnx.load(result.path).graph.node}
    assert "/body/Conv" in nodes  # by module paths, as the layers of a latency table are


def test_the_worst_output_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bcnet_deploy.export import onnx as exporting

    original = exporting.outputs_of_onnx

    def spoilt(*arguments: Any, **options: Any) -> dict[str, np.ndarray]:
        found = dict(original(*arguments, **options))
        return {**found, "output_1_mean_level": found["output_1_mean_level"] + 1}

    monkeypatch.setattr(exporting, "outputs_of_onnx", spoilt)
    with pytest.raises(ExportError, match="does not compute what PyTorch does"):
        export_onnx(Several(), tmp_path / "n.onnx", SIZE, parity_inputs=pictures(3))


def test_an_unwritable_folder_is_a_run_directory_error(net: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirError, match="cannot write"):
        export_onnx(net, tmp_path / "file" / "n.onnx", SIZE, parity_inputs=None)


def test_what_torchscript_cannot_export_goes_to_the_other_exporter(capfd: pytest.CaptureFixture[str]) -> None:
    # Enlarging to 7x7 has no operator in the older exporter: AlexNet and VGG on small images.
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(196, 3)).eval()
    model, exporter = trace(net, (3, 8, 8))
    assert exporter == "dynamo"
    printed = capfd.readouterr()
    assert "graph" not in printed.out + printed.err, "standard output is left to --json"
    images = torch.randn(1, 3, 8, 8)
    (outputs,) = onnx.reference.ReferenceEvaluator(model).run(None, {"input": images.numpy()})
    with torch.inference_mode():
        np.testing.assert_allclose(outputs, net(images).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5"])
def test_torchvision_networks(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = torchvision.models.get_model(name, weights=None, num_classes=10)
    images = pictures(8, side=64)
    for _ in range(4):
        net(torch.from_numpy(images))  # batch norms see these images
    for batch in (1, None):
        result = export_onnx(net.eval(), tmp_path / "n.onnx", (3, 64, 64), parity_inputs=images, batch=batch)
        assert result.exporter == "torchscript"
        assert result.parity is not None
        assert result.parity.max_relative_error <= 1e-4


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("how", ["orthogonal", "weight_norm", "old weight_norm"])
def test_computed_weights_are_exported_also_after_training(how: str, tmp_path: Path) -> None:
    """A weight that is computed has a history after a step, which PyTorch does not copy."""
    wrap = {
        "orthogonal": nn.utils.parametrizations.orthogonal,
        "weight_norm": nn.utils.parametrizations.weight_norm,
        "old weight_norm": nn.utils.weight_norm,
    }[how]
    network = nn.Sequential(wrap(nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    network(torch.randn(2, 3, 8, 8)).sum().backward()
    inputs = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)
    result = export_onnx(network, tmp_path / "net.onnx", (3, 8, 8), parity_inputs=inputs)
    assert result.parity is not None and result.parity.passed
    network(torch.randn(2, 3, 8, 8)).sum().backward()  # the network itself is as it was
