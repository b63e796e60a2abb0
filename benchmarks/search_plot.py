"""Draws what bm_search_hardware.py compared, as SVG.

python benchmarks/search_plot.py benchmarks/results/search/hardware.json docs/search_hardware.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 360, 60, 50, 30
COLOURS = {"latency_ms": ("#0b6", "searched by latency"), "macs": ("#c50", "searched by MACs")}


def draw(data: dict[str, Any]) -> str:
    """Accuracy on fresh images against measured latency: dots are seeds, lines their means."""
    rows = data["rows"]
    xs, ys = [row["measured_ms"] for row in rows], [row["fresh"] for row in rows]
    x0, x1, y0, y1 = 0.97 * min(xs), 1.03 * max(xs), min(ys) - 0.5, max(ys) + 0.5

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - 15)
        return across, HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - BOTTOM - TOP)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12"><rect width="100%" height="100%" fill="#fff"/>'
    ]
    for value in np.linspace(x0, x1, 6):
        x, y = place(value, y0)
        parts.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{value:.3f}</text>')
    for value in np.linspace(y0, y1, 6):
        x, y = place(x0, value)
        parts.append(f'<text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{value:.1f}</text>')
        parts.append(f'<line x1="{x:.1f}" x2="{WIDTH - 15}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">measured latency, ms</text>')
    for index, (by, (colour, label)) in enumerate(COLOURS.items()):
        own = [row for row in rows if row["by"] == by]
        for row in own:
            x, y = place(row["measured_ms"], row["fresh"])
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}" fill-opacity="0.5"/>')
        means = []
        for share in sorted({row["share"] for row in own}):
            group = [(row["measured_ms"], row["fresh"]) for row in own if row["share"] == share]
            x, y = place(*np.mean(group, axis=0))
            means.append(f"{x:.1f},{y:.1f}")
        parts.append(f'<polyline points="{" ".join(means)}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{LEFT + 10 + 180 * index}" y="18" fill="{colour}">{label}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:3])
    target.write_text(draw(json.loads(source.read_text())))
