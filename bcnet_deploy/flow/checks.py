"""What can be refused before any work, so that a mistake in a late step does not cost the steps before it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcnet_deploy import files
from bcnet_deploy.devices import DeviceProfile
from bcnet_deploy.errors import ConfigError, DataError, EngineError, ExportError, TableError, nearest

if TYPE_CHECKING:
    from bcnet_deploy.flow.config import FlowConfig
    from bcnet_deploy.space import WidthSpace

_log = logging.getLogger("bcnet_deploy")


def check_classes(reference: str, num_classes: int, input_size: tuple[int, int, int]) -> None:
    """Raise :class:`DataError` where the data has another number of classes than the model tells apart."""
    from bcnet_deploy.data import classes_of

    count = classes_of(reference, input_size)
    if count != num_classes:
        raise DataError(
            f"{reference} has {count} classes, the model tells {num_classes} apart; "
            f"give --num-classes {count}, or leave it out to take the data's"
        )


def check_export(config: FlowConfig, device: DeviceProfile) -> str:
    """The precision of the export; refuses what the export would refuse after the trainings.

    Raises:
        ExportError, EngineError: unknown, or not to be had for the device here.
    """
    from bcnet_deploy.export.job import ENGINES
    from bcnet_deploy.runtime.precision import PRECISIONS

    default = device.precision if config.engine == "trt" else "fp32"
    precision = config.precision or default
    for name, value, allowed in (
        ("engine", config.engine, ENGINES), ("precision", precision, PRECISIONS),
    ):  # fmt: skip
        if value not in allowed:
            raise ExportError(f"unknown {name} {value!r}; allowed are {', '.join(allowed)}")
    if config.engine != "trt":
        return precision
    from bcnet_deploy.runtime.registry import find_runtime

    if device.compute_capability is None:
        raise EngineError(
            f"device {device.name!r} is no GPU, which TensorRT needs; give --device, such as t4, "
            "or --engine onnx or ort"
        )
    find_runtime("tensorrt").check_engine(device, precision)
    return precision


def check_budget(space: WidthSpace, table_path: Path, config: FlowConfig) -> None:
    """Refuse, before training, a budget that no network keeps; say where it is held by expectation only.

    Raises:
        InfeasibleError: no network keeps the budget.
    """
    from bcnet_deploy.flow.searching import attainable_confidence
    from bcnet_deploy.lut import LatencyTable

    table = LatencyTable.load(table_path).for_space(space)
    if attainable_confidence(space, table, config) < config.confidence:
        _log.warning(
            "the latency table is too noisy for %s at confidence %g (see 'bcnet-deploy table show'): "
            "the budget is held by expected latency; profile again on a quieter machine",
            config.latency, config.confidence,
        )  # fmt: skip


def check_table(path: str | None, device: str) -> None:
    """Raise :class:`TableError` where a latency table is named that is not there, or of another device."""
    if path is not None and not Path(path).is_file():
        raise TableError(
            f"no latency table at {path}; give a file that 'bcnet-deploy profile' wrote, "
            "or leave --table out to measure one"
        )
    if path is not None:
        require_device(path, files.read_json(path, TableError, "latency table"), device)


def require_device(path: str | Path, table: Any, device: str) -> None:
    """Raise :class:`TableError` where a table, or its file's content, is of another device than asked for."""
    made_for = table.get("device") if isinstance(table, dict) else getattr(table, "device", None)
    if made_for != device:
        raise TableError(
            f"{path} is a table of device {made_for!r}, asked for is {device!r}; give a table of {device!r}, "
            f"ask for {made_for!r}, or run 'bcnet-deploy profile --device {device}'"
        )


def known_settings(name: str, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """``defaults`` with ``given`` over them. Raises :class:`ConfigError` for unknown keys and other kinds."""
    for key, value in given.items():
        if key not in defaults:
            allowed = ", ".join(defaults)
            raise ConfigError(f"{name}: unknown key {key!r}{nearest(key, defaults)}; allowed: {allowed}")
        if type(value) is not type(defaults[key]):
            raise ConfigError(f"{name}: {key} is {value!r}; allowed: {type(defaults[key]).__name__}")
    return {**defaults, **given}
