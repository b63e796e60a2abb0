"""What machine this is, as far as latency goes: kept with a table, compared when it is used."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bcnet_deploy.runtime.base import Runtime

_FEATURES = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "sve")
COMPARED = {
    "cpu_model": "CPU",
    "cpu_features": "CPU features",
    "gpu": "GPU",
    "driver": "driver",
    "runtime": "runtime",
    "runtime_version": "runtime version",
}


def describe_machine(runtime: Runtime | None = None) -> dict[str, Any]:
    """CPU model and features, cores, governor, GPU and driver, and package and version of ``runtime``."""
    fields = _cpu_fields()
    flags = cpu_flags()
    gpu, driver = _gpu()
    return {
        "cpu_model": fields.get("model name") or platform.processor() or platform.machine(),
        "cpu_family": " ".join(fields.get(key, "") for key in ("vendor_id", "cpu family", "model")).strip(),
        "cpu_features": [feature for feature in _FEATURES if feature in flags],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip() or "unknown",
        "gpu": gpu,
        "driver": driver,
        "os": f"{platform.system()} {platform.release()}",
        **(runtime.describe() if runtime is not None else {}),
    }


def package_version(package: str) -> str | None:
    """The version of an installed package; None when it is not installed."""
    try:
        return metadata.version(package)
    except (metadata.PackageNotFoundError, ValueError):
        return None


def cpu_flags() -> frozenset[str]:
    """All feature flags of the CPU, as the kernel calls them; empty where it does not say."""
    fields = _cpu_fields()
    return frozenset((fields.get("flags") or fields.get("Features") or "").split())


def lacks_vnni() -> str:
    """Why INT8 networks cannot run fast on this CPU; empty when they can, or when the CPU does not say."""
    flags = cpu_flags()
    if "avx2" in flags and not flags & {"avx512_vnni", "avx_vnni", "amx_int8"}:
        return "this CPU has no instructions for INT8 (avx512_vnni, avx_vnni or amx_int8); use FP32"
    return ""


def differences(made_on: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """How the machine of a table differs from this one, as phrases; empty when it does not matter."""
    found = []
    for key, label in COMPARED.items():
        then, now = made_on.get(key), here.get(key)
        if then is not None and then != now:
            found.append(f"{label} {_text(then)} there, {_text(now)} here")
    return found


def gpu_name() -> str | None:
    """The driver's name of the first GPU, or None."""
    return _gpu()[0]


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _gpu() -> tuple[str | None, str | None]:
    try:
        result = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None, None
    line = result.stdout.strip().splitlines()
    if result.returncode != 0 or not line:
        return None, None
    name, _, driver = line[0].partition(",")
    return name.strip(), driver.strip()


def _cpu_fields() -> dict[str, str]:
    lines = (line.partition(":") for line in _read("/proc/cpuinfo").splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}
