"""Charts of the report: inline SVG drawn here, so that the file needs no network and no library.

Each chart is drawn twice, for a wide and for a phone's narrow column, and the style sheet shows one of
them: text keeps its size, which scaling one drawing would not give. Colours are CSS classes, so that light
and dark are the style sheet's business. Every mark has the class ``mark``, its exact values in
``data-values`` (a test compares them with the run's JSON) and what a reader sees on hover in ``data-tip``.
What is returned is :class:`markupsafe.Markup`: names and texts in it are escaped already.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal

from markupsafe import Markup

WIDE, NARROW = 720, 350


@dataclass(frozen=True)
class Point:
    """One mark: its place, an optional vertical interval, and what the tooltip says."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    tip: str = ""


@dataclass(frozen=True)
class Series:
    """Marks of one colour: ``line`` (joined), ``dots`` or ``star`` (few, large)."""

    name: str
    points: Sequence[Point]
    kind: Literal["line", "dots", "star"] = "dots"
    colour: str = "c0"


@dataclass(frozen=True)
class Axis:
    """An axis' title, tick format and whether zero belongs on it."""

    title: str
    form: str = "{:g}"
    zero: bool = False


@dataclass(frozen=True)
class Segment:
    """One piece of a stacked bar."""

    name: str
    value: float
    colour: str
    tip: str = ""


@dataclass
class _Scale:
    low: float
    high: float
    start: float
    end: float
    ticks: list[float] = field(default_factory=list)

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) inside [low, high], about ``count`` of them."""
    span = high - low
    if not math.isfinite(span) or span <= 0:
        return [low]
    raw = span / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _scale(values: Sequence[float], start: float, end: float, *, zero: bool, ticks: int) -> _Scale:
    low, high = min(values), max(values)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    pad = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    low = low if zero and low == 0 else low - pad
    return _Scale(low, high + pad, start, end, nice_ticks(low, high + pad, ticks))


def _quoted(text: str) -> str:
    return escape(text, quote=True)


def _data(tip: str, *numbers: float | None) -> str:
    return f'data-values="{_values(*numbers)}" data-tip="{_quoted(tip)}"'


def _text(kind: str, anchor: str, x: float, y: float, text: str) -> str:
    return f'<text class="{kind}" text-anchor="{anchor}" x="{x:.2f}" y="{y:.2f}">{escape(text)}</text>'


def _segment(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.2f}" y1="{y1:.2f}" x2="{x2:.2f}" y2="{y2:.2f}"/>'


def _open(name: str, width: int, height: float) -> str:
    kind = "wide" if width == WIDE else "narrow"
    return f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{_quoted(name)}">'


def _values(*numbers: float | None) -> str:
    return _quoted(json.dumps(numbers))


def _marks(series: Series, x: _Scale, y: _Scale) -> str:
    parts = []
    if series.kind == "line" and len(series.points) > 1:
        path = " ".join(f"{x(p.x):.2f},{y(p.y):.2f}" for p in series.points)
        parts.append(f'<polyline class="line {series.colour}" points="{path}"/>')
    radius = {"line": 2.2, "dots": 3.6, "star": 8.0}[series.kind]
    for p in series.points:
        if p.low is not None and p.high is not None:
            parts.append(_segment(f"whisker {series.colour}", x(p.x), y(p.low), x(p.x), y(p.high)))
        kind = f'class="mark {series.kind} {series.colour}" {_data(p.tip, p.x, p.y, p.low, p.high)}'
        if series.kind == "star":
            parts.append(f'<path {kind} d="{_star(x(p.x), y(p.y), radius)}"/>')
        else:
            parts.append(f'<circle {kind} cx="{x(p.x):.2f}" cy="{y(p.y):.2f}" r="{radius}"/>')
    return f'<g data-series="{_quoted(series.name)}">{"".join(parts)}</g>'


def _star(cx: float, cy: float, radius: float) -> str:
    corners = []
    for index in range(10):
        r = radius if index % 2 == 0 else radius * 0.45
        angle = math.pi * (index / 5 - 0.5)
        corners.append(f"{cx + r * math.cos(angle):.2f},{cy + r * math.sin(angle):.2f}")
    return f"M{' L'.join(corners)}Z"


def _draw_xy(
    series: Sequence[Series], x_axis: Axis, y_axis: Axis, width: int, diagonal: float | None, name: str
) -> str:
    height = 330 if width == WIDE else 270
    left, right, top, bottom = 58, width - 12, 10, height - 44
    points = [p for s in series for p in s.points]
    xs = [p.x for p in points]
    ys = [v for p in points for v in (p.y, p.low, p.high) if v is not None]
    if diagonal is not None:
        xs = ys = xs + ys
    count = 6 if width == WIDE else 4
    x = _scale(xs, left, right, zero=x_axis.zero, ticks=count)
    y = _scale(ys, bottom, top, zero=y_axis.zero, ticks=5)
    out = [_open(name, width, height)]
    for tick in y.ticks:
        out.append(_segment("grid", left, y(tick), right, y(tick)))
        out.append(_text("tick", "end", left - 6, y(tick) + 4, y_axis.form.format(tick)))
    for tick in x.ticks:
        out.append(_segment("grid", x(tick), top, x(tick), bottom))
        out.append(_text("tick", "middle", x(tick), bottom + 16, x_axis.form.format(tick)))
    if diagonal is not None:
        low, high, share = x.low, x.high, 1 + diagonal
        corners = ((low, low / share), (high, high / share), (high, high * share), (low, low * share))
        band = " ".join(f"{x(a):.2f},{y(b):.2f}" for a, b in corners)
        clip = f"clip-{zlib.crc32(name.encode())}-{width}"
        area = f'x="{left}" y="{top}" width="{right - left}" height="{bottom - top}"'
        out.append(f'<clipPath id="{clip}"><rect {area}/></clipPath>')
        out.append(f'<polygon class="band" clip-path="url(#{clip})" points="{band}"/>')
        out.append(_segment("diagonal", x(low), y(low), x(high), y(high)))
    out.extend(_marks(s, x, y) for s in series if s.points)
    out.append(_text("title", "middle", (left + right) / 2, height - 6, x_axis.title))
    turned = f'transform="translate(13 {(top + bottom) / 2}) rotate(-90)"'
    out.append(f'<text class="title" text-anchor="middle" {turned}>{escape(y_axis.title)}</text></svg>')
    return "".join(out)


def legend(entries: Sequence[tuple[str, str]]) -> Markup:
    """Buttons that show and hide series; ``entries`` are names and colours."""
    buttons = "".join(
        f'<button type="button" aria-pressed="true" data-toggle="{_quoted(name)}">'
        f'<i class="{colour}"></i>{escape(name)}</button>'
        for name, colour in entries
    )
    return Markup(f'<div class="legend">{buttons}</div>')


def xy_chart(
    name: str, series: Sequence[Series], x_axis: Axis, y_axis: Axis, *, diagonal: float | None = None
) -> Markup:
    """Lines and dots over two linear axes.

    Args:
        name: read out by screen readers.
        series: at least one with points.
        x_axis: bottom axis.
        y_axis: left axis.
        diagonal: draw the line y = x with a band of this relative half-width (0.05: 5%), both axes alike.
    """
    drawn = [s for s in series if s.points]
    body = "".join(_draw_xy(drawn, x_axis, y_axis, width, diagonal, name) for width in (WIDE, NARROW))
    return legend([(s.name, s.colour) for s in drawn]) + Markup(body)


def stacked_bars(name: str, bars: Sequence[tuple[str, Sequence[Segment]]], axis: Axis) -> Markup:
    """Horizontal stacked bars, one a name, on a common axis from zero."""
    total = max(sum(s.value for s in segments) for _, segments in bars)
    body = []
    for width in (WIDE, NARROW):
        left, right, row = 70, width - 16, 46
        bottom = 8 + row * len(bars)
        x = _scale([0.0, total], left, right, zero=True, ticks=6 if width == WIDE else 4)
        out = [_open(name, width, bottom + 42)]
        for tick in x.ticks:
            out.append(_segment("grid", x(tick), 4, x(tick), bottom))
            out.append(_text("tick", "middle", x(tick), bottom + 16, axis.form.format(tick)))
        for index, (label, segments) in enumerate(bars):
            y = 8 + index * row
            out.append(_text("label", "end", left - 8, y + row / 2 - 4, label))
            begin = 0.0
            for segment in segments:
                end = begin + segment.value
                place = f'x="{x(begin):.2f}" y="{y}" width="{max(x(end) - x(begin), 0.05):.2f}"'
                kind = f'class="mark bar {segment.colour}" {_data(segment.tip, segment.value)}'
                out.append(f'<g data-series="{_quoted(segment.name)}">')
                out.append(f'<rect {kind} {place} height="{row - 10}"/></g>')
                begin = end
        out.append(_text("title", "middle", (left + right) / 2, bottom + 36, axis.title) + "</svg>")
        body.append("".join(out))
    return Markup("".join(body))


def width_rows(rows: Sequence[tuple[str, int, int, int | None]]) -> Markup:
    """One line a layer: found width inside the full one, a tick where uniform scaling would stand.

    Args:
        rows: name, full width, found width, uniform width or None.
    """
    widest = max(full for _, full, _, _ in rows)
    out = []
    for name, full, found, uniform in rows:
        # The square root keeps a 16-channel stem visible beside a 1280-channel head.
        track = 100 * math.sqrt(full / widest)
        marker = ""
        if uniform is not None:
            marker = f'<b class="uniform" style="left:{100 * uniform / full:.2f}%"></b>'
        tip = f"{name}: found {found} of {full} ({found / full:.0%})"
        tip += "" if uniform is None else f", uniform {uniform}"
        out.append(
            f'<div class="row"><span class="name" title="{_quoted(name)}">{escape(name)}</span>'
            f'<span class="track"><span class="full" style="width:{track:.2f}%">'
            f'<b class="mark found" style="width:{100 * found / full:.2f}%" '
            f"{_data(tip, full, found, uniform)}></b>{marker}"
            f'</span></span><span class="number">{found} / {full}</span></div>'
        )
    return Markup(f'<div class="widths">{"".join(out)}</div>')
