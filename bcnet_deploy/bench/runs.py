"""Benchmark of a run directory: full, uniform and found, interleaved, against the run's table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bcnet_deploy import files
from bcnet_deploy.bench.measure import BenchSettings, bench
from bcnet_deploy.bench.places import open_subject
from bcnet_deploy.bench.result import BenchResult
from bcnet_deploy.devices import DeviceProfile, device_of_run
from bcnet_deploy.errors import EngineError, MissingStepError
from bcnet_deploy.export import metadata as meta
from bcnet_deploy.export.engine import build_engine
from bcnet_deploy.export.job import describe
from bcnet_deploy.export.onnx import check, trace
from bcnet_deploy.export.source import build, load_source
from bcnet_deploy.lut import LatencyTable
from bcnet_deploy.profiler.narrow import NetworkMaker
from bcnet_deploy.rundir import NETWORKS, RunDir
from bcnet_deploy.runtime.engine_file import read_info, sidecar_path
from bcnet_deploy.runtime.precision import PRECISIONS
from bcnet_deploy.searched import searched_widths
from bcnet_deploy.stale import difference, given_widths

if TYPE_CHECKING:
    from torch import nn

    from bcnet_deploy.space import WidthSpace


def bench_run(
    run: RunDir,
    *,
    device: str | None = None,
    settings: BenchSettings | None = None,
    exported: Mapping[str, Path] | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> BenchResult:
    """Measure the run's networks and save ``bench/bench.json``.

    Exported networks are taken as they are. Of the others, those that can be had without further steps
    (``full`` always) are exported beside the result for timing alone. Where the GPU of the device is
    present, engines are built for those that have none.

    Args:
        run: after ``export``, or at least ``search``.
        device: profile whose table and threads are used; None: the run's.
        settings: how often, how long.
        exported: ONNX files by network; of the others, and by default, those in ``export/`` are taken.
        progress: told the share done and a note.

    Raises:
        MissingStepError: the run has neither an exported network nor widths found.
        EngineError, ExportError: see :func:`bench`.
    """
    config = run.load()
    profile = device_of_run(run, device or config.device)
    tell = progress or (lambda done, note: None)
    paths: dict[str, Path] = {}
    notes: list[str] = []
    for index, which in enumerate(NETWORKS):
        tell(0.02 * (index + 1), f"preparing {which}")
        file = (exported or {}).get(which) or _exported(run, which, profile, notes)
        if file is not None:
            paths[which] = file
            continue
        try:
            paths[which] = _for_timing(run, which)
        except MissingStepError as error:
            notes.append(f"{which} was not measured: {error}")
    if "found" not in paths:
        raise MissingStepError(
            f"{run.path} holds no network to measure; "
            "run 'bcnet-deploy search' and 'bcnet-deploy export' first"
        )
    engines: dict[str, Path] = {}
    if profile.run_by().needs_engine and not profile.not_here():
        for which, path in paths.items():
            try:
                engines[which] = _engine(run, which, path, profile)
            except EngineError as error:
                notes.append(f"{which} has no engine: {error}")
    table_path = run.latency_table(profile.name)
    table = LatencyTable.load(table_path) if table_path.exists() else None
    if table is None:
        notes.append(f"no latency table for {profile.name} in {run.path}: nothing is predicted")
    model, space = build(config.model)
    result = bench(
        paths, profile, settings=settings, table=table, space=space, engines=engines,
        reference=None if table is None else _reference(table, model, space),
        progress=lambda done, note: tell(0.1 + 0.9 * done, note),
    )  # fmt: skip
    result = BenchResult(
        result.device, result.date, result.settings, result.machine, result.networks, result.absent,
        (*notes, *result.notes),
    )  # fmt: skip
    result.save(run.bench)
    return result


def _reference(table: LatencyTable, model: nn.Module, space: WidthSpace) -> bytes | None:
    """The ONNX network by which the table knows the machine's speed; None if it has none of this space."""
    widths = table.provenance.get("reference_widths")
    if widths is None or table.network.fingerprint != space.fingerprint:
        return None
    return NetworkMaker(model.eval(), space, batch=table.batch)(np.array(widths))


def _exported(run: RunDir, which: str, device: DeviceProfile, notes: list[str]) -> Path | None:
    """The ONNX file to measure: of the device's precision if there is one, else any of a fixed batch.

    What was exported before the latest search found other widths is left out, with a note.
    """
    names: dict[str, str] = {**{precision: f"-{precision}" for precision in PRECISIONS}, "fp32": ""}
    own = "fp32" if device.precision in device.run_by().converts else device.precision
    suffixes = [names[own], *names.values(), f"-{device.name}-{device.precision}"]
    paths = (run.export / f"{which}{suffix}.onnx" for suffix in suffixes)
    wanted = given_widths(run, which) or searched_widths(run, which)
    for path in paths:
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
    source = load_source(run, which, former=True)  # its weights do not change how long it takes
    model, _ = trace(source.module, source.model.input_size)
    meta.attach(model, describe(source, None))
    path = run.bench.parent / f"{which}.onnx"
    files.write_bytes(path, check(model).SerializeToString())
    return path


def _engine(run: RunDir, which: str, onnx_path: Path, device: DeviceProfile) -> Path:
    """The engine exported for the device, else one built here and kept while its ONNX file is the same."""
    precision = device.precision
    exported = run.export / f"{which}-{device.name}-{precision}.engine"
    widths = dict(open_subject(onnx_path).metadata.widths)
    if exported.exists() and read_info(exported).network.get("widths", {}) == widths:
        return exported
    path = run.bench.parent / exported.name
    if (
        path.exists()
        and sidecar_path(path).exists()
        and read_info(path).onnx_sha256 == meta.sha256(onnx_path)
    ):
        return path
    # INT8 needs calibration, which only export does.
    return build_engine(onnx_path, path, device, "fp16" if precision == "int8" else None).path
