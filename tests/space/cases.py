"""Small networks, one a construction that people write, for the tests of spaces and supernets."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def conv(i: int, o: int, k: int = 3, **options: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(i, o, k, padding=k // 2, bias=False, **options), nn.BatchNorm2d(o), nn.ReLU()
    )


class Net(nn.Module):
    """Stem, one construction under test, classifier."""

    def __init__(self, body: nn.Module, stem: int = 12, out: int = 12) -> None:
        super().__init__()
        self.stem = conv(3, stem)
        self.body = body
        self.head = nn.Linear(out, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(12, 20), conv(20, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.b(self.a(x))


class InPlaceResidual(Residual):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.b(self.a(x))
        y += x
        return F.relu_(y)


class SqueezeExcitation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(12, 6), nn.Linear(6, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, c, _, _ = x.shape
        gate = torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1).view(b, c)))))
        return x * gate.view(b, c, 1, 1).expand_as(x)


class Dense(nn.Module):
    """Concatenation of three, read by a convolution and a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(12, 6), conv(18, 10)
        self.norm = nn.BatchNorm2d(28)
        self.join = nn.Conv2d(28, 12, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([x, self.a(x)], 1)
        return self.join(self.norm(torch.cat([x, self.b(x)], 1)))


class ConcatPlusConv(nn.Module):
    """What is added to a concatenation splits along with it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.whole = conv(12, 5), conv(12, 7), conv(12, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.a(x), self.b(x)], 1) + self.whole(x)


class Gated(nn.Module):
    """Chunked halves, one gating the other."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.out = conv(12, 32), conv(16, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.wide(x).chunk(2, dim=1)
        return self.out(a * torch.sigmoid(b))


class Glu(Gated):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(F.glu(self.wide(x), dim=1))


class Slices(Gated):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.wide(x)
        half = y.shape[1] // 2
        return self.out(y[:, :half] + y[:, half:])


class DepthwiseMultiplier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dw = nn.Conv2d(12, 24, 3, padding=1, groups=12)
        self.pw = conv(24, 12, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pw(F.relu(self.dw(x)))


class Grouped(nn.Module):
    """Other numbers of channels per group on in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.pre, self.grouped, self.post = (
            conv(12, 24, 1),
            nn.Conv2d(24, 36, 3, padding=1, groups=6),
            conv(36, 12),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.post(self.grouped(self.pre(x)))


class Norms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.gn = nn.Conv2d(12, 24, 3, padding=1), nn.GroupNorm(6, 24)
        self.b = nn.Conv2d(24, 12, 1)
        self.act = nn.PReLU(24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.act(self.gn(self.a(x))))


class InstanceNorms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(12, 20, 3, padding=1), nn.Conv2d(20, 12, 1)
        self.norm = nn.InstanceNorm2d(20, affine=True)
        self.tracked = nn.InstanceNorm2d(12, affine=True, track_running_stats=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tracked(self.b(F.relu(self.norm(self.a(x)))))


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(12, 18, 2, stride=2)
        self.dw = nn.ConvTranspose2d(18, 18, 3, padding=1, groups=18)
        self.down = conv(18, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.dw(self.up(x)))


class PixelShuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.out = nn.Conv2d(12, 40, 1), conv(10, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(F.pixel_shuffle(self.wide(x), 2))


class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared = conv(12, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shared(F.max_pool2d(self.shared(x), 2))


class Functional(nn.Module):
    """Bare parameters, a layer scale, no modules."""

    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(20, 12, 3, 3) * 0.1)
        self.w2 = nn.Parameter(torch.randn(12, 20, 1, 1) * 0.1)
        self.scale = nn.Parameter(torch.rand(20, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.hardswish(F.conv2d(x, self.w1, padding=1)) * self.scale
        return F.conv2d(y, self.w2)


class ChannelsLast(nn.Module):
    """A permuted linear layer, as in ConvNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 30), nn.Linear(30, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.b(F.gelu(self.a(x.permute(0, 2, 3, 1))))
        return x + y.permute(0, 3, 1, 2)


class ChannelPad(nn.Module):
    """A shortcut padded with zero channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(12, 20), conv(20, 12, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x) + F.pad(x, (0, 0, 0, 0, 4, 4)))


_CASES: tuple[type[nn.Module], ...] = (
    Residual, InPlaceResidual, SqueezeExcitation, Dense, ConcatPlusConv, Gated, Glu, Slices,
    DepthwiseMultiplier, Grouped, Norms, InstanceNorms, Transposed, PixelShuffle, CalledTwice, Functional,
    ChannelsLast, ChannelPad,
)  # fmt: skip
IDENTITY = {case.__name__: case for case in _CASES}
"""Constructions in which a kept channel means the same in the sub-network as in the full one."""


class WeightNorms(nn.Module):
    """Weights computed from others, as parametrizations and by the older hook."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.utils.parametrizations.weight_norm(nn.Conv2d(12, 20, 3, padding=1))
        self.b = nn.utils.weight_norm(nn.Conv2d(20, 12, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(F.relu(self.a(x)))


class Remembering(nn.Module):
    """Keeps what it saw as attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv(12, 12)
        self.features: torch.Tensor | None = None
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.features = self.a(x)
        self.calls += 1
        return self.features


class Flattened(nn.Module):
    """VGG's flatten and stacked linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(conv(3, 8), nn.MaxPool2d(2), conv(8, 10))
        self.classifier = nn.Sequential(nn.Linear(10 * 16, 24), nn.ReLU(), nn.Dropout(), nn.Linear(24, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


class Shuffled(nn.Module):
    """ShuffleNet's unit: chunk, concatenate, shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.left = conv(12, 9), conv(12, 9)
        self.a, self.b = conv(9, 9), conv(9, 9)
        self.last = conv(18, 12)

    @staticmethod
    def shuffle(x: torch.Tensor) -> torch.Tensor:
        b, c, h, w = x.shape
        return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.shuffle(torch.cat([self.first(x), self.left(x)], 1))
        for unit in (self.a, self.b):
            keep, change = x.chunk(2, dim=1)
            x = self.shuffle(torch.cat([keep, unit(change)], 1))
        return self.last(x)


class FixedView(nn.Module):
    """The code knows a number of channels by heart."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 8), conv(8, 10)
        self.head = nn.Linear(10 * 64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.b(self.a(x)).view(-1, 640))


class DataDependent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        if y.sum() > 0:
            y = y * 2
        return self.head(y.mean((2, 3)))


class Detour(DataDependent):
    """Leaves PyTorch for NumPy."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        largest = float(y.detach().numpy().max())
        return self.head(y.mean((2, 3)) / largest)


class Mixture(nn.Module):
    """A convolution whose weights depend on the image."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.gate = conv(12, 12), nn.Linear(12, 2)
        self.kernels = nn.Parameter(torch.randn(2, 12, 12, 3, 3) * 0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        gate = self.gate(x.mean((2, 3))).softmax(1)
        kernels = (gate[:, :, None, None, None, None] * self.kernels).sum(1).reshape(-1, c, 3, 3)
        y = F.conv2d(x.reshape(1, n * c, h, w), kernels, padding=1, groups=n)
        return self.a(y.reshape(n, -1, h, w))
