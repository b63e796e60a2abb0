"""The comparison's conventions, on numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from bcnet_deploy.errors import EngineError, ExportError
from bcnet_deploy.export.parity import compare, ort_message, run_onnx, run_torch


def test_errors_by_hand() -> None:
    reference = np.array([[1.0, 2.0], [100.0, -200.0]])
    outputs = np.array([[1.0, 2.1], [100.5, -200.0]])
    result = compare(reference, outputs, precision="fp32", runtime="none")
    assert result.max_abs_error == pytest.approx(0.5)
    assert result.max_relative_error == pytest.approx(0.1 / 2)  # the small input is not hidden by the large
    assert result.top1_agreement == 1.0
    assert not result.passed


@pytest.mark.parametrize(
    ("precision", "count", "wrong", "passed"),
    [
        ("fp32", 256, 0, True), ("fp32", 256, 1, False),
        ("fp16", 256, 2, True), ("fp16", 256, 3, False),
        ("fp16", 8, 1, True), ("fp16", 8, 2, False),
        ("int8", 256, 25, True), ("int8", 256, 26, False),
    ],
)  # fmt: skip
def test_top1_bars(precision: str, count: int, wrong: int, passed: bool) -> None:
    reference = np.tile([1.0, 1.0 - 1e-3], (count, 1))
    outputs = reference.copy()
    outputs[:wrong] = outputs[:wrong, ::-1]
    result = compare(reference, outputs, precision=precision, runtime="none")
    assert result.disagreements == wrong
    assert result.passed is passed


@pytest.mark.parametrize(("ulps", "wrong"), [(0, 0), (4, 0), (28, 0), (100, 1)])
def test_classes_that_float32_cannot_tell_apart_are_a_tie(ulps: int, wrong: int) -> None:
    best = np.float32(18.0)
    second = best - np.float32(ulps) * np.spacing(np.float32(9.0))
    reference = np.array([[best, second, 1.0]])
    result = compare(reference, reference[:, [1, 0, 2]], precision="fp32", runtime="none")
    assert result.disagreements == wrong and result.passed is (wrong == 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_outputs_never_pass(bad: float) -> None:
    outputs = np.array([[1.0, bad]])
    for precision in ("fp32", "fp16"):
        result = compare(np.array([[1.0, 2.0]]), outputs, precision=precision, runtime="none")
        assert not result.passed
        assert result.to_dict()["max_abs_error"] is None


def test_zero_outputs_are_equal_to_zero_only() -> None:
    zeros = np.zeros((1, 3))
    assert compare(zeros, zeros, precision="fp32", runtime="none").passed
    assert not compare(zeros, zeros + 1e-9, precision="fp32", runtime="none").passed


@pytest.mark.parametrize("shape", [(2, 4), (0, 3)])
def test_shapes_must_fit(shape: tuple[int, int]) -> None:
    with pytest.raises(ExportError, match="same shape"):
        compare(
            np.zeros((2, 3)) if shape[0] else np.zeros(shape), np.zeros(shape), precision="fp32", runtime="-"
        )


@pytest.mark.parametrize(("wrong", "passed"), [(2, True), (3, False)])
def test_pixels_decide_one_by_one(wrong: int, passed: bool) -> None:
    reference = np.zeros((2, 3, 32, 32))
    reference[:, 1], reference[:, 2] = 1.0, 1.0 - 2e-5
    outputs = reference.copy()
    outputs[0, 2, 0, :wrong] = 1.0 + 2e-5
    result = compare(reference, outputs, precision="fp32", runtime="none")
    assert (result.decisions, result.disagreements) == (2 * 32 * 32, wrong)
    assert result.passed is passed


def test_several_outputs_by_name() -> None:
    reference = {"boxes": np.array([[10.0, 20.0]]), "out": np.array([[1.0, 2.0]])}
    outputs = {"boxes": np.array([[10.0, 21.0]]), "out": np.array([[2.0, 1.0]])}
    result = compare(reference, outputs, precision="fp32", runtime="none")
    assert result.max_abs_error == 1.0
    assert result.max_relative_error == pytest.approx(0.5)
    assert result.top1_agreement == 0.0  # of "out", which names classes
    heads = {"boxes": reference["boxes"], "scores": reference["out"]}
    assert compare(heads, heads, precision="fp32", runtime="none").decisions == 0
    with pytest.raises(ExportError, match=r"boxes \(1, 2\), PyTorch's boxes \(1, 2\), out \(1, 2\)"):
        compare(reference, {"boxes": outputs["boxes"]}, precision="fp32", runtime="none")


def _model(operator: str, opset: int = 17, domain: str = "") -> bytes:
    graph = helper.make_graph(
        [helper.make_node(operator, ["x"], ["y"], name="odd", domain=domain)], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )  # fmt: skip
    imports = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(graph, opset_imports=imports, ir_version=9).SerializeToString()


def test_a_static_batch_fills_up_its_last_part() -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 2])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    inputs = np.random.default_rng(0).standard_normal((6, 2)).astype(np.float32)
    np.testing.assert_array_equal(run_onnx(model.SerializeToString(), inputs), np.maximum(inputs, 0))


def test_an_operator_that_the_runtime_lacks_is_one_line() -> None:
    with pytest.raises(EngineError, match=r"^ONNX Runtime [\d.]+ .*Nonsense") as caught:
        run_onnx(_model("Nonsense", domain="own.domain"), np.zeros((1, 3, 3), np.float32))
    assert "\n" not in str(caught.value)


def test_a_missing_kernel_names_operator_node_and_ways_out() -> None:
    text = (
        "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find an implementation for "
        "Gelu(20) node with name '/block/Gelu'"
    )
    message = ort_message(RuntimeError(text))
    assert "operator Gelu of opset 20" in message
    assert "'/block/Gelu'" in message
    assert "--opset" in message


@pytest.mark.parametrize("shape", [(4, 1), (4, 1, 6, 6), (4, 3, 6, 6)])
@pytest.mark.parametrize(("error", "passed"), [(0.2, True), (0.9, False)])
def test_int8_where_no_output_decides_is_held_to_its_error(
    shape: tuple[int, ...], error: float, passed: bool
) -> None:
    """One class, or outputs of other kinds: the share of equal decisions cannot fail there."""
    reference = np.ones(shape)
    named = ({"logits": reference}, {"logits": reference - error})
    if shape[1] > 1:
        named = tuple({"boxes": one, "depth": one} for (one,) in (each.values() for each in named))  # type: ignore[assignment]
    result = compare(*named, precision="int8", runtime="none")
    assert result.passed is passed and "top-1" not in result.summary()


def test_parts_that_are_frozen_stay_so() -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.Flatten())
    net.train()[1].eval()
    run_torch(net, np.zeros((2, 3, 4, 4), np.float32))
    assert [module.training for module in net.modules()] == [True, True, False, True]
