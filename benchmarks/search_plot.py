"""Dots and the lines of their means, as SVG; and what bm_search_hardware.py compared, drawn so.

python benchmarks/search_plot.py benchmarks/results/search/hardware.json docs/search_hardware.svg
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 360, 60, 50, 30
COLOURS = {"latency_ms": ("#0b6", "searched by latency"), "macs": ("#c50", "searched by MACs")}
Point = tuple[float, float]


@dataclass(frozen=True)
class Group:
    """What is drawn in one colour: ``dots``, and a line through ``means``."""

    colour: str
    label: str
    dots: Sequence[Point]
    means: Sequence[Point]


@dataclass(frozen=True)
class Axis:
    """From ``low`` to ``high``, with text at some values."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]

    @classmethod
    def even(cls, low: float, high: float, form: str) -> Axis:
        """Six values, as ``form`` writes them."""
        return cls(low, high, [(float(v), form.format(v)) for v in np.linspace(low, high, 6)])


def dots_and_means(x: Axis, y: Axis, title: str, groups: Sequence[Group], apart: int) -> str:
    """The groups over one pair of axes; their names stand ``apart`` pixels from one another."""

    def place(point: Point) -> Point:
        across = LEFT + (point[0] - x.low) / (x.high - x.low) * (WIDTH - LEFT - 15)
        return across, HEIGHT - BOTTOM - (point[1] - y.low) / (y.high - y.low) * (HEIGHT - BOTTOM - TOP)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12"><rect width="100%" height="100%" fill="#fff"/>'
    ]
    for value, text in x.ticks:
        across, up = place((value, y.low))
        parts.append(f'<text x="{across:.1f}" y="{up + 18:.1f}" text-anchor="middle">{text}</text>')
    for value, text in y.ticks:
        across, up = place((x.low, value))
        parts.append(f'<text x="{across - 6:.1f}" y="{up + 4:.1f}" text-anchor="end">{text}</text>')
        parts.append(f'<line x1="{across:.1f}" x2="{WIDTH - 15}" y1="{up:.1f}" y2="{up:.1f}" stroke="#ddd"/>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">{title}</text>')
    for index, group in enumerate(groups):
        for across, up in map(place, group.dots):
            parts.append(
                f'<circle cx="{across:.1f}" cy="{up:.1f}" r="3" fill="{group.colour}" fill-opacity="0.5"/>'
            )
        line = " ".join(f"{across:.1f},{up:.1f}" for across, up in map(place, group.means))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{group.colour}" stroke-width="2"/>')
        parts.append(
            f'<text x="{LEFT + 10 + apart * index}" y="18" fill="{group.colour}">{group.label}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def draw(data: dict[str, Any]) -> str:
    """Accuracy on fresh images against measured latency: dots are seeds, lines their means."""
    rows = data["rows"]
    xs, ys = [row["measured_ms"] for row in rows], [row["fresh"] for row in rows]
    groups = []
    for by, (colour, label) in COLOURS.items():
        own = [row for row in rows if row["by"] == by]
        by_share = [
            [(row["measured_ms"], row["fresh"]) for row in own if row["share"] == share]
            for share in sorted({row["share"] for row in own})
        ]
        means = [(float(x), float(y)) for x, y in (np.mean(points, axis=0) for points in by_share)]
        groups.append(Group(colour, label, [(row["measured_ms"], row["fresh"]) for row in own], means))
    x = Axis.even(0.97 * min(xs), 1.03 * max(xs), "{:.3f}")
    y = Axis.even(min(ys) - 0.5, max(ys) + 0.5, "{:.1f}")
    return dots_and_means(x, y, "measured latency, ms", groups, 180)


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:3])
    target.write_text(draw(json.loads(source.read_text())))
