"""The fifth step: a network of the run as ONNX file or engine, checked against PyTorch."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from bcnet_deploy import files
from bcnet_deploy.devices import PRECISIONS, DeviceProfile, load_device
from bcnet_deploy.errors import EngineError, ExportError, nearest
from bcnet_deploy.run.directory import RunDir
from bcnet_deploy.run.engine import Progress, Step, begun, carry_out, silent
from bcnet_deploy.run.settings import ExportSettings
from bcnet_deploy.run.subnets import Subnet, recalibrated, subnet_of
from bcnet_deploy.runtime.base import Runtime
from bcnet_deploy.runtime.registry import RUNTIMES, find_runtime, runtime_of_engine

if TYPE_CHECKING:
    from bcnet_deploy.data import DataSplits, ImageSet
    from bcnet_deploy.export.metadata import ModelMetadata
    from bcnet_deploy.export.quantise import Score
    from bcnet_deploy.runtime.precision import Calibration
    from bcnet_deploy.tasks import Task

_log = logging.getLogger("bcnet_deploy")

PARITY_IMAGES = 256
CALIBRATION_IMAGES = 128, 512
CALIBRATION_METHODS: tuple[Calibration, ...] = ("minmax", "percentile")
ACCURACY_IMAGES = 2000


@dataclass(frozen=True)
class ExportStepResult:
    """An exported network.

    Attributes:
        network: ``found``, ``uniform`` or ``full``.
        path: the file asked for.
        files: all that were written, the ONNX file last.
        origin: where the weights come from.
        entry: what ``export.json`` says of it: parity, sizes, versions.
        ran: whether this call exported.
    """

    network: str
    path: Path
    files: tuple[Path, ...]
    origin: str
    entry: dict[str, Any]
    ran: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            **self.entry, "path": str(self.path), "files": [str(path) for path in self.files], "ran": self.ran
        }  # fmt: skip


@dataclass(frozen=True)
class Target:
    """What an export makes.

    Attributes:
        runtime: whose engine; None: an ONNX file alone.
        device: that the engine is for.
        precision: that is computed in.
    """

    runtime: Runtime | None
    device: DeviceProfile
    precision: str

    @property
    def onnx_precision(self) -> str:
        """Of the ONNX file: FP32 where the runtime converts it itself."""
        converts = () if self.runtime is None else self.runtime.converts
        return "fp32" if self.precision in converts else self.precision


def engines() -> list[str]:
    """What can be exported to: ONNX, and the engine of every runtime that has one."""
    return ["onnx", *(engine for name in RUNTIMES.names() if (engine := find_runtime(name).engine))]


def target_of(settings: ExportSettings, device: DeviceProfile) -> Target:
    """What an export for ``device`` makes; refuses what cannot be had here.

    Raises:
        ExportError, EngineError: unknown, not installed, or the runtime refuses the device or precision.
    """
    from bcnet_deploy.export.onnx import OPSETS

    runtime = runtime_of_engine(settings.engine)
    if runtime is None and settings.engine != "onnx":
        known = engines()
        raise ExportError(
            f"unknown engine {settings.engine!r}{nearest(settings.engine, known)}; "
            f"allowed are {', '.join(known)}"
        )
    if settings.precision is not None and settings.precision not in PRECISIONS:
        raise ExportError(f"unknown precision {settings.precision!r}; allowed are {', '.join(PRECISIONS)}")
    if settings.opset not in OPSETS:
        raise ExportError(f"opset {settings.opset} is out of range; allowed are {OPSETS[0]} to {OPSETS[-1]}")
    if runtime is None:
        return _writable(Target(None, device, settings.precision or "fp32"))
    if device.runtime != runtime.name:
        if runtime.needs_engine:
            kinds = " or ".join(kind.upper() for kind in runtime.precisions)
            raise EngineError(
                f"the device {device.name!r} is no {kinds}, which {runtime.title} needs; name one with "
                "--device ('bcnet-deploy devices' lists them), or choose another --engine: "
                f"{', '.join(engine for engine in engines() if engine != runtime.engine)}"
            )
        # Its files are of no device: the plain CPU stands for all.
        device = load_device("cpu").replace(runtime=runtime.name)
        precision: str = settings.precision or "fp32"
    else:
        precision = settings.precision or (device.precision if runtime.engine != "ort" else "fp32")
    runtime.check_engine(device, precision)
    return _writable(Target(runtime, device, precision))


def _writable(target: Target) -> Target:
    """The target, if there are ONNX files of its precision. Raises :class:`ExportError`."""
    from bcnet_deploy.runtime.precision import PRECISIONS as WRITTEN

    if target.onnx_precision not in WRITTEN:
        runtimes = {engine: runtime_of_engine(engine) for engine in engines()}
        able = [name for name, by in runtimes.items() if by is not None and target.precision in by.converts]
        raise ExportError(
            f"an ONNX file has the precision {', '.join(WRITTEN)}, not {target.precision}"
            + (f"; --engine {' or '.join(able)} computes in it from an FP32 file" if able else "")
        )
    return target


def exported_files(run: RunDir, settings: ExportSettings, out: Path | None = None) -> tuple[Path, ...]:
    """Every file of an export: the one asked for first, the ONNX file behind it last.

    Raises:
        ExportError, EngineError: see :func:`target_of`.
    """
    target = target_of(settings, run.device(settings.device))
    runtime = target.runtime
    parts: list[str] = [settings.network]
    for_device = runtime is not None and runtime.needs_engine
    if for_device:
        parts.append(target.device.name)
    if target.precision != "fp32" or for_device:
        parts.append(target.precision)
    if settings.dynamic_batch:
        parts.append("dynamic")
    stem, folder = "-".join(parts), out or run.export
    onnx = folder / f"{stem}.onnx"
    if runtime is None:
        return (onnx,)
    return *runtime.engine_files(folder / f"{stem}{runtime.suffix}"), onnx


def check_loss(settings: ExportSettings, target: Target, task: Task | None) -> None:
    """Raise :class:`ExportError` for a largest loss of INT8 where it cannot be measured."""
    from bcnet_deploy.tasks import classifies

    if settings.max_loss is not None and target.onnx_precision == "int8" and not classifies(task):
        raise ExportError(
            f"the accuracy that INT8 loses is measured of classifiers alone, so a loss of at most "
            f"{settings.max_loss:.2%} cannot be held; leave out --max-loss, and name layers that are to "
            "stay in FP32 with --keep-fp32"
        )


def export(
    run: RunDir,
    settings: ExportSettings,
    progress: Progress = silent,
    *,
    fresh: bool = False,
    replace: bool = False,
    out: Path | None = None,
) -> ExportStepResult:
    """Export one network of a run and note it in ``export.json``.

    Everything that can be refused without work is refused first. Parity is checked on images of the run's
    held-out data, INT8 is calibrated on its training images. Without data, parity is checked on noise.

    Args:
        run: after ``retrain``, or at least ``search``; any run for the full network.
        settings: what to export, and how.
        progress: told the share done.
        fresh: export again and replace the files that are there.
        replace: replace files of other settings or of an earlier network; without it, they are kept.
        out: another folder than ``export/``.

    Raises:
        ExportError: files exist already, an argument is out of range, or a check fails.
        EngineError: no TensorRT is installed, or it refuses the device or precision.
        RunDirError: the network was retrained at a former search's widths.
        MissingStepError, CheckpointError, DataError: see :func:`subnet_of` and the data's loader.
    """
    target = target_of(settings, run.device(settings.device))
    written = exported_files(run, settings, out)
    path, folder = written[0], written[0].parent
    run.require_current(settings.network)
    check_loss(settings, target, run.task())
    if target.precision == "int8":
        run.data_reference()
    retrained = [run.retrained(settings.network) / name for name in ("weights.safetensors", "subnet.yaml")]
    sources = retrained if all(file.exists() for file in retrained) else [run.weights, run.widths_file]
    step = Step(
        name=f"export-{settings.network}",
        stamp=f"export-{path.name}" if out is None else f"export-{path.name}-elsewhere",
        identity={
            "engine": settings.engine, "precision": target.precision, "device": target.device.name,
            "opset": settings.opset, "keep_fp32": list(settings.keep_fp32), "max_loss": settings.max_loss,
            "folder": None if out is None else str(out.resolve()), "model": run.identity()["model"],
        },
        inputs=[file for file in sources if file.exists()], outputs=written,
        work=lambda anew, tell: _export(run, settings, target, written, anew or replace, tell),
    )  # fmt: skip
    kept = next((file for file in written if file.exists()), None)
    if kept is not None and not (fresh or replace or begun(run, step)):
        raise ExportError(
            f"{kept} exists already and is kept; give --force to replace it, or --out another folder"
        )
    former = listed(folder / "export.json", anew=fresh or replace).get(path.name)
    if former is not None and not fresh and _replaced(former, written):
        if not replace:
            raise ExportError(
                f"{written[-1]} is not the file that this export wrote: one with other settings took its "
                "place; give --force to replace that, or --out another folder"
            )
        fresh = True
    done = carry_out(run, step, progress, fresh=fresh, replace=replace)
    entry = listed(folder / "export.json").get(path.name)
    if entry is None:
        raise ExportError(f"{folder / 'export.json'} does not list {path.name}; export it again with --force")
    with files.malformed(folder / "export.json", ExportError, "give --force to export it again"):
        files.check_figures(entry)
        return ExportStepResult(settings.network, path, written, str(entry["origin"]), entry, done.ran)


def _replaced(entry: Mapping[str, Any], written: tuple[Path, ...]) -> bool:
    """Whether the ONNX file behind an export is another one's: several may share its name."""
    from bcnet_deploy.export.metadata import sha256

    known = entry.get("onnx")
    known = known.get("sha256") if isinstance(known, Mapping) else None
    return known is not None and written[-1].exists() and sha256(written[-1]) != known


def _export(
    run: RunDir, settings: ExportSettings, target: Target, written: tuple[Path, ...], anew: bool,
    progress: Progress,
) -> None:  # fmt: skip
    from bcnet_deploy.export.engine import build_engine
    from bcnet_deploy.export.onnx import export_onnx
    from bcnet_deploy.tasks import classifies, has_learned

    path, onnx_path, runtime = written[0], written[-1], target.runtime
    progress(0.05, "loading the network")
    source = subnet_of(run, settings.network)
    # Of the data only images are used here: its classes need not be the model's.
    splits = None if run.load().data is None else run.data(checked=False)
    module = recalibrated(source.module, splits) if source.shared and splits is not None else source.module
    checked_on = noise(source.model.input_size) if splits is None else images(splits, splits.val)
    calibration = score = None
    chance = 0.0 if splits is None else 1 / max(1, splits.num_classes)
    quantised_for = "ort" if runtime is None else runtime.quantised_for
    if target.onnx_precision == "int8" and splits is not None:
        if classifies(run.task()):
            # Held-out images choose what stays in FP32; the test images are looked at when that is settled.
            score = accuracy_of_onnx(splits, splits.val, quantised_for)
        calibration = images(splits, splits.train, CALIBRATION_IMAGES[-1])
        warn_of_one_class(splits)
    progress(0.2, "exporting to ONNX")
    onnx = export_onnx(
        module, onnx_path, source.model.input_size, precision=target.onnx_precision,  # type: ignore[arg-type]
        parity_inputs=checked_on, calibration_inputs=calibration,
        batch=None if settings.dynamic_batch else 1, opset=settings.opset,
        target=quantised_for, score=score, methods=CALIBRATION_METHODS, counts=CALIBRATION_IMAGES,
        keep_fp32=settings.keep_fp32, max_loss=settings.max_loss,
        chance=chance, metadata=describe(source, splits), parity_threads=os.cpu_count() or 1,
    )  # fmt: skip
    if onnx.quantised is not None and not has_learned(onnx.quantised.fp32_score, chance):
        _log.warning(
            "in FP32 the network reaches %.1f%% of the held-out images, about what chance gives: what INT8 "
            "loses cannot be told before it is trained", 100 * onnx.quantised.fp32_score,
        )  # fmt: skip
    tested = None
    if score is not None and splits is not None and (test := splits.open_test()) is not None:
        final = accuracy_of_onnx(splits, test, quantised_for)
        tested = None if final is None else final(onnx.path.read_bytes())
    engine = None
    if runtime is not None:
        progress(0.8, f"building the engine of {runtime.title}")
        engine = build_engine(
            onnx.path, path, target.device, target.precision, runtime=runtime, parity_inputs=checked_on
        )
    entry = {
        "which": settings.network, "file": path.name, "origin": source.origin, "onnx": onnx.to_dict(),
        "engine": engine.to_dict() if engine else None, "int8_test_accuracy": tested,
    }  # fmt: skip
    list_path = path.parent / "export.json"
    exports = {**listed(list_path, anew=anew), path.name: entry}
    files.write_json(list_path, {"format": 1, "exports": exports})
    progress(1.0, "done")


def describe(source: Subnet, splits: DataSplits | None) -> ModelMetadata:
    """The metadata that go into the file: what was retrained with, or else what the data is now."""
    from bcnet_deploy.data import Preprocessing
    from bcnet_deploy.export.metadata import ModelMetadata

    extra = source.extra
    size = source.model.input_size
    now = Preprocessing(size, (), ()) if splits is None else splits.preprocessing
    then = {key: extra[key] for key in ("mean", "std") if key in extra}
    known = splits is not None and len(splits.classes) == source.model.num_classes
    return ModelMetadata(
        model=source.model.to_dict(), which=source.which, widths=source.widths,
        fingerprint=source.fingerprint,
        preprocessing=extra.get("preprocessing") or {**now.to_dict(), **then},
        class_names=tuple(extra.get("classes") or (splits.classes if splits is not None and known else ())),
        extra={"weights": source.origin},
    )  # fmt: skip


def images(splits: DataSplits, chosen: ImageSet, count: int = PARITY_IMAGES) -> NDArray[np.float32]:
    """The first ``count`` images of a shuffled split, normalised: (N, C, H, W)."""
    import torch

    from bcnet_deploy.data import PlainBatches

    batches = PlainBatches(chosen, splits, 64, torch.device("cpu"), limit=count, channels_last=False)
    return np.concatenate([batch.numpy() for batch, _ in batches])


def warn_of_one_class(splits: DataSplits) -> None:
    """Say where all calibration images are of one class: the ranges are of those images alone."""
    from bcnet_deploy.data.plain import drawing_order

    labels = np.asarray(splits.train.labels)
    drawn = labels[drawing_order(len(labels))[: CALIBRATION_IMAGES[0]]]
    if drawn.ndim == 1 and drawn.dtype.kind in "iu" and len(drawn) > 1 and (drawn == drawn[0]).all():
        _log.warning(
            "all %d calibration images are of one class, %r: INT8 may lose more on the others; train on "
            "images of every class", len(drawn), splits.classes[int(drawn[0])],
        )  # fmt: skip


def accuracy_of_onnx(splits: DataSplits, chosen: ImageSet, target: Literal["ort", "trt"]) -> Score | None:
    """Accuracy of a quantised network on ``chosen`` images; None where labels are no classes."""
    import torch

    from bcnet_deploy.data import PlainBatches
    from bcnet_deploy.export.quantise import accuracy_on

    batches = list(
        PlainBatches(chosen, splits, 64, torch.device("cpu"), limit=ACCURACY_IMAGES, channels_last=False)
    )
    labels = np.concatenate([np.asarray(labels) for _, labels in batches])
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        return None
    found = np.concatenate([batch.numpy() for batch, _ in batches])
    return accuracy_on(found, labels, target=target, threads=os.cpu_count() or 1)


def noise(input_size: tuple[int, int, int], count: int = 32) -> NDArray[np.float32]:
    """(count, C, H, W) standard normal values: stand-ins for normalised images."""
    return np.random.default_rng(0).standard_normal((count, *input_size)).astype(np.float32)


def listed(path: Path, *, anew: bool = False) -> dict[str, Any]:
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
        entries = data.get("exports") if isinstance(data, Mapping) else None
        if isinstance(entries, dict) and data.get("format") == 1:
            return dict(entries)
        reason = f"{path} is no export list of format 1"
    except ExportError as error:
        reason = str(error)
    if anew:
        return {}
    raise ExportError(f"{reason}; give --force to start it anew, or --out another folder")


__all__ = ["ExportStepResult", "Target", "describe", "export", "exported_files", "images", "target_of"]
