"""What an exported network says about itself: kept in the ONNX file's metadata, read back from it.

Keys in the file start with ``bcnet.``; values are JSON. Other tools' keys are left alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcnet_deploy import files
from bcnet_deploy.errors import ExportError

if TYPE_CHECKING:
    import onnx

PREFIX = "bcnet."
FORMAT = 1


@dataclass(frozen=True)
class ModelMetadata:
    """Everything a user of the file needs beside the graph.

    Attributes:
        model: model reference (name, classes, input size, ...).
        which: ``found``, ``uniform``, ``full`` or another label.
        widths: width by variable name; empty for an unsliced model.
        fingerprint: fingerprint of the width space.
        preprocessing: what to do to an image before the network (mean, std, size, ...).
        class_names: names of the outputs, in order.
        precision: ``fp32``, ``fp16`` or ``int8``.
        extra: anything else that JSON can hold.
    """

    model: Mapping[str, Any] = field(default_factory=dict)
    which: str = ""
    widths: Mapping[str, int] = field(default_factory=dict)
    fingerprint: str = ""
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    precision: str = "fp32"
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form."""
        return {
            "format": FORMAT,
            "model": dict(self.model),
            "which": self.which,
            "widths": {name: int(width) for name, width in self.widths.items()},
            "fingerprint": self.fingerprint,
            "preprocessing": dict(self.preprocessing),
            "class_names": list(self.class_names),
            "precision": self.precision,
            "extra": dict(self.extra),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelMetadata:
        """The inverse of :meth:`to_dict`; keys that are absent take their defaults.

        Raises:
            ExportError: the data are of a newer format.
        """
        if data.get("format", FORMAT) != FORMAT:
            raise ExportError(
                f"the network's metadata has format {data['format']!r}, this version reads {FORMAT}; "
                "use the version of bcnet-deploy that wrote it"
            )
        known = {name: data[name] for name in cls.__dataclass_fields__ if name in data}
        if "class_names" in known:
            known["class_names"] = tuple(known["class_names"])
        return cls(**known)


def attach(model: onnx.ModelProto, metadata: ModelMetadata) -> None:
    """Write ``metadata`` into ``model`` in place, in the place of what it held before.

    Raises:
        ExportError: a value is nothing JSON can hold.
    """
    kept = [(entry.key, entry.value) for entry in model.metadata_props if not entry.key.startswith(PREFIX)]
    del model.metadata_props[:]
    for key, value in kept:
        model.metadata_props.add(key=key, value=value)
    for key, value in metadata.to_dict().items():
        try:
            text = json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ExportError(f"metadata {key!r} cannot be kept as JSON: {error}") from error
        model.metadata_props.add(key=PREFIX + key, value=text)


def read(source: onnx.ModelProto | Mapping[str, str]) -> ModelMetadata:
    """The metadata of an ONNX model, or of a runtime's map of metadata strings.

    Raises:
        ExportError: a value is not JSON or of a newer format.
    """
    if isinstance(source, Mapping):
        entries = dict(source)
    else:
        entries = {entry.key: entry.value for entry in source.metadata_props}
    data = {}
    for key, value in entries.items():
        if key.startswith(PREFIX):
            data[key.removeprefix(PREFIX)] = files.parse_json(
                value, ExportError, f"metadata {key!r} of the network"
            )
    return ModelMetadata.from_dict(data)


def sha256(path: str | Path) -> str:
    """Hex SHA-256 of a file.

    Raises:
        ExportError: the file cannot be read.
    """
    try:
        with Path(path).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ExportError(f"cannot read {path}: {error.strerror or error}") from error
