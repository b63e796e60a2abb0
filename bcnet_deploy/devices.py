"""Device profiles: what a device runs with, and the published figures its estimates rest on.

A profile is a YAML file, shipped in ``profiles/`` or the user's own. Every figure stands beside the
source it comes from, so that an estimate can be traced back. Units: TFLOPS count a multiply-accumulate
as two operations, bandwidth is in 10^9 bytes a second, overheads in microseconds.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bcnet_deploy import files, resources
from bcnet_deploy.errors import DeviceError, UnknownDeviceError, nearest
from bcnet_deploy.rundir import RunDir

PRECISIONS = ("fp32", "fp16", "int8")
BYTES = {"fp32": 4, "fp16": 2, "int8": 1}
_RUNTIMES = {"cpu": ("onnxruntime",), "gpu": ("tensorrt", "onnxruntime")}
_REQUIRED = {
    "name", "description", "kind", "runtime", "precision", "batch", "peak_tflops", "bandwidth_gb_s",
    "launch_overhead_us", "achievable", "channel_granularity",
}  # fmt: skip
_FOR_KIND = {"cpu": {"threads"}, "gpu": {"compute_capability", "device_names"}}


@dataclass(frozen=True)
class Figure:
    """A number and where it comes from."""

    value: float
    source: str


@dataclass(frozen=True)
class DeviceProfile:
    """One device: how it is run, and its roofline.

    Attributes:
        runtime: ``onnxruntime`` or ``tensorrt``.
        precision: of weights and activations: ``fp32``, ``fp16`` or ``int8``.
        threads: of a CPU; stated, never guessed. None for a GPU.
        compute_capability: of a GPU, such as ``7.5``; None for a CPU.
        device_names: words that the driver's name of the GPU contains.
        peak_tflops: by precision. channel_granularity: channels a kernel rounds up to, by precision.
        achievable: share of the peaks that kernels reach.
        path: the file it was read from.
    """

    name: str
    description: str
    kind: str
    runtime: str
    precision: str
    batch: int
    peak_tflops: dict[str, Figure]
    bandwidth_gb_s: Figure
    launch_overhead_us: Figure
    achievable: Figure
    channel_granularity: dict[str, Figure]
    threads: int | None = None
    compute_capability: str | None = None
    device_names: tuple[str, ...] = ()
    path: Path = field(default=Path(), compare=False)

    def matches_gpu(self, driver_name: str) -> bool:
        """Whether a GPU that the driver calls ``driver_name`` is this device.

        Whole words only: an A100 is no A10.
        """
        words = re.split(r"[^a-z0-9]+", driver_name.lower())
        for name in self.device_names:
            wanted = re.split(r"[^a-z0-9]+", name.lower())
            if any(words[start : start + len(wanted)] == wanted for start in range(len(words))):
                return True
        return False


def known_devices() -> dict[str, Path]:
    """The shipped profiles by name."""
    return {path.stem: path for path in sorted(resources.shipped("profiles").glob("*.yaml"))}


def load_device(name: str | Path) -> DeviceProfile:
    """A shipped profile by name, or any profile by the path of its YAML file.

    Raises:
        UnknownDeviceError: no profile has this name; the nearest names are given.
        DeviceError: the file is damaged, or a key is unknown, missing or out of range.
    """
    known = known_devices()
    text = str(name)
    if text in known:
        return read_profile(known[text])
    if text.endswith((".yaml", ".yml")) or "/" in text:
        return read_profile(Path(text))
    raise UnknownDeviceError(
        f"unknown device {text!r}{nearest(text.lower(), known)}; known are {', '.join(known)}, "
        "or give the path of a profile of your own (.yaml)"
    )


def device_of_run(run: RunDir, name: str | Path) -> DeviceProfile:
    """As :func:`load_device`; a profile of the user's own that the run has kept is known by its name too.

    Raises:
        UnknownDeviceError, DeviceError: see :func:`load_device`.
    """
    text = str(name)
    named = "/" not in text and not text.endswith((".yaml", ".yml"))
    if named and (kept := run.device_profile(text)).exists():
        return read_profile(kept)
    return load_device(name)


def keep_device(run: RunDir, profile: DeviceProfile) -> None:
    """Keep a copy of a profile of the user's own in the run, which then does not depend on where the file is.

    Raises:
        DeviceError: the name cannot be that of a file, or the profile is no longer there.
        RunDirError: the folder cannot be written.
    """
    kept = run.device_profile(profile.name)
    if is_shipped(profile):
        kept.unlink(missing_ok=True)  # the name is the shipped profile's again
    elif profile.path != kept:
        files.write_text(kept, files.read_text(profile.path, DeviceError, "device profile"))


def is_shipped(profile: DeviceProfile) -> bool:
    """Whether the profile is one that comes with the package."""
    return known_devices().get(profile.name) == profile.path


def read_profile(path: Path) -> DeviceProfile:
    """Read and check one file. Raises :class:`DeviceError` naming the file and the key."""
    data = files.read_yaml(path, DeviceError, "device profile")
    if not isinstance(data, dict):
        raise DeviceError(f"device profile {path} holds no mapping of keys")
    kind = data.get("kind")
    if kind not in _FOR_KIND:
        raise DeviceError(f"device profile {path}: kind must be one of {sorted(_FOR_KIND)}; given {kind!r}")
    required = _REQUIRED | _FOR_KIND[kind]
    if unknown := sorted(map(str, set(data) - required)):
        raise DeviceError(
            f"device profile {path}: unknown key {unknown[0]!r}{nearest(unknown[0], required)}; "
            f"a {kind} profile has {', '.join(sorted(required))}"
        )
    if missing := sorted(required - set(data)):
        raise DeviceError(f"device profile {path}: missing key {missing[0]!r}")
    runtime, precision = data["runtime"], data["precision"]
    if runtime not in _RUNTIMES[kind]:
        raise DeviceError(
            f"device profile {path}: runtime must be one of {_RUNTIMES[kind]}; given {runtime!r}"
        )
    if precision not in PRECISIONS:
        raise DeviceError(
            f"device profile {path}: precision must be one of {PRECISIONS}; given {precision!r}"
        )
    peaks = _figures(path, data, "peak_tflops")
    grains = _figures(path, data, "channel_granularity")
    for key, figures in (("peak_tflops", peaks), ("channel_granularity", grains)):
        if precision not in figures:
            raise DeviceError(f"device profile {path}: {key} lacks the profile's own precision {precision!r}")
    achievable = _figure(path, "achievable", data["achievable"])
    if achievable.value > 1:
        raise DeviceError(f"device profile {path}: achievable is a share of 0 to 1; given {achievable.value}")
    return DeviceProfile(
        name=_text(path, data, "name"),
        description=_text(path, data, "description"),
        kind=kind,
        runtime=runtime,
        precision=precision,
        batch=_positive_int(path, data, "batch"),
        peak_tflops=peaks,
        bandwidth_gb_s=_figure(path, "bandwidth_gb_s", data["bandwidth_gb_s"]),
        launch_overhead_us=_figure(path, "launch_overhead_us", data["launch_overhead_us"]),
        achievable=achievable,
        channel_granularity=grains,
        threads=_positive_int(path, data, "threads") if kind == "cpu" else None,
        compute_capability=_capability(path, data) if kind == "gpu" else None,
        device_names=_names(path, data) if kind == "gpu" else (),
        path=path,
    )


def _text(path: Path, data: dict[str, Any], key: str) -> str:
    value = data[key]
    if not isinstance(value, str) or not value.strip():
        raise DeviceError(f"device profile {path}: {key} must be text; given {value!r}")
    return value


def _positive_int(path: Path, data: dict[str, Any], key: str) -> int:
    value = data[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise DeviceError(
            f"device profile {path}: {key} must be a whole number of 1 or more; given {value!r}"
        )
    return value


def _capability(path: Path, data: dict[str, Any]) -> str:
    value = data["compute_capability"]
    if not isinstance(value, str) or not re.fullmatch(r"\d+\.\d", value):
        raise DeviceError(
            f'device profile {path}: compute_capability must be quoted text such as "7.5"; given {value!r}'
        )
    return value


def _names(path: Path, data: dict[str, Any]) -> tuple[str, ...]:
    value = data["device_names"]
    if not isinstance(value, list) or not value or not all(isinstance(name, str) and name for name in value):
        raise DeviceError(f"device profile {path}: device_names must be a list of names; given {value!r}")
    return tuple(value)


def _figures(path: Path, data: dict[str, Any], key: str) -> dict[str, Figure]:
    value = data[key]
    if not isinstance(value, dict) or not value or set(value) - set(PRECISIONS):
        raise DeviceError(
            f"device profile {path}: {key} has figures by precision {PRECISIONS}; given {value!r}"
        )
    return {precision: _figure(path, f"{key}.{precision}", entry) for precision, entry in value.items()}


def _figure(path: Path, key: str, value: Any) -> Figure:
    if not isinstance(value, dict) or set(value) != {"value", "source"}:
        raise DeviceError(
            f"device profile {path}: {key} must have exactly 'value' and 'source'; given {value!r}"
        )
    number, source = value["value"], value["source"]
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not (0 < number < math.inf):
        raise DeviceError(f"device profile {path}: {key}.value must be a positive number; given {number!r}")
    if not isinstance(source, str) or not source.strip():
        raise DeviceError(f"device profile {path}: {key}.source must say where the figure comes from")
    return Figure(float(number), source)
