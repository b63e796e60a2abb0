"""Latency tables: measured or estimated times of layers, and the networks they add up to."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt

from bcnet_deploy import files
from bcnet_deploy.devices import check_name
from bcnet_deploy.errors import MissingEntryError, TableError
from bcnet_deploy.lut.compiled import CompiledSum, Term
from bcnet_deploy.lut.entries import Entries, require_keys
from bcnet_deploy.lut.fit import Fit, Granularity
from bcnet_deploy.lut.network import UNVALIDATED_ERROR, Network, dims_text, layer_dims
from bcnet_deploy.lut.roofline import Roofline
from bcnet_deploy.runtime.machine import describe_machine, differences, package_version

if TYPE_CHECKING:
    from bcnet_deploy.space import WidthSpace

Floats = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Source = Literal["measured", "estimated"]

FORMAT = 1
KIND = "bcnet-deploy latency table"
_KEYS = (
    "device", "source", "complete", "precision", "batch", "granularity", "provenance", "networks",
    "entries", "models",
)  # fmt: skip
_log = logging.getLogger("bcnet_deploy")


@dataclass(frozen=True)
class Breakdown:
    """Where the time goes.

    Attributes:
        names: of the layers, then ``overhead``.
        milliseconds: (N, len(names)).
    """

    names: tuple[str, ...]
    milliseconds: Floats


@dataclass(frozen=True)
class LatencyTable:
    """Times of layers on one device, and the networks bound to them.

    Attributes:
        device: name of the device profile.
        source: ``measured`` or ``estimated``; anything that shows a figure of the table shows this too.
        precision, batch: part of every key.
        granularity: how the device's runtime rounds channels.
        provenance: machine, runtime, threads, noise floor, date...
        entries: measurements by key; empty for an estimate.
        models: by key, what predicts the times between and at the entries.
        networks: the networks the table was made for; the first is the one ``predict`` speaks of.
        complete: whether the profile that made it was finished.
    """

    device: str
    source: Source
    precision: str
    batch: int
    granularity: Granularity
    provenance: dict[str, Any]
    entries: dict[str, Entries] = field(repr=False)
    models: dict[str, Fit | Roofline] = field(repr=False)
    networks: tuple[Network, ...] = field(repr=False)
    complete: bool = True

    # -- prediction ----------------------------------------------------------------------------

    @property
    def network(self) -> Network:
        """The network that predictions are of. Raises :class:`TableError` when none is bound."""
        if not self.networks:
            raise TableError(
                f"the table of {self.device} is bound to no network (imported entries only); "
                "use table.for_space(space), or profile the model"
            )
        return self.networks[0]

    @property
    def estimated(self) -> bool:
        return self.source == "estimated"

    def predict(self, widths: npt.ArrayLike) -> Floats:
        """(N, L) or (L,) widths -> (N,) milliseconds of one run.

        Raises:
            WidthError: the widths are not of the bound network.
            MissingEntryError: a layer lies outside of what was measured; it is named.
        """
        array = self.network.check(widths)
        result = self._compiled(array) / 1e3
        if np.isnan(result).any():
            self._raise_missing(array[np.isnan(result)][:1])
        return result

    def uncertainty(self, widths: npt.ArrayLike) -> Floats:
        """(N, L) widths -> (N,) standard deviation of the prediction, in milliseconds.

        Of a measured table it is the error on held-out networks; of an estimate an assumption.
        Raises as :meth:`predict` does.
        """
        return self.predict(widths) * self.network.relative_error

    def breakdown(self, widths: npt.ArrayLike) -> Breakdown:
        """The share of each layer in :meth:`predict`. Raises as that does."""
        network = self.network
        array = network.check(widths)
        parts = np.empty((len(array), len(network.layers) + 1))
        for index, term in enumerate(self.terms()):
            parts[:, index] = term.evaluate(array)
        if np.isnan(parts[:, :-1]).any():
            self._raise_missing(array[np.isnan(parts[:, :-1]).any(axis=1)][:1])
        parts[:, -1] = network.overhead_us
        return Breakdown((*(layer.name for layer in network.layers), "overhead"), parts / 1e3)

    def time_us(self, key: str, channels: npt.ArrayLike) -> Floats:
        """Microseconds of the layers ``key`` at channel counts (n, D) or (D,), as entries count them.

        Raises:
            MissingEntryError: there is no such key, or the channels lie outside of what was measured.
        """
        from bcnet_deploy.errors import nearest

        model = self.models.get(key)
        if model is None:
            raise MissingEntryError(
                f"the latency table of {self.device} has no entry {key!r}{nearest(key, self.models)}"
            )
        dims = np.atleast_2d(np.asarray(channels, dtype=np.int64))
        entries = self.entries.get(key)
        if entries is not None and not (good := entries.covers(dims)).all():
            raise self._outside("(asked for)", key, "x".join(map(str, dims[~good][0])), entries)
        return model.time_us(dims)

    def for_space(self, space: WidthSpace) -> LatencyTable:
        """The table bound to ``space``: its own network, or another whose layers it all has.

        Raises:
            MissingEntryError: the table lacks a layer of the space; it is named.
            TableError: the space's model or input size is another, and the table has not its layers.
        """
        for network in self.networks:
            if network.fingerprint == space.fingerprint:
                others = tuple(other for other in self.networks if other is not network)
                return replace(self, networks=(network.with_choices_of(space), *others))
        bound = Network.of_space(space, precision=self.precision, batch=self.batch)
        made_for = ", ".join(network.description for network in self.networks) or "no network"
        for layer in bound.layers:
            model = self.models.get(layer.key)
            if model is None:
                raise MissingEntryError(
                    f"the latency table of {self.device} was made for {made_for} and has no entry for layer "
                    f"{layer.name} of {bound.description}: {layer.key!r}; run 'bcnet-deploy profile --device "
                    f"{self.device}' for this model"
                )
            entries = self.entries.get(layer.key)
            largest = np.array([[extent.max for extent in layer.dims] or [1]])
            if entries is not None and not entries.covers(largest).all():
                raise self._outside(layer.name, layer.key, dims_text(layer, largest[0]), entries)
        # A network of its own was never timed: overhead and error of one that was are the best guess.
        base = next((network for network in self.networks if network.accuracy), None)
        base = base or next(iter(self.networks), None)
        if base is not None:
            bound = replace(bound, overhead_us=base.overhead_us, relative_error=2 * base.relative_error)
        elif not self.estimated:
            bound = replace(bound, relative_error=UNVALIDATED_ERROR)
        return replace(self, networks=(bound, *self.networks))

    @cached_property
    def _compiled(self) -> CompiledSum:
        network = self.network
        return CompiledSum(
            self.terms(),
            [variable.channels for variable in network.variables],
            [variable.choices for variable in network.variables],
            network.overhead_us,
        )

    def terms(self) -> list[Term]:
        """The layers of the network as functions of widths, in microseconds; NaN outside of measurements."""
        network = self.network
        terms = []
        for layer, scale in zip(network.layers, network.scales, strict=True):
            model = self.models.get(layer.key)
            if model is None:
                raise MissingEntryError(
                    f"the latency table of {self.device} has no entry for layer {layer.name}: {layer.key!r}"
                )
            entries = self.entries.get(layer.key)

            def evaluate(
                widths: Int64,
                layer: Any = layer,
                scale: float = scale,
                model: Fit | Roofline = model,
                entries: Entries | None = entries,
            ) -> Floats:
                dims = layer_dims(layer, widths)
                unique, inverse = np.unique(dims, axis=0, return_inverse=True)
                times = model.time_us(unique) * scale
                if entries is not None:
                    times[~entries.covers(unique)] = np.nan
                return np.asarray(times[inverse.ravel()])

            terms.append(Term(layer.variables, evaluate))
        return terms

    def _raise_missing(self, widths: Int64) -> None:
        for layer, term in zip(self.network.layers, self.terms(), strict=True):
            if np.isnan(term.evaluate(widths)[0]):
                dims = layer_dims(layer, widths)[0]
                raise self._outside(layer.name, layer.key, dims_text(layer, dims), self.entries[layer.key])

    def _outside(self, name: str, key: str, dims: str, entries: Entries) -> MissingEntryError:
        ranges = " and ".join(f"{low}..{high}" for low, high in zip(entries.low, entries.high, strict=True))
        return MissingEntryError(
            f"no measurement of {self.device} covers layer {name} at {dims} ({key!r}); measured are channels "
            f"{ranges}; run 'bcnet-deploy profile --device {self.device}' again to measure more"
        )

    # -- as a file -----------------------------------------------------------------------------

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the content: two tables that predict alike have the same one."""
        data = self.to_dict()
        del data["provenance"]
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]

    def save(self, path: str | Path) -> None:
        """Write atomically. Raises :class:`RunDirError`; the former file then stays."""
        data = self.to_dict()
        lines = [f"{json.dumps(key)}: {_one_line(value)}" for key, value in data.items()]
        files.write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read and check a table; says so (as a log warning) when it is of another machine or runtime.

        Raises:
            TableError: the file is absent, damaged, of a newer version or was edited into nonsense; the
                file and the key are named.
        """
        data = files.read_json(path, TableError, "latency table")
        table = cls.from_dict(data, str(path))
        for phrase in table.differences():
            _log.warning("latency table %s: %s; its latencies may not hold on this machine", path, phrase)
        return table

    def differences(self) -> list[str]:
        """How the machine it was measured on differs from this one; empty for an estimate."""
        if self.estimated:
            return []
        package = str(self.provenance.get("runtime"))
        here = {**describe_machine(), "runtime": package, "runtime_version": package_version(package)}
        return differences(self.provenance, here)

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "kind": KIND,
            "device": self.device,
            "source": self.source,
            "complete": self.complete,
            "precision": self.precision,
            "batch": self.batch,
            "granularity": {"block": self.granularity.block, "align": self.granularity.align},
            "provenance": self.provenance,
            "networks": [network.to_dict() for network in self.networks],
            "entries": {key: entries.to_dict() for key, entries in sorted(self.entries.items())},
            "models": {key: model.to_dict() for key, model in sorted(self.models.items())},
        }

    @classmethod
    def from_dict(cls, data: Any, where: str = "latency table") -> Self:
        """From parsed JSON, every number checked.

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
            _positive(data["granularity"][name], f"{where}: granularity.{name}")
            for name in ("block", "align")
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
                count, model = max(len(layer.dims), 1), models[layer.key]
                short = isinstance(model, Roofline) and model.dimensions > count
                if short or _dimensions(model, entries.get(layer.key)) - {count}:
                    raise TableError(
                        f"{where}: layer {layer.name} has {count} channel counts, and its entry or model "
                        f"{layer.key!r} another number of them"
                    )
        with files.malformed(f"{where}: provenance", TableError, files.AGAIN):
            files.check_figures(data["provenance"])
        return cls(
            device=check_name(f"{where}: device", data["device"], TableError),
            source=data["source"],
            precision=str(data["precision"]),
            batch=_positive(data["batch"], f"{where}: batch"),
            granularity=granularity,
            provenance=dict(data["provenance"]),
            entries=entries,
            models=models,
            networks=networks,
            complete=data["complete"],
        )

    def merged(self, other: LatencyTable) -> LatencyTable:
        """This table with the entries and networks of ``other``.

        A network of both stays this one's, unless the other one's alone was validated. Medians are joined as
        they are: tables of days on which the machine was not equally fast give something in between.

        Raises:
            TableError: the two are of different devices, precisions, batches or sources, or were measured
                on different machines, runtimes or numbers of threads.
        """
        for name in ("device", "source", "precision", "batch", "granularity"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise TableError(f"tables of different {name} do not merge: {mine} and {theirs}")
        unlike = [
            key
            for key in ("cpu_model", "cpu_features", "gpu", "runtime", "runtime_version", "threads")
            if self.provenance.get(key) != other.provenance.get(key)
            # A CPU's times do not depend on whether the machine has a GPU.
            and not (key == "gpu" and None in (self.provenance.get(key), other.provenance.get(key)))
        ]
        if unlike and not self.estimated:
            raise TableError(
                f"tables of different {unlike[0]} do not merge: {self.provenance.get(unlike[0])!r} and "
                f"{other.provenance.get(unlike[0])!r}"
            )
        from bcnet_deploy.lut.fit import fit

        entries = dict(other.entries)
        models = {**other.models, **self.models}
        for key, mine_entries in self.entries.items():
            if key in other.entries:
                counts = mine_entries.dims.shape[1], other.entries[key].dims.shape[1]
                if counts[0] != counts[1]:
                    raise TableError(
                        f"the entries {key!r} of two tables have {counts[0]} and {counts[1]} channel counts; "
                        "they are not of the same layer"
                    )
                both = mine_entries.merged(other.entries[key])
                models[key] = fit(both.dims, both.median_us, both.count, self.granularity)
                entries[key] = both
            else:
                entries[key] = mine_entries
        validated = {network.fingerprint: network for network in other.networks if network.accuracy}
        mine_networks = tuple(
            network if network.accuracy else validated.get(network.fingerprint, network)
            for network in self.networks
        )
        known = {network.fingerprint for network in mine_networks}
        networks = (*mine_networks, *(n for n in other.networks if n.fingerprint not in known))
        return replace(self, entries=entries, models=models, networks=networks)


def _one_line(value: Any) -> str:
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
    with files.malformed(where, TableError, files.AGAIN):
        if data["form"] == "roofline":
            return Roofline.from_dict(data)
        model = Fit.from_dict(data, granularity)
        model.check(where)
        return model


def _positive(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise TableError(f"{where} must be a whole number of 1 or more; given {value!r}")
    return value
