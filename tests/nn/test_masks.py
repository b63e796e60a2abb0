"""Masked networks against slices: the same outputs, the same gradients, or a refusal."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import bcnet_deploy as bd
from bcnet_deploy.nn.masks import WidthMasks
from tests.nn.test_supernet import ALL
from tests.space.test_operators import SIZE, network

OTHERWISE = {"Shuffled"}
"""Constructions whose slices are not their full network with zeros."""


def supernet_of(name: str) -> bd.Supernet:
    model = network(ALL[name])
    return bd.Supernet(model, bd.WidthSpace.from_model(model, SIZE, levels=6))


@pytest.mark.parametrize("name", sorted(ALL.keys() - {"InPlaceResidual"}))  # which has no gradient at all
def test_masked_networks_have_the_outputs_and_gradients_of_slices(name: str) -> None:
    supernet = supernet_of(name)
    masks = WidthMasks(supernet)
    x = torch.randn(3, *SIZE, dtype=torch.float64)
    if not masks.agree(x, np.random.default_rng(0)):
        assert name in OTHERWISE
        return
    assert name not in OTHERWISE
    before = {key: value.clone() for key, value in supernet.state_dict().items()}
    for widths in supernet.space.random(2, np.random.default_rng(3)):
        for side in ("left", "right"):
            found = []
            for masked in (False, True):
                supernet.load_state_dict(before)
                supernet.zero_grad(set_to_none=True)
                supernet.set_active(widths, side)
                if masked:
                    flat = masks.flat(torch.tensor(masks.space.one(widths)), torch.tensor(side == "right"))
                    with masks.masked(flat) as inner:
                        output = inner(x)
                else:
                    output = supernet(x)
                if output.requires_grad:
                    output.square().sum().backward()
                statistics = [buffer.clone() for buffer in supernet.model.buffers()]
                found.append((output.detach(), [p.grad for p in supernet.model.parameters()], statistics))
            (sliced, ours, kept), (other, theirs, likewise) = found
            torch.testing.assert_close(other, sliced, rtol=0, atol=1e-9)
            torch.testing.assert_close(likewise, kept, rtol=0, atol=1e-9)
            for one, two in zip(ours, theirs, strict=True):
                zero = one is None or two is None
                assert not zero or all(g is None or not g.any() for g in (one, two))
                if one is not None and two is not None:
                    torch.testing.assert_close(two, one, rtol=0, atol=1e-9 * max(1.0, float(one.abs().max())))


@pytest.mark.parametrize("levels", [2, 20])
def test_a_norm_over_channels_is_refused(levels: int) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.GroupNorm(1, 8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    supernet = bd.Supernet(model, bd.WidthSpace.from_model(model, SIZE, levels=levels))
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    assert not WidthMasks(supernet).agree(torch.randn(2, *SIZE), np.random.default_rng(0))
    assert supernet.training and all(torch.equal(supernet.state_dict()[k], v) for k, v in before.items())


def test_a_supernet_with_a_minimum_width_is_masked_over_what_it_stores() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )
    supernet = bd.Supernet(model, bd.WidthSpace.from_model(model, SIZE, levels=4, min_level=1))
    masks = WidthMasks(supernet)
    widths = supernet.space.uniform(0.5)
    flat = masks.flat(torch.tensor(masks.space.one(widths)), torch.tensor(True))
    x = torch.randn(2, *SIZE)
    with masks.masked(flat) as inner:
        output = inner(x)
    torch.testing.assert_close(output, supernet.extract(widths, "right")(x))
    assert int(flat.sum()) == int(widths.sum()), (
        "ones for the kept channels, counted once a kind of dimension"
    )
