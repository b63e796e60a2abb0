"""Networks cut from one export against those that PyTorch extracts."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

import bcnet_deploy as bd
from bcnet_deploy.models import default_input_size
from bcnet_deploy.profiler.narrow import NetworkMaker
from bcnet_deploy.runtime.ort import OrtRunner
from bcnet_deploy.runtime.registry import find_runtime
from tests.lut.fakes import TinyNet
from tests.space.test_attention import SIZE as HYBRID_SIZE
from tests.space.test_attention import Hybrid


def build(name: str) -> tuple[torch.nn.Module, bd.WidthSpace]:
    torch.manual_seed(0)
    model = TinyNet() if name == "tiny" else bd.build_model(name)
    size = (3, 16, 16) if name == "tiny" else default_input_size(name)
    return model.eval(), bd.WidthSpace.from_model(model, size)


@pytest.mark.parametrize("name", ["tiny", "demo", "channel_bench_macro_mobilenet", "vgg19_cifar10"])
def test_cut_networks_compute_what_extracted_ones_do(name: str) -> None:
    model, space = build(name)
    maker = NetworkMaker(model, space)
    assert maker.fast, maker.reason
    rng = np.random.default_rng(1)
    image = rng.standard_normal((1, *space.input_size)).astype(np.float32)
    for widths in [space.full, np.array([v.step for v in space.variables]), *space.random(2, rng)]:
        with OrtRunner(maker(widths)) as runner, torch.inference_mode():
            result = next(iter(runner.infer({runner.inputs[0].name: image}).values()))
            expected = space.extract(model, widths)(torch.from_numpy(image)).numpy()
        np.testing.assert_allclose(result, expected, atol=2e-4 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("precision", ["int8", "fp16"])
@pytest.mark.parametrize("name", ["tiny", "channel_bench_macro_mobilenet"])
def test_converted_networks_are_cut_as_they_are(name: str, precision: str) -> None:
    """Converted once and then cut: the same types and nodes, and outputs within what the precision loses."""
    model, space = build(name)
    runtime = find_runtime("onnxruntime")
    maker = NetworkMaker(model, space, prepare=lambda network: runtime.prepared(network, precision))
    assert maker.fast, maker.reason
    rng = np.random.default_rng(1)
    image = rng.standard_normal((1, *space.input_size)).astype(np.float32)
    for widths in [space.full, np.array([v.step for v in space.variables]), *space.random(2, rng)]:
        graph = onnx.load_from_string(maker(widths)).graph
        kinds = {tensor.data_type for tensor in graph.initializer if len(tensor.dims) > 1}
        wanted = TensorProto.INT8 if precision == "int8" else TensorProto.FLOAT16
        assert kinds == {wanted}
        with OrtRunner(maker(widths)) as runner, torch.inference_mode():
            result = next(iter(runner.infer({runner.inputs[0].name: image}).values()))
            expected = space.extract(model, widths)(torch.from_numpy(image)).numpy()
        assert result.shape == expected.shape
        if precision == "fp16":
            np.testing.assert_allclose(result, expected, atol=2e-2 * max(1, np.abs(expected).max()))


def test_what_cannot_be_cut_is_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    from bcnet_deploy.profiler import narrow

    def refuse(*_: object) -> None:
        raise ValueError("no")

    monkeypatch.setattr(narrow, "_Cutter", refuse)
    model, space = build("tiny")
    maker = NetworkMaker(model, space)
    assert not maker.fast
    assert maker.reason == "ValueError: no"
    widths = space.random(1, np.random.default_rng(2))[0]
    image = np.ones((1, 3, 16, 16), np.float32)
    with OrtRunner(maker(widths)) as runner, torch.inference_mode():
        result = next(iter(runner.infer({runner.inputs[0].name: image}).values()))
        expected = space.extract(model, widths)(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(result, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("target", "source", "freed"),
    [
        ((1, 1280), (1, 1280, 1, 1), (1, -1)),
        ((1, 512), (1, 32, 4, 4), (1, -1)),
        ((1, 2, 58, 28, 28), (1, 116, 28, 28), (1, 2, -1, 28, 28)),
        ((1, 116, 28, 28), (1, 58, 2, 28, 28), (1, -1, 28, 28)),
        ((1, -1), (1, 8, 2, 2), (1, -1)),
    ],
)
def test_reshape_targets(target: tuple[int, ...], source: tuple[int, ...], freed: tuple[int, ...]) -> None:
    from bcnet_deploy.profiler.narrow import _free_dimension

    assert tuple(_free_dimension(np.array(target), source)) == freed


class Heads(torch.nn.Module):
    """Two outputs, and groups that are made narrower inside; features are kept, as wrappers do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 16, 3, padding=1)
        self.grouped = torch.nn.Conv2d(16, 16, 3, padding=1, groups=2)
        self.box, self.score = torch.nn.Conv2d(16, 4, 1), torch.nn.Conv2d(16, 5, 1)
        self.features: dict[str, torch.Tensor] = {}

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        self.features["stem"] = self.stem(x).relu()
        y = self.grouped(self.features["stem"]).relu()
        return {"boxes": self.box(y), "out": self.score(y).mean((2, 3))}


def test_every_output_of_a_cut_network_is_that_of_the_extracted_one() -> None:
    torch.manual_seed(0)
    model = Heads().eval()
    space = bd.WidthSpace.from_model(model, (3, 16, 16))
    with torch.no_grad():
        model(torch.zeros(1, 3, 16, 16))  # what it keeps is no obstacle
    maker = NetworkMaker(model, space)
    assert maker.fast, maker.reason
    image = np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32)
    for widths in space.random(3, np.random.default_rng(1)):
        # The groups stay two, each of half of the channels that are left.
        weight = space.extract(model, widths).grouped.weight
        assert weight.shape[1] == space.extract(model, widths).stem.weight.shape[0] // 2
        with OrtRunner(maker(widths)) as runner, torch.inference_mode():
            results = runner.infer({runner.inputs[0].name: image})
            expected = space.extract(model, widths)(torch.from_numpy(image))
        assert list(results) == ["boxes", "out"]
        for name, own in expected.items():
            np.testing.assert_allclose(results[name], own.numpy(), atol=1e-5)


@pytest.mark.parametrize("form", ["fused", "products", "channels"])
def test_attention_is_cut_by_what_an_export_at_other_widths_says(form: str) -> None:
    torch.manual_seed(0)
    model = Hybrid(form).eval()
    space = bd.WidthSpace.from_model(model, HYBRID_SIZE)
    maker = NetworkMaker(model, space)
    assert maker.fast and maker.reason == ""
    image = np.random.default_rng(0).standard_normal((1, *HYBRID_SIZE)).astype(np.float32)
    for widths in [space.full, *space.random(3, np.random.default_rng(1))]:
        with OrtRunner(maker(widths)) as runner, torch.inference_mode():
            result = next(iter(runner.infer({runner.inputs[0].name: image}).values()))
            expected = space.extract(model, widths)(torch.from_numpy(image)).numpy()
        np.testing.assert_allclose(result, expected, atol=1e-5)
