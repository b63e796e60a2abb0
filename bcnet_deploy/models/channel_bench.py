"""The two networks of Channel-Bench-Macro (CIFAR-10, 3x32x32), as its data describes them.

Seven width variables each, c0 to c6, at their maxima here.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

_MOBILENET_WIDTHS = (128, 768, 768, 768, 256, 1536, 1024)
_RESNET_WIDTHS = (256, 256, 256, 512, 512, 512, 512)


def _conv_bn(
    inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1, relu: bool = True
) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if relu else nn.Sequential(*layers)


class _InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 projection without activation."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.shortcut = inputs == outputs and stride == 1
        self.expand = _conv_bn(inputs, inner, 1)
        self.depthwise = _conv_bn(inner, inner, 3, stride=stride, groups=inner)
        self.project = _conv_bn(inner, outputs, 1, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.shortcut else y


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions; the last ReLU comes after the addition where there is a shortcut."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int, *, shortcut: bool) -> None:
        super().__init__()
        self.shortcut = shortcut
        self.conv1 = _conv_bn(inputs, inner, 3, stride=stride)
        self.conv2 = _conv_bn(inner, outputs, 3, relu=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv1(x))
        return self.relu(x + y if self.shortcut else y)


def _assemble(stem: nn.Module, blocks: nn.Sequential, head: nn.Module, classifier: nn.Linear) -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            stem=stem, blocks=blocks, head=head,
            pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), classifier=classifier,
        )
    )  # fmt: skip


def mobilenet(num_classes: int = 10) -> nn.Module:
    """The MobileNet space's widest network."""
    c0, c1, c2, c3, c4, c5, c6 = _MOBILENET_WIDTHS
    blocks = nn.Sequential(
        _InvertedResidual(c0, c1, c0, 1),
        _InvertedResidual(c0, c2, c0, 1),
        _InvertedResidual(c0, c3, c4, 2),
        _InvertedResidual(c4, c5, c4, 1),
    )
    return _assemble(_conv_bn(3, c0, 3, stride=2), blocks, _conv_bn(c4, c6, 1), nn.Linear(c6, num_classes))


def resnet(num_classes: int = 10) -> nn.Module:
    """The ResNet space's widest network."""
    c0, c1, c2, c3, c4, c5, c6 = _RESNET_WIDTHS
    blocks = nn.Sequential(
        _BasicBlock(c0, c1, c0, 1, shortcut=True),
        _BasicBlock(c0, c2, c0, 1, shortcut=True),
        _BasicBlock(c0, c3, c4, 2, shortcut=False),
        _BasicBlock(c4, c5, c4, 1, shortcut=True),
        _BasicBlock(c4, c6, c4, 1, shortcut=True),
    )
    return _assemble(_conv_bn(3, c0, 3, stride=2), blocks, nn.Identity(), nn.Linear(c4, num_classes))
