"""Device profiles: what a device runs with, and the published figures its estimates rest on.

A profile is a YAML file, shipped in ``profiles/`` or the user's own. How the device is run is all that a
measured table needs; figures are for estimates. Every figure stands beside the source it comes from, so that
an estimate can be traced back. Units: TFLOPS count a multiply-accumulate as two operations, bandwidth is in
10^9 bytes a second, overheads in microseconds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from annotated_types import Ge, Le, MinLen

from bcnet_deploy import files, resources
from bcnet_deploy.errors import BCNetError, DeviceError, UnknownDeviceError, nearest
from bcnet_deploy.runtime.base import Runtime
from bcnet_deploy.runtime.registry import find_runtime
from bcnet_deploy.validation import Checked

Precision = Literal["fp32", "fp16", "bf16", "int8"]
BYTES: dict[str, int] = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
PRECISIONS = tuple(BYTES)
_ESTIMATED_FROM = ("peak_tflops", "bandwidth_gb_s", "launch_overhead_us", "achievable", "channel_granularity")
_NAME = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,64}")


def check_name(what: str, name: object, error: type[BCNetError]) -> str:
    """``name`` where it can be that of a file: up to 64 letters, digits, ``.``, ``_``, ``-``; no leading dot.

    Raises:
        BCNetError: ``error``, naming ``what``.
    """
    if isinstance(name, str) and _NAME.fullmatch(name):
        return name
    shown = repr(name if len(str(name)) <= 80 else f"{str(name)[:77]}...")
    raise error(
        f"{what} is {shown}; allowed: up to 64 letters, digits, '.', '_' and '-', the first of them no dot"
    )


@dataclass(frozen=True, kw_only=True)
class Figure(Checked):
    """A number and where it comes from."""

    error: ClassVar[type[BCNetError]] = DeviceError

    value: Annotated[float, Ge(1e-6), Le(1e9)]
    source: Annotated[str, MinLen(1)]

    def check(self) -> None:
        if not self.source.strip():
            raise DeviceError("source is blank; it must say where the figure comes from")


@dataclass(frozen=True, kw_only=True)
class DeviceProfile(Checked):
    """One device: how it is run, and its roofline.

    Attributes:
        name: of the device; files are called by it.
        kind: ``cpu``, ``gpu`` or ``npu``.
        runtime: a registered name, or ``my_module:MyRuntime``, ``my_file.py:MyRuntime``; a file is looked
            for beside the profile, too.
        precision: of weights and activations.
        threads: of a CPU; stated, never guessed. None for others.
        compute_capability: of an NVIDIA GPU, such as ``7.5``.
        device_names: words that the driver's name of the device contains; not of a CPU.
        peak_tflops: by precision. channel_granularity: channels a kernel rounds up to, by precision.
        achievable: share of the peaks that kernels reach.
        path: the file it was read from; None for one made in Python.
    """

    error: ClassVar[type[BCNetError]] = DeviceError
    noun: ClassVar[str] = "device profile"

    name: str
    description: str = ""
    kind: Literal["cpu", "gpu", "npu"]
    runtime: Annotated[str, MinLen(1)] = "onnxruntime"
    precision: Precision = "fp32"
    batch: Annotated[int, Ge(1), Le(4096)] = 1
    threads: Annotated[int, Ge(1), Le(4096)] | None = None
    compute_capability: str | None = None
    device_names: tuple[Annotated[str, MinLen(1)], ...] = ()
    peak_tflops: dict[Precision, Figure] = field(default_factory=dict)
    bandwidth_gb_s: Figure | None = None
    launch_overhead_us: Figure | None = None
    achievable: Figure | None = None
    channel_granularity: dict[Precision, Figure] = field(default_factory=dict)
    path: Path | None = field(default=None, compare=False)

    @classmethod
    def from_dict(cls, data: Any, source: str | None = None) -> Self:
        where = source or cls.noun
        if not isinstance(data, Mapping):
            return super().from_dict(data, where)  # refuses it
        parsed = {
            key: _figures(key, value, where) if key in _ESTIMATED_FROM else value
            for key, value in data.items()
        }
        return super().from_dict(parsed, where)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, without the path; what is not given is left out."""
        data = super().to_dict()
        return {key: value for key, value in data.items() if value not in (None, {}, []) and key != "path"}

    def check(self) -> None:
        check_name("name", self.name, DeviceError)
        runtime = find_runtime(self.runtime)
        allowed = runtime.precisions.get(self.kind)
        if allowed is None:
            kinds = ", ".join(runtime.precisions)
            raise DeviceError(f"runtime {self.runtime!r} runs on no {self.kind}; allowed kinds: {kinds}")
        if self.precision not in allowed:
            raise DeviceError(
                f"precision is {self.precision!r}; {runtime.title} on a {self.kind} has {', '.join(allowed)}"
            )
        if self.kind == "cpu":
            if self.threads is None:
                raise DeviceError("threads is missing; a CPU's profile states a whole number from 1 up")
            for key in ("compute_capability", "device_names"):
                if getattr(self, key):
                    raise DeviceError(f"{key} is not a key of a cpu; allowed: leave it out")
        else:
            if self.threads is not None:
                raise DeviceError(f"threads is not a key of a {self.kind}; allowed: leave it out")
            if not self.device_names:
                raise DeviceError(
                    f"device_names is missing; it lists words of the driver's name of the {self.kind}"
                )
        capability = self.compute_capability
        if capability is None and self.runtime == "tensorrt":
            raise DeviceError('compute_capability is missing; allowed: quoted text such as "7.5"')
        if capability is not None and not re.fullmatch(r"\d{1,2}\.\d", capability):
            raise DeviceError(f'compute_capability is {capability!r}; allowed: quoted text such as "7.5"')
        if self.achievable is not None and self.achievable.value > 1:
            raise DeviceError(f"achievable.value is {self.achievable.value}; allowed: a share of 0 to 1")
        for precision, figure in self.channel_granularity.items():
            if figure.value != round(figure.value) or not 1 <= figure.value <= 1024:
                raise DeviceError(
                    f"channel_granularity.{precision}.value is {figure.value}; "
                    "allowed: whole numbers, 1 to 1024"
                )

    def require_figures(self) -> None:
        """Raises :class:`DeviceError` naming the figures that an estimate needs and this profile lacks."""
        missing = []
        for key in _ESTIMATED_FROM:
            value = getattr(self, key)
            if not value:
                missing.append(key)
            elif isinstance(value, dict) and self.precision not in value:
                missing.append(f"{key}.{self.precision}")
        if missing:
            raise DeviceError(
                f"device {self.name!r} has no {', '.join(missing)}, which an estimate is made of; "
                "add them to its profile with their sources, or leave out --estimate to measure"
            )

    def matches(self, driver_name: str) -> bool:
        """Whether a device that the driver calls ``driver_name`` is this one.

        Whole words only: an A100 is no A10.
        """
        words = re.split(r"[^a-z0-9]+", driver_name.lower())
        for name in self.device_names:
            wanted = re.split(r"[^a-z0-9]+", name.lower())
            if any(words[start : start + len(wanted)] == wanted for start in range(len(words))):
                return True
        return False

    def run_by(self) -> Runtime:
        """Its runtime."""
        return find_runtime(self.runtime)

    def absence(self) -> str:
        """Which other device, or none, is in the place of this one on this machine; empty for a CPU."""
        if self.kind == "cpu":
            return ""
        found = self.run_by().device_name(self.kind)
        if found is None:
            return f"no {self.kind.upper()}"
        return "" if self.matches(found) else f"the {self.kind.upper()} of this machine is {found}"

    def not_here(self) -> str:
        """Why networks cannot be measured on this device on this machine; empty when they can."""
        return self.absence() or self.run_by().lacking(self.kind, self.precision)

    def require_here(self, model: str | None = None, *, whole: bool = False) -> None:
        """Raises :class:`DeviceError`, with the commands that help, unless this device is this machine's.

        Args:
            model: named in the commands if given.
            whole: for ``bcnet-deploy run``, whose own options help, instead of ``profile``.
        """
        reason = self.not_here()
        if not reason:
            return
        given = self.name if is_shipped(self) or self.path is None else str(self.path)
        command = f"bcnet-deploy profile --device {given}" + (f" --model {model}" if model else "")
        ways = (
            f"'bcnet-deploy run --device {given} --table FILE' with a latency table that '{command}' wrote "
            f"on its host, or 'bcnet-deploy run --device {given} --estimate' for one from data sheets"
            if whole
            else f"'{command}' on its host and copy latency/{self.name}.json back into the run directory, or "
            f"estimate it from data sheets with '{command} --estimate'"
        )
        raise DeviceError(f"{self.description or self.name} is not here ({reason}); either run {ways}")


def _figures(key: str, value: Any, where: str) -> Any:
    """``value`` with every mapping of value and source made a :class:`Figure`."""
    if isinstance(value, Mapping) and not set(value) & {"value", "source"} and key in (
        "peak_tflops", "channel_granularity",
    ):  # fmt: skip
        return {name: _figures(f"{key}.{name}", figure, where) for name, figure in value.items()}
    if value is None or isinstance(value, Figure):
        return value
    return Figure.from_dict(value, f"{where}: {key}")


@cache
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


def is_shipped(profile: DeviceProfile) -> bool:
    """Whether the profile is one that comes with the package."""
    return profile.path is not None and known_devices().get(profile.name) == profile.path


def read_profile(path: Path) -> DeviceProfile:
    """Read and check one file. Raises :class:`DeviceError` naming the file and the key."""
    data = files.read_yaml(path, DeviceError, "device profile")
    where = f"device profile {path}"
    if isinstance(data, dict) and "path" in data:
        raise DeviceError(f"{where}: unknown key 'path'")
    if isinstance(data, dict):
        data = {**data, "path": path}
        file, colon, name = str(data.get("runtime", "")).rpartition(":")
        if colon and file.endswith(".py") and (beside := path.resolve().parent / file).is_file():
            data["runtime"] = f"{beside}:{name}"
    return DeviceProfile.from_dict(data, where)


def new_profile_text(name: str, *, kind: str = "cpu", runtime: str = "onnxruntime") -> str:
    """The text of a commented profile of a device of one's own, complete for measuring on it.

    Args:
        name: of the device.
        kind: ``cpu``, ``gpu`` or ``npu``.
        runtime: that runs networks on it.

    Raises:
        DeviceError: a value is not allowed.
    """
    check_name("name", name, DeviceError)
    allowed = find_runtime(runtime).precisions.get(kind, ("fp32",))
    profile = DeviceProfile(
        name=name, kind=kind, runtime=runtime, precision=allowed[0],  # type: ignore[arg-type]
        threads=1 if kind == "cpu" else None,
        device_names=() if kind == "cpu" else (name,),
        compute_capability="8.6" if runtime == "tensorrt" else None,
    )  # fmt: skip
    quoted = json.dumps(name)  # a name may look like a number
    if kind == "cpu":
        own = "threads: 1  # of the runtime, stated and never guessed\n"
    else:
        own = f"device_names: [{quoted}]  # words that the driver's name of it contains\n"
        if profile.compute_capability:
            own += 'compute_capability: "8.6"  # of the GPU, from NVIDIA\'s list\n'
    return f"""# A device of your own. Measure on it with: bcnet-deploy profile --device {name}.yaml
name: {quoted}  # files are called by it
description: {quoted}  # for people
kind: {kind}  # cpu, gpu or npu
runtime: {runtime}  # or my_file.py:MyRuntime, see examples/runtime
precision: {profile.precision}  # {", ".join(allowed)}
batch: 1  # images at once
{own}
# The rest is for --estimate alone, where the device is not at hand. Each figure needs its source.
# peak_tflops:
#   {profile.precision}: {{value: 1.0, source: "data sheet, page"}}  # a multiply-accumulate is two operations
# bandwidth_gb_s: {{value: 20, source: "data sheet, page"}}
# launch_overhead_us: {{value: 3.0, source: "own measurement of a layer that hardly computes"}}
# achievable: {{value: 0.5, source: "assumption"}}  # share of the peaks that kernels reach
# channel_granularity:
#   {profile.precision}: {{value: 16, source: "vendor's guide"}}  # channels a kernel rounds up to
"""
