"""The layers that a latency table has entries for: a space's operators, grouped as runtimes fuse them.

Batch norm and an activation behind a convolution, linear layer or addition belong to that layer; all
else is a layer of its own. A layer's ``key`` says what is fixed (operator, kernel, stride, padding,
resolution, activation, precision, batch); its ``dims`` say which channel counts vary. Two layers with
one key are the same thing to a device, in whatever network they stand, and share measurements.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bcnet_deploy.space.extent import Extent

if TYPE_CHECKING:
    from bcnet_deploy.space import WidthSpace
    from bcnet_deploy.space.graph import Op

ANCHORS = frozenset({"conv", "conv_transpose", "linear"})
ACTIVATIONS = frozenset({
    "relu", "hardtanh", "relu6", "silu", "hardswish", "sigmoid", "gelu", "leaky_relu", "elu", "hardsigmoid",
    "mish", "tanh", "softplus", "selu", "celu", "prelu",
})  # fmt: skip
_FREE = frozenset({"detach", "dropout", "feature_dropout", "alias", "clone", "contiguous"})


@dataclass(frozen=True)
class Layer:
    """One term of a network's latency.

    Attributes:
        name: of its first operator.
        key: what is fixed, as text.
        dims: the channel counts that the time depends on: (in, out) of a convolution or linear layer,
            (channels,) of a depthwise convolution or elementwise operator.
        ops: names of the operators in it.
        macs: multiply-accumulates at full width (to show).
    """

    name: str
    key: str
    dims: tuple[Extent, ...]
    ops: tuple[str, ...]
    macs: int = 0

    @property
    def variables(self) -> tuple[int, ...]:
        """The width variables it depends on, ascending."""
        return tuple(sorted({variable for extent in self.dims for variable in extent.variables}))

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "key": self.key,
            "dims": [extent.to_list() for extent in self.dims],
            "ops": list(self.ops),
            "macs": self.macs,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Layer:
        return cls(
            name=str(data["name"]),
            key=str(data["key"]),
            dims=tuple(Extent.from_list(extent) for extent in data["dims"]),
            ops=tuple(str(op) for op in data["ops"]),
            macs=int(data["macs"]),
        )


def layers_of(space: WidthSpace, *, precision: str = "fp32", batch: int = 1) -> tuple[Layer, ...]:
    """The layers of ``space`` in execution order.

    Args:
        space: any width space.
        precision: ``fp32``, ``fp16`` or ``int8``; part of each key.
        batch: images at once; part of each key.
    """
    consumers: dict[int, int] = {}
    for op in space.ops:
        for index in set(op.inputs) - {op.output}:
            consumers[index] = consumers.get(index, 0) + 1
    groups: list[list[Op]] = []
    owner: dict[int, int] = {}
    for op in space.ops:
        target = _absorbing(op, groups, owner, consumers)
        if target is None:
            groups.append([op])
            owner[op.output] = len(groups) - 1
        else:
            groups[target].append(op)
            owner[op.output] = target
    return tuple(_layer(space, group, precision, batch) for group in groups if group[0].kind not in _FREE)


def _absorbing(
    op: Op, groups: list[list[Op]], owner: dict[int, int], consumers: dict[int, int]
) -> int | None:
    """The group that ``op`` is fused into, or None."""
    if len(op.inputs) != 1 or op.inputs[0] not in owner:
        return None
    source = op.inputs[0]
    if op.output != source and consumers.get(source, 0) != 1:
        return None
    index = owner[source]
    group = groups[index]
    if group[-1].output != source:
        return None
    if op.kind in _FREE:
        return index
    has_activation = any(member.kind in ACTIVATIONS for member in group)
    if op.kind == "batch_norm":
        return index if group[0].kind in ANCHORS and not has_activation else None
    if op.kind in ACTIVATIONS and not has_activation and group[0].kind in ANCHORS | {"add", "batch_norm"}:
        return index
    return None


def _layer(space: WidthSpace, group: list[Op], precision: str, batch: int) -> Layer:
    op = group[0]
    activation = next(
        (member.kind for member in group if member.kind in ACTIVATIONS and member is not op), None
    )
    parts, dims = _weighted(space, op) if op.kind in ANCHORS else _plain(space, op)
    if activation:
        parts.append(f"+{activation}")
    parts += [precision, f"b{batch}"]
    macs = op.mac_coefficient
    for factor in op.mac_factors:
        macs *= factor.max
    return Layer(op.name, " ".join(parts), dims, tuple(member.name for member in group), macs)


def _weighted(space: WidthSpace, op: Op) -> tuple[list[str], tuple[Extent, ...]]:
    assert op.in_channels is not None
    assert op.out_channels is not None
    source = space.tensors[op.inputs[0]].shape
    if op.kind == "linear":
        rows = [extent.max for extent in source[1:-1]]
        return ["linear", *([f"rows{'x'.join(map(str, rows))}"] if rows else [])], (
            op.in_channels,
            op.out_channels,
        )
    result = space.tensors[op.output].shape
    dims: tuple[Extent, ...]
    if op.groups is None or (op.groups.is_fixed and op.groups.const == 1):
        form, dims = "dense", (op.in_channels, op.out_channels)
    elif op.groups.max == op.in_channels.max == op.out_channels.max:
        form, dims = "depthwise", (op.in_channels,)
    elif op.groups.is_fixed:
        # Groups become narrower here, and fewer below.
        form, dims = f"groups{op.groups.const}", (op.in_channels, op.out_channels)
    else:
        each = op.in_channels.max // op.groups.max
        form, dims = f"groups-of-{each}", (op.in_channels, op.out_channels)
    parts = [op.kind, form]
    for letter, attribute in (("k", "kernel"), ("s", "stride"), ("p", "padding"), ("d", "dilation")):
        value = op.attrs.get(attribute)
        if value is not None and not (letter == "d" and set(value) == {1}):
            parts.append(letter + "x".join(map(str, value)))
    parts.append(f"{_spatial(source)}>{_spatial(result)}")
    return parts, dims


def _plain(space: WidthSpace, op: Op) -> tuple[list[str], tuple[Extent, ...]]:
    """Operators without weights: shapes with a letter in the place of each varying size."""
    dims: list[Extent] = []
    shapes = []
    for index in dict.fromkeys((*op.inputs, op.output)):
        sizes = []
        for extent in space.tensors[index].shape:
            if extent.is_fixed:
                sizes.append(str(extent.const))
                continue
            if extent not in dims:
                dims.append(extent)
            sizes.append(chr(ord("a") + dims.index(extent)))
        shapes.append("x".join(sizes))
    parts = [op.kind]
    for letter, attribute in (("k", "kernel"), ("s", "stride"), ("p", "padding")):
        value = op.attrs.get(attribute)
        if value is not None:
            parts.append(letter + ("x".join(map(str, value)) if isinstance(value, tuple) else str(value)))
    if op.kind == "cat" and len(dims) > 1:
        # The copy's time follows the sum of the parts, and that is its output.
        output = next(extent for extent in space.tensors[op.output].shape if not extent.is_fixed)
        return [*parts, "x".join(shapes[-1:]).replace(chr(ord("a") + dims.index(output)), "a")], (output,)
    return [*parts, ",".join(shapes)], tuple(dims)


def _spatial(shape: tuple[Extent, ...]) -> str:
    return "x".join(str(extent.max) for extent in shape[2:])
