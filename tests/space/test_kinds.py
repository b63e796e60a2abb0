"""Kinds of code that users of other tools report trouble with: the right result, or a refusal by type."""

from __future__ import annotations

import functools
from collections import namedtuple
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import bcnet_deploy as bd
from bcnet_deploy.importance import permutable

SIZE = (3, 16, 16)
Outputs = namedtuple("Outputs", ["logits", "other"])


def counted(network: nn.Module, size: tuple[int, int, int] = SIZE) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.randn(1, *size))
    return counter.get_total_flops() // 2


def runs_as_said(model: nn.Module, space: bd.WidthSpace, widths: object, size: tuple[int, int, int]) -> None:
    """An extracted network runs, costs what the space says, and equals the supernet's slice."""
    subnet = space.extract(model, widths).eval()  # type: ignore[arg-type]
    assert counted(subnet, size) == space.macs(widths)[0]  # type: ignore[arg-type]
    assert sum(p.numel() for p in subnet.parameters()) == space.params(widths)[0]  # type: ignore[arg-type]
    supernet = bd.Supernet(model, space).eval()
    supernet.set_active(widths)  # type: ignore[arg-type]
    x = torch.randn(2, *size)
    with torch.no_grad():
        torch.testing.assert_close(supernet(x), subnet(x), rtol=0, atol=1e-5)


# -- sizes fixed in the code, and decisions by widths ------------------------------------------


class Alex(nn.Module):
    """Two groups, and a size that the code knows by heart."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.g = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 2, 1, groups=2)
        self.pre, self.h = nn.Conv2d(3, 3, 1), nn.Linear(16 * 64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.g(self.c(self.pre(x)).relu()).relu()
        return self.h(x.view(x.size(0), 16 * 64))


def test_a_fixed_size_behind_few_groups_is_found() -> None:
    model = Alex()
    space = bd.WidthSpace.from_model(model, (3, 32, 32))
    assert "g" in {part.name for part in space.frozen}
    assert any("view(x.size(0), 16 * 64)" in part.reason for part in space.frozen)
    for widths in space.random(6, np.random.default_rng(0)):
        runs_as_said(model, space, widths, (3, 32, 32))


class Decides(nn.Module):
    def __init__(self, decide: Callable[[int, int], bool]) -> None:
        super().__init__()
        self.decide = decide
        self.stem, self.a = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 18, 3, padding=1)
        self.proj, self.h = nn.Conv2d(12, 18, 1), nn.Linear(18, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.a(x)
        if self.decide(x.shape[1], y.shape[1]):
            x = self.proj(x)
            return self.h((x + y).mean((2, 3)))
        return self.h(y.mean((2, 3)))


@pytest.mark.parametrize(
    "decide",
    [
        lambda stem, a: stem != a,
        lambda stem, a: stem not in (a, 40),
        lambda stem, a: stem + 3 < a + 2,
        lambda stem, a: a % stem != 11,
        lambda stem, a: a * 2 != 34,
        lambda stem, a: (a // 2) not in (3, 4),
        lambda stem, a: max(stem, a) == a,
    ],
)
def test_a_branch_that_depends_on_widths_is_never_taken_unawares(decide: Callable[[int, int], bool]) -> None:
    model = Decides(decide)
    space = bd.WidthSpace.from_model(model, SIZE, levels=18)
    assert space.frozen and space.variables
    (variable,) = space.variables  # one of two stays, at which the answer is always the same
    for width in variable.choices:
        runs_as_said(model, space, [width], SIZE)


def test_attributes_that_follow_widths_are_compared_as_well() -> None:
    class ByAttribute(Decides):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            y = self.a(x)
            if self.stem.out_channels != self.a.out_channels:
                x = self.proj(x)
                return self.h((x + y).mean((2, 3)))
            return self.h(y.mean((2, 3)))

    model = ByAttribute(lambda stem, a: True)
    space = bd.WidthSpace.from_model(model, SIZE, levels=18)
    (variable,) = space.variables
    for width in variable.choices:
        runs_as_said(model, space, [width], SIZE)


def test_comparisons_that_change_nothing_freeze_nothing() -> None:
    class Asserting(Decides):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            y = self.a(x)
            assert y.shape[1] == self.a.out_channels and x.shape[1] > 0
            if y.shape[1] == 7:
                y = y + 0.0 * y.mean() if False else y
            return self.h(y.mean((2, 3)))

    space = bd.WidthSpace.from_model(Asserting(lambda stem, a: True), SIZE)
    assert [v.channels for v in space.variables] == [12, 18] and not space.frozen


# -- copies ------------------------------------------------------------------------------------


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 8, 3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    ).eval()  # fmt: skip


def test_a_forward_that_closes_over_the_module_is_refused() -> None:
    model = plain()
    run = model.forward
    model.forward = lambda x: run(x)  # type: ignore[method-assign]
    with pytest.raises(bd.UnsupportedModelError, match="forward of Sequential is a function that holds on"):
        bd.WidthSpace.from_model(model, SIZE)
    model = plain()
    inner = model[2].forward
    model[2].forward = lambda x: inner(x)  # type: ignore[method-assign]
    with pytest.raises(bd.UnsupportedModelError, match="convolution in 2.*forward of 2"):
        bd.WidthSpace.from_model(model, SIZE)


def test_a_forward_that_a_copy_carries_is_taken() -> None:
    model, reference = plain(), plain()
    expected = bd.WidthSpace.from_model(reference, SIZE).extract(reference, [2, 2])
    model[2].forward = functools.partial(lambda run, x: run(x), model[2].forward)  # type: ignore[method-assign]
    space = bd.WidthSpace.from_model(model, SIZE)
    x = torch.randn(2, *SIZE)
    torch.testing.assert_close(space.extract(model, [2, 2])(x), expected(x), rtol=0, atol=0)


def test_parts_in_closures_of_hooks_and_in_plain_lists() -> None:
    class Hidden(nn.Module):
        """The layers are in a list that PyTorch does not know of: nothing of them can be sliced."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.layers = nn.Conv2d(3, 12, 3), [nn.Conv2d(12, 8, 3)]
            self.h = nn.Linear(8, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.h(self.layers[0](self.a(x)).mean((2, 3)))

    with pytest.raises(bd.UnsupportedModelError, match="no convolution whose width can change"):
        bd.WidthSpace.from_model(Hidden(), SIZE)
    model = plain()
    extra = nn.Conv2d(12, 12, 1)
    model[0].register_forward_hook(lambda module, args, output: extra(output))
    space = bd.WidthSpace.from_model(model, SIZE)
    assert [v.name for v in space.variables] == ["2"] and "0" in {part.name for part in space.frozen}
    assert space.extract(model, [3])(torch.randn(2, *SIZE)).shape == (2, 5)


def test_what_cannot_be_copied_is_refused() -> None:
    model = plain()
    model.lock = __import__("threading").Lock()  # type: ignore[assignment]
    with pytest.raises(bd.UnsupportedModelError, match="cannot be copied .*lock"):
        bd.WidthSpace.from_model(model, SIZE)


class Keeps(nn.Module):
    """Features in a dictionary, a list and an object, by forward and by a hook."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.h = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 8, 3), nn.Linear(20, 5)
        self.features: dict[str, torch.Tensor] = {}
        self.history: list[torch.Tensor] = []
        self.holder = Holder()
        self.b.register_forward_hook(self.keep)

    def keep(self, module: nn.Module, args: object, output: torch.Tensor) -> None:
        self.features["b"] = output
        self.holder.last = output

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.features["a"] = self.a(x)
        self.b(self.features["a"].relu())
        self.history.append(self.features["b"])
        both = [self.features[key].mean((2, 3)) for key in ("a", "b")]
        return self.h(torch.cat(both, 1))


class Holder:
    last: torch.Tensor | None = None


def test_features_kept_by_forward_hinder_nothing() -> None:
    model = Keeps()
    space = bd.WidthSpace.from_model(model, SIZE)
    assert not model.features and not model.history and model.holder.last is None
    assert [v.channels for v in space.variables] == [12, 8] and not space.frozen
    model(torch.randn(2, *SIZE)).sum().backward()  # leaves tensors with a history behind
    kept = model.features["a"]
    runs_as_said(model, space, [5, 3], SIZE)
    subnet = space.extract(model, [5, 3])
    assert subnet.features is not model.features  # type: ignore[union-attr]
    subnet(torch.randn(2, *SIZE))
    assert subnet.features["a"].shape[1] == 5 and kept.shape[1] == 12  # type: ignore[union-attr,index]


def test_training_flags_of_parts_are_carried_over() -> None:
    model = nn.Sequential(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.Conv2d(12, 8, 3), nn.Flatten(2)).train()
    model[1].eval()
    model.append(nn.Linear(144, 5))
    space = bd.WidthSpace.from_model(model, SIZE)
    flags = [module.training for module in model.modules()]
    assert [m.training for m in space.extract(model, space.narrowest).modules()] == flags
    assert flags.count(False) == 1


# -- what has no plain Python, or no single precision ------------------------------------------


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_parts_that_are_no_plain_python_are_named() -> None:
    model = plain()
    model[1] = torch.jit.script(nn.SiLU())
    with pytest.raises(bd.UnsupportedModelError, match="1 of Sequential is TorchScript"):
        bd.WidthSpace.from_model(model, SIZE)
    with pytest.raises(bd.UnsupportedModelError, match="is compiled"):
        bd.WidthSpace.from_model(torch.compile(plain()), SIZE)  # type: ignore[arg-type]
    model = plain()
    model[2].compile()  # in place: it would compile anew for every width
    with pytest.raises(bd.UnsupportedModelError, match="2 of Sequential is compiled"):
        bd.WidthSpace.from_model(model, SIZE)
    exported = torch.export.export(plain().eval(), (torch.zeros(2, *SIZE),)).module()
    with pytest.raises(bd.UnsupportedModelError, match="GraphModule was made by torch.export"):
        bd.WidthSpace.from_model(exported, SIZE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(dtype: torch.dtype) -> None:
    model = plain()
    model[2].to(dtype)
    with pytest.raises(bd.UnsupportedModelError, match=r"2.weight of Sequential is .*float16.*model\.float"):
        bd.WidthSpace.from_model(model, SIZE)


# -- operators with other signatures -----------------------------------------------------------


class Pools(nn.Module):
    def __init__(self, pool: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.h = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 8, 1), nn.Linear(8, 5)
        self.pool = pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.h(self.b(self.pool(self.a(x))).flatten(2).mean(2))


def _unpooled(x: torch.Tensor) -> torch.Tensor:
    y, indices = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(y, indices, 2)


@pytest.mark.parametrize(
    "pool",
    [
        _unpooled,
        functools.partial(F.max_pool2d, kernel_size=3, stride=2, padding=1, ceil_mode=True),
        functools.partial(F.avg_pool2d, kernel_size=(2, 3)),
        functools.partial(F.lp_pool2d, norm_type=2, kernel_size=2),
        functools.partial(F.adaptive_max_pool2d, output_size=2),
        functools.partial(F.fractional_max_pool2d, kernel_size=2, output_size=5),
        functools.partial(F.interpolate, scale_factor=2),
        nn.AvgPool2d(2),
        nn.MaxPool2d(2, dilation=2),
    ],
)
def test_pooling_of_any_signature(pool: Callable[[torch.Tensor], torch.Tensor]) -> None:
    model = Pools(pool)
    space = bd.WidthSpace.from_model(model, SIZE)
    assert [v.channels for v in space.variables] == [12, 8]
    subnet = space.extract(model, [5, 3])
    assert subnet(torch.randn(2, *SIZE)).shape == (2, 5)
    assert counted(subnet) == space.macs([5, 3])[0]


def test_products_that_depend_on_no_image_are_noted() -> None:
    class Positions(nn.Module):
        """Adds a map that a convolution makes of fixed positions."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.p, self.h = nn.Conv2d(3, 12, 3), nn.Conv2d(2, 12, 1), nn.Linear(12, 5)
            self.register_buffer("grid", torch.randn(1, 2, 14, 14))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.h((self.a(x) + self.p(self.grid)).mean((2, 3)))

    model = Positions()
    space = bd.WidthSpace.from_model(model, SIZE)
    assert len(space.notes) == 1 and "convolution in p are not counted" in space.notes[0]
    (variable,) = space.variables
    assert set(variable.layers) <= {"a", "p"} and variable.channels == 12
    subnet = space.extract(model, [5])
    assert counted(subnet) - 2 * 5 * 14 * 14 == space.macs([5])[0]


def test_constants_of_the_batch_size_do_not_hide_the_batch() -> None:
    class Repeated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.h = nn.Conv2d(3, 12, 3), nn.Linear(12, 8), nn.Linear(8, 5)
            self.register_buffer("grid", torch.randn(1, 1, 14, 14))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x) + torch.zeros(2 * x.shape[0] // 2, 1, 1, 1) + self.grid.repeat(len(x), 1, 1, 1)
            return self.h(self.b(y.permute(0, 2, 3, 1)).mean((1, 2)))

    model = Repeated()
    space = bd.WidthSpace.from_model(model, SIZE)
    runs_as_said(model, space, space.narrowest, SIZE)


# -- decisions by values that depend on shapes alone -------------------------------------------


class Anchored(nn.Module):
    """A detector's head: anchor points made from strides, which are a plain tensor of the module."""

    def __init__(self, *, in_place: bool = False) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 3, 2, 1), nn.Conv2d(12, 16, 3, 2, 1)
        self.heads = nn.ModuleList([nn.Conv2d(12, 6, 1), nn.Conv2d(16, 6, 1)])
        self.strides = torch.tensor([2.0, 4.0])
        self.in_place = in_place

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = [self.a(x).relu()]
        maps.append(self.b(maps[0]).relu())
        found = []
        for index, (features, head) in enumerate(zip(maps, self.heads, strict=True)):
            stride = self.strides[index]
            height, width = features.shape[2:]
            places = torch.arange(height * width)[:, None] * stride
            if self.in_place:
                places[0] = 7.0
            if places[-1].item() > 0:
                scale = features.new_full((height * width, 1), stride)
                found.append(head(features).flatten(2) * scale[:, 0] + places[:, 0])
        return torch.cat(found, dim=2)


def test_values_that_depend_on_shapes_alone_may_decide() -> None:
    model = Anchored()
    space = bd.WidthSpace.from_model(model, SIZE)
    assert [variable.channels for variable in space.variables] == [12, 16]
    for widths in space.random(4, np.random.default_rng(0)):
        runs_as_said(model, space, widths, SIZE)


def test_values_that_were_written_into_are_not_guessed() -> None:
    with pytest.raises(bd.UnsupportedModelError, match="decides by the values of a tensor"):
        bd.WidthSpace.from_model(Anchored(in_place=True), SIZE)


def test_values_of_weights_do_not_decide() -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.h = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 5, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            return self.h(y.relu() if self.a.weight.sum() > 0 else y)

    with pytest.raises(bd.UnsupportedModelError, match="decides by the values of a tensor"):
        bd.WidthSpace.from_model(Weighted(), SIZE)


def test_a_buffer_that_changes_its_shape_in_forward_is_refused_by_name() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.h = nn.Conv2d(3, 12, 3), nn.Linear(12, 5)
            self.register_buffer("places", torch.zeros(1, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            if self.places.shape != y.shape[2:]:
                self.places = torch.zeros(y.shape[2:])
            return self.h((y + self.places).mean((2, 3)))

    model = Late()
    with pytest.raises(bd.UnsupportedModelError, match="replaces places of Late by one of another shape"):
        bd.WidthSpace.from_model(model, SIZE)
    model(torch.randn(1, *SIZE))  # run once, it is as it will be
    space = bd.WidthSpace.from_model(model, SIZE)
    runs_as_said(model, space, space.narrowest, SIZE)


# -- channels that change places with positions ---------------------------------------------------


class Scrambles(nn.Module):
    """MAnet's attention over positions: (N, places, C) is read as (N, C, height, width) as it stands."""

    def __init__(self, *, by_attribute: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, 2, 1)
        self.top, self.center, self.bottom = nn.Conv2d(12, 8, 1), nn.Conv2d(12, 8, 1), nn.Conv2d(12, 12, 1)
        self.out, self.head = nn.Conv2d(12, 10, 3, padding=1), nn.Linear(10, 5)
        self.by_attribute, self.channels = by_attribute, 12

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        n, c, h, w = x.shape
        left = self.center(x).flatten(2).transpose(1, 2)
        weights = (left @ self.top(x).flatten(2)).view(n, -1).softmax(1).view(n, h * w, h * w)
        mixed = weights @ self.bottom(x).flatten(2).transpose(1, 2)
        mixed = mixed.reshape(n, self.channels if self.by_attribute else c, h, w)
        return self.head(self.out(x + mixed).mean((2, 3)))


@pytest.mark.parametrize("by_attribute", [True, False])
def test_channels_read_in_the_place_of_positions_are_cut(by_attribute: bool) -> None:
    model = Scrambles(by_attribute=by_attribute)
    space = bd.WidthSpace.from_model(model, SIZE)
    assert [v.name for v in space.variables] == ["stem", "center", "out"] and not space.frozen
    for widths in space.random(4, np.random.default_rng(0)):
        runs_as_said(model, space, widths, SIZE)
    # No order of these channels leaves the function as it is, so importance keeps theirs.
    assert permutable(model, space) == [False, True, True]


def test_a_place_of_the_same_size_is_not_taken_for_the_channels() -> None:
    class Square(Scrambles):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.interpolate(self.stem(x), (12, 6))
            n, c, h, w = x.shape  # as high as it has channels
            y = self.bottom(x).flatten(2).transpose(1, 2).reshape(n, h, c, w)
            return self.head(self.out(x + y.transpose(1, 2)).mean((2, 3)))

    model = Square(by_attribute=False)
    space = bd.WidthSpace.from_model(model, SIZE)
    assert [v.name for v in space.variables] == ["stem", "out"] and not space.frozen
    for widths in space.random(4, np.random.default_rng(0)):
        runs_as_said(model, space, widths, SIZE)


# -- pairs and other groups that the code works out ------------------------------------------------


@pytest.mark.parametrize("read", ["divided", "rest", "with places"])
def test_channels_read_as_pairs_are_cut_pair_by_pair(read: str) -> None:
    """Maxout: the greater of each two neighbours."""

    class Maxout(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.d, self.h = nn.Conv2d(3, 16, 3), nn.Conv2d(8, 6, 3), nn.Linear(6, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.c(x)
            n, c, h, w = y.shape
            if read == "with places":
                pairs = y.view(n, c // 2, 2 * h * w).view(n, c // 2, 2, h, w)
            else:
                pairs = y.view(n, c // 2 if read == "divided" else -1, 2, h, w)
            return self.h(self.d(pairs.amax(2)).mean((2, 3)))

    model = Maxout()
    space = bd.WidthSpace.from_model(model, SIZE)
    assert [(v.name, v.channels, v.step) for v in space.variables] == [("c", 16, 2), ("d", 6, 1)]
    assert not space.frozen
    for widths in space.random(4, np.random.default_rng(0)):
        runs_as_said(model, space, widths, SIZE)


def test_parts_of_equal_width_are_still_cut_in_each_part() -> None:
    """The number of parts is fixed and their width is worked out: as split-attention reads it."""

    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.h = nn.Conv2d(3, 16, 3), nn.Linear(8, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.c(x)
            n, c, h, w = y.shape
            return self.h(y.view(n, 2, c // 2, h, w).sum(1).mean((2, 3)))

    model = Parts()
    space = bd.WidthSpace.from_model(model, SIZE)
    assert [(v.channels, v.step) for v in space.variables] == [(8, 1)]
    for widths in space.random(4, np.random.default_rng(0)):
        runs_as_said(model, space, widths, SIZE)


# -- RMS norm ----------------------------------------------------------------------------------------


class OwnRMS(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels, self.weight = channels, nn.Parameter(torch.rand(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (self.channels,), self.weight)


@pytest.mark.parametrize("norm", [nn.RMSNorm, OwnRMS])
def test_rms_norm_follows_the_channels(norm: Callable[[int], nn.Module]) -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.n, self.h = nn.Conv2d(3, 8, 3), norm(8), nn.Linear(8, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.h(self.n(self.c(x).permute(0, 2, 3, 1)).mean((1, 2)))

    model = Normed()
    space = bd.WidthSpace.from_model(model, SIZE)
    assert [v.name for v in space.variables] == ["c"] and not space.frozen
    for widths in space.random(4, np.random.default_rng(0)):
        runs_as_said(model, space, widths, SIZE)


# -- outputs ------------------------------------------------------------------------------------------


def test_named_tuples_may_come_out() -> None:
    """As torchvision's GoogLeNet and Inception return them in training."""

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.a, self.b = nn.Conv2d(3, 8, 3), nn.Linear(8, 5), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> Outputs:
            y = self.c(x).mean((2, 3))
            return Outputs(self.a(y), self.b(y))

    space = bd.WidthSpace.from_model(Named(), SIZE)
    assert [v.name for v in space.variables] == ["c"]
    network = torchvision.models.googlenet(weights=None, init_weights=False)  # its auxiliary heads left on
    assert len(bd.WidthSpace.from_model(network, (3, 64, 64)).variables) == 57


# -- images that are normalised by one another -----------------------------------------------------


class Together(nn.Module):
    """A batch norm of one's own that always takes the statistics of the batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x, None, None, training=True)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(12, track_running_stats=False), Together()])
def test_batch_norms_without_statistics_are_refused(norm: nn.Module) -> None:
    model = plain()
    model.insert(1, norm)
    with pytest.raises(bd.UnsupportedModelError, match="1 of Sequential is a batch norm without running"):
        bd.WidthSpace.from_model(model, SIZE)


@pytest.mark.parametrize("norm", [nn.InstanceNorm2d(12), nn.BatchNorm2d(12), nn.GroupNorm(3, 12)])
def test_norms_of_single_images_are_not(norm: nn.Module) -> None:
    model = plain()
    model.insert(1, norm)
    assert len(bd.WidthSpace.from_model(model, SIZE).variables) == 2


class Wavelet(nn.Module):
    """A fixed filter for each channel, repeated for as many as there are (MWCNN, blur pooling)."""

    def __init__(self, channels: int, bands: int, kept: bool) -> None:
        super().__init__()
        self.register_buffer("bands", torch.randn(bands, 1, 2, 2, generator=torch.Generator().manual_seed(0)))
        self.channels = channels if kept else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = x.shape[1] if self.channels is None else self.channels
        return F.conv2d(x, self.bands.repeat(count, 1, 1, 1), stride=2, groups=count)


@pytest.mark.parametrize(("bands", "kept"), [(1, False), (4, False), (1, True), (4, True)])
def test_a_filter_repeated_for_each_channel_follows_them(bands: int, kept: bool) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), Wavelet(8, bands, kept), nn.Conv2d(8 * bands, 6, 3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
    ).eval()  # fmt: skip
    space = bd.WidthSpace.from_model(model, SIZE)
    assert not space.frozen and [v.channels for v in space.variables] == [8, 6]
    x = torch.randn(2, *SIZE)
    narrow = space.extract(model, [3, 4])
    # By hand: the first three channels, and of the next layer what their bands feed.
    y = Wavelet(3, bands, kept)(F.conv2d(x, model[0].weight[:3], model[0].bias[:3]))
    y = F.conv2d(y, model[2].weight[:4, : 3 * bands], model[2].bias[:4]).mean((2, 3))
    torch.testing.assert_close(narrow(x), F.linear(y, model[5].weight[:, :4], model[5].bias))


def test_a_filter_repeated_as_often_as_the_code_says_freezes_the_layer_and_is_said() -> None:
    class Fixed(Wavelet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.conv2d(x, self.bands.repeat(8, 1, 1, 1), stride=2, groups=8)

    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), Fixed(8, 1, False), nn.Conv2d(8, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 5),
    )  # fmt: skip
    space = bd.WidthSpace.from_model(model, SIZE)
    assert [v.channels for v in space.variables] == [6] and "0" in {part.name for part in space.frozen}


def test_channel_shuffle_by_pytorchs_own_module() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.ChannelShuffle(3), nn.Conv2d(12, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 5),
    ).eval()  # fmt: skip
    space = bd.WidthSpace.from_model(model, SIZE)
    assert not space.frozen and [v.channels for v in space.variables] == [4, 6]
    x, supernet = torch.randn(2, *SIZE), bd.Supernet(model, space).eval()
    for each, last in ([1, 2], [3, 6], [4, 1]):
        narrow = space.extract(model, [each, last])
        supernet.set_active([each, last])
        torch.testing.assert_close(supernet(x), narrow(x))
        # Each third keeps its first channels, which come one after another behind the shuffle.
        kept = torch.cat([torch.arange(each) + 4 * third for third in range(3)])
        y = F.channel_shuffle(F.conv2d(x, model[0].weight[kept], model[0].bias[kept]), 3)
        y = F.conv2d(y, model[2].weight[:last, : 3 * each], model[2].bias[:last]).mean((2, 3))
        torch.testing.assert_close(narrow(x), F.linear(y, model[5].weight[:, :last], model[5].bias))
