"""A table's JSON: read with every number checked, written one line an entry."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from bcnet_deploy.errors import TableError
from bcnet_deploy.lut.entries import Entries, finite, require_keys
from bcnet_deploy.lut.fit import Fit, Granularity
from bcnet_deploy.lut.network import Network
from bcnet_deploy.lut.roofline import Roofline

FORMAT = 1
KIND = "bcnet-deploy latency table"
_KEYS = (
    "device", "source", "complete", "precision", "batch", "granularity", "provenance", "networks",
    "entries", "models",
)  # fmt: skip


def read_fields(data: Any, where: str) -> dict[str, Any]:
    """The attributes of a :class:`LatencyTable` in parsed JSON.

    Raises:
        TableError: something is absent, damaged or out of range; ``where`` and the key are named.
    """
    require_keys(data, ("format", "kind"), where)
    if data["kind"] != KIND:
        raise TableError(f"{where} is no latency table: its kind is {data['kind']!r}")
    if data["format"] != FORMAT:
        raise TableError(
            f"{where} has format {data['format']!r}, this version reads {FORMAT}; "
            "use the version of bcnet-deploy that wrote it, or make the table again"
        )
    require_keys(data, _KEYS, where)
    if data["source"] not in ("measured", "estimated"):
        raise TableError(f"{where}: source must be 'measured' or 'estimated'; given {data['source']!r}")
    if not isinstance(data["complete"], bool):
        raise TableError(f"{where}: complete must be true or false; given {data['complete']!r}")
    for name in ("provenance", "entries", "models", "granularity"):
        require_keys(data[name], ("block", "align") if name == "granularity" else (), f"{where}: {name}")
    if not isinstance(data["networks"], list):
        raise TableError(f"{where}: networks must be a list; given {type(data['networks']).__name__}")
    sizes = (
        _positive(data["granularity"][name], f"{where}: granularity.{name}") for name in ("block", "align")
    )
    granularity = Granularity(*sizes)
    entries = {
        str(key): Entries.from_dict(value, f"{where}: entries[{key!r}]")
        for key, value in data["entries"].items()
    }
    networks = tuple(
        Network.from_dict(value, f"{where}: networks[{index}]")
        for index, value in enumerate(data["networks"])
    )
    models = {
        str(key): _model(value, granularity, f"{where}: models[{key!r}]")
        for key, value in data["models"].items()
    }
    for network in networks:
        for layer in network.layers:
            if layer.key not in models or (data["source"] == "measured" and layer.key not in entries):
                raise TableError(f"{where} lacks the entry of layer {layer.name} ({layer.key!r})")
            count = max(len(layer.dims), 1)
            if _dimensions(models[layer.key], entries.get(layer.key)) - {count}:
                raise TableError(
                    f"{where}: layer {layer.name} has {count} channel counts, and its entry or model "
                    f"{layer.key!r} another number of them"
                )
    return {
        "device": str(data["device"]),
        "source": data["source"],
        "precision": str(data["precision"]),
        "batch": _positive(data["batch"], f"{where}: batch"),
        "granularity": granularity,
        "provenance": dict(data["provenance"]),
        "entries": entries,
        "models": models,
        "networks": networks,
        "complete": data["complete"],
    }


def one_line(value: Any) -> str:
    """JSON with one line an entry: short enough to read, and to compare with diff."""
    if isinstance(value, dict) and value:
        lines = (f" {json.dumps(key)}: {json.dumps(item, allow_nan=False)}" for key, item in value.items())
        return "{\n" + ",\n".join(lines) + "\n}"
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        return "[\n" + ",\n".join(f" {json.dumps(item, allow_nan=False)}" for item in value) + "\n]"
    return json.dumps(value, allow_nan=False)


def _dimensions(model: Fit | Roofline, entries: Entries | None) -> set[int]:
    found = set() if entries is None else {entries.dims.shape[1]}
    return found | {model.cells.shape[1]} if isinstance(model, Fit) else found


def _model(data: Any, granularity: Granularity, where: str) -> Fit | Roofline:
    require_keys(data, ("form",), where)
    if data["form"] not in ("fit", "roofline"):
        raise TableError(f"{where}: form must be 'fit' or 'roofline'; given {data['form']!r}")
    try:
        if data["form"] == "roofline":
            return Roofline.from_dict(data)
        model = Fit.from_dict(data, granularity)
        _check(model, where)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise TableError(f"{where} is damaged ({error!r})") from error
    return model


def _check(model: Fit, where: str) -> None:
    """What a fit computes with must be finite and fit together, or every prediction would be NaN."""
    if model.cells.ndim != 2 or model.weights.shape != (len(model.cells),) or not model.cells.size:
        raise TableError(f"{where}: cells and weights must have one row each, and some")
    if "" not in model.bases:
        raise TableError(f"{where}.bases lacks the key ''; it was edited by hand or is damaged")
    width = model.granularity.basis(model.cells[:1]).shape[1]
    flags = 2 * model.cells.shape[1]
    for regime, values in model.bases.items():
        if len(values) != width or (regime and len(regime) != flags) or set(regime) - set("01"):
            raise TableError(f"{where}.bases[{regime!r}] must be {flags} flags and have {width} coefficients")
    for name, numbers in (("bases", np.concatenate(list(model.bases.values()))), ("weights", model.weights)):
        finite(numbers.tolist(), f"{where}.{name}")
    for name in ("amplitude", "length", "noise"):
        value = getattr(model, name)
        if not 0 < value < np.inf:
            raise TableError(f"{where}.{name} must be a positive number; given {value}")


def _positive(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise TableError(f"{where} must be a whole number of 1 or more; given {value!r}")
    return value
