"""What the search finds and what it costs beyond evaluation.

    python benchmarks/bm_search.py regret [--strategies nsga2,random,greedy] [--seeds 10]
    python benchmarks/bm_search.py overhead
    python benchmarks/bm_search.py infeasible

`regret`: Channel-Bench-Macro's MobileNet rows as the accuracy (absent rows are -inf), budgets at the
deciles of the given rows' FLOPs, 400 evaluations a run, absent ones included. Regret is the best given
accuracy within the budget less that of the network found, in percentage points. `overhead`: MobileNetV2
with an accuracy that costs nothing, population 40 by 50 generations, a budget of half the MACs.
`infeasible`: 20 impossible combinations of budgets, and whether the nearest ones named do work.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import bcnet_deploy as bd

DATA = Path(os.environ.get("BCNET_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


class MacroBench:
    """The given rows of Channel-Bench-Macro's MobileNet: a look-up, FLOPs and the oracle."""

    def __init__(self) -> None:
        path = DATA / "channel_bench_macro_mobilenet.csv"
        if not path.exists():
            raise SystemExit(f"{path} is not there; set BCNET_SHARED_DATA")
        with path.open() as file:
            rows = list(csv.DictReader(file))
        self.levels = np.array([[int(digit) for digit in row["arch"]] for row in rows])
        self.accuracy = np.array([float(row["acc_mean"]) for row in rows])
        self.flops = np.array([int(row["flops"]) for row in rows])
        model = bd.build_model("channel_bench_macro_mobilenet", num_classes=10)
        self.space = bd.WidthSpace.from_model(model, input_size=(3, 32, 32), levels=4)
        self.full = np.array([variable.channels for variable in self.space.variables])
        widths = self.levels * self.full // 4
        assert np.array_equal(self.space.macs(widths), self.flops), "the space's MACs are not the table's"
        self._place = 4 ** np.arange(len(self.full) - 1, -1, -1)
        self._known = np.full(4 ** len(self.full), -np.inf)
        self._known[(self.levels - 1) @ self._place] = self.accuracy
        self.asked = 0

    def __call__(self, widths: Any) -> Any:
        """(N, 7) widths -> (N,) accuracy in percent, -inf for rows that are not given."""
        self.asked += len(widths)
        return self._known[(np.asarray(widths) * 4 // self.full - 1) @ self._place]

    def oracle(self, budget: float) -> float:
        return float(self.accuracy[self.flops <= budget].max())

    @property
    def budgets(self) -> Any:
        return np.quantile(self.flops, np.arange(1, 10) / 10)


def regret(arguments: argparse.Namespace) -> dict[str, Any]:
    bench = MacroBench()
    results: dict[str, Any] = {"budgets": [float(b) for b in bench.budgets], "evaluations": 400, "regret": {}}
    for strategy in arguments.strategies.split(","):
        name, _, plain = strategy.partition("-")
        table = np.zeros((len(bench.budgets), arguments.seeds))
        started = time.perf_counter()
        for row, budget in enumerate(bench.budgets):
            for seed in range(arguments.seeds):
                bench.asked = 0
                try:
                    result = bd.search(
                        bench.space,
                        bench,
                        constraints={"macs": float(budget)},
                        evaluations=400,
                        seed=seed,
                        strategy=name,
                        surrogate=not plain,
                    )
                except bd.EvaluationError:  # a baseline that met absent rows alone
                    table[row, seed] = np.nan
                    continue
                assert bench.asked <= 400 and bench.space.macs(result.widths)[0] <= budget
                table[row, seed] = bench.oracle(budget) - result.accuracy
            print(strategy, row, table[row].tolist(), file=sys.stderr, flush=True)
        found = ~np.isnan(table)
        results["regret"][strategy] = {
            "mean": float(table[found].mean()),
            "by_budget": [float(v[~np.isnan(v)].mean()) if np.isfinite(v).any() else None for v in table],
            "worst": float(table[found].max()),
            "runs": int(found.size),
            "runs_that_found_a_given_row": int(found.sum()),
            "seconds_per_search": (time.perf_counter() - started) / table.size,
        }
    return results


def mobilenet_space() -> Any:
    return bd.WidthSpace.from_model(bd.build_model("mobilenet_v2"), input_size=(3, 224, 224), levels=20)


def smooth_accuracy(space: Any) -> Any:
    """An accuracy without cost: saturating in every width, with fixed weights."""
    weights = np.random.default_rng(7).dirichlet(np.ones(len(space.variables)))
    full = np.array([variable.channels for variable in space.variables])
    return lambda widths: 75 + 10 * (np.log(np.asarray(widths) / full) * weights).sum(axis=1)


def overhead(arguments: argparse.Namespace) -> dict[str, Any]:
    space = mobilenet_space()
    accuracy = smooth_accuracy(space)
    figures = []
    for pareto in (False, True):
        for _ in range(3):
            started = time.perf_counter()
            result = bd.search(
                space, accuracy, {"macs": "0.5x"}, evaluations=2000, population_size=40, pareto=pareto,
                patience=10**6,
            )  # fmt: skip
            figures.append({
                "pareto": pareto, "seconds": time.perf_counter() - started,
                "generations": len(result.generations), "evaluations": result.evaluations,
            })  # fmt: skip
    return {"overhead": figures}


def infeasible(arguments: argparse.Namespace) -> dict[str, Any]:
    space = mobilenet_space()
    least = {
        "macs": float(space.macs(space.narrowest)[0]),
        "params": float(space.params(space.narrowest)[0]),
        "weight_bytes": 4 * float(space.params(space.narrowest)[0]),
        "peak_activation_bytes": float(space.peak_activation_bytes(space.narrowest)[0]),
    }
    combinations = [{kind: share * value} for kind, value in least.items() for share in (0.99, 0.5, 0.01)]
    combinations += [{**dict.fromkeys(least, "0.9x"), kind: 0.9 * value} for kind, value in least.items()]
    combinations += [{a: 0.9 * least[a], b: 0.9 * least[b]} for a in least for b in least if a < b][:4]
    figures = []
    for constraints in combinations:
        started = time.perf_counter()
        try:
            bd.search(space, smooth_accuracy(space), constraints, evaluations=400)
        except bd.InfeasibleError as error:
            seconds = time.perf_counter() - started
            bd.search(space, smooth_accuracy(space), {**constraints, **error.nearest}, evaluations=1)
            figures.append({"seconds": seconds, "message": str(error)})
    return {"combinations": len(combinations), "refused": len(figures),
            "slowest_seconds": max(f["seconds"] for f in figures), "messages": figures}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("regret", "overhead", "infeasible"))
    parser.add_argument("--strategies", default="nsga2,random,greedy,uniform")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, help="also write the figures as JSON here")
    arguments = parser.parse_args()
    figures = {"regret": regret, "overhead": overhead, "infeasible": infeasible}[arguments.what](arguments)
    text = json.dumps(figures, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
