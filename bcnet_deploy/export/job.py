"""Export of a run directory's networks: what ``bcnet-deploy export`` does."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from bcnet_deploy import files
from bcnet_deploy.devices import DeviceProfile, device_of_run
from bcnet_deploy.errors import EngineError, ExportError
from bcnet_deploy.export.metadata import ModelMetadata
from bcnet_deploy.export.onnx import DEFAULT_OPSET, OPSETS, ExportResult, export_onnx
from bcnet_deploy.export.source import WHICH, Source, load_source, recalibrated, require_current
from bcnet_deploy.rundir import RunDir
from bcnet_deploy.runtime.engine_file import sidecar_path
from bcnet_deploy.runtime.precision import PRECISIONS, Precision

if TYPE_CHECKING:
    from bcnet_deploy.data import DataSplits, ImageSet
    from bcnet_deploy.export.engine import EngineResult

Engine = Literal["onnx", "ort", "trt"]
ENGINES: tuple[Engine, ...] = ("onnx", "ort", "trt")
PARITY_IMAGES = 256
CALIBRATION_IMAGES = 128


@dataclass(frozen=True, kw_only=True)
class ExportJob:
    """What to export and how.

    Attributes:
        which: ``found``, ``uniform`` or ``full``.
        engine: ``onnx``: an ONNX file. ``ort``: beside it ONNX Runtime's own format, graph optimisations
            done. ``trt``: beside it a TensorRT engine with its sidecar.
        precision: None: the device's own for ``trt``, FP32 otherwise.
        dynamic_batch: any batch size instead of 1.
        device: device profile of a TensorRT engine; None: the run's.
        force: replace existing files.
        out: folder; None: ``export/`` of the run directory.
    """

    which: str = "found"
    engine: Engine = "onnx"
    precision: Precision | None = None
    dynamic_batch: bool = False
    opset: int = DEFAULT_OPSET
    device: str | None = None
    force: bool = False
    out: Path | None = None


@dataclass(frozen=True)
class JobResult:
    """What was written.

    Attributes:
        path: the file asked for. onnx: the ONNX file behind it (the same for ``onnx``).
        engine: of a TensorRT engine. origin: where the weights come from.
    """

    which: str
    path: Path
    onnx: ExportResult
    engine: EngineResult | None
    origin: str

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form."""
        return {
            "which": self.which, "file": self.path.name, "origin": self.origin, "onnx": self.onnx.to_dict(),
            "engine": self.engine.to_dict() if self.engine else None,
        }  # fmt: skip


def run_export(
    run: RunDir, job: ExportJob, *, progress: Callable[[float, str], None] | None = None
) -> JobResult:
    """Export one network of a run directory and note it in ``export.json``.

    Everything that can be refused without work is refused first. Parity is checked on images of the
    run's held-out data, INT8 is calibrated on its training images.

    Args:
        run: after ``retrain``, or at least ``search``.
        job: what to export.
        progress: told the share done and a note.

    Raises:
        ExportError: the output exists already, an argument is out of range, a check fails, or the network
            was retrained at a former search's widths.
        EngineError: no TensorRT is installed, or it refuses the device or precision.
        MissingStepError, CheckpointError, DataError: see :func:`load_source` and the data's loader.
    """
    tell = progress or (lambda done, note: None)
    config = run.load()
    if job.engine not in ENGINES:
        raise ExportError(f"unknown engine {job.engine!r}; allowed are {', '.join(ENGINES)}")
    if job.precision is not None and job.precision not in PRECISIONS:
        raise ExportError(f"unknown precision {job.precision!r}; allowed are {', '.join(PRECISIONS)}")
    if job.which not in WHICH:
        raise ExportError(f"unknown network {job.which!r}; allowed are {', '.join(WHICH)}")
    if job.opset not in OPSETS:
        raise ExportError(f"opset {job.opset} is out of range; allowed are {OPSETS[0]} to {OPSETS[-1]}")
    device: DeviceProfile | None = None
    precision: Precision = job.precision or "fp32"
    if job.engine == "trt":
        from bcnet_deploy.runtime.registry import find_runtime

        device = _gpu_device(run, job.device or config.device, given=job.device is not None)
        precision = job.precision or _precision(device)
        find_runtime("tensorrt").check_engine(device, precision)
    require_current(run, job.which)
    folder = job.out or run.export
    path, onnx_path = (written := exported_files(folder, job, precision, device))[0], written[-1]
    listed = exports(folder / "export.json", anew=job.force)
    kept = next((file for file in (path, onnx_path) if file.exists()), None)
    if kept is not None and not job.force:
        raise ExportError(
            f"{kept} exists already and is kept; give --force to replace it, or --out another folder"
        )

    from bcnet_deploy.data import load_data

    tell(0.05, "loading the network")
    source = load_source(run, job.which)
    # Of the data only images are used: a run of a published model may still name the default digits.
    splits = load_data(config.data, source.model.input_size)
    module = recalibrated(source.module, splits) if source.shared else source.module
    tell(0.2, "exporting to ONNX")
    onnx = export_onnx(
        module, onnx_path, source.model.input_size, precision=precision,
        parity_inputs=images(splits, splits.val, PARITY_IMAGES),
        calibration_inputs=images(splits, splits.train, CALIBRATION_IMAGES) if precision == "int8" else None,
        batch=None if job.dynamic_batch else 1, opset=job.opset,
        target="trt" if job.engine == "trt" else "ort",
        metadata=describe(source, splits), parity_threads=os.cpu_count() or 1,
    )  # fmt: skip
    engine = None
    if job.engine == "ort":
        tell(0.8, "optimising for ONNX Runtime")
        write_ort(onnx.path, path)
    elif job.engine == "trt":
        from bcnet_deploy.export.engine import build_engine

        assert device is not None
        tell(0.8, "building the engine")
        engine = build_engine(onnx.path, path, device, precision, runtime=find_runtime("tensorrt"))
    result = JobResult(job.which, path, onnx, engine, source.origin)
    # Beside what is listed, in the place of an older entry of the same file.
    files.write_json(
        folder / "export.json", {"format": 1, "exports": {**listed, result.path.name: result.to_dict()}}
    )
    tell(1.0, "done")
    return result


def describe(source: Source, splits: DataSplits | None) -> ModelMetadata:
    """The metadata that go into the file: what was retrained with, or else what the data is now."""
    extra = source.extra
    mean = extra.get("mean") or (list(splits.mean) if splits else [])
    std = extra.get("std") or (list(splits.std) if splits else [])
    channels = source.model.input_size[0]
    named = splits is not None and len(splits.classes) == source.model.num_classes
    known = splits.classes if splits is not None and named else ()
    return ModelMetadata(
        model=source.model.to_dict(), which=source.which, widths=source.widths,
        fingerprint=source.fingerprint,
        preprocessing={
            "layout": "NCHW", "channels": {3: "RGB", 1: "grey"}.get(channels, str(channels)),
            "size": list(source.model.input_size[1:]), "value_range": [0.0, 1.0], "mean": mean, "std": std,
            "formula": "(value - mean) / std, by channel",
        },
        class_names=tuple(extra.get("classes") or known),
        extra={"weights": source.origin},
    )  # fmt: skip


def images(splits: DataSplits, chosen: ImageSet, count: int) -> NDArray[np.float32]:
    """The first ``count`` images of a shuffled split, normalised: (N, C, H, W)."""
    import torch

    from bcnet_deploy.data import PlainBatches

    batches = PlainBatches(chosen, splits, 64, torch.device("cpu"), limit=count, channels_last=False)
    return np.concatenate([batch.numpy() for batch, _ in batches])


def write_ort(onnx_path: Path, path: Path) -> None:
    """Write a network in ONNX Runtime's own format, portable graph optimisations done, atomically.

    Raises:
        EngineError: ONNX Runtime refuses the network.
        RunDirError: the file cannot be written.
    """
    from bcnet_deploy.devices import load_device
    from bcnet_deploy.runtime.registry import find_runtime

    find_runtime("onnxruntime").build_engine(
        onnx_path.read_bytes(), path, load_device("cpu"), "fp32", batch=(1, 1, 1)
    )


def _gpu_device(run: RunDir, name: str, *, given: bool) -> DeviceProfile:
    device = device_of_run(run, name)
    if device.compute_capability is None and not given:
        raise EngineError(
            f"the run's device {name!r} is no GPU, which TensorRT needs; name one with --device, "
            "such as t4 ('bcnet-deploy devices' lists them), or choose --engine onnx or ort"
        )
    return device


def _precision(device: DeviceProfile) -> Precision:
    return next(precision for precision in PRECISIONS if precision == device.precision)


def exported_files(
    folder: Path, job: ExportJob, precision: Precision, device: DeviceProfile | None
) -> tuple[Path, ...]:
    """Every file of an export: the one asked for first, the ONNX file behind it last.

    Args:
        device: of a TensorRT engine; None for other engines.
    """
    stem = _stem(job, precision, device)
    onnx = folder / f"{stem}.onnx"
    if job.engine == "trt":
        engine = folder / f"{stem}.engine"
        return engine, sidecar_path(engine), onnx
    return (folder / f"{stem}.ort", onnx) if job.engine == "ort" else (onnx,)


def _stem(job: ExportJob, precision: Precision, device: DeviceProfile | None) -> str:
    parts = [job.which]
    if device is not None:
        parts.append(device.name)
    if precision != "fp32" or device is not None:
        parts.append(precision)
    if job.dynamic_batch:
        parts.append("dynamic")
    return "-".join(parts)


def exports(path: Path, *, anew: bool = False) -> dict[str, Any]:
    """What an export list says, by file name; empty where there is none.

    Args:
        path: ``export.json`` of the folder.
        anew: a damaged list counts as none.

    Raises:
        ExportError: it is damaged.
    """
    if not path.exists():
        return {}
    try:
        data = files.read_json(path, ExportError, "export list")
        entries = data.get("exports") if isinstance(data, dict) else None
        if isinstance(entries, dict) and data.get("format") == 1:
            return dict(entries)
        reason = f"{path} is no export list of format 1"
    except ExportError as error:
        reason = str(error)
    if anew:
        return {}
    raise ExportError(f"{reason}; give --force to start it anew, or --out another folder")
