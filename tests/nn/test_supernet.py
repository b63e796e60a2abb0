"""The supernet against extracted networks, and against channel counts in closed form."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

import bcnet_deploy as bd
from bcnet_deploy.nn import recalibrate
from tests.space import cases
from tests.space.test_operators import SIZE, network

ALL = {**cases.IDENTITY, "Shuffled": cases.Shuffled}


@pytest.mark.parametrize("name", sorted(ALL))
@pytest.mark.parametrize("training", [False, True])
def test_slices_equal_the_extracted_network(name: str, training: bool) -> None:
    model = network(ALL[name])
    space = bd.WidthSpace.from_model(model, SIZE, levels=6)
    supernet = bd.Supernet(model, space).train(training)
    x = torch.randn(3, *SIZE, dtype=torch.float64)
    for widths in space.random(2, np.random.default_rng(3)):
        for side in ("left", "right"):
            subnet = space.extract(model, widths, side).train(training)
            supernet.set_active(widths, side)
            torch.testing.assert_close(supernet(x), subnet(x), rtol=0, atol=1e-10)
            # Running statistics too land where the slice is, and nowhere else.
            again = space.extract(model, widths, side)
            for (key, ours), theirs in zip(
                again.state_dict().items(), subnet.state_dict().values(), strict=True
            ):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12, msg=key)


@pytest.mark.parametrize("name", ["Dense", "Grouped", "Residual", "Functional"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("in_place", [False, True])
def test_gradients_land_in_the_slice_only(name: str, side: str, in_place: bool) -> None:
    model = network(ALL[name])
    space = bd.WidthSpace.from_model(model, SIZE, levels=6)
    supernet = bd.Supernet(model, space)
    widths = space.uniform(0.5)
    subnet = space.extract(model, widths, side)
    x = torch.randn(3, *SIZE, dtype=torch.float64)
    supernet.set_active(widths, side)
    with supernet.gradients_in_place() if in_place else nullcontext():
        supernet(x).square().sum().backward()
    subnet(x).square().sum().backward()
    # Let the extraction cut the full gradient: it must be the sub-network's, and the rest zero.
    carrier = network(ALL[name])
    for target, source in zip(carrier.parameters(), model.parameters(), strict=True):
        assert source.grad is not None
        target.data = source.grad.clone()
    cut = space.extract(carrier, widths, side)
    total = 0.0
    for ours, theirs in zip(cut.parameters(), subnet.parameters(), strict=True):
        assert theirs.grad is not None
        torch.testing.assert_close(ours, theirs.grad, rtol=0, atol=1e-9)
        total += float(ours.detach().abs().sum())
    everything = sum(float(p.grad.abs().sum()) for p in model.parameters() if p.grad is not None)
    assert everything == pytest.approx(total, rel=1e-12) and total > 0


@pytest.mark.parametrize("name", sorted(ALL.keys() - {"InPlaceResidual"}))  # which has no gradient at all
def test_gradients_in_place_are_those_of_the_ordinary_way(name: str) -> None:
    """Over several passes, and with weights that are read twice, computed from others, frozen or joined."""
    model = network(ALL[name])
    next(model.parameters()).requires_grad_(False)
    space = bd.WidthSpace.from_model(model, SIZE, levels=6)
    supernet = bd.Supernet(model, space)
    x = torch.randn(3, *SIZE, dtype=torch.float64)
    gradients = []
    for context in (nullcontext(), supernet.gradients_in_place()):
        supernet.zero_grad(set_to_none=True)
        with context:
            for widths in space.random(2, np.random.default_rng(3)):
                for side in ("left", "right"):
                    supernet.set_active(widths, side)
                    supernet(x).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert gradients[0][0] is None and any(g is not None and g.any() for g in gradients[0])
    for ordinary, ours in zip(*gradients, strict=True):
        if ordinary is None:
            assert ours is None
        else:
            torch.testing.assert_close(ours, ordinary, rtol=0, atol=1e-12 * float(ordinary.abs().max()))


def test_gradients_in_place_end_with_their_block() -> None:
    model = network(cases.Residual)
    supernet = bd.Supernet(model, bd.WidthSpace.from_model(model, SIZE))
    x = torch.randn(3, *SIZE, dtype=torch.float64)
    with pytest.raises(ZeroDivisionError), supernet.gradients_in_place():
        raise ZeroDivisionError
    (gradient,) = torch.autograd.grad(supernet(x).sum(), [next(model.parameters())])
    assert gradient.any()


def test_slices_share_memory_with_the_full_weights() -> None:
    model = network(cases.Residual)
    space = bd.WidthSpace.from_model(model, SIZE)
    supernet = bd.Supernet(model, space)
    full = model.body.a[0].weight  # type: ignore[union-attr,index]
    supernet.set_active([5, 7], "right")
    with supernet.sliced() as active:
        part = active.body.a[0].weight  # type: ignore[union-attr,index]
        assert part.shape == (7, 5, 3, 3)
        assert part.untyped_storage().data_ptr() == full.untyped_storage().data_ptr()
    assert model.body.a[0].weight is full  # type: ignore[union-attr,index]


class Explosion(Exception):
    pass


def test_the_model_is_itself_again_after_an_exception() -> None:
    model = network(cases.Grouped)
    space = bd.WidthSpace.from_model(model, SIZE)
    supernet = bd.Supernet(model, space)
    before = [(id(p), p.shape) for p in model.parameters()]
    groups = model.body.grouped.groups  # type: ignore[union-attr]

    def explode(*_: object) -> None:
        raise Explosion

    handle = model.head.register_forward_pre_hook(explode)  # type: ignore[union-attr]
    supernet.set_active(space.narrowest, "right")
    with pytest.raises(Explosion):
        supernet(torch.randn(2, *SIZE, dtype=torch.float64))
    handle.remove()
    assert [(id(p), p.shape) for p in model.parameters()] == before
    assert model.body.grouped.groups == groups  # type: ignore[union-attr]
    assert dict(model.named_parameters()) and all(isinstance(p, nn.Parameter) for p in model.parameters())


def used_channels(supernet: bd.Supernet, widths: np.ndarray, side: str) -> np.ndarray:
    """Which channels of the stem take part, read off the gradient of its batch norm's bias."""
    supernet.zero_grad()
    supernet.set_active(widths, side)
    supernet(torch.randn(2, *SIZE, dtype=torch.float64)).sum().backward()
    grad = supernet.model.stem[1].bias.grad  # type: ignore[union-attr,index]
    return (grad != 0).numpy().astype(int)


@pytest.mark.parametrize(("min_level", "expected"), [(0, 7), (1, 6), (2, 5), (3, 4)])
def test_every_channel_takes_part_equally_often_over_all_widths(min_level: int, expected: int) -> None:
    """K + 1 times without a minimum, K - m + 1 times with one (BCNet and BCNetV2); K = 6."""
    torch.manual_seed(0)
    model = cases.Net(cases.Transposed()).double().train()
    nn.init.ones_(model.stem[1].bias)  # every ReLU of the stem is open for some pixel
    space = bd.WidthSpace.from_model(model, SIZE, levels=6, min_level=min_level)
    supernet = bd.Supernet(model, space)
    stem = space.variables[0]
    counts = np.zeros(supernet.max_channels[0], dtype=int)
    assert len(counts) == 12 * (6 + min_level) // 6
    for width in stem.choices:
        widths = space.full
        widths[0] = width
        counts += used_channels(supernet, widths, "left") + used_channels(supernet, widths, "right")
    assert set(counts) == {expected}


@given(st.integers(1, 12))
@settings(max_examples=12, deadline=None)
def test_left_and_right_of_the_complement_tile_the_layer(width: int) -> None:
    model = network(cases.Transposed).train()
    nn.init.ones_(model.stem[1].bias)  # type: ignore[union-attr,index]
    space = bd.WidthSpace.from_model(model, SIZE, levels=6)
    supernet = bd.Supernet(model, space)
    widths, complement = space.full, space.full
    widths[0], complement[0] = width, 12 - width
    if width == 12:
        return
    for a, b in (("left", "right"), ("right", "left")):
        total = used_channels(supernet, widths, a) + used_channels(supernet, complement, b)
        assert set(total) == {1}


def test_recalibration_is_the_plain_average_and_touches_the_slice_only() -> None:
    model = network(cases.Residual).train()
    space = bd.WidthSpace.from_model(model, SIZE, levels=6)
    supernet = bd.Supernet(model, space)
    batches = [torch.randn(4, *SIZE, dtype=torch.float64) for _ in range(3)]
    norm = model.stem[1]  # type: ignore[union-attr,index]
    before = norm.running_mean.clone()
    supernet.set_active([5, 20], "right")
    recalibrate(supernet, batches)
    stem = model.stem[0].weight[-5:]  # type: ignore[union-attr,index]
    means = torch.stack([torch.conv2d(x, stem, padding=1).mean((0, 2, 3)) for x in batches])
    torch.testing.assert_close(norm.running_mean[-5:], means.mean(0))
    torch.testing.assert_close(norm.running_mean[:-5], before[:-5])
    assert model.training and norm.momentum == 0.1
    with pytest.raises(bd.EvaluationError, match="at least one batch"):
        recalibrate(supernet, [])


def test_arguments_are_checked() -> None:
    model = network(cases.Residual)
    space = bd.WidthSpace.from_model(model, SIZE)
    supernet = bd.Supernet(model, space)
    with pytest.raises(bd.WidthError, match="'left' or 'right'; given: 'middle'"):
        supernet.set_active(space.full, "middle")
    with pytest.raises(bd.WidthError, match="has 2 widths"):
        supernet.set_active([1, 2, 3])
    with pytest.raises(bd.CheckpointError, match="not of this space"):
        bd.Supernet(network(cases.Gated), space)
    widths, side = supernet.active
    assert widths.tolist() == [12, 20] and side == "left"


def test_extraction_from_a_widened_supernet() -> None:
    model = network(cases.Dense)
    space = bd.WidthSpace.from_model(model, SIZE, levels=6, min_level=2)
    supernet = bd.Supernet(model, space).eval()
    assert supernet.model is not model
    x = torch.randn(2, *SIZE, dtype=torch.float64)
    for side in ("left", "right"):
        widths = space.random(1, np.random.default_rng(5))[0]
        supernet.set_active(widths, side)
        torch.testing.assert_close(supernet(x), supernet.extract(widths, side)(x), rtol=0, atol=1e-10)


class OwnNorm(nn.Module):
    """A batch norm of one's own that assigns its buffers anew."""

    def __init__(self, channels: int, keep: float = 0.9) -> None:
        super().__init__()
        self.keep = keep
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, var = self.mean, self.var
        if self.training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
            self.mean = self.keep * self.mean + (1 - self.keep) * mean.detach()
            self.var.mul_(self.keep).add_(var.detach(), alpha=1 - self.keep)
            self.seen = self.seen + 1
        return (x - mean[:, None, None]) * (var[:, None, None] + 1e-5).rsqrt()


def own_norms() -> nn.Module:
    """Behind a convolution, and behind a concatenation, of which a slice keeps two ranges."""

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm = nn.Conv2d(3, 12, 3), nn.Conv2d(3, 8, 3), OwnNorm(20)
            self.c, self.last, self.head = nn.Conv2d(20, 6, 1), OwnNorm(6, 0.5), nn.Linear(6, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.c(self.norm(torch.cat([self.a(x), self.b(x)], 1)).relu())
            return self.head(self.last(y).mean((2, 3)))

    torch.manual_seed(0)
    return Joined().double()


@pytest.mark.parametrize("side", ["left", "right"])
def test_buffers_that_forward_assigns_are_written_back(side: str) -> None:
    model = own_norms()
    space = bd.WidthSpace.from_model(model, SIZE)
    assert not space.notes and [v.channels for v in space.variables] == [12, 8, 6]
    widths = [5, 3, 4]
    plain = space.extract(model, widths, side).train()
    supernet = bd.Supernet(model, space).train()
    supernet.set_active(widths, side)
    for seed in range(3):
        x = torch.randn(4, *SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(supernet(x), plain(x), rtol=0, atol=1e-12)
    again = space.extract(model, widths, side)
    for (name, ours), theirs in zip(again.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12, msg=name)
    # Outside of the slice nothing has changed.
    dropped = slice(5, 12) if side == "left" else slice(0, 7)
    assert not model.norm.mean[dropped].any() and model.norm.mean.abs().sum() > 0  # type: ignore[union-attr,index,operator]


@pytest.mark.parametrize("supernet", [False, True])
def test_recalibration_finds_running_averages_of_any_module(supernet: bool) -> None:
    """By hand: the plain average of the batches' means and variances, whatever the module's momentum."""
    model = own_norms()
    space = bd.WidthSpace.from_model(model, SIZE)
    network: nn.Module = space.extract(model, [5, 3, 4])
    carrier = network
    if supernet:
        network = bd.Supernet(model, space)
        network.set_active([5, 3, 4])
    batches = [torch.randn(4, *SIZE, dtype=torch.float64) + i for i in range(3)]
    network.train()
    recalibrate(network, batches)
    assert network.training
    if supernet:
        carrier = space.extract(model, [5, 3, 4])
    with torch.no_grad():
        joined = [torch.cat([carrier.a(x), carrier.b(x)], 1) for x in batches]  # type: ignore[operator]
    means = torch.stack([y.mean((0, 2, 3)) for y in joined]).mean(0)
    variances = torch.stack([y.var((0, 2, 3)) for y in joined]).mean(0)
    torch.testing.assert_close(carrier.norm.mean, means, rtol=0, atol=1e-5)  # type: ignore[union-attr]
    torch.testing.assert_close(carrier.norm.var, variances, rtol=0, atol=1e-5)  # type: ignore[union-attr]


def test_recalibration_says_what_it_cannot_do() -> None:
    class Largest(OwnNorm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                self.mean = torch.maximum(self.mean, x.amax((0, 2, 3)))
            return x

    model = nn.Sequential(nn.Conv2d(3, 4, 3), Largest(4), nn.Flatten(), nn.Linear(4 * 36, 5))
    with pytest.warns(UserWarning, match=r"1\.mean changes in training and is no running average"):
        recalibrate(model, [torch.randn(4, *SIZE)])
    assert not model[1].mean.any()


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_checkpointed_parts_run_again_on_the_same_slice(reentrant: bool, in_place: bool) -> None:
    """Two passes of other widths before one backward: each is run again on its own slice."""

    class Checkpointed(nn.Module):
        def __init__(self, active: bool) -> None:
            super().__init__()
            self.active = active
            self.a, self.b, self.h = nn.Conv2d(3, 12, 3), cases.conv(12, 16), nn.Linear(16, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            y = checkpoint(self.part, y, use_reentrant=reentrant) if self.active else self.part(y)
            return self.h(y.mean((2, 3)))

        def part(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(x) * self.h.weight.mean()

    gradients = []
    x = torch.randn(4, *SIZE, dtype=torch.float64)
    for active in (False, True):
        torch.manual_seed(0)
        model = Checkpointed(active).double()
        space = bd.WidthSpace.from_model(model, SIZE)
        supernet = bd.Supernet(model, space).train()
        total = torch.zeros((), dtype=torch.float64)
        with supernet.gradients_in_place() if in_place else nullcontext():
            for widths, side in (([5, 7], "left"), ([9, 3], "right")):
                supernet.set_active(widths, side)
                total = total + supernet(x).square().sum()
            total.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
        assert model.b[0].weight.shape == (16, 12, 3, 3)
    for ordinary, ours in zip(*gradients, strict=True):
        assert ordinary is not None and ours is not None and ordinary.any()
        torch.testing.assert_close(ours, ordinary, rtol=0, atol=1e-12 * float(ordinary.abs().max()))


def test_memory_efficient_densenet_trains_at_narrow_widths() -> None:
    torch.manual_seed(0)
    model = torchvision.models.DenseNet(8, (2, 2), 16, memory_efficient=True, num_classes=5)
    space = bd.WidthSpace.from_model(model, (3, 32, 32))
    supernet = bd.Supernet(model, space).train()
    supernet.set_active(space.uniform(0.5))
    supernet(torch.randn(4, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
