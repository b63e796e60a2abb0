"""A TensorRT engine on disk: the plan, and beside it what one must know to run it (a JSON sidecar)."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bcnet_deploy import files
from bcnet_deploy.errors import EngineError

FORMAT = 1

# The head of a TensorRT-RTX plan as observed with versions 1.7 (it is not documented): magic, the size
# of the plan, the version's four numbers, and a bit for each compute capability.
_HEAD_SIZE = 64
_MAGIC = b"vtrt\0\0\0\0"
_CAPABILITY_BITS = ("7.5", "8.0", "8.6", "8.9", "12.0")


@dataclass(frozen=True)
class EngineInfo:
    """The sidecar.

    Attributes:
        flavour: ``tensorrt`` or ``tensorrt_rtx``. version: of the package that built the engine.
        capability: compute capability it was built for, such as ``7.5``.
        precision: ``fp32``, ``fp16`` or ``int8``; inputs and outputs are float32 always.
        batch: smallest, best and largest batch size.
        input_name: and ``input_size`` (C, H, W): of the network's input.
        onnx_sha256: hash of the ONNX file it was built from. engine_sha256: hash of the plan.
        size_bytes: of the plan.
        nodes: ONNX node names in graph order, to map per-layer times back.
        network: the ONNX file's metadata (model reference, widths, preprocessing, class names, ...).
        device: name of the device profile. built_on: GPU it was built on, empty when there was none.
    """

    flavour: str
    version: str
    capability: str
    precision: str
    batch: tuple[int, int, int]
    input_name: str
    input_size: tuple[int, int, int]
    onnx_sha256: str
    engine_sha256: str
    size_bytes: int
    nodes: tuple[str, ...] = ()
    network: Mapping[str, Any] = field(default_factory=dict)
    device: str = ""
    built_on: str = ""

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Any, path: Path) -> EngineInfo:
        """Raises :class:`EngineError` naming the file and the key."""
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            given = data.get("format") if isinstance(data, dict) else None
            raise EngineError(
                f"{path} has format {given!r}, this version reads {FORMAT}; build the engine again"
            )
        values = {key: value for key, value in data.items() if key != "format"}
        known = set(cls.__dataclass_fields__)
        required = known - {"nodes", "network", "device", "built_on"}
        if set(values) - known or required - set(values):
            wrong = sorted((set(values) - known) | (required - set(values)))
            raise EngineError(f"{path}: unknown or missing key {wrong[0]!r}; build the engine again")
        for key in ("batch", "input_size", "nodes"):
            if key in values:
                values[key] = tuple(values[key])
        return cls(**values)


def sidecar_path(engine: str | Path) -> Path:
    """Where the sidecar of ``engine`` is: ``net.engine`` has ``net.engine.json``."""
    return Path(f"{engine}.json")


def write_engine(path: str | Path, plan: bytes, info: EngineInfo) -> None:
    """Write a plan and its sidecar, each atomically, the sidecar last: a kill between the two leaves a
    sidecar whose hash does not fit, which :func:`read_engine` refuses.

    Raises:
        RunDirError: the files cannot be written.
    """
    files.write_bytes(path, plan)
    files.write_json(sidecar_path(path), info.to_dict())


def read_info(path: str | Path) -> EngineInfo:
    """The sidecar of an engine. Raises :class:`EngineError`."""
    sidecar = sidecar_path(path)
    return EngineInfo.from_dict(files.read_json(sidecar, EngineError, "engine sidecar"), sidecar)


def read_engine(path: str | Path) -> tuple[bytes, EngineInfo]:
    """The plan and its sidecar, checked against each other.

    Raises:
        EngineError: a file is missing or damaged, or the two do not belong together.
    """
    info = read_info(path)
    try:
        plan = Path(path).read_bytes()
    except OSError as error:
        raise EngineError(f"cannot read engine {path}: {error.strerror or error}") from error
    if hashlib.sha256(plan).hexdigest() != info.engine_sha256:
        raise EngineError(f"engine {path} is not the one its sidecar describes; build it again")
    check_plan(plan, info, str(path))
    return plan, info


@dataclass(frozen=True)
class PlanHead:
    """What the head of a TensorRT-RTX plan says."""

    version: str
    capabilities: tuple[str, ...]
    size: int


def read_head(plan: bytes) -> PlanHead | None:
    """The head of a TensorRT-RTX plan; None when it is not of the observed form."""
    if len(plan) < _HEAD_SIZE or not plan.startswith(_MAGIC):
        return None
    (size,) = struct.unpack_from("<Q", plan, 16)
    version = ".".join(str(number) for number in plan[24:28])
    (bits,) = struct.unpack_from("<Q", plan, 32)
    names = [name for index, name in enumerate(_CAPABILITY_BITS) if bits >> index & 1]
    rest = bits >> len(_CAPABILITY_BITS)
    return PlanHead(version, (*names, *(("newer",) if rest else ())), size)


def check_plan(plan: bytes, info: EngineInfo, where: str) -> list[str]:
    """Check a plan against its sidecar as far as that needs no GPU; return what was checked.

    Raises:
        EngineError: the plan is truncated, or of another version or compute capability.
    """
    if len(plan) != info.size_bytes:
        raise EngineError(
            f"engine {where} has {len(plan)} bytes, {info.size_bytes} were written; build it again"
        )
    checked = ["size", "hash"]
    if info.flavour != "tensorrt_rtx":
        return checked
    head = read_head(plan)
    if head is None:
        raise EngineError(f"{where} is no TensorRT-RTX plan; build the engine again")
    if head.size != len(plan):
        raise EngineError(f"engine {where} is truncated; build it again")
    if head.version != info.version:
        raise EngineError(
            f"engine {where} is of TensorRT-RTX {head.version}, its sidecar says {info.version}"
        )
    if "newer" not in head.capabilities and head.capabilities != (info.capability,):
        raise EngineError(
            f"engine {where} is for compute capability {', '.join(head.capabilities) or 'none'}, "
            f"its sidecar says {info.capability}"
        )
    return [*checked, "plan size", "version", "compute capability"]
