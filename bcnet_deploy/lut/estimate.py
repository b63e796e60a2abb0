"""A whole table from data sheets, for a device that is not here; marked ``estimated`` wherever shown."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from bcnet_deploy.devices import DeviceProfile
from bcnet_deploy.lut.fit import Granularity
from bcnet_deploy.lut.network import Network
from bcnet_deploy.lut.roofline import roofline_of
from bcnet_deploy.lut.table import LatencyTable

if TYPE_CHECKING:
    from bcnet_deploy.space import WidthSpace

ASSUMED_ERROR = 0.5
"""Relative error of an estimate, an assumption: rooflines are off by tens of percent, in either direction."""


def estimate_table(space: WidthSpace, device: DeviceProfile) -> LatencyTable:
    """The roofline estimate of every layer of ``space`` on ``device``.

    Args:
        space: any width space.
        device: its figures, with their sources, go into the provenance.

    Raises:
        DeviceError: the profile lacks a figure that an estimate needs.
    """
    device.require_figures()
    network = Network.of_space(space, precision=device.precision, batch=device.batch)
    models = {}
    for layer in network.layers:
        if layer.key not in models:
            models[layer.key] = roofline_of(space, layer, device)
    figures = {
        f"peak_tflops.{device.precision}": device.peak_tflops[device.precision],
        **{
            name: figure
            for name in ("bandwidth_gb_s", "launch_overhead_us", "achievable")
            if (figure := getattr(device, name)) is not None
        },
        f"channel_granularity.{device.precision}": device.channel_granularity[device.precision],
    }
    block = int(device.channel_granularity[device.precision].value)
    return LatencyTable(
        device=device.name,
        source="estimated",
        precision=device.precision,
        batch=device.batch,
        granularity=Granularity(block, block),
        provenance={
            "method": "roofline of each layer from the figures below; nothing was measured",
            "figures": {name: {"value": f.value, "source": f.source} for name, f in figures.items()},
            "compute_capability": device.compute_capability,
            "threads": device.threads,
            "runtime": device.runtime,
            "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "relative_error": f"assumed to be {ASSUMED_ERROR:.0%}",
        },
        entries={},
        models=dict(models),
        networks=(replace(network, relative_error=ASSUMED_ERROR),),
    )
