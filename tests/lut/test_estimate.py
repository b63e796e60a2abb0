"""Estimates against the roofline worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from bcnet_deploy.devices import load_device
from bcnet_deploy.errors import TableError
from bcnet_deploy.lut import LatencyTable
from bcnet_deploy.lut.estimate import ASSUMED_ERROR, estimate_table
from bcnet_deploy.space import WidthSpace


class TwoConvolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 64, 3, 2, 1, bias=False)
        self.second = nn.Conv2d(64, 128, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def test_a_convolution_by_hand() -> None:
    space = WidthSpace.from_model(TwoConvolutions().eval(), (3, 64, 64), 20)
    device = load_device("t4")
    table = estimate_table(space, device)
    width = 60  # FP16 kernels on a T4 take 8 channels at once: 64
    parts = dict(zip(*[(b := table.breakdown([width])).names, b.milliseconds[0]], strict=True))
    share = device.achievable.value
    # 65 TFLOPS, 320 GB/s, 2 operations a multiply-accumulate, 2 bytes a value, output 32 x 32.
    compute = 2 * 32 * 32 * 64 * 128 / (65e12 * share)
    traffic = 2 * (width * 1024 + 128 * 1024 + width * 128) / (320e9 * share)
    expected = max(compute, traffic) + 3e-6
    assert parts["second"] == pytest.approx(1e3 * expected, rel=1e-6)
    assert parts["overhead"] == 0.0


def test_says_that_it_is_an_estimate_and_why(tmp_path_factory: pytest.TempPathFactory) -> None:
    space = WidthSpace.from_model(TwoConvolutions().eval(), (3, 64, 64), 20)
    path = tmp_path_factory.mktemp("estimate") / "t4.json"
    estimate_table(space, load_device("t4")).save(path)
    table = LatencyTable.load(path)
    assert table.source == "estimated"
    assert table.estimated
    assert table.differences() == []
    assert "nothing was measured" in table.provenance["method"]
    assert all(len(figure["source"]) > 20 for figure in table.provenance["figures"].values())
    np.testing.assert_allclose(table.uncertainty(space.full), ASSUMED_ERROR * table.predict(space.full))


def test_never_gets_faster_with_more_channels() -> None:
    space = WidthSpace.from_model(TwoConvolutions().eval(), (3, 64, 64), 64)
    times = estimate_table(space, load_device("t4")).predict(np.arange(1, 65)[:, None])
    assert (np.diff(times) >= 0).all()


def test_a_faster_device_is_faster() -> None:
    space = WidthSpace.from_model(TwoConvolutions().eval(), (3, 64, 64), 20)
    t4, a100 = (estimate_table(space, load_device(name)).predict(space.full)[0] for name in ("t4", "a100"))
    assert a100 < t4


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("macs", [[1.0, [7]]], "another number of them"),
        ("elements", [[1.0, [-1]]], "is damaged"),
        ("macs", [[1e300, [0]]], "is damaged"),
        ("granularity", 0, "the granularity is out of range"),
        ("us_per_mac", 1e300, "a time is negative or too large"),
    ],
)
def test_an_edited_roofline_is_refused(key: str, value: object, message: str) -> None:
    space = WidthSpace.from_model(TwoConvolutions().eval(), (3, 64, 64), 20)
    data = estimate_table(space, load_device("t4")).to_dict()
    next(iter(data["models"].values()))[key] = value
    with pytest.raises(TableError, match=message):
        LatencyTable.from_dict(data)
