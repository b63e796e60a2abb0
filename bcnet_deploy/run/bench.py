"""The sixth step: full, uniform and found measured, interleaved, against the run's table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcnet_deploy import files
from bcnet_deploy.devices import DeviceProfile
from bcnet_deploy.errors import EngineError, ExportError, MissingStepError
from bcnet_deploy.run.directory import NETWORKS, RunDir
from bcnet_deploy.run.engine import Progress, Step, carry_out, silent
from bcnet_deploy.run.profile import own_device
from bcnet_deploy.run.settings import BenchStepSettings
from bcnet_deploy.run.subnets import subnet_of
from bcnet_deploy.run.widths import difference

if TYPE_CHECKING:
    from torch import nn

    from bcnet_deploy.bench import BenchResult
    from bcnet_deploy.lut import LatencyTable
    from bcnet_deploy.space import WidthSpace


@dataclass(frozen=True)
class BenchStepResult:
    """Measured latencies.

    Attributes:
        path: ``bench.json``.
        measured: by network and runtime, beside the table's prediction.
        ran: whether this call measured.
    """

    path: Path
    measured: BenchResult
    ran: bool

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {**self.measured.to_dict(), "ran": self.ran}


def bench(
    run: RunDir,
    settings: BenchStepSettings,
    progress: Progress = silent,
    *,
    fresh: bool = False,
    replace: bool = False,
    exported: Mapping[str, Path] | None = None,
) -> BenchStepResult:
    """Measure the run's networks on every runtime of this machine.

    Exported networks are taken as they are. Of the others, those that can be had without further steps
    (``full`` always) are exported beside the result for timing alone. Where the GPU of the device is present,
    engines are built for those that have none.

    Args:
        run: after ``export``, or at least ``search``.
        settings: how often, how long.
        progress: told the share done.
        fresh: measure again.
        exported: ONNX files by network; of the others, and by default, those in ``export/`` are taken.

    Raises:
        MissingStepError: the run has neither an exported network nor widths found.
        EngineError, ExportError: see :func:`bcnet_deploy.bench.bench`.
    """
    from bcnet_deploy.bench.result import BenchResult

    device = run.device(settings.device)
    chosen: dict[str, Path] = {}
    notes: list[str] = []
    for which in NETWORKS:
        file = (exported or {}).get(which) or _exported(run, which, device, notes)
        if file is not None:
            chosen[which] = file
    table, widths = run.latency_table(device.name), run.widths_file
    engines = sorted(run.export.glob(f"*-{device.name}-*.engine"))
    inputs = [path for path in (table, widths, *chosen.values(), *engines) if path.exists()]
    step = Step(
        name="bench",
        identity={**settings.to_dict(), "device": device.name, **own_device(device)},
        inputs=inputs, outputs=[run.bench],
        work=lambda anew, tell: _bench(run, settings, device, chosen, notes, tell),
    )  # fmt: skip
    done = carry_out(run, step, progress, fresh=fresh, replace=replace)
    return BenchStepResult(run.bench, BenchResult.load(run.bench), done.ran)


def _bench(
    run: RunDir, settings: BenchStepSettings, device: DeviceProfile, chosen: Mapping[str, Path],
    notes: list[str], progress: Progress,
) -> None:  # fmt: skip
    from bcnet_deploy.bench.measure import bench as measure
    from bcnet_deploy.lut import LatencyTable

    paths: dict[str, Path] = {}
    for index, which in enumerate(NETWORKS):
        progress(0.02 * (index + 1), f"preparing {which}")
        try:
            paths[which] = chosen.get(which) or _for_timing(run, which)
        except MissingStepError as error:
            notes.append(f"{which} was not measured: {error}")
    if "found" not in paths:
        raise MissingStepError(
            f"{run.path} holds no network to measure; "
            "run 'bcnet-deploy search' and 'bcnet-deploy export' first"
        )
    engines = _engines(run, paths, device, notes)
    table_path = run.latency_table(device.name)
    table = LatencyTable.load(table_path) if table_path.exists() else None
    if table is None:
        notes.append(f"no latency table for {device.name} in {run.path}: nothing is predicted")
    model, space = run.build()
    result = measure(
        paths, device, settings=settings, table=table, space=space, engines=engines,
        reference=None if table is None else _reference(table, model, space),
        progress=lambda done, note: progress(0.1 + 0.9 * done, note),
    )  # fmt: skip
    dataclasses.replace(result, notes=(*notes, *result.notes)).save(run.bench)


def _reference(table: LatencyTable, model: nn.Module, space: WidthSpace) -> bytes | None:
    """The ONNX network by which the table knows the machine's speed; None if it has none of this space."""
    import numpy as np

    from bcnet_deploy.profiler.narrow import NetworkMaker

    widths = table.provenance.get("reference_widths")
    if widths is None or table.network.fingerprint != space.fingerprint:
        return None
    return NetworkMaker(model.eval(), space, batch=table.batch)(np.array(widths))


def _exported(run: RunDir, which: str, device: DeviceProfile, notes: list[str]) -> Path | None:
    """The ONNX file to measure: of the device's precision if there is one, else any of a fixed batch.

    What was exported before the latest search found other widths is left out, with a note.
    """
    from bcnet_deploy.bench.places import open_subject
    from bcnet_deploy.runtime.precision import PRECISIONS

    names: dict[str, str] = {**{precision: f"-{precision}" for precision in PRECISIONS}, "fp32": ""}
    own = "fp32" if device.precision in device.run_by().converts else device.precision
    suffixes = [names[own], *names.values(), f"-{device.name}-{device.precision}"]
    wanted = run.given_widths(which) or run.searched(which)
    for path in (run.export / f"{which}{suffix}.onnx" for suffix in suffixes):
        if not path.exists():
            continue
        widths = open_subject(path).metadata.widths
        if wanted is None or not widths or not (other := difference(widths, wanted)):
            return path
        notes.append(
            f"export/{path.name} is of other widths than the latest search found ({other}): it was not "
            "measured; run 'bcnet-deploy retrain --fresh' and 'bcnet-deploy export --force'"
        )
    return None


def _for_timing(run: RunDir, which: str) -> Path:
    """An FP32 export without parity, kept under ``bench/`` and made anew each time."""
    from bcnet_deploy.export import metadata as meta
    from bcnet_deploy.export.onnx import check, trace
    from bcnet_deploy.run.export import describe

    source = subnet_of(run, which, former=True)  # its weights do not change how long it takes
    model, _ = trace(source.module, source.model.input_size)
    meta.attach(model, describe(source, None))
    path = run.bench.parent / f"{which}.onnx"
    files.write_bytes(path, check(model).SerializeToString())
    return path


def _engines(
    run: RunDir, paths: Mapping[str, Path], device: DeviceProfile, notes: list[str]
) -> dict[str, Path]:
    """Engines by network, where the runtime needs them and the device is this machine's."""
    if not device.run_by().needs_engine or device.not_here():
        return {}
    engines: dict[str, Path] = {}
    for which, path in paths.items():
        try:
            engines[which] = _engine(run, which, path, device)
        except (EngineError, ExportError) as error:
            notes.append(f"{which} has no engine: {error}")
    return engines


def _engine(run: RunDir, which: str, onnx_path: Path, device: DeviceProfile) -> Path:
    """The engine exported for the device, else one built here and kept while its ONNX file is the same."""
    from bcnet_deploy.bench.places import open_subject
    from bcnet_deploy.export import metadata as meta
    from bcnet_deploy.export.engine import build_engine
    from bcnet_deploy.runtime.engine_file import read_info, sidecar_path

    precision = device.precision
    exported = run.export / f"{which}-{device.name}-{precision}.engine"
    widths = dict(open_subject(onnx_path).metadata.widths)
    if exported.exists() and read_info(exported).network.get("widths", {}) == widths:
        return exported
    path = run.bench.parent / exported.name
    kept = path.exists() and sidecar_path(path).exists()
    if kept and read_info(path).onnx_sha256 == meta.sha256(onnx_path):
        return path
    # INT8 needs calibration, which only export does.
    return build_engine(onnx_path, path, device, "fp16" if precision == "int8" else None).path


__all__ = ["BenchStepResult", "bench"]
