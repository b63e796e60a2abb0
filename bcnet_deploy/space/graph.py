"""What a network computes, as data: operators, tensors and their sizes at given widths. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bcnet_deploy.space.extent import Extent, Int64

VIEW_KINDS = frozenset(
    {"view", "permute", "transpose", "expand", "slice", "split", "select", "squeeze", "detach"}
)


@dataclass(frozen=True)
class FrozenPart:
    """Channels that stay at full width, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class TensorSpec:
    """An activation tensor of a batch of one.

    Attributes:
        shape: size of each dimension.
        alias_of: index of the tensor whose memory it shares (views, in-place results), or None.
    """

    shape: tuple[Extent, ...]
    alias_of: int | None = None

    def elements(self, widths: npt.ArrayLike) -> Int64:
        """(N, L) widths -> (N,) number of elements."""
        array = np.atleast_2d(np.asarray(widths, dtype=np.int64))
        total = np.ones(len(array), dtype=np.int64)
        for extent in self.shape:
            total *= extent(array)
        return total


@dataclass(frozen=True)
class Op:
    """One operator of the network, in evaluation mode, on a batch of one.

    Attributes:
        name: unique; the module path of the call, for functional calls with the kind appended,
            for the second call of a module with ``:2``.
        kind: ``conv``, ``conv_transpose``, ``linear``, ``matmul``, ``batch_norm``, ``add``, ...
        module: path of the innermost module that makes the call.
        inputs: indices of its input activations in ``WidthSpace.tensors``.
        output: index of its (first) output.
        attrs: ``kernel``, ``stride``, ``padding``, ``dilation`` where they apply.
        in_channels, out_channels, groups: for convolutions and linear layers.
        weight: name of the weight parameter, if it is one.
        mac_coefficient, mac_factors: multiply-accumulates are their product.
    """

    name: str
    kind: str
    module: str
    inputs: tuple[int, ...]
    output: int
    attrs: dict[str, Any] = field(default_factory=dict)
    in_channels: Extent | None = None
    out_channels: Extent | None = None
    groups: Extent | None = None
    weight: str | None = None
    mac_coefficient: int = 0
    mac_factors: tuple[Extent, ...] = ()

    @property
    def is_view(self) -> bool:
        return self.kind in VIEW_KINDS

    def macs(self, widths: npt.ArrayLike) -> Int64:
        """(N, L) widths -> (N,) multiply-accumulates; 0 for everything but products with weights."""
        array = np.atleast_2d(np.asarray(widths, dtype=np.int64))
        total = np.full(len(array), self.mac_coefficient, dtype=np.int64)
        for extent in self.mac_factors:
            total *= extent(array)
        return total

    def to_dict(self) -> dict[str, Any]:
        data: dict[str, Any] = {
            "name": self.name,
            "kind": self.kind,
            "module": self.module,
            "inputs": list(self.inputs),
            "output": self.output,
        }
        if self.attrs:
            data["attrs"] = {key: list(v) if isinstance(v, tuple) else v for key, v in self.attrs.items()}
        for key in ("in_channels", "out_channels", "groups"):
            extent = getattr(self, key)
            if extent is not None:
                data[key] = extent.to_list()
        if self.weight is not None:
            data["weight"] = self.weight
        if self.mac_coefficient:
            data["macs"] = [self.mac_coefficient, [extent.to_list() for extent in self.mac_factors]]
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Op:
        coefficient, factors = data.get("macs", (0, ()))
        extents = {
            key: Extent.from_list(data[key])
            for key in ("in_channels", "out_channels", "groups")
            if key in data
        }
        return cls(
            name=data["name"],
            kind=data["kind"],
            module=data["module"],
            inputs=tuple(data["inputs"]),
            output=data["output"],
            attrs={k: tuple(v) if isinstance(v, list) else v for k, v in data.get("attrs", {}).items()},
            weight=data.get("weight"),
            mac_coefficient=coefficient,
            mac_factors=tuple(Extent.from_list(factor) for factor in factors),
            **extents,
        )
