"""``bcnet-deploy doctor``: what this machine can run."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from importlib import metadata
from typing import TYPE_CHECKING, Any

import click

from bcnet_deploy.cli.common import console, emit, json_option

if TYPE_CHECKING:
    from bcnet_deploy.devices import DeviceProfile

PACKAGES = (
    "bcnet-deploy", "torch", "torchvision", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "onnxscript",
    "tensorrt-rtx", "tensorrt", "pymoo", "scipy",
)  # fmt: skip


@click.command("doctor")
@json_option
def command(as_json: bool) -> None:
    """Show versions, processor, runtimes, GPUs, and which device profiles this machine can run."""
    data = examine()
    emit(data, as_json=as_json, show=lambda: show(data))


def examine() -> dict[str, Any]:
    """Everything that ``doctor`` shows, JSON-able. Nothing raises: what is missing or broken is said."""
    from bcnet_deploy.devices import known_devices, load_device
    from bcnet_deploy.lut.machine import describe_machine
    from bcnet_deploy.runtime.ort import available_providers

    machine = describe_machine("onnxruntime")
    gpus = _gpus()
    flavours = _flavours()
    providers = list(available_providers())
    return {
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "cpu": {
            "model": machine["cpu_model"], "features": machine["cpu_features"], "cores": machine["cores"],
            "logical_processors": os.cpu_count(), "governor": machine["governor"],
            "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        },
        "os": machine["os"], "memory_gib": _memory(), "gpus": gpus, "driver": machine["driver"],
        "onnxruntime_providers": providers, "tensorrt": flavours,
        "devices": {
            name: judge(load_device(name), gpus, providers, flavours) for name in known_devices()
        },
    }  # fmt: skip


def judge(
    device: DeviceProfile, gpus: list[dict[str, str]], providers: list[str], flavours: list[dict[str, Any]]
) -> dict[str, Any]:
    """What can be done for ``device`` here: ``measure``, ``build`` engines, and ``why`` not, in words."""
    if device.kind == "cpu":
        if "cpu" not in providers:
            return {"measure": False, "build": False, "why": "ONNX Runtime is not installed"}
        return {"measure": True, "build": False, "why": ""}
    here = [gpu for gpu in gpus if device.matches_gpu(gpu["name"])]
    runtimes = bool(flavours) if device.runtime == "tensorrt" else "cuda" in providers
    builders = [
        flavour["name"] for flavour in flavours
        if device.compute_capability in flavour["capabilities"] or (here and not flavour["capabilities"])
    ]  # fmt: skip
    reasons = []
    if not here:
        reasons.append("no such GPU here" + (f" (found {gpus[0]['name']})" if gpus else ""))
    if not runtimes:
        reasons.append(
            "TensorRT is not installed"
            if device.runtime == "tensorrt"
            else "ONNX Runtime has no CUDA provider"
        )
    elif not builders and device.runtime == "tensorrt":
        reasons.append(
            f"engines for compute capability {device.compute_capability} "
            "are built on its own host ('tensorrt')"
        )
    return {"measure": bool(here and runtimes), "build": bool(builders), "why": "; ".join(reasons)}


def show(data: dict[str, Any]) -> None:
    """Print it for people."""
    from rich.markup import escape
    from rich.table import Table

    out = console()
    cpu = data["cpu"]
    packages = ", ".join(f"{name} {version}" for name, version in data["packages"].items())
    lines = [
        f"Python {data['python']} on {data['os']}; {packages}",
        f"CPU: {cpu['model']}, {cpu['cores']} of {cpu['logical_processors']} processors usable, "
        f"{', '.join(cpu['features']) or 'no vector extensions of note'}, governor {cpu['governor']}"
        + (f", OMP_NUM_THREADS={cpu['omp_num_threads']}" if cpu["omp_num_threads"] else ""),
        f"Memory: {data['memory_gib']} GiB" if data["memory_gib"] else "Memory: unknown",
        "GPU: "
        + ("; ".join(f"{g['name']}, compute capability {g['capability']}" for g in data["gpus"]) or "none")
        + (f", driver {data['driver']}" if data["driver"] else ""),
        f"ONNX Runtime providers: {', '.join(data['onnxruntime_providers']) or 'not installed'}",
    ]  # fmt: skip
    for flavour in data["tensorrt"]:
        targets = ", ".join(flavour["capabilities"]) or "the GPU that is present"
        lines.append(f"{flavour['name']} {flavour['version']}: builds for {targets}")
    if not data["tensorrt"]:
        lines.append("TensorRT: not installed (pip install tensorrt-rtx builds engines without a GPU)")
    for line in lines:
        out.print(escape(line), soft_wrap=True)
    table = Table(title="Device profiles")
    for header in ("name", "measure here", "build engines here", "remark"):
        table.add_column(header)
    for name, entry in data["devices"].items():
        remark = entry["why"]
        if not entry["measure"]:
            remark += "; profile it on its host, or with --estimate"
        table.add_row(
            name, "yes" if entry["measure"] else "no", "yes" if entry["build"] else "no", escape(remark)
        )
    out.print(table)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _gpus() -> list[dict[str, str]]:
    import torch

    try:
        return [
            {
                "name": torch.cuda.get_device_name(index),
                "capability": ".".join(map(str, torch.cuda.get_device_capability(index))),
            }
            for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
        ]
    except RuntimeError:
        return []  # a driver that PyTorch cannot use is as good as none


def _flavours() -> list[dict[str, Any]]:
    if not any(importlib.util.find_spec(name) for name in ("tensorrt", "tensorrt_rtx")):
        return []
    from bcnet_deploy.runtime.trt_build import capabilities, installed_flavours

    return [
        {"name": flavour.name, "version": flavour.version, "capabilities": list(capabilities(flavour))}
        for flavour in installed_flavours()
    ]


def _memory() -> float | None:
    if sys.platform == "win32":
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
