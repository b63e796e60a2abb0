"""Costs of published widths and benchmark tables: exact, and equal to what the built network has."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import bcnet_deploy as bd
from bcnet_deploy.models import default_input_size
from tests import zoo

MODELS = {
    "mobilenet_v2_imagenet": "mobilenet_v2",
    "mobilenet_v2_1.5x_imagenet": "mobilenet_v2_1.5x",
    "mobilenet_v2_cifar10": "mobilenet_v2_cifar10",
    "resnet50_imagenet": "resnet50",
    "vgg19_cifar10": "vgg19_cifar10",
}


@pytest.fixture(scope="module")
def lists(shared_data: Path) -> dict[str, Any]:
    return yaml.safe_load((shared_data / "width_lists.yaml").read_text())


@pytest.mark.parametrize("key", MODELS)
def test_published_lists(lists: dict[str, Any], key: str) -> None:
    """Every row and baseline of a model: counted from the space, and again from the network as built."""
    model = bd.build_model(MODELS[key])
    size = default_input_size(MODELS[key])
    space = bd.WidthSpace.from_model(model, size)
    rows = list(lists[key])
    if key in lists["baselines"]:
        rows.append({**lists["baselines"][key], "widths": space.full.tolist()})
    widths = np.array([row["widths"] for row in rows])
    assert space.macs(widths).tolist() == [row["macs"] for row in rows]
    assert space.params(widths).tolist() == [row["params"] for row in rows]
    for row in rows:
        net = space.extract(model, row["widths"]).eval()
        assert zoo.counted_params(net) == row["params"]
        with torch.no_grad():
            assert net(torch.zeros(1, *size)).shape == (1, 10 if "cifar" in key else 1000)
        assert zoo.counted_macs(net, size) == row["macs"]


def test_every_published_list_is_covered(lists: dict[str, Any]) -> None:
    assert set(lists) - {"baselines"} == set(MODELS)
    assert set(lists["baselines"]) <= set(MODELS)


def test_channel_bench_macro_mobilenet(shared_data: Path) -> None:
    """All rows of the benchmark's table, exactly; and all at once in under a second."""
    model = bd.build_model("channel_bench_macro_mobilenet")
    space = bd.WidthSpace.from_model(model, (3, 32, 32), levels=4)
    assert space.full.tolist() == [128, 768, 768, 768, 256, 1536, 1024]
    with (shared_data / "channel_bench_macro_mobilenet.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8247
    levels = np.array([[int(digit) for digit in row["arch"]] for row in rows])
    widths = levels * space.full // 4
    assert {v.choices for v in space.variables} == {
        tuple(v.channels * j // 4 for j in (1, 2, 3, 4)) for v in space.variables
    }
    started = time.perf_counter()
    macs, params = space.macs(widths), space.params(widths)
    seconds = time.perf_counter() - started
    assert macs.tolist() == [int(row["flops"]) for row in rows]
    assert params.tolist() == [int(row["params"]) for row in rows]
    assert seconds < 1.0


def test_channel_bench_macro_resnet_has_the_described_widths() -> None:
    model = bd.build_model("channel_bench_macro_resnet")
    space = bd.WidthSpace.from_model(model, (3, 32, 32), levels=4)
    assert space.full.tolist() == [256, 256, 256, 512, 512, 512, 512]
    assert space.size == 4**7
    # By hand, from the description: 3x3 convolutions at 16x16 (after the stem's stride) and 8x8 maps.
    c0, c1, c2, c3, c4, c5, c6 = widths = [64, 128, 192, 256, 128, 384, 512]
    large, small = 9 * 16 * 16, 9 * 8 * 8
    expected = large * (3 * c0 + 2 * c0 * c1 + 2 * c0 * c2)
    expected += small * (c0 * c3 + c3 * c4 + 2 * c4 * c5 + 2 * c4 * c6) + c4 * 10
    assert space.macs(widths)[0] == expected


def test_variables_come_in_the_published_order() -> None:
    """As the authors list widths: the stem, then as executed; a stage's output at its first block."""
    space = bd.WidthSpace.from_model(bd.build_model("resnet50"))
    names = [variable.name for variable in space.variables]
    assert len(names) == 37
    assert names[:6] == [
        "conv1", "layer1.0.conv1", "layer1.0.conv2", "layer1.0.conv3", "layer1.1.conv1", "layer1.1.conv2",
    ]  # fmt: skip
    names = [v.name for v in bd.WidthSpace.from_model(bd.build_model("mobilenet_v2")).variables]
    assert len(names) == 25
    assert names[:4] == ["features.0.0", "features.1.conv.1", "features.2.conv.0.0", "features.2.conv.2"]
    assert names[-1] == "features.18.0"
