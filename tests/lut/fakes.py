"""A device whose latencies are known in closed form, and tables of it."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from bcnet_deploy.lut import Entries, LatencyTable, Network
from bcnet_deploy.lut.fit import Granularity, fit
from bcnet_deploy.lut.network import layer_dims
from bcnet_deploy.space import WidthSpace


class TinyNet(nn.Module):
    """Stem, residual block with a depthwise convolution, concatenation, classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.expand = nn.Sequential(nn.Conv2d(32, 64, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        self.depthwise = nn.Sequential(
            nn.Conv2d(64, 64, 3, 1, 1, groups=64, bias=False), nn.BatchNorm2d(64), nn.ReLU()
        )
        self.project = nn.Sequential(nn.Conv2d(64, 32, 1, bias=False), nn.BatchNorm2d(32))
        self.left = nn.Conv2d(32, 48, 3, 1, 1)
        self.right = nn.Conv2d(32, 16, 1)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.project(self.depthwise(self.expand(x)))
        x = torch.cat([self.left(x), self.right(x)], 1)
        return self.fc(torch.relu(x).mean((2, 3)))


def tiny_space(levels: int = 8, size: int = 16) -> WidthSpace:
    return WidthSpace.from_model(TinyNet().eval(), (3, size, size), levels)


def staircase_us(dims: np.ndarray) -> np.ndarray:
    """The device: 16-channel blocks in and out, half as slow again where a count is not a multiple of 4."""
    rounded = -(-dims // 16) * 16
    odd = (dims % 4 != 0).any(axis=1)
    return (4.0 + 0.02 * rounded.prod(axis=1)) * np.where(odd, 1.5, 1.0)


def make_table(space: WidthSpace, *, device: str = "cpu-1thread", overhead_us: float = 25.0) -> LatencyTable:
    """A table measured without noise at every width of the device above."""
    network = Network.of_space(space, precision="fp32", batch=1)
    rng = np.random.default_rng(0)
    anything = np.stack([v.step * rng.integers(1, v.units + 1, 300) for v in space.variables], axis=1)
    ends = [space.full, np.array([v.step for v in space.variables])]
    widths = np.concatenate([space.random(400, rng), anything, np.stack(ends)])
    entries: dict[str, Entries] = {}
    models = {}
    granularity = Granularity(16, 4)
    for layer in network.layers:
        dims = layer_dims(layer, widths)
        found = Entries.from_samples(dims, staircase_us(dims))
        entries[layer.key] = entries[layer.key].merged(found) if layer.key in entries else found
    for key, found in entries.items():
        models[key] = fit(found.dims, found.median_us, found.count, granularity)
    from dataclasses import replace

    network = replace(network, overhead_us=overhead_us, relative_error=0.03)
    return LatencyTable(
        device=device, source="measured", precision="fp32", batch=1, granularity=granularity,
        provenance={"runtime": "onnxruntime", "threads": 1}, entries=entries, models=dict(models),
        networks=(network,),
    )  # fmt: skip


def true_ms(space: WidthSpace, widths: np.ndarray, overhead_us: float = 25.0) -> np.ndarray:
    """The sum over layers, written out."""
    network = Network.of_space(space, precision="fp32", batch=1)
    total = np.full(len(widths), overhead_us)
    for layer in network.layers:
        total += staircase_us(layer_dims(layer, widths))
    return total / 1e3
