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
    "tensorrt-rtx", "tensorrt", "openvino", "pymoo", "scipy",
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
    from bcnet_deploy.runtime.machine import describe_machine
    from bcnet_deploy.runtime.ort import available_providers

    machine = describe_machine()
    return {
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "cpu": {
            "model": machine["cpu_model"], "features": machine["cpu_features"], "cores": machine["cores"],
            "logical_processors": os.cpu_count(), "governor": machine["governor"],
            "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        },
        "os": machine["os"], "memory_gib": _memory(), "gpus": _gpus(), "driver": machine["driver"],
        "onnxruntime_providers": list(available_providers()), "tensorrt": _flavours(),
        "runtimes": _runtimes(),
        "devices": {name: judge(load_device(name)) for name in known_devices()},
    }  # fmt: skip


def judge(device: DeviceProfile) -> dict[str, Any]:
    """What can be done for ``device`` here: ``measure``, ``build`` engines, and ``why`` not, in words."""
    from bcnet_deploy.errors import BCNetError

    runtime = device.run_by()
    reasons = [device.absence(), runtime.lacking(device.kind, device.precision)]
    build = runtime.engine is not None
    try:
        runtime.check_engine(device, device.precision)
    except BCNetError as error:
        build = False
        if runtime.needs_engine:
            reasons.append(str(error))
    return {
        "measure": not device.not_here(),
        "build": build,
        "why": "; ".join(dict.fromkeys(filter(None, reasons))),
    }


def _runtimes() -> dict[str, Any]:
    """By name: package and version, what it computes in, and why it is not here."""
    from bcnet_deploy.runtime.registry import RUNTIMES, find_runtime

    found = {}
    for name in RUNTIMES.names():
        runtime = find_runtime(name)
        package, version = runtime.installed() or (None, None)
        found[name] = {
            "title": runtime.title, "package": package, "version": version, "engine": runtime.engine,
            "kinds": {
                kind: {precision: runtime.lacking(kind, precision) for precision in precisions}
                for kind, precisions in runtime.precisions.items()
            },
        }  # fmt: skip
    return found


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
        *(_runtime_line(entry) for entry in data["runtimes"].values()),
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


def _runtime_line(entry: dict[str, Any]) -> str:
    """Which precisions one runtime has here, by kind of device."""
    able = [
        f"{kind.upper()} in {', '.join(precisions)}"
        for kind, all_of in entry["kinds"].items()
        if (precisions := [precision for precision, reason in all_of.items() if not reason])
    ]
    if able:
        return f"{entry['title']} {entry['version']}: {'; '.join(able)}"
    reason = next((reason for all_of in entry["kinds"].values() for reason in all_of.values()), "")
    return reason if entry["title"] in reason else f"{entry['title']}: {reason}"


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
