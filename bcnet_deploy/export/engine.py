"""An engine of a runtime with its sidecar, from an ONNX file and a device profile."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bcnet_deploy.devices import DeviceProfile, load_device
from bcnet_deploy.errors import BCNetError, ExportError
from bcnet_deploy.export import metadata as meta
from bcnet_deploy.export.onnx import check
from bcnet_deploy.export.parity import Parity, compare, outputs_of_onnx
from bcnet_deploy.runtime.base import Runtime
from bcnet_deploy.runtime.engine_file import EngineInfo, image_input, write_sidecar
from bcnet_deploy.runtime.precision import to_fp16
from bcnet_deploy.runtime.registry import find_runtime


@dataclass(frozen=True)
class EngineResult:
    """An engine that was written.

    Attributes:
        path: the engine; its sidecar is ``<path>.json``. info: the sidecar.
        checked: what was checked of the engine.
        deserialised: whether it was also loaded on the device; only possible where that is.
        seconds: wall time of the build, checks included.
        parity: against the ONNX file, where inputs were given and the device is here.
    """

    path: Path
    info: EngineInfo
    checked: tuple[str, ...]
    deserialised: bool
    seconds: float
    parity: Parity | None = None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form; the path is the file's name alone, so that folders can move."""
        kept = {
            key: value
            for key, value in self.info.to_dict().items()
            if key not in ("nodes", "network", "parts")
        }
        return {
            **kept, "file": self.path.name, "checked": list(self.checked),
            "deserialised": self.deserialised, "seconds": round(self.seconds, 3),
            "parity": self.parity.to_dict() if self.parity else None,
        }  # fmt: skip


def build_engine(
    onnx_path: str | Path,
    engine_path: str | Path,
    device_profile: DeviceProfile | str,
    precision: str | None = None,
    *,
    runtime: Runtime | None = None,
    batch: tuple[int, int, int] = (1, 8, 32),
    parity_inputs: NDArray[np.float32] | None = None,
) -> EngineResult:
    """Build an engine for a device from an ONNX file and write it with its JSON sidecar.

    An FP32 file is turned into FP16 when that is asked for. INT8 needs a file that was exported with
    ``precision="int8"`` for this runtime: its calibration is in the file.

    Args:
        onnx_path: written by :func:`bcnet_deploy.export.export_onnx` (or any ONNX file with one image input).
        engine_path: the file to write; the sidecar gets ``.json`` appended.
        device_profile: the device, or its name.
        precision: the profile's own when None.
        runtime: whose engine; the profile's own when None.
        batch: smallest, best and largest batch size, used where the file's is dynamic.
        parity_inputs: (N, C, H, W); the engine's outputs for them are compared with the ONNX file's.

    Raises:
        EngineError: the runtime is not installed, or refuses the device, the precision or an operator.
        ExportError: the ONNX file is missing, invalid or of another precision, or outputs differ by more
            than the precision's tolerance; the engine is then removed.
        RunDirError: the engine cannot be written.
    """
    import onnx

    start = time.perf_counter()
    device = load_device(device_profile) if isinstance(device_profile, str) else device_profile
    runtime = runtime or find_runtime(device.runtime)
    wanted = precision or device.precision
    runtime.check_engine(device, wanted)
    onnx_hash = meta.sha256(onnx_path)
    try:
        model = onnx.load(str(onnx_path))
    except Exception as error:  # protobuf's decode errors share no base class with onnx's
        raise ExportError(f"{onnx_path} is not an ONNX file: {error}") from error
    described = meta.read(model)
    target = described.extra.get("int8_target", "ort")
    if wanted == "int8" and described.precision == "int8" and target != runtime.quantised_for:
        raise ExportError(
            f"{onnx_path} is quantised for {'ONNX Runtime' if target == 'ort' else 'TensorRT'}; "
            f"export INT8 with target {runtime.quantised_for!r} instead"
        )
    model = _with_precision(model, described.precision, wanted, runtime, str(onnx_path))
    image_input(model.graph)
    path, network = Path(engine_path), model.SerializeToString()
    built = runtime.build_engine(network, path, device, wanted, batch=batch)
    info = write_sidecar(
        path, network, built, device, wanted, batch=batch, onnx_sha256=onnx_hash,
        described=described.to_dict(), parts=runtime.engine_files(path)[2:],
    )  # fmt: skip
    parity = None
    if built.loaded and parity_inputs is not None:
        try:
            parity = _parity(runtime, path, device, Path(onnx_path), parity_inputs, info)
            if not parity.passed:
                raise ExportError(
                    f"the engine computes something else than {onnx_path}: {parity.summary()}; "
                    "try another precision"
                )
        except BCNetError:
            for file in runtime.engine_files(path):
                file.unlink(missing_ok=True)
            raise
    return EngineResult(path, info, built.checked, built.loaded, time.perf_counter() - start, parity)


def _with_precision(model: Any, given: str, wanted: str, runtime: Runtime, path: str) -> Any:
    if given == wanted or (given == "fp32" and wanted in runtime.converts):
        return model
    if given == "fp32" and wanted == "fp16":
        return check(to_fp16(model))
    hint = (
        "export it with --precision int8, which calibrates"
        if wanted == "int8"
        else f"export it with --precision {wanted}"
    )
    raise ExportError(f"{path} is of precision {given}, {wanted} was asked for; {hint}")


def _parity(
    runtime: Runtime, path: Path, device: DeviceProfile, onnx_path: Path, inputs: NDArray[np.float32],
    info: EngineInfo,
) -> Parity:  # fmt: skip
    """The engine against the ONNX file under ONNX Runtime."""
    for_trt = info.precision == "int8" and runtime.quantised_for == "trt"
    reference = outputs_of_onnx(onnx_path.read_bytes(), inputs, optimise=not for_trt)
    with runtime.engine_runner(path, device) as runner:
        (feed,) = runner.inputs
        size = feed.shape[0] if feed.shape[0] > 0 else min(len(inputs), info.batch[-1])
        padded = np.concatenate([inputs, np.repeat(inputs[:1], -len(inputs) % size, axis=0)])
        parts = [
            runner.infer({feed.name: np.ascontiguousarray(padded[at : at + size])})
            for at in range(0, len(padded), size)
        ]
    outputs = {
        name: np.concatenate([part[name] for part in parts])[: len(inputs)].astype(np.float32)
        for name in reference
    }
    return compare(reference, outputs, precision=info.precision, runtime=runner.name)


def describe(result: EngineResult) -> Mapping[str, str]:
    """The lines a person wants to see of an engine."""
    info = result.info
    lines = {
        "engine": str(result.path),
        "built by": f"{info.flavour} {info.version}",
        "compute capability": info.capability,
        "precision": info.precision,
        "size": f"{info.size_bytes / 2**20:.1f} MiB",
        "checked": ", ".join(result.checked)
        + ("; loaded on the device" if result.deserialised else "; not loaded: no such GPU on this machine"),
        "parity": result.parity.summary() if result.parity else "",
    }
    return {key: value for key, value in lines.items() if value}
