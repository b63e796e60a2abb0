"""``bcnet-deploy devices``: the device profiles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bcnet_deploy.cli.choices import devices
from bcnet_deploy.cli.common import console, emit, json_option
from bcnet_deploy.errors import BCNetError, UsageError, wrong_option


@click.command("devices")
@click.argument("name", required=False, shell_complete=devices)
@click.option("--new", help="Write a commented profile of a device of your own, of this name, as NAME.yaml.")
@click.option("--kind", default="cpu", show_default=True, help="Of the new device: cpu, gpu or npu.")
@click.option("--runtime", default="onnxruntime", show_default=True, help="Of the new device.")
@json_option
def command(name: str | None, new: str | None, kind: str, runtime: str, as_json: bool) -> None:
    """List the device profiles, or show the figures and sources of one (NAME or a .yaml file)."""
    from bcnet_deploy.devices import known_devices, load_device, new_profile_text

    if new is not None:
        try:
            new_profile_text(new, kind=kind, runtime=runtime)
        except BCNetError as error:  # all of it comes from options
            raise UsageError(str(error)) from None
        path = _write_new(new, kind, runtime)
        emit(
            {"path": str(path)}, as_json=as_json,
            show=lambda: console().print(f"wrote {path}", soft_wrap=True, markup=False),
        )  # fmt: skip
        return
    with wrong_option():
        profiles = [load_device(known) for known in ([name] if name is not None else known_devices())]

    def show() -> None:
        from rich.markup import escape
        from rich.table import Table

        out = console()
        table = Table(title=None if name else "Device profiles")
        for header in (
            "name",
            "runtime",
            "precision",
            "batch",
            "threads / compute capability",
            "description",
        ):
            table.add_column(header)
        for device in profiles:
            table.add_row(
                device.name, escape(device.runtime), device.precision, str(device.batch),
                device.compute_capability or f"{device.threads} thread(s)", escape(device.description),
            )  # fmt: skip
        out.print(table)
        if name:
            figures = Table(title="Figures, used by estimates only")
            for header in ("figure", "value", "source"):
                figures.add_column(header, overflow="fold")
            for key, figure in _figures(profiles[0]).items():
                figures.add_row(key, f"{figure.value:g}", escape(figure.source))
            out.print(figures)

    emit({"devices": [_json(device) for device in profiles]}, as_json=as_json, show=show)


def _write_new(name: str, kind: str, runtime: str) -> Path:
    """The file of a new profile in the current folder. Raises :class:`DeviceError` where there is one."""
    from bcnet_deploy import files
    from bcnet_deploy.devices import known_devices, new_profile_text
    from bcnet_deploy.errors import DeviceError

    text, path = new_profile_text(name, kind=kind, runtime=runtime), Path(f"{name}.yaml")
    if name in known_devices() or path.exists():
        raise DeviceError(f"there is a device {name!r} already; choose another name, or remove {path}")
    files.write_text(path, text)
    return path


def _figures(device: Any) -> dict[str, Any]:
    figures = {
        **{f"peak_tflops.{precision}": figure for precision, figure in device.peak_tflops.items()},
        "bandwidth_gb_s": device.bandwidth_gb_s,
        "launch_overhead_us": device.launch_overhead_us,
        "achievable": device.achievable,
        **{
            f"channel_granularity.{precision}": figure
            for precision, figure in device.channel_granularity.items()
        },
    }
    return {key: figure for key, figure in figures.items() if figure is not None}


def _json(device: Any) -> dict[str, Any]:
    return {
        "name": device.name,
        "description": device.description,
        "kind": device.kind,
        "runtime": device.runtime,
        "precision": device.precision,
        "batch": device.batch,
        "threads": device.threads,
        "compute_capability": device.compute_capability,
        "figures": {
            key: {"value": figure.value, "source": figure.source} for key, figure in _figures(device).items()
        },
    }
