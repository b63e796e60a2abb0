"""Scores of channels against Torch-Pruning's, with the documented differences taken off."""

from __future__ import annotations

import pytest
import torch
import torch_pruning as tp
from torch import nn
from torch.nn import functional as F

import bcnet_deploy as bd
from bcnet_deploy.importance import importance_scores, per_variable
from tests import zoo


def groups(model: nn.Module, space: bd.WidthSpace, images: torch.Tensor) -> list[tp.Group]:
    """Torch-Pruning's group of every variable of ours, rooted at the variable's first layer."""
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=images)
    modules = dict(model.named_modules())
    return [
        graph.get_pruning_group(
            layer := modules[v.layers[0]],
            tp.prune_linear_out_channels if isinstance(layer, nn.Linear) else tp.prune_conv_out_channels,
            idxs=list(range(v.channels)),
        )
        for v in space.variables
    ]


def counted_alike(
    model: nn.Module, values: dict[str, torch.Tensor], *, norms: bool
) -> dict[str, torch.Tensor]:
    """What Torch-Pruning 1.6 counts: no depthwise filters, and no batch norms in its Taylor score."""
    modules = dict(model.named_modules())
    owners = {name: modules[name.rpartition(".")[0]] for name in values}
    return {
        name: value
        for name, value in values.items()
        if getattr(owners[name], "groups", 1) == 1 and (norms or not isinstance(owners[name], nn.BatchNorm2d))
    }


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_same_scores(name: str) -> None:
    torch.manual_seed(0)
    size = (3, 32, 32)
    model = bd.build_model(name, num_classes=10)
    space = bd.WidthSpace.from_model(model, size)
    zoo.randomize(model)
    images, labels = torch.randn(4, *size), torch.tensor([0, 1, 2, 3])
    model.eval()
    F.cross_entropy(model(images), labels).backward()
    theirs = groups(model, space, images)
    weights = {n: p for n, p in model.named_parameters() if not n.endswith("bias")}
    units = [variable.units for variable in space.variables]
    kinds = {
        "l2": (
            tp.importance.GroupMagnitudeImportance(group_reduction="sum", normalizer=None),
            {n: p.detach().square() for n, p in weights.items()},
        ),
        "taylor": (
            tp.importance.GroupTaylorImportance(group_reduction="sum", normalizer=None),
            {n: (p.detach() * p.grad).abs() for n, p in weights.items()},
        ),
    }
    for kind, (importance, values) in kinds.items():
        own = importance_scores(model, space, kind, [(images, labels)])
        torch.testing.assert_close(own, per_variable(space, values, units))
        alike = per_variable(space, counted_alike(model, values, norms=kind == "l2"), units)
        for variable, group, ours in zip(space.variables, theirs, alike, strict=True):
            expected = importance(group).double()
            torch.testing.assert_close(ours, expected, rtol=2e-4, atol=0, msg=f"{kind}, {variable.name}")
