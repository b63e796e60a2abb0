"""The CIFAR-10 networks of the width lists that BCNet's authors published."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn
from torchvision import models as tv

_VGG19 = (64, 64, "pool", 128, 128, "pool", *(256,) * 4, "pool", *(512,) * 4, "pool", *(512,) * 4, "pool")

# Expansion, channels, repeats, stride of each stage: MobileNetV2's, with strides for 32x32 images.
_MOBILENET_V2 = [
    [1, 16, 1, 1], [6, 24, 2, 1], [6, 32, 3, 1], [6, 64, 4, 2],
    [6, 96, 3, 1], [6, 160, 3, 2], [6, 320, 1, 1],
]  # fmt: skip


def vgg19(num_classes: int = 10) -> nn.Module:
    """VGG-19 with batch norm and one linear layer, for 3x32x32 inputs; feature sizes 32, 16, 8, 4, 2."""
    layers: list[nn.Module] = []
    channels = 3
    for item in _VGG19:
        if isinstance(item, str):
            layers.append(nn.MaxPool2d(2))
            continue
        convolution = nn.Conv2d(channels, item, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        layers += [convolution, nn.BatchNorm2d(item), nn.ReLU(inplace=True)]
        channels = item
    return nn.Sequential(
        OrderedDict(
            features=nn.Sequential(*layers),
            flatten=nn.Flatten(),
            classifier=nn.Linear(channels, num_classes),
        )
    )


def mobilenet_v2(num_classes: int = 10) -> nn.Module:
    """MobileNetV2 for 3x32x32 inputs: strides 1 in the stem and 1, 1, 1, 2, 1, 2, 1 in the stages."""
    model = tv.MobileNetV2(num_classes=num_classes, inverted_residual_setting=_MOBILENET_V2)
    model.features[0][0].stride = (1, 1)
    return model
