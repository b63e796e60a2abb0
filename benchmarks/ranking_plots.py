"""Plots of docs/ranking.md, as SVG: text that version control can compare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

ORDER = (
    "unilateral", "bilateral", "bilateral-complementary", "bilateral-complementary-min",
    "bilateral-complementary-distilled", "bilateral-complementary-min-distilled", "sandwich",
)  # fmt: skip
"""The rules, as pages and plots list them."""
COLOURS = {"sandwich": "#c2571a", "unilateral": "#777777"}


def _svg(width: int, height: int, body: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="sans-serif" font-size="12" fill="#333">'
    )
    return "\n".join([head, f'<rect width="{width}" height="{height}" fill="#fff"/>', *body, "</svg>", ""])


def _text(x: float, y: float, text: str, anchor: str = "start", weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">{text}</text>'


def kendall_plot(rows: Sequence[dict[str, Any]], baselines: dict[str, Any], parts: Sequence[str]) -> str:
    """A dot a run with its interval, a row a rule, a panel a set of networks."""
    names = [
        *(rule for rule in ORDER if any(r["rule"] == rule for r in rows)),
        *baselines,
    ]
    left, panel, step = 230, 300, 30
    body = []
    for column, part in enumerate(parts):
        x0 = left + column * (panel + 30)

        def x(value: float, x0: float = x0) -> float:
            return x0 + (value + 0.2) / 1.1 * panel

        body.append(_text(x0 + panel / 2, 20, f"Kendall's tau, {part}", "middle", "bold"))
        bottom = 40 + step * len(names)
        for tick in (-0.2, 0.0, 0.2, 0.4, 0.6, 0.8):
            body.append(f'<path d="M{x(tick):.1f} 30V{bottom}" stroke="#ddd"/>')
            body.append(_text(x(tick), bottom + 16, f"{tick:g}", "middle"))
        for line, name in enumerate(names):
            y = 50 + step * line
            if column == 0:
                body.append(_text(left - 10, y + 4, name, "end"))
            found = [r["agreement"][part] for r in rows if r["rule"] == name]
            found = found or [baselines[name][part]]
            for index, value in enumerate(found):
                yy = y + 6 * (index - (len(found) - 1) / 2)
                colour = COLOURS.get(name, "#aaaaaa" if name in baselines else "#1a6fb5")
                span = f"M{x(value['low']):.1f} {yy:.1f}H{x(value['high']):.1f}"
                body.append(f'<path d="{span}" stroke="{colour}" opacity="0.6"/>')
                body.append(f'<circle cx="{x(value["kendall"]):.1f}" cy="{yy:.1f}" r="4" fill="{colour}"/>')
    return _svg(left + len(parts) * (panel + 30), 65 + step * len(names), body)


def scatter(run: dict[str, Any], known: dict[str, dict[str, float]]) -> str:
    """Supernet score against published accuracy; networks with a level-1 layer apart."""
    rows = [row for row in run["scores"] if row["arch"] in known]
    truth = np.array([known[row["arch"]]["acc_mean"] for row in rows])
    score = np.array([row["score"] for row in rows])
    narrow = np.array(["1" in row["arch"] for row in rows])
    x0, y0, width, height = 60, 35, 420, 300
    (xl, xh), (yl, yh) = ((float(v.min()) - 0.2, float(v.max()) + 0.2) for v in (truth, score))
    body = [
        _text(
            x0,
            20,
            f"{run['rule']}, seed {run['seed']}, cost {run['cost']:,.0f}, augmentation {run['augment']}",
            weight="bold",
        )
    ]
    for fraction in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = x0 + fraction * width, y0 + height - fraction * height
        body.append(f'<path d="M{x:.1f} {y0}V{y0 + height}M{x0} {y:.1f}H{x0 + width}" stroke="#eee"/>')
        body.append(_text(x, y0 + height + 16, f"{xl + fraction * (xh - xl):.1f}", "middle"))
        body.append(_text(x0 - 6, y + 4, f"{yl + fraction * (yh - yl):.0f}", "end"))
    for a, b, is_narrow in zip(truth, score, narrow, strict=True):
        x, y = x0 + (a - xl) / (xh - xl) * width, y0 + height - (b - yl) / (yh - yl) * height
        colour = "#c2571a" if is_narrow else "#1a6fb5"
        body.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}" opacity="0.6"/>')
    body.append(_text(x0 + width / 2, y0 + height + 34, "published accuracy, % (mean of 3)", "middle"))
    body.append(_text(x0 + 8, y0 + 14, "held-out score, %"))
    body.append(f'<circle cx="{x0 + width - 150}" cy="{y0 + height - 26}" r="4" fill="#c2571a"/>')
    body.append(_text(x0 + width - 140, y0 + height - 22, "with a level-1 layer"))
    body.append(f'<circle cx="{x0 + width - 150}" cy="{y0 + height - 10}" r="4" fill="#1a6fb5"/>')
    body.append(_text(x0 + width - 140, y0 + height - 6, "no level-1 layer"))
    return _svg(x0 + width + 30, y0 + height + 45, body)
