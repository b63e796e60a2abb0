"""The report as one HTML file: no network, no library, light and dark, desktop and phone.

The text is ``assets/report.html.j2``, with every value escaped; here are the figures and tables it shows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from bcnet_deploy import files
from bcnet_deploy.errors import ExportError
from bcnet_deploy.report.charts import (
    Axis,
    Point,
    Segment,
    Series,
    legend,
    stacked_bars,
    width_rows,
    xy_chart,
)
from bcnet_deploy.report.content import (
    Candidate,
    Content,
    FrontPlot,
    LayerLatency,
    Pair,
    Staircase,
    SummaryRow,
)
from bcnet_deploy.report.load import gather
from bcnet_deploy.run.directory import RunDir
from bcnet_deploy.units import format_count, format_milliseconds

SECTIONS = {
    "summary": "Summary", "widths": "Widths by layer", "prediction": "Predicted against measured",
    "layers": "Latency by layer", "devices": "Where devices differ", "front": "Pareto front",
    "training": "Training", "progress": "Search progress", "provenance": "Provenance",
}  # fmt: skip
"""Anchor and heading of each part, in order. That of devices is there where several have tables."""
_STAIRCASES = 4
_COLOUR = {"found": "c0", "uniform": "c1", "full": "c2", "supernet": "c3"}
_NAMED_LAYERS = 8
_MARK = b"<title>bcnet-deploy: "
Rows = list[list[str]]


def write_report(run: RunDir, path: str | Path | None = None, *, force: bool = False) -> tuple[Path, Content]:
    """Write the report, and return where it is and what it shows.

    Args:
        run: any run directory; steps that have not run are named on the page.
        path: default: ``report.html`` of the run directory.
        force: replace a file at ``path`` that is no report.

    Raises:
        ExportError: a file that is no report lies at ``path`` and ``force`` is false.
        MissingStepError: there is no run.
        RunDirError, TableError: a file of the run is damaged, or ``path`` cannot be written.
    """
    if path is not None and not force:
        _require_report(Path(path))
    content = gather(run)
    target = Path(path) if path is not None else run.report
    files.write_text(target, render(content))
    return target, content


def _require_report(path: Path) -> None:
    """Raise :class:`ExportError` where ``path`` is a file that is not a report of ours."""
    if not path.exists():
        return
    try:
        ours = _MARK in path.read_bytes()[:2000]
    except OSError:
        ours = False
    if not ours:
        raise ExportError(
            f"{path} exists already and is no report; give --force to replace it, or another --out"
        )


def render(content: Content) -> str:
    """The whole page as HTML text."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bcnet_deploy.report", "assets"), autoescape=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters |= {
        "ms": _ms, "score": content.score, "count": _count, "interval": _interval,
        "identity": lambda text: re.sub(r"[^a-zA-Z0-9]", "-", text),
    }  # fmt: skip
    charts: dict[str, Any] = {
        "widths": width_rows([(w.name, w.full, w.found, w.uniform) for w in content.widths])
        if content.widths
        else "",
        "curves": _curves(content),
    }
    tables: dict[str, Rows] = {}
    errors = [abs(_error(pair)) for pair in content.pairs]
    if content.pairs:
        charts["pairs"], tables["pairs"] = _pairs(content.pairs)
    if content.layers:
        charts["layers"], tables["layers"] = _layers(content.layers)
    charts["devices"] = [(one, _staircase(one)) for one in content.staircases[:_STAIRCASES]]
    if content.staircases:
        tables["devices"] = _by_device(content)
        tables["staircases"] = [_staircase_row(one) for one in content.staircases]
    charts["front"], tables["front"] = _front(content)
    charts["progress"], tables["progress"] = _progress(content)
    return environment.get_template("report.html.j2").render(
        content=content, charts=charts, tables=tables, cards=_cards(content),
        sections={key: text for key, text in SECTIONS.items() if key != "devices" or content.staircases},
        cost=_cost(content.front) if content.front else "",
        named_layers=min(_NAMED_LAYERS, len(next(iter(content.layers.values()), []))),
        errors={
            "count": len(errors), "mean": sum(errors) / max(len(errors), 1),
            "within": sum(error <= 0.05 for error in errors) / max(len(errors), 1),
        },
        css=Markup(_asset("report.css")), js=Markup(_asset("report.js")),
    )  # fmt: skip


def _asset(name: str) -> str:
    return resources.files("bcnet_deploy.report").joinpath("assets", name).read_text(encoding="utf-8")


def _ms(value: float | None) -> str:
    return "–" if value is None else format_milliseconds(value)


def _count(value: int | None) -> str:
    return "–" if value is None else format_count(value)


def _interval(row: SummaryRow) -> str:
    """The prediction and its interval: ``600 µs (590–610)``."""
    text = _ms(row.predicted_ms)
    if row.predicted_low_ms is None or row.predicted_high_ms is None:
        return text
    low, high = format_milliseconds(row.predicted_low_ms), format_milliseconds(row.predicted_high_ms)
    # The unit stands once where both ends and the value share it.
    unit = text.split()[-1]
    if low.endswith(unit) and high.endswith(unit):
        low, high = low.removesuffix(unit).strip(), high.removesuffix(unit).strip()
    return f"{text} ({low}–{high})"


def _cards(content: Content) -> list[dict[str, Any]]:
    """The figures in large type: each with its text, and whether it rests on a prediction."""
    full, uniform, found = (content.network(name) for name in ("full", "uniform", "found"))
    if found is None:
        return []
    cards: list[dict[str, Any]] = []

    def card(figure: str, text: str, predicted: bool = False) -> None:
        cards.append({"figure": figure, "text": text, "predicted": predicted})

    for kind in ("predicted",) if content.measured_departs else ("measured", "predicted"):
        mine, theirs = getattr(found, f"{kind}_ms"), getattr(full, f"{kind}_ms", None)
        if mine and theirs:
            card(f"{theirs / mine:.2f}×", f"faster than the full network, {kind}", kind == "predicted")
            break
    if found.test_metric is not None:
        card(content.score(found.test_metric), f"test {content.metric}, found widths")
        for other, name in ((uniform, "uniform scaling"), (full, "the full network")):
            if other is not None and other.test_metric is not None:
                gap, unit = content.gap(found.test_metric, other.test_metric)
                card(gap, f"{unit} against {name}")
    if found.macs and full and full.macs:
        card(f"{found.macs / full.macs:.2f}×", "of the full network's MACs")
    return cards


def _error(pair: Pair) -> float:
    return pair.predicted_ms / pair.measured_ms - 1


def _pairs(pairs: Sequence[Pair]) -> tuple[Markup, Rows]:
    def point(pair: Pair) -> Point:
        tip = (
            f"{pair.name}\nmeasured {pair.measured_ms:.4g} ms\npredicted {pair.predicted_ms:.4g} ms"
            f" ({_error(pair):+.1%})"
        )
        return Point(pair.measured_ms, pair.predicted_ms, pair.low_ms, pair.high_ms, tip)

    spare = iter(["c3", "c4", "c5", "c6", "c7", "c8"])
    series = [
        Series(
            group, [point(pair) for pair in pairs if pair.group == group],
            "star" if group in ("found", "full", "uniform") else "dots",
            _COLOUR.get(group) or next(spare, "rest"),
        )
        for group in dict.fromkeys(pair.group for pair in pairs)
    ]  # fmt: skip
    axes = Axis("measured, ms"), Axis("predicted, ms")
    chart = xy_chart("Predicted against measured latency", series, *axes, diagonal=0.05)
    return chart, [
        [
            p.name,
            p.group,
            _ms(p.predicted_ms),
            _ms(p.measured_ms),
            f"{p.predicted_ms / p.measured_ms - 1:+.1%}",
        ]
        for p in pairs
    ]


def _layers(networks: dict[str, list[LayerLatency]]) -> tuple[Markup, Rows]:
    reference = networks.get("full") or next(iter(networks.values()))
    top = sorted(reference, key=lambda layer: -layer.milliseconds)[:_NAMED_LAYERS]
    colours = {layer.layer: f"c{index}" for index, layer in enumerate(top)}

    def segment(network: str, layer: LayerLatency) -> Segment:
        name = layer.layer if layer.layer in colours else "other layers"
        tip = f"{network}: {layer.layer}\n{layer.milliseconds:.4g} ms"
        return Segment(name, layer.milliseconds, colours.get(layer.layer, "rest"), tip)

    bars = [(name, [segment(name, layer) for layer in layers]) for name, layers in networks.items()]
    entries = [*colours.items(), *([("other layers", "rest")] if len(reference) > len(top) else [])]
    chart = legend(entries) + stacked_bars("Predicted latency by layer", bars, Axis("predicted, ms"))
    by = {name: {x.layer: x.milliseconds for x in layers} for name, layers in networks.items()}
    names = dict.fromkeys(layer for layers in by.values() for layer in layers)
    return chart, [[name, *(_ms(layers.get(name)) for layers in by.values())] for name in names]


def _by_device(content: Content) -> Rows:
    """One row a network, one column a device."""
    names = next(iter(content.by_device.values()))
    return [[name, *(_ms(networks[name]) for networks in content.by_device.values())] for name in names]


def _staircase(given: Staircase) -> Markup:
    def point(device: str, width: int, share: float) -> Point:
        tip = f"{device}\n{width} channels\n{share:.1%} of the latency with all {given.widths[-1]}"
        return Point(width, 100 * share, tip=tip)

    series = [
        Series(
            device, [point(device, *pair) for pair in zip(given.widths, shares, strict=True)], "line",
            f"c{index % 9}",
        )
        for index, (device, shares) in enumerate(given.shares.items())
    ]  # fmt: skip
    axes = Axis(f"channels of {given.name}"), Axis("latency, % of that with all")
    return xy_chart(f"Latency against the width of {given.name}", series, *axes)


def _staircase_row(given: Staircase) -> list[str]:
    apart, width = given.apart
    at = given.widths.index(width)
    return [
        given.name, str(given.widths[-1]), str(given.chosen), f"{100 * apart:.1f}", str(width),
        *(f"{shares[at]:.1%}" for shares in given.shares.values()),
    ]  # fmt: skip


def _cost(front: FrontPlot) -> str:
    return front.cost_name + (f", {front.cost_unit}" if front.cost_unit else "")


def _front(content: Content) -> tuple[Markup | str, Rows]:
    front = content.front
    if front is None or not (front.evaluated or front.front):
        return "", []

    def points(candidates: Sequence[Candidate], what: str) -> list[Point]:
        short = f" {front.cost_unit}" if front.cost_unit else ""
        return [
            Point(
                c.cost, c.accuracy,
                tip=f"{what}\n{c.cost:.4g}{short}\n{content.score(c.accuracy)}"
                + (f"\n{format_count(c.macs)} MACs" if c.macs else ""),
            )
            for c in candidates
        ]  # fmt: skip

    ordered = sorted(front.front, key=lambda candidate: candidate.cost)
    series = [
        Series("evaluated", points(front.evaluated, "evaluated"), "dots", "rest"),
        Series("front", points(ordered, "on the front"), "line", "c3"),
    ]
    if front.chosen is not None:
        series.append(Series("chosen", points([front.chosen], "chosen"), "star", "c0"))
    up = Axis(f"validation {content.accuracy}")
    chart = xy_chart("Accuracy against cost", series, Axis(_cost(front)), up)
    return chart, [[f"{c.cost:.5g}", content.score(c.accuracy), _count(c.macs)] for c in ordered]


def _curves(content: Content) -> dict[str, Markup]:
    """By quantity, in the order of the curves."""
    charts = {}
    for quantity in dict.fromkeys(curve.quantity for curve in content.curves):
        curves = [curve for curve in content.curves if curve.quantity == quantity]
        series = []
        for index, curve in enumerate(curves):
            head = f"{curve.run}, {curve.unit}"
            points = [Point(x, y, tip=f"{head} {x:g}\n{quantity} {y:.4g}") for x, y in curve.points]
            series.append(Series(curve.run, points, "line", _COLOUR.get(curve.run, f"c{4 + index % 5}")))
        charts[quantity] = xy_chart(f"Training: {quantity}", series, Axis(curves[0].unit), Axis(quantity))
    return charts


def _progress(content: Content) -> tuple[Markup | str, Rows]:
    shown = [g for g in content.generations if g.best is not None]
    if not shown:
        return "", []

    def line(name: str, values: list[tuple[int, float | None]], colour: str) -> Series:
        known = [(number, value) for number, value in values if value is not None]
        points = [Point(n, v, tip=f"generation {n}\n{name} {content.score(v)}") for n, v in known]
        return Series(name, points, "line", colour)

    series = [
        line("best", [(g.number, g.best) for g in shown], "c0"),
        line("mean", [(g.number, g.mean) for g in shown], "c2"),
    ]
    axes = Axis("generation"), Axis(f"validation {content.accuracy}")
    return xy_chart("Search progress", series, *axes), [
        [
            str(g.number), content.score(g.best), content.score(g.mean),
            "–" if g.feasible is None else f"{g.feasible:.0%}",
        ]
        for g in shown
    ]  # fmt: skip
