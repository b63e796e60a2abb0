"""A TensorRT engine with its sidecar, from an ONNX file and a device profile."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bcnet_deploy.devices import DeviceProfile, load_device
from bcnet_deploy.errors import EngineError, ExportError
from bcnet_deploy.export import metadata as meta
from bcnet_deploy.export.onnx import check
from bcnet_deploy.export.precision import PRECISIONS, Precision, to_fp16
from bcnet_deploy.runtime.engine_file import EngineInfo, check_plan, write_engine
from bcnet_deploy.runtime.trt_build import (
    Flavour,
    build_plan,
    check_target,
    find_flavour,
    gpu,
    installed_flavours,
    is_malformed,
)


@dataclass(frozen=True)
class EngineResult:
    """An engine that was written.

    Attributes:
        path: the plan; its sidecar is ``<path>.json``. info: the sidecar.
        checked: what was checked of the plan.
        deserialised: whether it was also loaded on a GPU; only possible on the GPU it is for.
        seconds: wall time of the build, checks included.
    """

    path: Path
    info: EngineInfo
    checked: tuple[str, ...]
    deserialised: bool
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form; the path is the file's name alone, so that folders can move."""
        kept = {key: value for key, value in self.info.to_dict().items() if key not in ("nodes", "network")}
        return {
            **kept, "file": self.path.name, "checked": list(self.checked),
            "deserialised": self.deserialised, "seconds": round(self.seconds, 3),
        }  # fmt: skip


def choose_flavour(device: DeviceProfile) -> Flavour:
    """The installed flavour to build with for ``device``: ``tensorrt`` where the GPU is present, else RTX.

    Raises:
        EngineError: none is installed; the message names the packages.
    """
    present = gpu()
    found = {flavour.name: flavour for flavour in installed_flavours()}
    if present is not None and present[1] == device.compute_capability and "tensorrt" in found:
        return found["tensorrt"]
    return found.get("tensorrt_rtx") or find_flavour()


def check_device(device: DeviceProfile, precision: str, flavour: Flavour | None = None) -> Flavour:
    """The flavour that can build ``precision`` for ``device``; refuses before any work.

    Raises:
        EngineError: the device is no GPU or lacks the precision, or no installed flavour can build for it.
    """
    if precision not in PRECISIONS:
        raise EngineError(f"unknown precision {precision!r}; allowed are {', '.join(PRECISIONS)}")
    if device.compute_capability is None:
        raise EngineError(
            f"device {device.name!r} is no GPU, which TensorRT needs; choose --engine onnx or ort"
        )
    if precision not in device.peak_tflops:
        raise EngineError(
            f"device {device.name!r} has no {precision.upper()}; "
            f"its profile lists {', '.join(device.peak_tflops)}"
        )
    flavour = flavour or choose_flavour(device)
    check_target(flavour, device.compute_capability, precision)
    return flavour


def build_engine(
    onnx_path: str | Path,
    engine_path: str | Path,
    device_profile: DeviceProfile | str,
    precision: Precision | None = None,
    *,
    flavour: Flavour | None = None,
    batch: tuple[int, int, int] = (1, 8, 32),
) -> EngineResult:
    """Build an engine for a device from an ONNX file and write it with its JSON sidecar.

    An FP32 file is turned into FP16 when that is asked for. INT8 needs a file that was exported with
    ``precision="int8", target="trt"``: its calibration is in the file.

    Args:
        onnx_path: written by :func:`bcnet_deploy.export.export_onnx` (or any ONNX file with one image input).
        engine_path: the plan to write; the sidecar gets ``.json`` appended.
        device_profile: the device, or its name.
        precision: the profile's own when None.
        flavour: the TensorRT to build with; chosen by the device when None.
        batch: smallest, best and largest batch size, used where the file's is dynamic.

    Raises:
        EngineError: no TensorRT is installed, or it refuses the device, the precision or an operator.
        ExportError: the ONNX file is missing, invalid or of another precision.
        RunDirError: the engine cannot be written.
    """
    import onnx

    start = time.perf_counter()
    device = load_device(device_profile) if isinstance(device_profile, str) else device_profile
    wanted = precision or device.precision
    flavour = check_device(device, wanted, flavour)
    assert device.compute_capability is not None
    onnx_hash = meta.sha256(onnx_path)
    try:
        model = onnx.load(str(onnx_path))
    except Exception as error:  # protobuf's decode errors share no base class with onnx's
        raise ExportError(f"{onnx_path} is not an ONNX file: {error}") from error
    described = meta.read(model)
    if wanted == "int8" and described.precision == "int8" and described.extra.get("int8_target") != "trt":
        raise ExportError(f"{onnx_path} is quantised for ONNX Runtime; export INT8 with target 'trt' instead")
    model = _with_precision(model, described.precision, wanted, str(onnx_path))
    input_name, fixed, size = _image_input(model, str(onnx_path))
    cache = Path(engine_path).with_name(f"timing-{flavour.version}-sm{device.compute_capability}.cache")
    plan = build_plan(
        model.SerializeToString(), flavour, device.compute_capability, batch=batch, timing_cache=cache
    )
    present = gpu()
    info = EngineInfo(
        flavour=flavour.name, version=flavour.version, capability=device.compute_capability, precision=wanted,
        batch=batch if fixed is None else (fixed, fixed, fixed), input_name=input_name, input_size=size,
        onnx_sha256=onnx_hash, engine_sha256=hashlib.sha256(plan).hexdigest(), size_bytes=len(plan),
        nodes=tuple(node.name for node in model.graph.node), network=described.to_dict(), device=device.name,
        built_on=present[0] if present else "",
    )  # fmt: skip
    checked = check_plan(plan, info, str(engine_path))
    if flavour.name == "tensorrt_rtx":
        if is_malformed(plan, flavour):
            raise EngineError(f"{flavour} does not take its own engine for one; the build is broken")
        checked.append("TensorRT's own format check")
    write_engine(engine_path, plan, info)
    deserialised = present is not None and present[1] == device.compute_capability
    if deserialised:
        from bcnet_deploy.runtime.trt import TrtRunner

        with TrtRunner(engine_path):
            pass
    return EngineResult(Path(engine_path), info, tuple(checked), deserialised, time.perf_counter() - start)


def _with_precision(model: Any, given: str, wanted: str, path: str) -> Any:
    if given == wanted:
        return model
    if given == "fp32" and wanted == "fp16":
        return check(to_fp16(model))
    hint = (
        "export it with --precision int8, which calibrates"
        if wanted == "int8"
        else f"export it with --precision {wanted}"
    )
    raise ExportError(f"{path} is of precision {given}, {wanted} was asked for; {hint}")


def _image_input(model: Any, path: str) -> tuple[str, int | None, tuple[int, int, int]]:
    """Name, fixed batch (None: dynamic) and (C, H, W) of the only input."""
    weights = {tensor.name for tensor in model.graph.initializer}
    feeds = [value for value in model.graph.input if value.name not in weights]
    sizes = [dim.dim_value for dim in feeds[0].type.tensor_type.shape.dim] if len(feeds) == 1 else []
    if len(sizes) != 4 or 0 in sizes[1:]:
        raise ExportError(f"{path} does not have one input of a fixed image size")
    return feeds[0].name, sizes[0] or None, (sizes[1], sizes[2], sizes[3])


def describe(result: EngineResult) -> Mapping[str, str]:
    """The lines a person wants to see of an engine."""
    info = result.info
    return {
        "engine": str(result.path),
        "built by": f"{info.flavour} {info.version}",
        "compute capability": info.capability,
        "precision": info.precision,
        "size": f"{info.size_bytes / 2**20:.1f} MiB",
        "checked": ", ".join(result.checked)
        + ("; loaded on the GPU" if result.deserialised else "; not loaded: no such GPU on this machine"),
    }
