"""Runtime nodes back to layers, on ONNX Runtime itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import bcnet_deploy as bd
from bcnet_deploy.lut import layers_of
from bcnet_deploy.models import default_input_size
from bcnet_deploy.profiler.layer_map import LayerMap
from bcnet_deploy.profiler.narrow import NetworkMaker
from bcnet_deploy.runtime.base import NodeTime
from bcnet_deploy.runtime.ort import OrtRunner


@pytest.mark.parametrize("name", ["demo", "channel_bench_macro_mobilenet", "channel_bench_macro_resnet"])
def test_all_the_time_is_accounted_for(name: str) -> None:
    torch.manual_seed(0)
    model = bd.build_model(name).eval()
    space = bd.WidthSpace.from_model(model, default_input_size(name))
    layers = layers_of(space)
    maker = NetworkMaker(model, space)
    layer_map = LayerMap(maker.exported, space, layers)
    rng = np.random.default_rng(0)
    image = rng.standard_normal((1, *space.input_size)).astype(np.float32)
    for widths in [space.full, *space.random(2, rng)]:
        with OrtRunner(maker(widths), profiling=True) as runner:
            nodes = runner.node_times({runner.inputs[0].name: image}, runs=3)
        times = layer_map.layer_times(nodes)
        assert times.shape == (3, len(layers))
        np.testing.assert_allclose(times.sum(axis=1), np.sum([node.durations_us for node in nodes], axis=0))
        # Whatever else it fuses, ONNX Runtime runs a node for each convolution and linear layer.
        for index, layer in enumerate(layers):
            if layer.macs:
                assert layer_map.names
                assert any(layer_map.find(node.name) == index for node in nodes), layer.name


def test_conversions_go_to_their_neighbours() -> None:
    model = bd.build_model("channel_bench_macro_resnet").eval()
    space = bd.WidthSpace.from_model(model, (3, 32, 32))
    layers = layers_of(space)
    layer_map = LayerMap(NetworkMaker(model, space).exported, space, layers)
    by_layer = {index: name for name, index in layer_map.names.items() if layers[index].macs}
    first, second = list(by_layer)[:2]
    names = [by_layer[first], by_layer[second]]

    def node(name: str, op: str, time: float) -> NodeTime:
        return NodeTime(name, op, (), (), (time,))

    times = layer_map.layer_times(
        [
            node("ReorderInput", "ReorderInput", 1.0),
            node(names[0], "Conv", 10.0),
            node("ReorderOutput", "ReorderOutput", 2.0),
            node("ReorderInput_token_3", "ReorderInput", 4.0),
            node(names[1], "Conv", 20.0),
            node("something new", "Magic", 8.0),
        ]
    )
    assert times[0, first] == 13.0
    assert times[0, second] == 32.0
    assert times.sum() == 45.0


class TwoScales(torch.nn.Module):
    """One head on maps of two sizes, as of a detector: one weight, two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.Conv2d(16, 16, 3, padding=1)
        self.out = torch.nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        maps = self.head(x), self.head(torch.nn.functional.max_pool2d(x, 2))
        return self.out(torch.cat([each.mean((2, 3)) for each in maps], 1))


def test_each_call_of_a_module_is_its_own_layer() -> None:
    model = TwoScales().eval()
    space = bd.WidthSpace.from_model(model, (3, 16, 16), 8)
    layers = layers_of(space)
    exported = NetworkMaker(model, space).exported
    layer_map = LayerMap(exported, space, layers)
    convolutions = [node.name for node in exported.graph.node if node.op_type == "Conv"]
    found = [layers[layer_map.find(name) or 0].key for name in convolutions]
    assert ["16x16>16x16" in key for key in found] == [True, True, False] and "8x8>8x8" in found[2]
    assert len(set(map(layer_map.find, convolutions))) == 3
