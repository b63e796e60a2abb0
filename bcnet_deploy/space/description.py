"""A width space as plain data and back, and its fingerprint."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from bcnet_deploy.errors import CheckpointError
from bcnet_deploy.space.extent import Extent, Segment, Segments
from bcnet_deploy.space.ops import FrozenPart, Op, TensorSpec
from bcnet_deploy.space.variables import make_variables

if TYPE_CHECKING:
    from bcnet_deploy.space.widths import WidthSpace

FORMAT = 1


def fingerprint(space: WidthSpace) -> str:
    """See :attr:`WidthSpace.fingerprint`."""
    data = [
        list(space.input_size),
        [[v.name, v.channels, v.step] for v in space.variables],
        [[op.kind, op.name, op.inputs, op.attrs, _plain(op.mac_factors)] for op in space.ops],
        [_plain(tensor.shape) for tensor in space.tensors],
    ]
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()[:16]


def to_dict(space: WidthSpace) -> dict[str, Any]:
    """See :meth:`WidthSpace.to_dict`."""
    return {
        "format": FORMAT,
        "model_name": space.model_name,
        "input_size": list(space.input_size),
        "levels": space.levels,
        "min_level": space.min_level,
        "variables": [
            {"name": v.name, "channels": v.channels, "step": v.step, "layers": list(v.layers)}
            for v in space.variables
        ],
        "ops": [op.to_dict() for op in space.ops],
        "tensors": [
            {"shape": _plain(t.shape), **({} if t.alias_of is None else {"alias_of": t.alias_of})}
            for t in space.tensors
        ],
        "slices": {name: [_segments(d) for d in dims] for name, dims in space.slices.items()},
        "attributes": [
            [path, key, [_segments(d) for d in value] if key == "normalized_shape" else _segments(value)]
            for (path, key), value in space.attributes.items()
        ],
        "parameter_names": sorted(space.parameter_names),
        "frozen": [[part.name, part.reason] for part in space.frozen],
        "notes": list(space.notes),
    }


def from_dict(cls: type[WidthSpace], data: dict[str, Any]) -> WidthSpace:
    """See :meth:`WidthSpace.from_dict`."""
    try:
        if data["format"] != FORMAT:
            raise CheckpointError(f"the width space has format {data['format']}, this version reads {FORMAT}")
        levels, min_level = int(data["levels"]), int(data["min_level"])
        variables = make_variables(
            [(v["name"], v["channels"], v["step"], tuple(v["layers"])) for v in data["variables"]],
            levels,
            min_level,
        )
        channels, height, width = data["input_size"]
        return cls(
            variables=variables,
            input_size=(channels, height, width),
            levels=levels,
            min_level=min_level,
            model_name=data["model_name"],
            ops=tuple(Op.from_dict(op) for op in data["ops"]),
            tensors=tuple(
                TensorSpec(tuple(Extent.from_list(e) for e in t["shape"]), t.get("alias_of"))
                for t in data["tensors"]
            ),
            slices={name: tuple(_to_segments(d) for d in dims) for name, dims in data["slices"].items()},
            attributes={
                (path, key): tuple(_to_segments(d) for d in value)
                if key == "normalized_shape"
                else _to_segments(value)
                for path, key, value in data["attributes"]
            },
            parameter_names=frozenset(data["parameter_names"]),
            frozen=tuple(FrozenPart(name, reason) for name, reason in data["frozen"]),
            notes=tuple(data["notes"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"damaged width space description: {error!r}; make it again") from error


def _plain(extents: tuple[Extent, ...]) -> list[Any]:
    return [extent.to_list() for extent in extents]


def _segments(segments: Any) -> list[list[int]]:
    return [[s.variable, s.size, s.repeat] for s in segments]


def _to_segments(data: list[list[int]]) -> Segments:
    return tuple(Segment(variable, size, repeat) for variable, size, repeat in data)
