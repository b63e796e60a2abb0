"""Layers: nothing lost, fused as runtimes do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import bcnet_deploy as bd
from bcnet_deploy.devices import load_device
from bcnet_deploy.lut import Layer, layers_of
from bcnet_deploy.lut.estimate import estimate_table
from tests.lut.fakes import tiny_space


@pytest.mark.parametrize("name", ["demo", "channel_bench_macro_mobilenet", "channel_bench_macro_resnet"])
def test_every_operator_is_in_exactly_one_layer(name: str) -> None:
    from bcnet_deploy.models import default_input_size

    space = bd.WidthSpace.from_model(bd.build_model(name).eval(), default_input_size(name))
    layers = layers_of(space)
    names = [op for layer in layers for op in layer.ops]
    assert len(names) == len(set(names))
    free = {op.name for op in space.ops} - set(names)
    assert {op.kind for op in space.ops if op.name in free} <= {"dropout", "detach", "alias", "clone"}
    assert sum(layer.macs for layer in layers) == int(space.macs(space.full)[0])


def test_batch_norm_and_activation_join_their_convolution() -> None:
    layers = {layer.name: layer for layer in layers_of(tiny_space())}
    stem = layers["stem.0"]
    assert stem.key == "conv dense k3x3 s2x2 p1x1 16x16>8x8 +relu fp32 b1"
    assert len(stem.ops) == 3
    assert [extent.max for extent in stem.dims] == [3, 32]
    assert layers["depthwise.0"].key == "conv depthwise k3x3 s1x1 p1x1 8x8>8x8 +relu fp32 b1"
    assert [extent.max for extent in layers["depthwise.0"].dims] == [64]
    assert "+" not in layers["project.0"].key  # the addition behind it is another layer


def test_precision_and_batch_are_part_of_the_key() -> None:
    keys = {layer.key for layer in layers_of(tiny_space(), precision="fp16", batch=8)}
    assert all(key.endswith("fp16 b8") for key in keys)
    assert not keys & {layer.key for layer in layers_of(tiny_space())}


def test_a_resolution_of_its_own_makes_other_layers() -> None:
    small = {layer.key for layer in layers_of(tiny_space(size=16))}
    large = {layer.key for layer in layers_of(tiny_space(size=32))}
    assert {key.split()[0] for key in small & large} <= {"linear", "view", "mean"}


def test_layers_survive_json() -> None:
    for layer in layers_of(tiny_space()):
        again = Layer.from_dict(layer.to_dict())
        assert again == layer
        widths = np.array([[16, 8, 4, 2]])[:, : len(tiny_space().variables)]
        assert [extent(widths) for extent in again.dims] == [extent(widths) for extent in layer.dims]


class FewGroups(nn.Module):
    """Convolutions of two and of four groups, of 32 channels each at full width."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.two = nn.Conv2d(3, 64, 1), nn.Conv2d(64, 64, 3, padding=1, groups=2)
        self.b, self.four = nn.Conv2d(64, 128, 1), nn.Conv2d(128, 128, 3, padding=1, groups=4)
        self.head = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.four(self.b(self.two(self.a(x)))).mean((2, 3)))


def test_a_fixed_number_of_groups_is_part_of_the_key() -> None:
    """At 64 channels two groups have 32 each and four have 16: half of the multiply-accumulates."""
    space = bd.WidthSpace.from_model(FewGroups().eval(), (3, 32, 32), 8)
    layers = {layer.name: layer for layer in layers_of(space)}
    assert "groups2" in layers["two"].key and "groups4" in layers["four"].key
    table = estimate_table(space, load_device("cpu-1thread"))
    for name in ("two", "four"):
        coefficient, factors = table.models[layers[name].key].macs[0]  # type: ignore[union-attr]
        dims = [layers[name].dims[index].max for index in factors]
        assert coefficient * np.prod(dims) == layers[name].macs
