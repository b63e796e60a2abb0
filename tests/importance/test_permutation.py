"""A permutation changes no output; the order is by importance; slices are the pruned networks."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bcnet_deploy as bd
from bcnet_deploy.importance import (
    importance_scores,
    order_of,
    permutable,
    permute,
    permute_by_importance,
)
from bcnet_deploy.space.slicing import extract
from tests import zoo
from tests.space import cases

TORCHVISION = ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "regnet_y_400mf"]
CASES = {
    "residual": cases.Residual, "squeeze": cases.SqueezeExcitation, "dense": cases.Dense,
    "glu": cases.Glu, "slices": cases.Slices, "multiplier": cases.DepthwiseMultiplier,
    "grouped": cases.Grouped, "norms": cases.Norms, "transposed": cases.Transposed,
    "pixels": cases.PixelShuffle, "twice": cases.CalledTwice, "weight-norm": cases.WeightNorms,
    "pad": cases.ChannelPad, "concat": cases.ConcatPlusConv,
}  # fmt: skip


def outputs_agree(model: nn.Module, space: bd.WidthSpace, size: tuple[int, int, int], seed: int) -> float:
    """Largest relative difference of float64 outputs, before and after random orders of all units."""
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(variable.units, generator=generator) for variable in space.variables]
    model = model.double().eval()
    x = torch.randn(2, *size, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        before, after = model(x), permute(model, space, orders).eval()(x)
    # The outputs must tell channels apart, or nothing is checked: constants are taken off.
    spread = float((before - before.mean(dim=0)).abs().max())
    assert spread > 1e-6 * float(before.abs().max())
    return float((before - after).abs().max()) / spread


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_networks_compute_the_same(name: str) -> None:
    torch.manual_seed(0)
    model = bd.build_model(name)
    size = zoo.small_input(name)
    space = bd.WidthSpace.from_model(model, size)
    zoo.randomize(model)
    assert outputs_agree(model, space, size, 1) <= 1e-10


@pytest.mark.parametrize("name", CASES)
def test_what_people_write_computes_the_same(name: str) -> None:
    torch.manual_seed(0)
    body = CASES[name]()
    x = torch.zeros(1, 12, 8, 8)
    model = cases.Net(body, out=body.eval()(x).shape[1]).train()
    space = bd.WidthSpace.from_model(model, (3, 8, 8))
    zoo.randomize(model)
    assert outputs_agree(model, space, (3, 8, 8), 2) <= 1e-10


class RandomBlocks(nn.Module):
    """A chain of randomly chosen constructions on twelve channels."""

    def __init__(self, kinds: list[str], width: int) -> None:
        super().__init__()
        self.stem = cases.conv(3, 12)
        self.blocks = nn.ModuleList()
        for kind in kinds:
            self.blocks.append(
                nn.ModuleDict({"a": cases.conv(12, width), "b": cases.conv(width, 12)})
                if kind != "depthwise"
                else nn.ModuleDict({"a": cases.conv(12, 12, groups=12), "b": cases.conv(12, 12, 1)})
            )
        self.kinds = kinds
        self.join = cases.conv(24, 12, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for kind, block in zip(self.kinds, self.blocks, strict=True):
            y = block["b"](block["a"](x))
            if kind == "residual":
                x = x + y
            elif kind == "concat":
                x = self.join(torch.cat([x, y], 1))
            elif kind == "gate":
                x = x * y.mean((2, 3), keepdim=True).sigmoid()
            else:
                x = y
        return self.head(x.mean((2, 3)))


@settings(max_examples=25)
@given(
    kinds=st.lists(st.sampled_from(["residual", "concat", "gate", "depthwise", "plain"]), max_size=4),
    width=st.integers(2, 9),
    seed=st.integers(0, 100),
)
def test_random_networks_compute_the_same(kinds: list[str], width: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = RandomBlocks(kinds, width)
    space = bd.WidthSpace.from_model(model, (3, 6, 6), levels=4)
    zoo.randomize(model, seed)
    assert outputs_agree(model, space, (3, 6, 6), seed) <= 1e-10


def test_left_slice_is_the_pruned_network() -> None:
    """Against a network written by hand that keeps the channels with the largest weights."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    ).eval()  # fmt: skip
    zoo.randomize(model)
    space = bd.WidthSpace.from_model(model, (3, 9, 9), levels=4)
    first, norm, second, last = model[0], model[1], model[3], model[7]
    size = first.weight.square().sum((1, 2, 3)) + norm.weight.square() + second.weight.square().sum((0, 2, 3))
    keep_a = size.argsort(descending=True)[:4]
    keep_b = (second.weight.square().sum((1, 2, 3)) + last.weight.square().sum(0)).argsort(descending=True)[
        :3
    ]
    by_hand = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4),
    ).eval()  # fmt: skip
    with torch.no_grad():
        for theirs, ours, dims in (
            (first, by_hand[0], (keep_a,)), (norm, by_hand[1], (keep_a,)),
            (second, by_hand[3], (keep_b, keep_a)),
        ):  # fmt: skip
            for name, tensor in theirs.state_dict().items():
                if tensor.ndim:
                    for axis, kept in enumerate(dims[: tensor.ndim]):
                        tensor = tensor.index_select(axis, kept)
                    ours.state_dict()[name].copy_(tensor)
        by_hand[7].weight.copy_(last.weight[:, keep_b])
        by_hand[7].bias.copy_(last.bias)
    pruned = space.extract(permute_by_importance(model, space, "l2"), [4, 3]).eval()
    x = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(pruned(x), by_hand(x))


@pytest.mark.parametrize("importance", ["l2", "l2-normalised", "bn-scale", "taylor"])
def test_channels_stand_in_order(importance: str) -> None:
    torch.manual_seed(0)
    model = cases.Net(cases.Residual())
    zoo.randomize(model)
    before = copy.deepcopy(model.state_dict())
    space = bd.WidthSpace.from_model(model, (3, 8, 8))
    batches = [(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]))]
    permuted = permute_by_importance(model, space, importance, batches=batches)
    for scores in importance_scores(permuted, space, importance, batches):
        # Sums in another order: equal up to rounding.
        assert bool((scores[1:] <= scores[:-1] * (1 + 1e-5)).all())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training and all(parameter.grad is None for parameter in model.parameters())


def test_channels_cut_by_position_keep_their_order() -> None:
    """Behind a channel shuffle a unit's place decides what reads it; the others are still sorted."""
    torch.manual_seed(0)
    model = cases.Net(cases.Shuffled())
    zoo.randomize(model)
    model.eval()
    space = bd.WidthSpace.from_model(model, (3, 8, 8))
    free = permutable(model, space)
    assert [v.name for v, may in zip(space.variables, free, strict=True) if not may] == ["body.first.0"]
    permuted = permute_by_importance(model, space).eval()
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(permuted(x), model(x))
    scores = importance_scores(permuted, space, "l2")
    assert bool((scores[0].diff() <= 0).all()) and not torch.equal(
        permuted.stem[0].weight, model.stem[0].weight
    )


def test_a_network_that_amplifies_rounding_is_still_sorted() -> None:
    """Each layer here makes a change of the last digit some ten times larger."""

    class Steep(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sin(12 * x)

    torch.manual_seed(0)
    layers = [part for _ in range(7) for part in (nn.Conv2d(6, 6, 1), Steep())]
    model = nn.Sequential(nn.Conv2d(3, 6, 1), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2))
    zoo.randomize(model)
    space = bd.WidthSpace.from_model(model.eval(), (3, 4, 4))
    assert outputs_agree(copy.deepcopy(model), space, (3, 4, 4), 0) > 1e-9
    assert permutable(model, space) == [True] * len(space.variables)


def test_both_ends() -> None:
    scores = torch.tensor([1.0, 5.0, 3.0, 4.0, 2.0])
    assert order_of(scores).tolist() == [1, 3, 2, 4, 0]
    assert scores[order_of(scores, both_ends=True)].tolist() == [5, 3, 1, 2, 4]


def test_narrower_networks_are_permuted_too() -> None:
    """Iterative pruning orders what a first step has kept."""
    torch.manual_seed(0)
    model = cases.Net(cases.Residual())
    zoo.randomize(model)
    space = bd.WidthSpace.from_model(model, (3, 8, 8))
    narrow = space.extract(model, [8, 12]).eval()
    permuted = permute_by_importance(narrow, space).eval()
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(permuted(x), narrow(x))
    again = extract(space.plan, permuted, space.one([4, 6]), stored=[8, 12])
    assert again.stem[0].weight.shape[0] == 4


def test_own_importance_and_what_it_may_not_give() -> None:
    torch.manual_seed(0)
    model = cases.Net(cases.Residual())
    space = bd.WidthSpace.from_model(model, (3, 8, 8))

    def backwards(*_: object) -> tuple[torch.Tensor, ...]:
        return tuple(torch.arange(variable.units) for variable in space.variables)

    permuted = permute_by_importance(model, space, backwards)
    torch.testing.assert_close(permuted.stem[0].weight, model.stem[0].weight.flip(0))
    with pytest.raises(bd.EvaluationError, match=r"<lambda> gave scores of shapes \[\(2,\)\]"):
        permute_by_importance(model, space, lambda *_: (torch.ones(2),))
    with pytest.raises(bd.NonFiniteWeightError, match="stem"):
        permute_by_importance(
            model, space, lambda *_: tuple(torch.full((v.units,), np.nan) for v in space.variables)
        )
    with pytest.raises(bd.EvaluationError, match="needs batches"):
        permute_by_importance(model, space, "taylor")
    with pytest.raises(bd.ConfigError, match="did you mean 'taylor'"):
        permute_by_importance(model, space, "tailor")
    with pytest.raises(bd.WidthError, match="no permutation of its 12 units"):
        permute(model, space, [torch.zeros(v.units, dtype=torch.int64) for v in space.variables])
    other = bd.WidthSpace.from_model(cases.Net(cases.Dense()), (3, 8, 8))
    with pytest.raises(bd.CheckpointError, match="not of this space"):
        permute_by_importance(model, other)


class ChannelAttention(nn.Module):
    """A convolution over channels (ECA): each one reads its neighbours, so their places decide."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.a, self.over = nn.Conv2d(1, first, 3, padding=1), nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.b, self.head = nn.Conv2d(first, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.a(x))
        x = x * torch.sigmoid(self.over(x.mean(dim=(2, 3)).unsqueeze(1))).squeeze(1)[:, :, None, None]
        return self.head(torch.relu(self.b(x)).mean(dim=(2, 3)))


@pytest.mark.parametrize("first", [2, 3, 8])
def test_two_channels_are_no_freer_than_eight(first: int) -> None:
    """The trial's order of two units was the one they have: no trial at all."""
    torch.manual_seed(1)
    model = ChannelAttention(first).eval()
    space = bd.WidthSpace.from_model(model, (1, 8, 8), levels=2)
    by_name = dict(zip((v.name for v in space.variables), permutable(model, space), strict=True))
    assert by_name == {"a": False, "b": True}
    x = torch.randn(4, 1, 8, 8)
    assert torch.allclose(permute_by_importance(model, space)(x), model(x), atol=1e-5)


def test_models_that_name_their_type_are_sorted_too() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
            self.head = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.a(x.float()))
            weights = self.b(x).flatten(2).softmax(dim=-1, dtype=torch.float32)
            return self.head((x.flatten(2) * weights).sum(dim=-1))

    torch.manual_seed(0)
    model = Named().eval()
    space = bd.WidthSpace.from_model(model, (1, 8, 8), levels=4)
    assert permutable(model, space) == [True] * len(space.variables)
    x = torch.randn(4, 1, 8, 8)
    ordered = permute_by_importance(model, space)
    assert torch.allclose(ordered(x), model(x), atol=1e-5) and not torch.equal(
        ordered.a.weight, model.a.weight
    )
