"""Attention between convolutions: heads stay, each as wide as its code works out from the channels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import bcnet_deploy as bd
from tests import zoo

SIZE, DIM, HEADS = (3, 16, 16), 24, 3


class Attention(nn.Module):
    """Queries, keys and values of ``HEADS`` heads, written as this or that library writes it."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.num_heads, self.head_dim = form, HEADS, DIM // HEADS
        self.scale = self.head_dim**-0.5
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.temperature = nn.Parameter(torch.ones(HEADS, 1, 1))
        self.bias = nn.Parameter(torch.randn(HEADS, 64, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, places, channels = x.shape
        heads = channels // self.num_heads if self.form != "head_dim" else self.head_dim
        qkv = self.qkv(x).reshape(rows, places, 3, self.num_heads, heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        if self.form in ("fused", "head_dim"):
            y = F.scaled_dot_product_attention(q, k, v)
        elif self.form == "masked":
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias)
        elif self.form == "products":
            y = ((q * self.scale) @ k.transpose(-2, -1) + self.bias).softmax(dim=-1) @ v
        else:  # of channels with channels
            q, k, v = (one.transpose(-2, -1) for one in (q, k, v))
            weights = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)) * self.temperature
            y = (weights.softmax(dim=-1) @ v).transpose(-2, -1)
        return self.proj(y.transpose(1, 2).reshape(rows, places, channels))


class Hybrid(nn.Module):
    """Convolutions, and attention on a residual stream between them."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.stem, self.attention = nn.Conv2d(3, DIM, 3, 2, 1), Attention(form)
        self.norm, self.end, self.head = nn.LayerNorm(DIM), nn.Conv2d(DIM, 10, 3), nn.Linear(10, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(self.norm(tokens))
        x = self.end(tokens.transpose(1, 2).reshape(x.shape))
        return self.head(x.mean((2, 3)))


def exact(model: nn.Module, space: bd.WidthSpace, widths: np.ndarray) -> None:
    """Slices equal what is extracted, left and right, and costs are those counted on it."""
    model = model.double()
    supernet = bd.Supernet(model, space).eval()
    x = torch.randn(2, *SIZE, dtype=torch.float64)
    for side in ("left", "right"):
        supernet.set_active(widths, side)
        subnet = space.extract(model, widths, side).eval()
        with torch.no_grad():
            torch.testing.assert_close(supernet(x), subnet(x), rtol=0, atol=1e-12)
    assert zoo.counted_params(subnet) == space.params(widths)[0]
    assert zoo.counted_macs(subnet, SIZE) == space.macs(widths)[0]


@pytest.mark.parametrize("form", ["fused", "head_dim", "masked", "products", "channels"])
def test_the_stream_through_attention_keeps_whole_heads(form: str) -> None:
    torch.manual_seed(0)
    model = Hybrid(form)
    space = bd.WidthSpace.from_model(model, SIZE)
    stream, end = space.variables
    assert (stream.channels, end.channels) == (DIM // HEADS, 10)  # channels of each head
    assert {"stem", "attention.qkv", "attention.proj"} <= set(stream.layers)
    for widths in space.random(4, np.random.default_rng(0)):
        exact(model, space, widths)
    narrow = space.extract(model, [2, 5])
    assert narrow.attention.qkv.weight.shape == (3 * 2 * HEADS, 2 * HEADS)


def test_multiply_accumulates_of_attention_follow_the_width_of_its_heads() -> None:
    model = Hybrid("fused")
    space = bd.WidthSpace.from_model(model, SIZE)
    (op,) = [op for op in space.ops if op.kind == "attention"]
    # 3 heads, 64 places: queries with keys, weights with values.
    assert op.macs([4, 10])[0] == 3 * 64 * 64 * (4 + 4)


class GlobalContext(nn.Module):
    """A mean over all places, weighted by a product of two activations (GCNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.key, self.end = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 1, 1), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        weights = self.key(x).flatten(2).softmax(dim=-1)
        return self.end((x.flatten(2) @ weights.transpose(1, 2)).flatten(1))


def test_pooling_by_a_product_of_activations_leaves_widths_free() -> None:
    model = GlobalContext()
    space = bd.WidthSpace.from_model(model, SIZE)
    assert [variable.channels for variable in space.variables] == [12] and not space.frozen
    for widths in space.random(3, np.random.default_rng(0)):
        exact(model, space, widths)


class FixedHeads(nn.Module):
    """Head width as a number in the code: only what is between qkv and projection is fixed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv, self.proj = nn.Conv2d(3, 12, 3), nn.Linear(12, 72), nn.Linear(24, 12)
        self.end = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).reshape(len(x), -1, 3, 3, 8).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(len(x), -1, 24)
        return self.end((tokens + self.proj(y)).mean(1))


def test_heads_of_a_fixed_width_freeze_attention_alone() -> None:
    model = FixedHeads()
    space = bd.WidthSpace.from_model(model, SIZE)
    assert [variable.name for variable in space.variables] == ["stem"]
    assert {part.name for part in space.frozen} == {"qkv"}
    for widths in space.random(3, np.random.default_rng(0)):
        exact(model, space, widths)


@pytest.mark.parametrize("kernel", [1, 3])
def test_unfolded_patches_keep_channels_together(kernel: int) -> None:
    class Unfolded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.end = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * kernel * kernel, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            patches = F.unfold(self.stem(x), kernel, padding=kernel // 2)
            folded = F.fold(patches, SIZE[1:], kernel, padding=kernel // 2)
            return self.end(patches.mean(2)) + folded.mean((1, 2, 3))[:, None]

    model = Unfolded()
    space = bd.WidthSpace.from_model(model, SIZE)
    assert [variable.channels for variable in space.variables] == [8]
    for widths in space.random(3, np.random.default_rng(0)):
        exact(model, space, widths)


class Mixer(nn.Module):
    """Layers over places, of which PyTorch makes products of all images' channels at once."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.down = nn.Conv2d(3, 12, 3, 2, 1), nn.Linear(64, 20), nn.Linear(20, 64)
        self.end = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        mixed = self.down(self.up(tokens.transpose(1, 2)).relu()).transpose(1, 2)
        return self.end((tokens + mixed).mean(1))


def test_layers_over_places_cost_what_one_image_costs() -> None:
    model = Mixer()
    space = bd.WidthSpace.from_model(model, SIZE)
    assert [variable.channels for variable in space.variables] == [12, 20]
    for widths in [space.full, *space.random(3, np.random.default_rng(0))]:
        exact(model, space, widths)


def test_products_across_the_images_of_a_batch_are_said() -> None:
    class Across(GlobalContext):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x).mean((2, 3))
            return self.end((x @ x.t()).softmax(dim=-1) @ x)

    space = bd.WidthSpace.from_model(Across(), SIZE)
    assert len(space.notes) == 2 and "the images of a batch with one another" in space.notes[0]
    assert not bd.WidthSpace.from_model(GlobalContext(), SIZE).notes


def test_counting_is_torchs(form: str = "products") -> None:
    model = Hybrid(form)
    space = bd.WidthSpace.from_model(model, SIZE)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(1, *SIZE))
    assert counter.get_total_flops() // 2 == space.macs(space.full)[0]
