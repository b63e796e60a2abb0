"""An engine on disk: the runtime's own file, and beside it what one must know to run it (a JSON sidecar)."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcnet_deploy import files
from bcnet_deploy.errors import EngineError
from bcnet_deploy.validation import written_as

if TYPE_CHECKING:
    from bcnet_deploy.devices import DeviceProfile
    from bcnet_deploy.runtime.base import EngineBuild

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
        flavour: the package that built the engine, such as ``tensorrt_rtx``. version: of it.
        capability: compute capability it was built for, such as ``7.5``; empty for other runtimes.
        precision: ``fp32``, ``fp16``, ``bf16`` or ``int8``; inputs and outputs are float32 always.
        batch: smallest, best and largest batch size.
        input_name: and ``input_size`` (C, H, W): of the network's input.
        onnx_sha256: hash of the ONNX file it was built from. engine_sha256: hash of the plan.
        size_bytes: of the plan.
        nodes: ONNX node names in graph order, to map per-layer times back.
        network: the ONNX file's metadata (model reference, widths, preprocessing, class names, ...).
        device: name of the device profile. built_on: GPU it was built on, empty when there was none.
        parts: hashes of the engine's other files, by suffix.
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
    parts: Mapping[str, str] = field(default_factory=dict)

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
        if odd := set(data) - {"format", *cls.__dataclass_fields__}:
            raise EngineError(f"{path}: unknown key {min(odd)!r}; build the engine again")
        return written_as(cls, data, path, EngineError, "build the engine again")


def sidecar_path(engine: str | Path) -> Path:
    """Where the sidecar of ``engine`` is: ``net.engine`` has ``net.engine.json``."""
    return Path(f"{engine}.json")


def write_sidecar(
    path: Path,
    network: bytes,
    built: EngineBuild,
    device: DeviceProfile,
    precision: str,
    *,
    batch: tuple[int, int, int],
    onnx_sha256: str = "",
    described: Mapping[str, Any] | None = None,
    parts: Iterable[Path] = (),
) -> EngineInfo:
    """Write what one must know to run an engine beside it, after it: a kill between the two leaves a sidecar
    whose hash does not fit, which :func:`read_engine` refuses.

    Args:
        path: of the engine, written already.
        network: the serialised ONNX network that it was built from.
        built: what the runtime said of the build.
        device, precision, batch: as given to the build; a fixed batch of the network wins.
        onnx_sha256: of the ONNX file on disk; of ``network`` where empty.
        described: the metadata of the ONNX file.
        parts: the engine's other files, where it has some: beside it, of the same name but the suffix.

    Raises:
        EngineError: the network has no single image input.
        RunDirError: the file cannot be written.
    """
    import onnx

    graph = onnx.load_from_string(network).graph
    input_name, fixed, size = image_input(graph)
    engine = path.read_bytes()
    info = EngineInfo(
        flavour=built.package, version=built.version, capability=built.capability, precision=precision,
        batch=batch if fixed is None else (fixed, fixed, fixed), input_name=input_name, input_size=size,
        onnx_sha256=onnx_sha256 or hashlib.sha256(network).hexdigest(),
        engine_sha256=hashlib.sha256(engine).hexdigest(), size_bytes=len(engine),
        nodes=tuple(node.name for node in graph.node), network=dict(described or {}), device=device.name,
        built_on=built.built_on,
        parts={part.suffix: hashlib.sha256(part.read_bytes()).hexdigest() for part in parts},
    )  # fmt: skip
    files.write_json(sidecar_path(path), info.to_dict())
    return info


def image_input(graph: Any) -> tuple[str, int | None, tuple[int, int, int]]:
    """Name, fixed batch (None: dynamic) and (C, H, W) of the only input. Raises :class:`EngineError`."""
    weights = {tensor.name for tensor in graph.initializer}
    feeds = [value for value in graph.input if value.name not in weights]
    sizes = [dim.dim_value for dim in feeds[0].type.tensor_type.shape.dim] if len(feeds) == 1 else []
    if len(sizes) != 4 or 0 in sizes[1:]:
        raise EngineError("the network does not have one input of a fixed image size")
    return feeds[0].name, sizes[0] or None, (sizes[1], sizes[2], sizes[3])


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
    for suffix, expected in info.parts.items():
        part = Path(path).with_suffix(suffix)
        if not part.exists() or hashlib.sha256(part.read_bytes()).hexdigest() != expected:
            raise EngineError(f"{part} is missing, or not what was built with {path}; build the engine again")
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
    return ["size", "hash", *check_head(plan, info.flavour, info.version, info.capability, where)]


def check_head(plan: bytes, flavour: str, version: str, capability: str, where: str) -> list[str]:
    """Check what the head of a TensorRT-RTX plan says; return what was checked, nothing for other flavours.

    Raises:
        EngineError: the plan is truncated, or of another version or compute capability.
    """
    if flavour != "tensorrt_rtx":
        return []
    head = read_head(plan)
    if head is None:
        raise EngineError(f"{where} is no TensorRT-RTX plan; build the engine again")
    if head.size != len(plan):
        raise EngineError(f"engine {where} is truncated; build it again")
    if head.version != version:
        raise EngineError(f"engine {where} is of TensorRT-RTX {head.version}, its sidecar says {version}")
    if "newer" not in head.capabilities and head.capabilities != (capability,):
        raise EngineError(
            f"engine {where} is for compute capability {', '.join(head.capabilities) or 'none'}, "
            f"its sidecar says {capability}"
        )
    return ["plan size", "version", "compute capability"]
