"""The embedded demo's network: small enough for two cores and five minutes, and of all the usual parts.

About 5.4M multiply-accumulates on 1x16x16 images. It is narrow on purpose: digits are easy, and a wide
network tells them apart at any width. On a CPU whose kernels work on blocks of 8 or 16 channels such
widths cost latency in stairs, which is what a latency table is for.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn


def _conv_bn(inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]


class SqueezeExcitation(nn.Module):
    """Scales each channel by a gate computed from all channels' means (Hu et al., 2018)."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, inner, 1)
        self.relu = nn.ReLU(inplace=True)
        self.expand = nn.Conv2d(inner, channels, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.expand(self.relu(self.reduce(self.pool(x)))))


class Residual(nn.Module):
    """``relu(body(x) + shortcut(x))``."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.body(x) + self.shortcut(x))


def _basic(inputs: int, inner: int, outputs: int, stride: int = 1) -> Residual:
    body = nn.Sequential(
        *_conv_bn(inputs, inner, 3, stride=stride), nn.ReLU(inplace=True), *_conv_bn(inner, outputs, 3)
    )
    same = inputs == outputs and stride == 1
    return Residual(
        body, nn.Identity() if same else nn.Sequential(*_conv_bn(inputs, outputs, 1, stride=stride))
    )


def _inverted(channels: int, inner: int) -> Residual:
    body = nn.Sequential(
        *_conv_bn(channels, inner, 1), nn.ReLU(inplace=True),
        *_conv_bn(inner, inner, 3, groups=inner), nn.ReLU(inplace=True),
        SqueezeExcitation(inner, inner // 8),
        *_conv_bn(inner, channels, 1),
    )  # fmt: skip
    return Residual(body, nn.Identity())


def demo_net(num_classes: int = 10) -> nn.Module:
    """Residual, depthwise and squeeze-excitation blocks for 1x16x16 images (digits, resized)."""
    return nn.Sequential(
        OrderedDict(
            stem=nn.Sequential(*_conv_bn(1, 16, 3), nn.ReLU(inplace=True)),
            block1=_basic(16, 16, 16),
            block2=_inverted(16, 64),
            block3=_basic(16, 32, 32, stride=2),
            block4=_inverted(32, 128),
            block5=_basic(32, 48, 32),
            head=nn.Sequential(*_conv_bn(32, 128, 1), nn.ReLU(inplace=True)),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            classifier=nn.Linear(128, num_classes),
        )
    )
