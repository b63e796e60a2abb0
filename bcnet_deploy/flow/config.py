"""What ``bcnet-deploy run`` is to do: a checked dataclass, read from YAML, overridden by options."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bcnet_deploy import files, units
from bcnet_deploy.errors import ConfigError, UnitError, nearest
from bcnet_deploy.resources import shipped
from bcnet_deploy.rundir import NETWORKS

DEFAULT = "demo"


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """Settings of the whole path.

    Attributes:
        model: name or ``module:function``.
        num_classes: None: the data's.
        input_size: (C, H, W); None: the model's usual one.
        levels: widths a variable may take.
        min_level: see the method's minimum width.
        data: ``digits``, a folder of images, ``module:function``.
        device: name of a device profile, or a profile file.
        table: a latency table to take instead of measuring one (made on another host, say).
        estimate: estimate the table from the device profile's data sheet where the device is not here.
        profile_budget: time for measuring, such as ``60s``.
        latency: the budget: ``5ms``, or ``0.5x`` of the full network.
        confidence: probability, by the table's uncertainty, with which the budget must be met.
        train: settings of the supernet's training, over ``recipe``'s.
        retrain: settings of each final training.
        search: ``evaluations``, ``population_size``, ``patience``, ``val_images`` (0: all held-out images).
        networks: which of full, uniform and found are trained to the end; found always is.
        engine: of the export: ``onnx``, ``ort`` or ``trt``.
        precision: of the export; None: the device's for ``trt``, else ``fp32``.
        bench: ``rounds``, ``runs``, ``batches``, ``layers``.
        seed: of everything random.
    """

    model: str = "demo"
    num_classes: int | None = None
    input_size: tuple[int, int, int] | None = None
    levels: int = 20
    min_level: int = 0
    data: str = "digits"
    device: str = "cpu"
    table: str | None = None
    estimate: bool = False
    profile_budget: str = "60s"
    latency: str = "0.5x"
    confidence: float = 0.95
    train: dict[str, Any] = field(default_factory=dict)
    retrain: dict[str, Any] = field(default_factory=dict)
    search: dict[str, Any] = field(default_factory=dict)
    networks: tuple[str, ...] = NETWORKS
    engine: str = "onnx"
    precision: str | None = None
    bench: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        try:
            units.parse_latency(self.latency)
            units.parse_duration(self.profile_budget)
        except UnitError as error:
            raise ConfigError(str(error)) from error
        if not 0.5 <= self.confidence < 1:
            raise ConfigError(f"confidence is {self.confidence!r}; allowed: 0.5 up to, not including, 1")
        if self.levels < 1 or not 0 <= self.min_level <= self.levels:
            raise ConfigError(
                f"levels is {self.levels} and min_level {self.min_level}; "
                "allowed: levels from 1, min_level from 0 up to it"
            )
        odd = [name for name in self.networks if name not in NETWORKS]
        if odd or "found" not in self.networks:
            raise ConfigError(
                f"networks is {list(self.networks)}; allowed: found, and any of full and uniform"
            )

    def replace(self, **changes: Any) -> FlowConfig:
        """A copy with some settings changed, checked again; changes that are None are ignored."""
        return dataclasses.replace(
            self, **{key: value for key, value in changes.items() if value is not None}
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        data = dataclasses.asdict(self)
        return {**data, "networks": list(self.networks), "input_size": list(self.input_size or ()) or None}


_KINDS: dict[str, tuple[type, ...]] = {
    "num_classes": (int,), "levels": (int,), "min_level": (int,), "seed": (int,), "estimate": (bool,),
    "confidence": (int, float), "train": (dict,), "retrain": (dict,), "search": (dict,), "bench": (dict,),
    "networks": (list, tuple), "input_size": (list, tuple, str, int),
}  # fmt: skip
_OPTIONAL = ("num_classes", "input_size", "table", "precision")


def from_dict(data: dict[str, Any], source: str) -> FlowConfig:
    """Check keys and kinds.

    Raises:
        ConfigError: a key is unknown or a value not allowed, naming ``source``.
    """
    known = [item.name for item in dataclasses.fields(FlowConfig)]
    values: dict[str, Any] = {}
    for key, value in data.items():
        if key not in known:
            near = nearest(str(key), known)
            raise ConfigError(f"{source}: unknown key {key!r}{near}; allowed: {', '.join(known)}")
        if value is None and key in _OPTIONAL:
            continue
        kinds = _KINDS.get(key, (str,))
        if key in ("latency", "profile_budget") and isinstance(value, int | float):
            raise ConfigError(
                f"{source}: {key} is {value!r}; a unit is needed, such as '5ms', '60s' or '0.5x'"
            )
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            allowed = " or ".join(kind.__name__ for kind in kinds)
            raise ConfigError(f"{source}: {key} is {value!r}; allowed: {allowed}")
        if key == "input_size":
            sizes: Any = value
            text = "x".join(str(size) for size in sizes) if isinstance(value, list | tuple) else str(value)
            value = units.parse_size(text)
        values[key] = tuple(value) if key == "networks" else value
    return FlowConfig(**values)


def config_names() -> list[str]:
    """Names of the shipped configurations."""
    return sorted(file.stem for file in (shipped("configs") / "run").glob("*.yaml"))


def find_config(path: str | Path) -> Path:
    """The file of a configuration's path or shipped name. Raises :class:`ConfigError` listing the names."""
    if Path(path).is_file():
        return Path(path)
    file = shipped("configs") / "run" / f"{path}.yaml"
    if file.is_file():
        return file
    names = config_names()
    raise ConfigError(
        f"no configuration {str(path)!r}{nearest(str(path), names)}; "
        f"allowed: a YAML file or one of {', '.join(names)}"
    )


def load(path: str | Path = DEFAULT) -> FlowConfig:
    """The configuration in a YAML file, or the shipped one of this name.

    Raises:
        ConfigError: there is none, or a key or value is not allowed.
    """
    file = find_config(path)
    data = files.read_yaml(file, ConfigError, "configuration")
    if not isinstance(data, dict):
        raise ConfigError(f"configuration {file} holds {type(data).__name__}; needed: keys and values")
    return from_dict(data, f"configuration {file}")
