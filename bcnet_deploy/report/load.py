"""Gathers what a run directory holds into :class:`Content`; steps that have not run leave their part empty.

Only files are read, by numpy alone: a report can be made where neither PyTorch nor the device is.
Results of other widths than the latest search's are left out. Measurements that were not made on the device,
or not under its table's conditions, are named as such.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from bcnet_deploy import __version__, files
from bcnet_deploy.errors import RunDirError, TableError
from bcnet_deploy.lut import LatencyTable
from bcnet_deploy.report.content import (
    Candidate,
    Content,
    Curve,
    FrontPlot,
    GenerationPoint,
    LayerLatency,
    LayerWidth,
    Pair,
    Staircase,
    SummaryRow,
)
from bcnet_deploy.run.directory import NETWORKS, RunConfig, RunDir
from bcnet_deploy.run.widths import difference
from bcnet_deploy.units import format_milliseconds, parse_latency

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_MOST_STEPS = 128
_REACH = NormalDist().inv_cdf(0.975)


def gather(run: RunDir) -> Content:
    """Everything the report of ``run`` shows.

    Raises:
        MissingStepError: there is no run.
        RunDirError, TableError: a file is damaged or of another version.
    """
    config = run.load()
    size = "×".join(map(str, config.model.input_size))
    table = _table(run, config.device)
    content = Content(
        title=f"bcnet-deploy: {config.model.name}", model=f"{config.model.name} ({size})",
        data=config.data or "–",
        device=config.device, estimated=table is not None and table.estimated,
    )  # fmt: skip
    with files.malformed(f"a file of {run.path}", RunDirError, "run the step again that made it"):
        explained = _yaml(run.widths_file)
        bench = _json(run.bench, "benchmark")
        results = {name: _json(run.retrained(name) / "result.json", "training result") for name in NETWORKS}
        content.metric, content.unit = _metric(run, results)
        widths = _widths(explained)
        content.warnings = _drop_former(run, widths, results, bench)
        content.networks = _networks(widths, explained, results, bench, table)
        content.widths = _layer_widths(widths)
        content.measured_on, content.measured_departs = _measured_on(bench)
        content.pairs = _held_out(run, table)
        if not content.measured_departs:
            content.pairs += _measured_pairs(content.networks)
        content.layers = _layers(widths, table)
        tables = _tables(run, config, table)
        content.by_device = _by_device(widths, tables)
        content.staircases = _staircases(widths, tables)
        _add_search(content, run, explained)
        content.curves = _curves(
            run, [name for name in NETWORKS if results[name] is not None], content.accuracy
        )
        content.provenance = _provenance(config, table, explained, bench) + _images(run) + [
            ("note", f"training of {name}: {note}")
            for name, result in results.items() if result is not None for note in result.get("notes", ())
        ]  # fmt: skip
        content.noise_floor = None if table is None else table.provenance.get("noise_floor")
        return content.checked()


def _json(path: Path, what: str) -> Any:
    """The value in ``path``, or None where the step has not run."""
    return files.read_json(path, RunDirError, what) if path.exists() else None


def _yaml(path: Path) -> dict[str, Any]:
    return dict(files.read_yaml(path, RunDirError, "search result")) if path.exists() else {}


def _table(run: RunDir, device: str) -> LatencyTable | None:
    path = run.latency_table(device)
    return LatencyTable.load(path) if path.exists() else None


def _widths(explained: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Widths by variable name of the networks that the search named."""
    if not explained:
        return {}
    others = {name: dict(network["widths"]) for name, network in explained["compared_with"].items()}
    found = {**others, "found": dict(explained["widths"])}
    return {name: found[name] for name in NETWORKS if name in found}


def _metric(run: RunDir, results: Mapping[str, Any]) -> tuple[str, str]:
    """Name and unit of the accuracies, as the trainings say; top-1 in percent where none does."""
    said = [*results.values(), _json(run.train / "supernet.json", "supernet description")]
    named: dict[str, str] = next((one for one in said if one is not None and "metric_name" in one), {})
    return named.get("metric_name", "top-1"), named.get("unit", "%")


def _networks(
    widths: Mapping[str, Mapping[str, int]], explained: Mapping[str, Any], results: Mapping[str, Any],
    bench: Any, table: LatencyTable | None,
) -> list[SummaryRow]:  # fmt: skip
    rows = []
    for name in NETWORKS:
        result = results[name]
        if name not in widths and result is None:
            continue
        said = explained if name == "found" else explained.get("compared_with", {}).get(name, {})
        measured = _measured_latency(bench, name)
        costs = said.get("costs", {}) if result is None else result
        result = result or {}
        rows.append(
            SummaryRow(
                name, result.get("test_metric", result.get("test_top1")),
                *_prediction(table, widths.get(name)),
                measured.get("low_ms"), measured.get("median_ms"), measured.get("p90_ms"),
                costs.get("macs"), costs.get("params"), _began(result),
            )
        )  # fmt: skip
    return rows


def _began(result: Mapping[str, Any]) -> str:
    """What a network's training began with; nothing where it has not been trained."""
    if not result:
        return ""
    if not result.get("inherited"):
        return "new weights"
    return "trained weights" if result["steps"] else "trained weights, as given"


def _drop_former(
    run: RunDir, widths: dict[str, dict[str, int]], results: dict[str, Any], bench: Any
) -> list[str]:
    """Take out, in place, what is of other widths than the latest search's, and say what was taken out.

    Args:
        run: the run directory.
        widths: by network and variable; what the user gave to ``retrain --widths`` replaces the search's.
        results: of the retrainings by network; those taken out become None.
        bench: the benchmark's JSON, or None.
    """
    notes = []
    for name in NETWORKS:
        if (given := run.given_widths(name)) is not None:
            widths[name] = given
            notes.append(f"{name}: widths given to 'retrain --widths', not the search's")
        wanted = widths.get(name)
        if wanted is None:
            continue
        result = results[name]
        if result is not None:
            trained = run.trained(name) or dict(zip(wanted, result["widths"], strict=False))
            if other := difference(trained, wanted):
                results[name] = None
                notes.append(
                    f"{name}: its training is left out, since it was at other widths than the latest search "
                    f"found ({other}); run 'bcnet-deploy retrain --network {name} --fresh'"
                )
        measured = bench["networks"].get(name) if bench is not None else None
        if measured and measured["widths"] and (other := difference(measured["widths"], wanted)):
            del bench["networks"][name]
            notes.append(
                f"{name}: its measurement is left out, since it was at other widths than the latest search "
                f"found ({other}); run 'bcnet-deploy export --which {name} --force' and 'bcnet-deploy bench'"
            )
    return notes


def _measured_latency(bench: Any, name: str) -> dict[str, float]:
    """Latency statistics on the runtime that the prediction speaks of (else the first)."""
    chosen = _runtime(bench, name)
    return {} if chosen is None else dict(chosen[1]["latency"])


def _measured_on(bench: Any) -> tuple[str, str]:
    """Runtime, threads and machine of the measurements shown, and how they depart from the device's."""
    for name in reversed(NETWORKS):
        chosen = _runtime(bench, name)
        if chosen is not None:
            runtime, entry = chosen
            machine = bench["machine"]
            # A benchmark of an earlier version does not name the kind.
            on_cpu = entry.get("kind", runtime.rpartition("-")[2]) == "cpu"
            threads = f", {bench['settings']['threads']} thread(s)" if on_cpu else ""
            where = machine.get("cpu_model") if on_cpu else machine.get("gpu")
            return f"{runtime}{threads}, {where}", _departs(bench["networks"][name], entry)
    return "", ""


def _runtime(bench: Any, name: str) -> tuple[str, Mapping[str, Any]] | None:
    if bench is None or name not in bench["networks"]:
        return None
    network = bench["networks"][name]
    entries = list(network["runtimes"].items())
    return next((pair for pair in entries if not _departs(network, pair[1])), entries[0] if entries else None)


def _departs(network: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    if "departs" in entry:
        return str(entry["departs"])
    # An earlier benchmark says only that it was not compared.
    compared = network["prediction"] is None or entry["prediction_error"] is not None
    return "" if compared else "other conditions than the table's; run 'bcnet-deploy bench' again"


def _prediction(
    table: LatencyTable | None, widths: Mapping[str, int] | None
) -> tuple[float | None, float | None, float | None]:
    if table is None or widths is None:
        return None, None, None
    row = np.array([[widths[variable.name] for variable in table.network.variables]])
    value, reach = float(table.predict(row)[0]), _REACH * float(table.uncertainty(row)[0])
    return value, max(0.0, value - reach), value + reach


def _layer_widths(widths: Mapping[str, Mapping[str, int]]) -> list[LayerWidth]:
    if "found" not in widths or "full" not in widths:
        return []
    full, uniform = widths["full"], widths.get("uniform")
    return [
        LayerWidth(name, full[name], found, None if uniform is None else uniform[name])
        for name, found in widths["found"].items()
    ]


def _held_out(run: RunDir, table: LatencyTable | None) -> list[Pair]:
    """The networks that the profiler measured without fitting them, by its journal."""
    if table is None or table.estimated:
        return []
    path = run.latency_table(table.device)
    journal = path.with_name(f"{path.stem}.samples.jsonl")
    rounds: dict[tuple[int, ...], list[float]] = {}
    for line in files.read_rows(journal, RunDirError, "profile's log"):
        if line.get("role") == "held-out":
            rounds.setdefault(tuple(line["widths"]), []).append(float(line["latency_ms"]))
    pairs = []
    for index, (row, times) in enumerate(rounds.items()):
        if len(times) < 2 or len(row) != len(table.network.variables):
            continue
        predicted, reach = float(table.predict(row)[0]), _REACH * float(table.uncertainty(row)[0])
        name = f"held-out network {index + 1}"
        measured = float(np.median(times))  # of the rounds, as in the table's own accuracy
        pairs.append(
            Pair(name, "held out", predicted, measured, max(0.0, predicted - reach), predicted + reach)
        )
    return pairs


def _measured_pairs(networks: list[SummaryRow]) -> list[Pair]:
    return [
        Pair(n.name, n.name, n.predicted_ms, n.measured_ms, n.predicted_low_ms, n.predicted_high_ms)
        for n in networks
        if n.predicted_ms is not None and n.measured_ms is not None
    ]


def _layers(
    widths: Mapping[str, Mapping[str, int]], table: LatencyTable | None
) -> dict[str, list[LayerLatency]]:
    if table is None:
        return {}
    rows = {name: [w[v.name] for v in table.network.variables] for name, w in widths.items()}
    if not rows:
        rows = {"full": [variable.channels for variable in table.network.variables]}
    found = {}
    for name, row in rows.items():
        parts = table.breakdown(row)
        by_layer = dict(zip(parts.names, (float(value) for value in parts.milliseconds[0]), strict=True))
        if by_layer.get("overhead", 0.0) < 0:
            # Layers are timed under the runtime's profiler, which costs time itself: taken off evenly.
            extra = by_layer.pop("overhead")
            share = 1 + extra / sum(by_layer.values())
            by_layer = {layer: value * share for layer, value in by_layer.items()}
        found[name] = [LayerLatency(layer, value) for layer, value in by_layer.items() if value > 0]
    return found


def _tables(run: RunDir, config: RunConfig, own: LatencyTable | None) -> dict[str, LatencyTable]:
    """By device, the tables of the run's network, its own device's (``own``) first; empty if that is all."""
    if own is None:
        return {}
    found = {config.device: own}
    for path in sorted(run.latency_table(config.device).parent.glob("*.json")):
        if path.stem != config.device:
            try:
                other = LatencyTable.load(path)
            except TableError:
                continue  # the report is not about it
            if _variables(other) == _variables(own):
                found[path.stem] = other
    return found if len(found) > 1 else {}


def _variables(table: LatencyTable) -> tuple[str, list[tuple[str, int, int]]]:
    """What two tables of one network have in common; levels may differ."""
    found = [(variable.name, variable.channels, variable.step) for variable in table.network.variables]
    return table.network.fingerprint, found


def _by_device(
    widths: Mapping[str, Mapping[str, int]], tables: Mapping[str, LatencyTable]
) -> dict[str, dict[str, float]]:
    return {
        device: {
            name: float(table.predict([row[v.name] for v in table.network.variables])[0])
            for name, row in (widths or _full(table)).items()
        }
        for device, table in tables.items()
    }


def _full(table: LatencyTable) -> dict[str, dict[str, int]]:
    return {"full": {variable.name: variable.channels for variable in table.network.variables}}


def _staircases(
    widths: Mapping[str, Mapping[str, int]], tables: Mapping[str, LatencyTable]
) -> list[Staircase]:
    """Every width that all tables cover, up to all channels, the others as in the network found."""
    if not tables:
        return []
    some = next(iter(tables.values()))
    around = "found" if "found" in widths else "full"
    row = np.array([dict(widths or _full(some))[around][v.name] for v in some.network.variables])
    curves = {device: _along(table, row) for device, table in tables.items()}
    found = []
    for column, variable in enumerate(some.network.variables):
        stride = variable.step
        while variable.channels // stride > _MOST_STEPS:
            stride *= 2  # counts that a vector register divides stay among them
        values = np.arange(stride, variable.channels + 1, stride)
        if values[-1] != variable.channels:
            values = np.append(values, variable.channels)
        latencies = {device: along(column, values) for device, along in curves.items()}
        covered = np.isfinite(np.sum(list(latencies.values()), axis=0))
        if covered.sum() < 2 or not covered[-1]:
            continue
        values = values[covered]
        shares = {
            device: tuple(float(share) for share in latency[covered] / latency[-1])
            for device, latency in latencies.items()
        }
        found.append(
            Staircase(variable.name, around, int(row[column]), tuple(int(value) for value in values), shares)
        )
    return sorted(found, key=lambda staircase: -staircase.apart[0])


def _along(table: LatencyTable, row: Ints) -> Callable[[int, Ints], Floats]:
    """Milliseconds of (L,) ``row`` with one column at each of (n,) values: (n,), NaN where not measured.

    Only layers that a width belongs to are evaluated: a whole network at thousands of widths takes long.
    """
    terms, whole = table.terms(), float(table.predict(row)[0])

    def along(column: int, values: Ints) -> Floats:
        rows = np.repeat(row[None], len(values), axis=0)
        rows[:, column] = values
        touched = [term for term in terms if column in term.variables]
        changes = [term.evaluate(rows) - term.evaluate(row[None]) for term in touched]
        return np.asarray(whole + np.sum(changes, axis=0) / 1e3)

    return along


def _add_search(content: Content, run: RunDir, explained: Mapping[str, Any]) -> None:
    """The front, all that was evaluated, and the log."""
    data = _json(run.search / "search.json", "search result")
    if data is None:
        return
    budgets, config = data["budgets"], run.load()
    latencies = [budget for budget in budgets if budget["key"].startswith("latency_ms")]
    # The summary's times are of the run's own device: a budget of another one is none of theirs.
    own = next((b for b in latencies if b.get("device") in (None, config.device)), None)
    if own is not None:
        content.budget_ms = own["limit"]
        given = parse_latency(own["given"]) if own.get("given") else None
        content.budget_share = given.value if given is not None and given.relative else None
    shown = own or next(iter(latencies), None)
    key, name, unit, table = "macs", "MACs", "", None
    if shown is not None:
        key, name, unit = shown["key"], "predicted latency", "ms"
        device = shown.get("device") or config.device
        table = _table(run, device)
        if own is None:
            name += f" on {device}"
    content.budget = "; ".join(_budget(budget) for budget in budgets)

    def candidate(record: Mapping[str, Any]) -> Candidate:
        macs = record["costs"].get("macs")
        return Candidate(record["accuracy"], record["costs"][key], None if macs is None else int(macs))

    evaluated = [r for r in data["evaluated"] if r["accuracy"] is not None]
    cloud: tuple[Candidate, ...] = ()
    if table is not None and evaluated:
        costs = table.predict(np.array([r["widths"] for r in evaluated]))
        cloud = tuple(Candidate(r["accuracy"], float(c)) for r, c in zip(evaluated, costs, strict=True))
    # The front is of posterior means where scores are noisy: so is the point on it.
    believed = (data.get("posterior") or {}).get("mean", data["accuracy"])
    content.front = FrontPlot(
        name, unit, cloud, tuple(candidate(record) for record in data["front"]),
        candidate({"accuracy": believed, "costs": data["costs"]}),
    )  # fmt: skip
    content.scored = explained.get("provenance", {}).get("supernet", {}).get("scored", content.scored)
    if "posterior" in explained:
        content.beats_uniform = explained["posterior"]["beats_uniform"]
        content.warnings += explained["posterior"]["notes"]
    before = 0
    for record in data["generations"]:
        fresh = [r["accuracy"] for r in data["evaluated"][before : record["evaluations"]]]
        known = [accuracy for accuracy in fresh if accuracy is not None]
        before = record["evaluations"]
        best = record["best_accuracy"]
        content.generations.append(
            GenerationPoint(
                record["generation"], best,
                float(np.mean(known)) if known else None, record.get("proposed_feasible"),
            )
        )  # fmt: skip


def _budget(budget: Mapping[str, Any]) -> str:
    where = f" on {budget['device']}" if budget.get("device") else ""
    if not budget["key"].startswith("latency_ms"):
        return f"{budget['key']} ≤ {budget['limit']:.4g} ({budget['given']})"
    text = f"latency{where} ≤ {format_milliseconds(budget['limit'])} ({budget['given']})"
    if budget.get("confidence"):
        text += f", to be met with {budget['confidence']:.0%} confidence by the table"
    return text


def _curves(run: RunDir, retrained: Sequence[str], accuracy: str) -> list[Curve]:
    """Losses, then held-out accuracies; a supernet has those of its full, half and narrowest widths."""
    logs = {"supernet": run.train, **{name: run.retrained(name) for name in retrained}}
    curves = []
    for name, folder in logs.items():
        lines = files.read_rows(folder / "curves.jsonl", RunDirError)
        for key in dict.fromkeys(key for line in lines for key in line):
            if not re.match("loss$|val_(?!loss)", key):
                continue
            points = tuple((float(r["epoch"]), float(r[key])) for r in lines if r.get(key) is not None)
            widths = key.rpartition("_")[2]
            shown = f"{name}, {widths}" if widths in ("full", "half", "narrowest") else name
            label = "training loss" if key == "loss" else f"validation {accuracy}"
            if points:
                curves.append(Curve(shown, label, "epoch", points))
    return sorted(curves, key=lambda curve: curve.quantity != "training loss")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _images(run: RunDir) -> list[tuple[str, str]]:
    """How the networks' images were made of pictures."""
    for name in NETWORKS:
        if made := run.preprocessing(name):
            figures = ", ".join(
                f"{key} {' '.join(f'{value:.3f}' for value in made[key][:16])}" for key in ("mean", "std")
            )
            return [("images", "; ".join(map(str, made["steps"])) + f"; {figures}")]
    return []


def _provenance(
    config: RunConfig, table: LatencyTable | None, explained: Mapping[str, Any], bench: Any
) -> list[tuple[str, str]]:
    model = config.model
    size = "×".join(map(str, model.input_size))
    lines = [
        ("model", f"{model.name}, {size}, {model.num_classes} classes, {model.levels} widths a variable"),
        ("data", config.data or "–"),
        ("seed", str(config.seed)),
        ("report made with", f"bcnet-deploy {__version__}, PyTorch {_version('torch')}, here"),
    ]
    system = bench["machine"].get("os") if bench is not None else None
    if system or (table is not None and table.provenance.get("os")):
        lines.append(("OS", str(system or (table.provenance["os"] if table is not None else ""))))
    if table is not None:
        made = table.provenance
        lines.append(("latency table", f"{table.source}, {table.precision}, batch {table.batch}"))
        named = (
            ("cpu_model", "CPU"), ("gpu", "GPU"), ("runtime", "runtime"), ("runtime_version", "version"),
            ("threads", "threads"), ("governor", "governor"), ("date", "made"),
            ("networks_measured", "networks measured"), ("drift", "drift of the machine"),
        )  # fmt: skip
        lines += [
            (label, f"{made[key]:.1%}" if key == "drift" else str(made[key]))
            for key, label in named if made.get(key) is not None
        ]  # fmt: skip
        accuracy = table.network.accuracy
        if accuracy:
            text = (
                f"mean error {accuracy['mape']:.2%} on {accuracy['networks']} held-out networks, "
                f"within 5%: {accuracy['within_5']:.0%}, noise floor {accuracy['noise_floor']:.2%}"
            )
            lines.append(("table's accuracy", text))
    search = explained.get("search")
    if search:
        text = f"{search['strategy']}, {search['evaluations']} networks, {search['generations']} generations"
        lines.append(("search", f"{text}, {search['stopped']}"))
    if bench is not None:
        settings = bench["settings"]
        text = f"{settings['rounds']} rounds × {settings['runs']} runs, {settings['threads']} thread(s)"
        lines.append(("measured", f"{text}, {bench['date']}"))
        lines += [("note", str(note)) for note in bench["notes"]]
    return lines
