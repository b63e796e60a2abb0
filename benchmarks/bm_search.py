"""What the search finds and what it costs beyond evaluation.

    python benchmarks/bm_search.py regret [--strategies nsga2,random,greedy,uniform] [--redraw SEED]
    python benchmarks/bm_search.py prior --records NAME=RUN/train/records.jsonl [--records ...]
    python benchmarks/bm_search.py overhead
    python benchmarks/bm_search.py infeasible
    python benchmarks/bm_search.py budgets --table demo=RUN/latency/cpu-1thread.json

`regret`: Channel-Bench-Macro's MobileNet rows as the accuracy (absent rows are -inf), budgets at the
deciles of the given rows' FLOPs, 400 evaluations a run, absent ones included. Regret is the best given
accuracy within the budget less that of the network found, in percentage points. `--redraw` draws every
accuracy anew, by the standard deviation that its row gives: same networks, another best one.
`prior`: for each estimator of what a width does to the loss, how well it foretells records left out, and
populations of 40 from a supernet's loss records at these budgets, by their true accuracy against
the given networks in 0.8-1.0 of the budget. `overhead`: MobileNetV2 with an accuracy that costs nothing,
population 40 by 50 generations, a budget of half the MACs. `infeasible`: 20 impossible combinations of
budgets, latencies on one and two devices among them, and whether the nearest ones named do work.
`budgets`: results for budgets in milliseconds, measured. Nothing is fitted to the accuracies of the table.
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
from scipy.stats import spearmanr

import bcnet_deploy as bd
from bcnet_deploy.search.records import additive_effects, best_means

DATA = Path(os.environ.get("BCNET_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


class MacroBench:
    """The given rows of Channel-Bench-Macro's MobileNet: a look-up, FLOPs and the oracle."""

    def __init__(self, redraw: int | None = None) -> None:
        path = DATA / "channel_bench_macro_mobilenet.csv"
        if not path.exists():
            raise SystemExit(f"{path} is not there; set BCNET_SHARED_DATA")
        with path.open() as file:
            rows = list(csv.DictReader(file))
        self.levels = np.array([[int(digit) for digit in row["arch"]] for row in rows])
        self.accuracy = np.array([float(row["acc_mean"]) for row in rows])
        if redraw is not None:
            deviation = np.array([float(row["acc_std"]) for row in rows])
            self.accuracy = np.random.default_rng(redraw).normal(self.accuracy, deviation)
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
    bench = MacroBench(arguments.redraw)
    results: dict[str, Any] = {
        "budgets": [float(b) for b in bench.budgets], "evaluations": 400, "seeds": arguments.seeds,
        "redraw": arguments.redraw, "regret": {},
    }  # fmt: skip
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


ESTIMATORS = {"effects": additive_effects, "best": best_means}


def prior(arguments: argparse.Namespace) -> dict[str, Any]:
    """Both estimators of E on every log of records."""
    from bcnet_deploy.search.lattice import Lattice
    from bcnet_deploy.search.records import Records

    bench = MacroBench()
    lattice = Lattice(bench.space.variables)
    rows = []
    for text in arguments.records:
        name, _, path = text.rpartition("=")
        records = Records.of(path, lattice)
        for kind, estimator in ESTIMATORS.items():
            row = {
                "records_of": name, "records": len(records), "references": records.reference is not None,
                "estimator": kind, "foretells": foretells(records, lattice, estimator),
                "budgets": populations(bench, records, estimator, arguments.seeds),
            }  # fmt: skip
            rows.append(row)
            gains = [f"{one['prior'] - one['uniform']:+.3f}" for one in row["budgets"]]
            cells = [name, kind, f"{row['foretells']:.2f}", *gains]
            print(f"| {' | '.join(cells)} |", file=sys.stderr)
    return {"draws": arguments.seeds, "rows": rows}


def foretells(records: Any, lattice: Any, estimator: Any) -> float:
    """Spearman of summed E with the relative losses of records left out, mean of five folds.

    Folds are every fifth record, so that each covers the whole training.
    """
    from bcnet_deploy.search.records import Records, relative_losses

    relative, place = relative_losses(records), np.arange(len(records))
    found = []
    for fold in range(5):
        out = place % 5 == fold
        reference = None if records.reference is None else records.reference[~out]
        table = estimator(Records(records.widths[~out], records.loss[~out], reference), lattice)
        indices = lattice.nearest(records.widths[out])
        summed = sum(effect[indices[:, layer]] for layer, effect in enumerate(table))
        found.append(float(spearmanr(summed, relative[out]).statistic))
    return float(np.mean(found))


def populations(bench: MacroBench, records: Any, estimator: Any, draws: int) -> list[dict[str, Any]]:
    """Populations from loss records against all given networks that use 0.8-1.0 of the budget."""
    from bcnet_deploy.search import build_constraints
    from bcnet_deploy.search.feasibility import require_feasible
    from bcnet_deploy.search.lattice import Lattice
    from bcnet_deploy.search.prior import prior_population
    from bcnet_deploy.search.proposals import Feasible

    lattice = Lattice(bench.space.variables)
    rows = []
    for budget in bench.budgets:
        limits = build_constraints(bench.space, {"macs": float(budget)})
        band = bench.accuracy[(bench.flops <= budget) & (bench.flops >= 0.8 * budget)]
        means, given, costs, sampled = [], [], [], []
        for seed in range(draws):
            rng = np.random.default_rng(seed)
            feasible = Feasible(lattice, limits, require_feasible(lattice, limits, rng))
            vectors, drawn_from = prior_population(records, feasible, 40, rng, estimator=estimator)
            accuracy = bench(lattice.widths(vectors))
            assert len(vectors) == 40 and feasible.mask(vectors).all()
            means.append(float(accuracy[np.isfinite(accuracy)].mean()))
            given.append(int(np.isfinite(accuracy).sum()))
            costs.append(float(drawn_from.expected_costs[0] / budget))
            sampled.append(float(rng.choice(band, 40, replace=False).mean()))
        rows.append({
            "budget": float(budget), "prior": float(np.mean(means)), "prior_least": min(means),
            "given_of_40": float(np.mean(given)), "uniform": float(band.mean()),
            "uniform_networks": len(band), "uniform_most_of_40": max(sampled),
            "expected_cost": float(np.mean(costs)),
            "expected_cost_farthest": max(costs, key=lambda share: abs(share - 1)),
        })  # fmt: skip
    return rows


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
    from bcnet_deploy.devices import load_device
    from bcnet_deploy.lut.estimate import estimate_table

    space = mobilenet_space()
    accuracy = smooth_accuracy(space)
    least = {
        "macs": float(space.macs(space.narrowest)[0]),
        "params": float(space.params(space.narrowest)[0]),
        "weight_bytes": 4 * float(space.params(space.narrowest)[0]),
        "peak_activation_bytes": float(space.peak_activation_bytes(space.narrowest)[0]),
    }
    tables = {name: estimate_table(space, load_device(name)) for name in ("t4", "l4")}
    full = {name: float(table.predict(space.full[None])[0]) for name, table in tables.items()}

    def latency(**shares: float) -> dict[str, Any]:
        return {name: (tables[name], share * full[name]) for name, share in shares.items()}

    # Three of each kind alone or two kinds together; 0.05 of a full latency is below that of any network.
    combinations: list[dict[str, Any]] = [
        {kind: share * value} for kind, value in least.items() for share in (0.99, 0.01)
    ]
    combinations += [{a: 0.9 * least[a], b: 0.9 * least[b]} for a in least for b in least if a < b][:3]
    combinations += [{"latency_ms": latency(t4=share)} for share in (0.05, 0.01, 1e-6)]
    combinations += [{"latency_ms": latency(t4=a, l4=b)} for a, b in ((0.05, 0.9), (0.9, 0.05), (0.01, 0.01))]
    combinations += [
        {"latency_ms": latency(t4=0.05), "macs": "0.5x"},
        {"latency_ms": latency(t4=0.9), "macs": 0.9 * least["macs"]},
        {"latency_ms": latency(t4=0.05, l4=0.05), "params": 0.9 * least["params"], "macs": "0.3x"},
    ]
    figures = []
    for constraints in combinations:
        started = time.perf_counter()
        try:
            bd.search(space, accuracy, constraints, evaluations=400, confidence=0.95)
        except bd.InfeasibleError as error:
            seconds = time.perf_counter() - started
            bd.search(space, accuracy, _with(constraints, error.nearest), evaluations=1, confidence=0.95)
            figures.append({"seconds": seconds, "proven": error.proven, "message": str(error)})
    return {"combinations": len(combinations), "refused": len(figures),
            "slowest_seconds": max(f["seconds"] for f in figures), "messages": figures}  # fmt: skip


def _with(constraints: dict[str, Any], nearest: dict[str, float]) -> dict[str, Any]:
    """The constraints with the nearest budgets that an error named."""
    changed = {**constraints, **{key: value for key, value in nearest.items() if "latency" not in key}}
    if "latency_ms" in constraints:
        pairs = dict(constraints["latency_ms"])
        for device, (table, limit) in pairs.items():
            key = "latency_ms" if len(pairs) == 1 else f"latency_ms[{device}]"
            pairs[device] = (table, nearest.get(key, limit))
        changed["latency_ms"] = pairs
    return changed


def budgets(arguments: argparse.Namespace) -> dict[str, Any]:
    from bm_search_budgets import measure_results

    named = dict(text.split("=", 1) for text in arguments.table)
    return {
        model: measure_results(model, Path(path), smooth_accuracy, arguments.results, arguments.rounds)
        for model, path in named.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = {
        "regret": regret, "prior": prior, "overhead": overhead, "infeasible": infeasible, "budgets": budgets
    }  # fmt: skip
    parser.add_argument("what", choices=kinds)
    parser.add_argument("--strategies", default="nsga2,random,greedy,uniform")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--redraw", type=int, help="regret: accuracies drawn anew with this seed")
    parser.add_argument("--records", action="append", default=[], help="prior: NAME=loss records, repeatable")
    parser.add_argument("--table", action="append", help="budgets: MODEL=PATH, repeatable")
    parser.add_argument("--results", type=int, default=20, help="budgets: results for each table")
    parser.add_argument("--rounds", type=int, default=8, help="budgets: rounds of measurements")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON here")
    arguments = parser.parse_args()
    figures = kinds[arguments.what](arguments)
    text = json.dumps(figures, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
