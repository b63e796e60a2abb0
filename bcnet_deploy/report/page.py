"""The report as one HTML file: no network, no library, light and dark, desktop and phone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from importlib import resources

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
from bcnet_deploy.report.content import Candidate, Content, LayerLatency, Network
from bcnet_deploy.units import format_count, format_milliseconds

_COLOUR = {"found": "c0", "uniform": "c1", "full": "c2", "supernet": "c3"}
_NAMED_LAYERS = 8


def _asset(name: str) -> str:
    return resources.files("bcnet_deploy.report").joinpath("assets", name).read_text(encoding="utf-8")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], chosen: int | None = None) -> str:
    """Cells are HTML already."""
    body = ""
    for index, row in enumerate(rows):
        mark = ' class="chosen"' if index == chosen else ""
        body += f"<tr{mark}>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>"
    header = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    return f'<div class="scroll"><table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>'


def _data(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return f"<details><summary>The {len(rows)} values</summary>{_table(head, rows)}</details>"


def _missing(what: str, command: str) -> str:
    return f'<p class="missing">{escape(what)} Add it with <code>{escape(command)}</code>.</p>'


def _ms(value: float | None) -> str:
    return "–" if value is None else format_milliseconds(value)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}%"


def _count(value: int | None) -> str:
    return "–" if value is None else format_count(value)


def _estimated(content: Content) -> str:
    return ' <span class="estimated">estimated</span>' if content.estimated else ""


def _predicted(network: Network, content: Content) -> str:
    text = _ms(network.predicted_ms)
    if network.predicted_low_ms is not None and network.predicted_high_ms is not None:
        low, high = (format_milliseconds(v) for v in (network.predicted_low_ms, network.predicted_high_ms))
        # The unit stands once where both ends and the value share it.
        unit = text.split()[-1]
        if low.endswith(unit) and high.endswith(unit):
            low, high = low.removesuffix(unit).strip(), high.removesuffix(unit).strip()
        text += f" ({low}–{high})"
    return escape(text) + (_estimated(content) if network.predicted_ms is not None else "")


def _cards(content: Content) -> str:
    full, uniform, found = (content.network(name) for name in ("full", "uniform", "found"))
    cards: list[tuple[str, str]] = []
    if found is None:
        return ""
    kinds = [("measured", "measured_ms"), ("predicted", "predicted_ms")]
    for kind, pick in kinds[1 if content.measured_departs else 0 :]:
        mine, theirs = getattr(found, pick), getattr(full, pick) if full else None
        if mine and theirs:
            mark = _estimated(content) if kind == "predicted" else ""
            cards.append((f"{theirs / mine:.2f}×", f"faster than the full network, {kind}{mark}"))
            break
    if found.test_top1 is not None:
        cards.append((_percent(found.test_top1), "test accuracy, found widths"))
        for other in (uniform, full):
            if other is not None and other.test_top1 is not None:
                gap = 100 * (found.test_top1 - other.test_top1)
                name = "uniform scaling" if other.name == "uniform" else "the full network"
                cards.append((f"{gap:+.2f}", f"percentage points against {name}"))
    if found.macs and full and full.macs:
        cards.append((f"{found.macs / full.macs:.2f}×", "of the full network's MACs"))
    body = "".join(f'<div class="card"><strong>{a}</strong><span>{b}</span></div>' for a, b in cards)
    return f'<div class="cards">{body}</div>' if cards else ""


def _summary(content: Content) -> str:
    if not content.networks:
        return _missing("Nothing has been searched yet.", "bcnet-deploy search --latency 0.5x")
    rows = [
        [
            escape(n.name), _percent(n.test_top1), _predicted(n, content), _ms(n.measured_ms),
            _ms(n.measured_median_ms),
            _ms(n.measured_p90_ms), _count(n.macs), _count(n.params),
        ]
        for n in content.networks
    ]  # fmt: skip
    here = " here" if content.measured_departs else ""
    head = [
        "network", "test top-1", "predicted", f"measured{here}", f"median{here}", f"p90{here}", "MACs",
        "parameters",
    ]  # fmt: skip
    chosen = next((i for i, n in enumerate(content.networks) if n.name == "found"), None)
    text = "".join(f'<p class="warning">{escape(warning)}</p>' for warning in content.warnings)
    if content.measured_departs:
        text += (
            f'<p class="warning">Measured here on {escape(content.measured_on)}, otherwise than predicted '
            f"({escape(content.measured_departs)}): no check of the prediction or the budget.</p>"
        )
    text += _cards(content) + _table(head, rows, chosen)
    notes = []
    if content.budget:
        notes.append(f"Budget: {content.budget}.")
    if content.measured_on and not content.measured_departs:
        notes.append(f"Measured on {content.measured_on}.")
    notes.append(
        "Measured: the fastest run of each round, median of the rounds: the undisturbed time that the table "
        "predicts; median and p90: of all runs. A multiply-accumulate counts as one."
    )
    text += f'<p class="note">{escape(" ".join(notes))}</p>'
    if all(n.test_top1 is None for n in content.networks):
        text += _missing("No network has been trained to the end.", "bcnet-deploy retrain")
    if all(n.measured_ms is None for n in content.networks):
        text += _missing("Nothing has been measured whole.", "bcnet-deploy bench")
    return text


def _widths(content: Content) -> str:
    if not content.widths:
        return _missing("No widths have been found yet.", "bcnet-deploy search --latency 0.5x")
    rows = [(w.name, w.full, w.found, w.uniform) for w in content.widths]
    note = "Blue: the channels kept; the grey bar's length grows with the square root of the full width."
    if any(w.uniform is not None for w in content.widths):
        note += " Orange: where uniform scaling to the same budget stands."
    return f'<p class="note">{note}</p><figure id="plot-widths">{width_rows(rows)}</figure>'


def _pairs(content: Content) -> str:
    if not content.pairs:
        return _missing("No network has been both predicted and measured.", "bcnet-deploy bench")
    groups = list(dict.fromkeys(pair.group for pair in content.pairs))
    spare = iter(["c3", "c4", "c5", "c6", "c7", "c8"])
    colours = {group: _COLOUR.get(group) or next(spare, "rest") for group in groups}
    series = []
    for group in groups:
        points = [
            Point(
                p.measured_ms, p.predicted_ms, p.low_ms, p.high_ms,
                f"{p.name}\nmeasured {p.measured_ms:.4g} ms\npredicted {p.predicted_ms:.4g} ms"
                f" ({p.predicted_ms / p.measured_ms - 1:+.1%})",
            )
            for p in content.pairs if p.group == group
        ]  # fmt: skip
        star = group in ("found", "full", "uniform")
        series.append(Series(group, points, "star" if star else "dots", colours[group]))
    errors = sorted(abs(p.predicted_ms / p.measured_ms - 1) for p in content.pairs)
    within = sum(error <= 0.05 for error in errors) / len(errors)
    text = f"{len(errors)} networks: mean error {sum(errors) / len(errors):.1%}, {within:.0%} within 5%."
    if content.noise_floor is not None:
        text += f" Noise floor of the measurement: {content.noise_floor:.1%}."
    text += " The band is ±5%; whiskers are the table's 95% interval."
    chart = xy_chart(
        "Predicted against measured latency",
        series,
        Axis("measured, ms"),
        Axis("predicted, ms"),
        diagonal=0.05,
    )
    rows = [
        [escape(p.name), escape(p.group), _ms(p.predicted_ms), _ms(p.measured_ms),
         f"{p.predicted_ms / p.measured_ms - 1:+.1%}"]
        for p in content.pairs
    ]  # fmt: skip
    head = ["network", "kind", "predicted", "measured", "error"]
    note = f'<p class="note">{escape(text)}{_estimated(content)}</p>'
    return f'{note}<figure id="plot-pairs">{chart}</figure>' + _data(head, rows)


def _layers(content: Content) -> str:
    if not content.layers:
        return _missing("No latency by layer yet.", "bcnet-deploy search --latency 0.5x")
    reference = content.layers.get("full") or next(iter(content.layers.values()))
    top = sorted(reference, key=lambda layer: -layer.milliseconds)[:_NAMED_LAYERS]
    colours = {layer.layer: f"c{index}" for index, layer in enumerate(top)}

    def segment(network: str, layer: LayerLatency) -> Segment:
        named = layer.layer in colours
        tip = f"{network}: {layer.layer}\n{layer.milliseconds:.4g} ms"
        name = layer.layer if named else "other layers"
        return Segment(name, layer.milliseconds, colours.get(layer.layer, "rest"), tip)

    bars = [(name, [segment(name, layer) for layer in layers]) for name, layers in content.layers.items()]
    entries = [(layer.layer, colours[layer.layer]) for layer in top]
    if len(reference) > len(top):
        entries.append(("other layers", "rest"))
    chart = legend(entries) + stacked_bars("Predicted latency by layer", bars, Axis("predicted, ms"))
    names = list(dict.fromkeys(layer.layer for layers in content.layers.values() for layer in layers))
    by = {name: {x.layer: x.milliseconds for x in layers} for name, layers in content.layers.items()}
    rows = [[escape(name), *(_ms(by[network].get(name)) for network in by)] for name in names]
    text = (
        f"Predicted by the latency table, in sum the whole network; the {len(top)} dearest layers are named."
    )
    note = f'<p class="note">{text}{_estimated(content)}</p>'
    return f'{note}<figure id="plot-layers">{chart}</figure>' + _data(["layer", *by], rows)


def _front(content: Content) -> str:
    front = content.front
    if front is None or not (front.evaluated or front.front):
        return _missing("No search has run yet.", "bcnet-deploy search --latency 0.5x")

    short = f" {front.cost_unit}" if front.cost_unit else ""

    def point(candidate: Candidate, what: str) -> Point:
        macs = f"\n{format_count(candidate.macs)} MACs" if candidate.macs else ""
        tip = f"{what}\n{candidate.cost:.4g}{short}\n{candidate.accuracy:.2%}{macs}"
        return Point(candidate.cost, candidate.accuracy * 100, tip=tip)

    ordered = sorted(front.front, key=lambda candidate: candidate.cost)
    series = [
        Series("evaluated", [point(c, "evaluated") for c in front.evaluated], "dots", "rest"),
        Series("front", [point(c, "on the front") for c in ordered], "line", "c3"),
    ]
    if front.chosen is not None:
        series.append(Series("chosen", [point(front.chosen, "chosen")], "star", "c0"))
    unit = f", {front.cost_unit}" if front.cost_unit else ""
    across, up = Axis(f"{front.cost_name}{unit}"), Axis("supernet validation top-1, %")
    chart = xy_chart("Accuracy against cost", series, across, up)
    rows = [[f"{c.cost:.5g}", _percent(c.accuracy), _count(c.macs)] for c in ordered]
    note = "Accuracy is the supernet's, on the validation split: it ranks, retraining gives the final figure."
    head = [f"{front.cost_name}{unit}", "accuracy", "MACs"]
    return (
        f'<p class="note">{note}{_estimated(content) if front.cost_unit == "ms" else ""}</p>'
        f'<figure id="plot-front">{chart}</figure>' + _data(head, rows)
    )


def _curves(content: Content) -> str:
    if not content.curves:
        return _missing("Nothing has been trained yet.", "bcnet-deploy train")
    out = []
    for quantity in dict.fromkeys(curve.quantity for curve in content.curves):
        curves = [curve for curve in content.curves if curve.quantity == quantity]
        series = []
        for index, curve in enumerate(curves):
            head = f"{curve.run}, {curve.unit}"
            points = [Point(x, y, tip=f"{head} {x:g}\n{quantity} {y:.4g}") for x, y in curve.points]
            series.append(Series(curve.run, points, "line", _COLOUR.get(curve.run, f"c{4 + index % 5}")))
        chart = xy_chart(f"Training: {quantity}", series, Axis(curves[0].unit), Axis(quantity))
        identity = "".join(c if c.isalnum() else "-" for c in quantity)
        out.append(f'<figure id="plot-curve-{identity}">{chart}</figure>')
    return "".join(out)


def _progress(content: Content) -> str:
    shown = [g for g in content.generations if g.best is not None]
    if not shown:
        return _missing("No generation has been logged.", "bcnet-deploy search --latency 0.5x")

    def line(name: str, values: list[tuple[int, float | None]], colour: str) -> Series:
        known = [(number, value) for number, value in values if value is not None]
        points = [Point(n, 100 * v, tip=f"generation {n}\n{name} {v:.2%}") for n, v in known]
        return Series(name, points, "line", colour)

    series = [
        line("best", [(g.number, g.best) for g in shown], "c0"),
        line("mean", [(g.number, g.mean) for g in shown], "c2"),
    ]
    chart = xy_chart("Search progress", series, Axis("generation"), Axis("validation top-1, %"))
    rows = [
        [
            str(g.number),
            _percent(g.best),
            _percent(g.mean),
            "–" if g.feasible is None else f"{g.feasible:.0%}",
        ]
        for g in shown
    ]
    head = ["generation", "best", "mean", "proposed within the budgets before repair"]
    return f'<figure id="plot-progress">{chart}</figure>' + _data(head, rows)


def _provenance(content: Content) -> str:
    if not content.provenance:
        return _missing("No latency table yet.", "bcnet-deploy profile")
    lines = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in content.provenance)
    return f"<dl>{lines}</dl>"


SECTIONS: tuple[tuple[str, str, Callable[[Content], str]], ...] = (
    ("summary", "Summary", _summary),
    ("widths", "Widths by layer", _widths),
    ("prediction", "Predicted against measured", _pairs),
    ("layers", "Latency by layer", _layers),
    ("front", "Pareto front", _front),
    ("training", "Training", _curves),
    ("progress", "Search progress", _progress),
    ("provenance", "Provenance", _provenance),
)


def render(content: Content) -> str:
    """The whole page as HTML text."""
    links = "".join(f'<a href="#{key}">{escape(heading)}</a>' for key, heading, _ in SECTIONS)
    body = ""
    for key, heading, draw in SECTIONS:
        body += f'<section id="{key}"><h2>{escape(heading)}</h2>{draw(content)}</section>'
    lead = escape(f"{content.model} on {content.data}, for {content.device}") + _estimated(content)
    title = escape(content.title)
    # An empty icon keeps a browser from asking a server for one.
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{title}</title><style>{_asset("report.css")}</style>'
    )
    return (
        f'<!doctype html><html lang="en"><head>{head}</head><body><main><h1>{title}</h1>'
        f'<p class="lead">{lead}</p><nav>{links}</nav>{body}</main>'
        f"<script>{_asset('report.js')}</script></body></html>\n"
    )
