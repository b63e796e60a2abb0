"""Estimates: the time of a layer that nobody measured, from published figures of the device.

A kernel takes as long as its arithmetic at the peak or its memory traffic at the bandwidth, whichever
is longer, plus a fixed overhead (Williams, Waterman, Patterson: Roofline, CACM 2009). Channels are
rounded up to what the device's matrix units take at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from bcnet_deploy.devices import DeviceProfile
    from bcnet_deploy.lut.layers import Layer
    from bcnet_deploy.space import WidthSpace
    from bcnet_deploy.space.extent import Extent

Int64 = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Products = tuple[tuple[float, tuple[int, ...]], ...]
"""(coefficient, indices of dims) terms: coefficient times the product of those channel counts."""

LARGEST_US = 1e10
"""A layer takes no three hours."""


@dataclass(frozen=True)
class Roofline:
    """The estimate of one kind of layer.

    Attributes:
        macs, elements: multiply-accumulates, and numbers read and written, as sums of products of dims.
        us_per_mac, us_per_element: of the device at the share of its peaks that kernels reach.
        overhead_us: of launching a kernel.
        granularity: channels are rounded up to multiples of it for arithmetic.
    """

    macs: Products
    elements: Products
    us_per_mac: float
    us_per_element: float
    overhead_us: float
    granularity: int

    def time_us(self, dims: Int64) -> Floats:
        """(n, D) channel counts -> (n,) microseconds."""
        rounded = -(-dims // self.granularity) * self.granularity
        compute = _sum(self.macs, rounded) * self.us_per_mac
        traffic = _sum(self.elements, dims) * self.us_per_element
        return np.asarray(np.maximum(compute, traffic) + self.overhead_us)

    @property
    def dimensions(self) -> int:
        """The least number of channel counts that its products need."""
        indices = (index for _, indices in (*self.macs, *self.elements) for index in indices)
        return 1 + max(indices, default=0)

    def to_dict(self) -> dict[str, Any]:
        return {
            "form": "roofline",
            "macs": [[coefficient, list(indices)] for coefficient, indices in self.macs],
            "elements": [[coefficient, list(indices)] for coefficient, indices in self.elements],
            "us_per_mac": self.us_per_mac,
            "us_per_element": self.us_per_element,
            "overhead_us": self.overhead_us,
            "granularity": self.granularity,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Roofline:
        numbers = {name: float(data[name]) for name in ("us_per_mac", "us_per_element", "overhead_us")}
        if not all(0 <= value <= LARGEST_US for value in numbers.values()):
            raise ValueError("a time is negative or too large")
        if not 1 <= int(data["granularity"]) <= 1024:
            raise ValueError("the granularity is out of range; allowed: 1 to 1024")
        return cls(
            macs=_products(data["macs"]), elements=_products(data["elements"]), **numbers,
            granularity=int(data["granularity"]),
        )  # fmt: skip


def roofline_of(space: WidthSpace, layer: Layer, device: DeviceProfile) -> Roofline:
    """The estimate of ``layer`` of ``space`` on ``device``, at the profile's precision and batch."""
    from bcnet_deploy.devices import BYTES

    device.require_figures()
    assert device.achievable and device.bandwidth_gb_s and device.launch_overhead_us
    members = [op for op in space.ops if op.name in set(layer.ops)]
    first, last = members[0], members[-1]
    macs = []
    for op in members:
        if op.mac_coefficient:
            macs.append(_product(op.mac_coefficient * device.batch, op.mac_factors, layer))
    elements = []
    for index in dict.fromkeys((*first.inputs, last.output)):
        elements.append(_product(device.batch, space.tensors[index].shape, layer))
    for op in members:
        for name, dims in space.slices.items():
            if name.rpartition(".")[0] == (op.weight or "").rpartition(".")[0] and op.weight:
                elements.append(_product(1, _extents(dims, space), layer))
    share = device.achievable.value
    return Roofline(
        macs=tuple(macs),
        elements=tuple(elements),
        us_per_mac=2 / (device.peak_tflops[device.precision].value * 1e6 * share),
        us_per_element=BYTES[device.precision] / (device.bandwidth_gb_s.value * 1e3 * share),
        overhead_us=0.0 if first.is_view else device.launch_overhead_us.value,
        granularity=int(device.channel_granularity[device.precision].value),
    )


def _extents(dims: Any, space: WidthSpace) -> tuple[Extent, ...]:
    from bcnet_deploy.space.extent import extent_of

    steps = tuple(variable.step for variable in space.variables)
    return tuple(extent_of(segments, steps) for segments in dims)


def _product(coefficient: float, factors: tuple[Extent, ...], layer: Layer) -> tuple[float, tuple[int, ...]]:
    """Express a product of extents in the layer's dims; an extent that is none of them counts at its maximum
    in proportion to the nearest dim it shares variables with."""
    indices = []
    for extent in factors:
        if extent in layer.dims:
            indices.append(layer.dims.index(extent))
        elif extent.is_fixed:
            coefficient *= extent.const
        else:
            near = [i for i, dim in enumerate(layer.dims) if set(dim.variables) & set(extent.variables)]
            coefficient *= extent.max / layer.dims[near[0]].max if near else extent.max
            indices += near[:1]
    return float(coefficient), tuple(indices)


def _sum(products: Products, dims: Int64) -> Floats:
    total = np.zeros(len(dims))
    for coefficient, indices in products:
        total += coefficient * dims[:, indices].prod(axis=1)
    return total


def _products(data: Any) -> Products:
    """Raises ValueError for a coefficient or index that no layer can have."""
    found = tuple((float(coefficient), tuple(int(i) for i in indices)) for coefficient, indices in data)
    for coefficient, indices in found:
        if not 0 <= coefficient <= 1e18 or any(index < 0 for index in indices):
            raise ValueError(f"a product of coefficient {coefficient:g} and dims {list(indices)[:9]}")
    return found
