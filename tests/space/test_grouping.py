"""Which layers share a width: the same sets as Torch-Pruning's dependency graph finds.

More models, and the differences with their reasons, are in docs/grouping.md.
"""

from __future__ import annotations

import pytest
import torch

import bcnet_deploy as bd
from benchmarks.check_grouping import compare, ours, theirs


@pytest.mark.parametrize("name", ["demo", "mobilenet_v3_small", "googlenet", "resnet18", "convnext_tiny"])
def test_same_groups(name: str) -> None:
    result = compare(name)
    assert result["status"] == "same", result
    assert int(str(result["groups"])) >= 10


def test_grouped_convolutions_differ_as_documented() -> None:
    """We let a grouped convolution's input and output change by whole groups together."""
    from torchvision.models.resnet import Bottleneck, ResNet

    torch.manual_seed(0)
    model = ResNet(Bottleneck, [1, 1, 1, 1], groups=8, width_per_group=4)
    own = ours(bd.WidthSpace.from_model(model, (3, 64, 64)))
    other = theirs(model, torch.randn(2, 3, 64, 64))
    assert own != other
    tied = {frozenset({f"layer{i}.0.conv1", f"layer{i}.0.conv2"}) for i in (1, 2, 3, 4)}
    assert own - other <= tied
    # Nothing else differs: splitting our pairs gives exactly their sets.
    assert {frozenset({name}) for group in own - other for name in group} == other - own


def test_torch_pruning_fails_on_channel_shuffle_and_we_do_not() -> None:
    assert compare("shufflenet_v2_x0_5")["status"] == "fails in Torch-Pruning"
