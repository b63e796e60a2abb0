"""Small networks of the export tests, with batch norms that do something."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn


class Small(nn.Module):
    """Depthwise, residual, squeeze-excitation, concatenation, batch norm behind a linear layer."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.deep = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.Hardswish())
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 1))
        self.norm = nn.BatchNorm2d(16)
        self.hidden = nn.Linear(16, 12, bias=False)
        self.hidden_norm = nn.BatchNorm1d(12)
        self.classifier = nn.Linear(12, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.deep(x)
        y = x + y * torch.sigmoid(self.gate(y))
        z = torch.relu(self.norm(torch.cat([x, y], dim=1)))
        z = nn.functional.adaptive_avg_pool2d(z, 1).flatten(1)
        return self.classifier(torch.relu(self.hidden_norm(self.hidden(z))))


def small(classes: int = 5, seed: int = 0) -> nn.Module:
    """A :class:`Small` with non-trivial statistics and affine parameters, in evaluation mode."""
    torch.manual_seed(seed)
    net = Small(classes)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    for _ in range(30):
        net(torch.randn(32, 3, 12, 12) + torch.randn(32, 3, 1, 1))
    with torch.no_grad():
        net.classifier.weight.mul_(4)
    return net.eval()


def pictures(count: int = 32, seed: int = 1, side: int = 12) -> np.ndarray:
    rng = np.random.default_rng(seed)
    smooth = rng.standard_normal((count, 3, 1, 1)) + rng.standard_normal((count, 3, side, side))
    return smooth.astype(np.float32)
