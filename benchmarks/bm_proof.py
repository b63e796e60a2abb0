"""True accuracy of what searches return, by the published accuracies: the tables and plots of docs/proof.md.

    python benchmarks/bm_proof.py --table cbm/latency/cpu-1thread.json

Reads ``found_by_supernet.csv``, ``beliefs.csv`` and ``on_the_way.csv`` of :mod:`bm_found_by_supernet`.
About half of the space's networks have a published accuracy: a row without one is left out, of every
comparison alike, and the counts say how many were left.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
from bm_found_by_supernet import QUANTILES, RESULTS, Budgets, arch_of
from bm_ranking import LEVELS, MODEL, shared_data
from search_plot import Axis, Group, dots_and_means

import bcnet_deploy as bd
from bcnet_deploy import files
from bcnet_deploy.lut import LatencyTable

Float = npt.NDArray[np.float64]
Row = dict[str, str]
DOCS = Path(__file__).resolve().parent.parent / "docs"
STATED = (0.5, 0.6, 0.7, 0.8, 0.9, 0.97, 1.01)
COLOURS = {
    "oracle": "#888", "found": "#0a6", "uniform": "#06c", "largest": "#c50", "random": "#c9c9c9"
}  # fmt: skip


def read(path: Path) -> list[Row]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


class Judge:
    """Published accuracies, and the best of them within a budget."""

    def __init__(self, data: Path, budgets: Budgets) -> None:
        self.truth = {
            row["arch"]: float(row["acc_mean"]) for row in read(data / "channel_bench_macro_mobilenet.csv")
        }
        indices = budgets.lattice.nearest(budgets.everything)
        self._values = np.array([self.truth.get(arch_of(row), np.nan) for row in indices])
        self._costs = budgets.costs

    def best(self, kind: str, budget: float) -> float:
        inside = self._costs[kind] <= budget * (1 + 1e-5)
        return float(np.nanmax(self._values[inside]))

    def regret(self, row: Row) -> float:
        """In points; NaN where the network has no published accuracy."""
        return self.best(row["budget_kind"], float(row["budget"])) - self.truth.get(row["arch"], np.nan)


def mean_and_error(values: list[float]) -> str:
    known = np.array(values)[np.isfinite(values)]
    if len(known) < 2:
        return "–"
    return f"{known.mean():.3f} ± {known.std(ddof=1) / np.sqrt(len(known)):.3f} ({len(known)})"


def who(row: Row) -> str:
    return "found" if row["searched_by"] == row["budget_kind"] else row["searched_by"]


def regret_table(judge: Judge, rows: list[Row], kind: str) -> list[str]:
    """Markdown: mean true regret by rule and by what chose the network."""
    names = ["found", {"macs": "latency", "latency": "macs"}[kind], "uniform", "largest", "random"]
    lines = ["| rule | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for rule in sorted({row["rule"] for row in rows}):
        by: dict[str, list[float]] = defaultdict(list)
        for row in rows:
            if row["rule"] == rule and row["budget_kind"] == kind:
                by[who(row)].append(judge.regret(row))
        lines.append(f"| {rule} | " + " | ".join(mean_and_error(by[name]) for name in names) + " |")
    return lines


def paired(judge: Judge, rows: list[Row], kind: str, other: str) -> str:
    """Mean true gain of found over another, where both are published, at one budget and supernet."""
    cells: dict[tuple[str, ...], dict[str, float]] = defaultdict(dict)
    for row in rows:
        if row["budget_kind"] == kind and row["arch"] in judge.truth:
            cells[row["rule"], row["seed"], row["budget"]][who(row)] = judge.truth[row["arch"]]
    gains = [cell["found"] - cell[other] for cell in cells.values() if {"found", other} <= set(cell)]
    return mean_and_error(gains)


def draw(judge: Judge, rows: list[Row], kind: str) -> str:
    """SVG: true accuracy at each budget; a dot is a network, a line the mean of those at a budget."""
    points: dict[str, dict[float, list[float]]] = {name: defaultdict(list) for name in COLOURS}
    for row in rows:
        if row["budget_kind"] == kind and who(row) in points:
            points[who(row)][float(row["budget"])].append(judge.truth.get(row["arch"], np.nan))
    budgets = sorted({float(row["budget"]) for row in rows if row["budget_kind"] == kind})
    points["oracle"] = {budget: [judge.best(kind, budget)] for budget in budgets}  # type: ignore[assignment]
    groups = [
        Group(
            colour, name,
            [
                (budget, value)
                for budget, values in sorted(points[name].items()) for value in values
                if np.isfinite(value) and name != "oracle"
            ],
            [
                (budget, float(np.nanmean(values)))
                for budget, values in sorted(points[name].items()) if np.isfinite(values).any()
            ],
        )
        for name, colour in COLOURS.items()
    ]  # fmt: skip
    shown = [value for group in groups for _, value in (*group.dots, *group.means)]
    margin = 0.03 * (budgets[-1] - budgets[0])
    ticks = [(b, f"{b / 1e6:.0f}M" if kind == "macs" else f"{b:.2f}") for b in budgets]
    what = "budget of MACs" if kind == "macs" else "budget of predicted latency, ms, one thread"
    return dots_and_means(
        Axis(budgets[0] - margin, budgets[-1] + margin, ticks), Axis.even(min(shown), max(shown), "{:.1f}%"),
        what, groups, 110,
    )  # fmt: skip


def calibration(judge: Judge, rows: list[Row]) -> list[str]:
    """Markdown: how often found beats the others at its budget, by how probable the search took it.

    A network that several budgets found against the same rival counts once, at its mean probability.
    """
    pairs: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for row in rows:
        if {row["found"], row["rival"]} <= set(judge.truth):
            pairs[row["rule"], row["seed"], row["found"], row["rival"]].append(float(row["probability"]))
    rules = sorted({rule for rule, *_ in pairs})
    lines = [f"| stated | {' | '.join([*rules, 'all'])} |", "|---" * (len(rules) + 2) + "|"]
    for low, high in (*zip(STATED, STATED[1:], strict=False), (STATED[0], STATED[-1])):
        cells = []
        for rule in [*rules, None]:
            stated, true = [], []
            for (of, _, found, rival), probabilities in pairs.items():
                probability = float(np.mean(probabilities))
                if rule in (of, None) and low <= probability < high:
                    stated.append(probability)
                    true.append(judge.truth[found] > judge.truth[rival])
            share = f"{np.mean(stated):.1%}: **{np.mean(true):.1%}** ({len(true)})" if true else "–"
            cells.append(share)
        name = "all" if high - low > 0.4 else f"{low:.0%} to {min(high, 1):.0%}"
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def ways_to_score(judge: Judge, rows: list[Row]) -> list[str]:
    """Markdown: regret and image passes of networks drawn over all sizes, and of those scored on the way."""
    names = (
        "regret, drawn over all sizes",
        "regret, scored on the way",
        "image passes of a search",
        "on the way",
    )
    lines = ["| rule | " + " | ".join(names) + " |", "|---" * 5 + "|"]
    for rule in sorted({row["rule"] for row in rows}):
        own = [row for row in rows if row["rule"] == rule]
        regrets = [
            mean_and_error([judge.regret({**row, "arch": row[column]}) for row in own])
            for column in ("found", "found_on_the_way")
        ]
        passes = [
            f"{np.mean([float(row[column]) for row in own]):,.0f}"
            for column in ("image_passes", "image_passes_on_the_way")
        ]
        lines.append(f"| {rule} | {' | '.join(regrets + passes)} |")
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder with the published table; default $BCNET_SHARED_DATA")
    parser.add_argument("--table", type=Path, required=True, help="latency table of the network at 3x32x32")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of bm_found_by_supernet's rows")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where the plots go")
    options = parser.parse_args(arguments)
    space = bd.WidthSpace.from_model(bd.build_model(MODEL, num_classes=10), (3, 32, 32), levels=LEVELS)
    budgets = Budgets(space, LatencyTable.load(options.table), QUANTILES)
    judge = Judge(shared_data(options.data), budgets)
    rows = read(options.results / "found_by_supernet.csv")
    for kind in ("latency", "macs"):
        print(f"\nTrue regret in points at nine budgets of {kind}: mean ± standard error (networks)\n")
        print("\n".join(regret_table(judge, rows, kind)))
        others = [{"latency": "macs", "macs": "latency"}[kind], "uniform", "largest"]
        gains = [f"{other} {paired(judge, rows, kind, other)}" for other in others]
        print("\nGain of found where both are published, over: " + "; ".join(gains))
        default = [row for row in rows if row["rule"] == "bilateral-complementary-distilled"]
        files.write_text(options.docs / f"proof_{kind}.svg", draw(judge, default, kind))
    print("\n" + "\n".join(calibration(judge, read(options.results / "beliefs.csv"))))
    print("\n" + "\n".join(ways_to_score(judge, read(options.results / "on_the_way.csv"))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
