"""The embedded segmentation demo's network: down, up, and joined to what came before (as in U-Net)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bcnet_deploy.models.demo import Residual


def _block(inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def _residual(channels: int) -> Residual:
    body = nn.Sequential(
        _block(channels, channels), nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
    )  # fmt: skip
    return Residual(body, nn.Identity())


class DemoSegmentation(nn.Module):
    """About 4.3M multiply-accumulates on 1x24x24 images.

    Args:
        num_classes: outputs a pixel, the background among them.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = _block(1, 8)
        self.down1 = nn.Sequential(_block(8, 16, stride=2), _residual(16))
        self.down2 = nn.Sequential(_block(16, 32, stride=2), _residual(32))
        self.up1 = _block(32 + 16, 16)
        self.up2 = _block(16 + 8, 12)
        self.head = nn.Conv2d(12, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, H, W), H and W multiples of 4 -> logits (N, classes, H, W)."""
        fine = self.stem(x)
        middle = self.down1(fine)
        coarse = self.down2(middle)
        middle = self.up1(torch.cat([F.interpolate(coarse, scale_factor=2.0, mode="nearest"), middle], dim=1))
        return self.head(
            self.up2(torch.cat([F.interpolate(middle, scale_factor=2.0, mode="nearest"), fine], dim=1))
        )


def demo_segmentation(num_classes: int = 11) -> nn.Module:
    """The network for ``digits-canvas`` (1x24x24): 10 digits and background."""
    return DemoSegmentation(num_classes)
