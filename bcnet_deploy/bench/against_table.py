"""A measured network beside its latency table: prediction of the whole, and of each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bcnet_deploy.bench.places import Place, Subject
from bcnet_deploy.bench.result import LayerTime, Prediction
from bcnet_deploy.devices import DeviceProfile
from bcnet_deploy.errors import MissingEntryError, TableError, WidthError
from bcnet_deploy.lut import LatencyTable
from bcnet_deploy.profiler.measure import faster_half, without_stamps
from bcnet_deploy.runtime.base import NodeTime
from bcnet_deploy.runtime.layer_names import module_times

if TYPE_CHECKING:
    from bcnet_deploy.space import WidthSpace


def _vector(table: LatencyTable, subject: Subject) -> list[int] | None:
    widths = subject.metadata.widths
    names = [variable.name for variable in table.network.variables]
    return [widths[name] for name in names] if set(names) == set(widths) else None


def predict(table: LatencyTable | None, subject: Subject, name: str, notes: list[str]) -> Prediction | None:
    """What ``table`` says of a network; None with a note where it says nothing."""
    if table is None:
        return None
    vector = _vector(table, subject)
    if vector is None:
        notes.append(f"{name}: its file names no widths of the table's network, so there is no prediction")
        return None
    try:
        return Prediction(float(table.predict(vector)[0]), float(table.uncertainty(vector)[0]), table.source)
    except (MissingEntryError, TableError, WidthError) as error:
        notes.append(f"{name}: no prediction: {error}")
        return None


def departures(
    table: LatencyTable | None,
    network: str,
    subject: Subject,
    place: Place,
    device: DeviceProfile,
    threads: int,
    machine: Mapping[str, Any],
) -> str:
    """How a measurement departs from the device's conditions and the table's; empty where it does not.

    Runtime, GPU, threads, precision, batch, and the machine that the table was measured on.
    """
    found = []
    wanted = device.run_by().place(device.kind)
    here = place.runtime.device_name(device.kind)
    if place.name != wanted:
        found.append(f"{place.name} of this machine, not {device.name}'s {wanted}")
    elif here is not None and not device.matches(here):
        found.append(f"the {device.kind.upper()} is {here}, not {device.name}")
    usual = device.threads if table is None else table.provenance.get("threads") or device.threads
    if device.kind == "cpu" and place.device.kind == "cpu" and threads != (usual or threads):
        found.append(f"{threads} thread(s), not {usual}")
    if table is not None:
        batch, precision = subject.batch or 1, place.precision(network, subject)
        if table.device != device.name:
            found.append(f"the table is of {table.device}, not {device.name}")
        if table.precision != precision:
            found.append(f"{precision}, the table {table.precision}")
        if table.batch != batch:
            found.append(f"batch {batch}, the table {table.batch}")
        made_on = table.provenance.get("cpu_model")
        if device.kind == "cpu" and not table.estimated and made_on not in (None, machine.get("cpu_model")):
            found.append(f"CPU {machine.get('cpu_model')}, the table's {made_on}")
    return "; ".join(found)


def layer_times(
    place: Place,
    name: str,
    subject: Subject,
    table: LatencyTable | None,
    space: WidthSpace | None,
    *,
    runs: int,
    warmup: int,
    seed: int,
) -> tuple[LayerTime, ...]:
    """By the table's layers where ``space`` is of the network, else by module; predicted by ``table``."""
    with place.runner(name, subject.data, profiling=True) as runner:
        feeds = runner.random_feeds(np.random.default_rng(seed))
        nodes = runner.node_times(feeds, runs=runs, warmup=warmup)
    node_us = float(table.provenance.get("node_overhead_us", 0.0)) if table is not None else 0.0
    by_layer = _table_layers(nodes, subject, space, node_us) if space is not None else None
    if by_layer is None:
        return tuple(LayerTime(name, value) for name, value in module_times(nodes, subject.nodes).items())
    predicted: dict[str, float] = {}
    vector = _vector(table, subject) if table is not None else None
    if table is not None and vector is not None:
        parts = table.breakdown(vector)
        predicted = dict(zip(parts.names, parts.milliseconds[0].tolist(), strict=True))
    return tuple(LayerTime(name, value, predicted.get(name)) for name, value in by_layer.items())


def _table_layers(
    nodes: Sequence[NodeTime], subject: Subject, space: WidthSpace, node_us: float
) -> dict[str, float] | None:
    """Milliseconds by the latency table's layers, every node accounted for; None: of another model.

    ``node_us`` is what profiling adds to each node, as the table found it.
    """
    import onnx

    from bcnet_deploy.lut.layers import layers_of
    from bcnet_deploy.profiler.layer_map import LayerMap

    if subject.metadata.fingerprint and subject.metadata.fingerprint != space.fingerprint:
        return None
    layers = layers_of(space, precision=subject.metadata.precision, batch=subject.batch or 1)
    try:
        layer_map = LayerMap(onnx.load_from_string(subject.data), space, layers)
        profiled = faster_half(layer_map.layer_times(nodes))
        times = without_stamps(profiled, layer_map.node_counts(nodes), node_us)
    except (LookupError, ValueError):
        return None
    return dict(zip((layer.name for layer in layers), (times / 1e3).tolist(), strict=True))
