"""Random networks of what people write, against counts and against one another at every kind of width."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bcnet_deploy as bd
from tests import zoo

SIZE = (3, 12, 12)


class Piece(nn.Module):
    """One step of a random network: ``inputs`` channels in, ``outputs`` out."""

    def __init__(self, kind: str, inputs: int, outputs: int, rng: np.random.Generator) -> None:
        super().__init__()
        self.kind, self.outputs = kind, outputs
        groups = {"grouped": 2, "many_groups": inputs // 2, "depthwise": inputs}.get(kind, 1)
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups)
        self.norm = nn.GroupNorm(2, outputs) if kind == "group_norm" else nn.BatchNorm2d(outputs)
        if kind in ("residual", "if_equal", "if_wider", "concat"):
            self.other = nn.Conv2d(inputs, outputs, 1)
        self.limit = int(rng.integers(2, outputs + 2))
        self.width = outputs // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm(self.conv(x)))
        match self.kind:
            case "residual":
                return y + self.other(x)
            case "concat":
                return torch.cat([y, self.other(x)], 1)[:, : self.outputs]
            case "if_equal":
                return y + x if x.shape[1] == y.shape[1] else y + self.other(x)
            case "if_wider":
                return y + self.other(x) if y.size(1) > x.size(1) else y * 2
            case "threshold":
                return y * 2 if y.shape[1] < self.limit else F.avg_pool2d(y, 3, 1, 1)
            case "even":
                return y if y.shape[1] % 2 == 0 else y.flip(1)
            case "fixed_view":
                return y.view(-1, self.outputs, *y.shape[2:])
            case "fixed_split":
                a, b = torch.split(y, self.width, 1)
                return torch.cat([b, a], 1)
            case "chunk":
                a, b = y.chunk(2, 1)
                return torch.cat([a * b, b], 1)
            case "squeeze":
                gate = F.adaptive_avg_pool2d(y, 1).flatten(1).squeeze(1)
                return y * gate.sigmoid()[:, :, None, None]
            case "shuffle":
                n, c, h, w = y.shape
                return y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return y


KINDS = (
    "plain", "residual", "concat", "if_equal", "if_wider", "threshold", "even", "fixed_view", "fixed_split",
    "chunk", "squeeze", "shuffle", "grouped", "many_groups", "depthwise", "group_norm",
)  # fmt: skip


class RandomNet(nn.Module):
    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        widths = [int(n) for n in rng.choice([4, 6, 8, 12, 16], 5)]
        self.stem = nn.Conv2d(3, widths[0], 3, padding=1)
        pieces: list[Piece] = []
        inputs = widths[0]
        for outputs in widths[1:]:
            kind = str(rng.choice(KINDS))
            outputs = inputs if kind in ("grouped", "many_groups", "depthwise") else outputs
            pieces.append(Piece(kind, inputs, outputs, rng))
            inputs = outputs
        self.pieces = nn.Sequential(*pieces)
        self.fixed = bool(rng.random() < 0.3)
        self.channels = pieces[-1].outputs
        self.head = nn.Linear(self.channels * 9, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.adaptive_avg_pool2d(self.pieces(self.stem(x)), 3)
        return self.head(y.view(-1, 9 * self.channels) if self.fixed else y.flatten(1))


def widths_of(space: bd.WidthSpace, rng: np.random.Generator) -> np.ndarray:
    """Random ones, the least, each variable at its least, and pairs of equal ones."""
    lowest = np.array([v.lowest for v in space.variables])
    steps = np.array([v.step for v in space.variables])
    random = steps * rng.integers(lowest // steps, space.full // steps + 1, (6, len(steps)))
    mixed = np.where(rng.random((4, len(steps))) < 0.5, lowest, random[:4])
    equal = np.clip(rng.integers(1, 9, (6, 1)) // steps * steps, lowest, space.full)
    return np.concatenate([random, mixed, equal, lowest[None], space.full[None]])


@pytest.mark.parametrize(
    "seed", [*range(10), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(10, 300))]
)
def test_random_networks(seed: int) -> None:
    """Every width that the space allows runs, costs what it says and equals the supernet's slice."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    model = RandomNet(rng).eval()
    try:
        space = bd.WidthSpace.from_model(model, SIZE, levels=8)
    except bd.UnsupportedModelError:
        return  # all of it is fixed by the code
    supernet = bd.Supernet(model, space).eval()
    x = torch.randn(2, *SIZE)
    for widths in widths_of(space, rng):
        side = str(rng.choice(["left", "right"]))
        subnet = space.extract(model, widths, side)
        supernet.set_active(widths, side)
        with torch.no_grad():
            torch.testing.assert_close(supernet(x), subnet(x), rtol=0, atol=1e-4)
        assert sum(p.numel() for p in subnet.parameters()) == space.params(widths)[0]
        assert zoo.counted_macs(subnet, SIZE) == space.macs(widths)[0], widths


def test_most_random_networks_can_be_sliced() -> None:
    """The fuzz above is no test of refusals."""
    free = 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        with contextlib.suppress(bd.UnsupportedModelError):
            free += len(bd.WidthSpace.from_model(RandomNet(rng), SIZE).variables)
    assert free >= 12
