"""What the search returns by trained supernets, at nine budgets of MACs and nine of latency.

For each supernet of :mod:`bm_ranking` and each budget, by quantiles of all networks of the space: the network
found by latency, the one found by MACs, the uniformly scaled one, the largest and random ones. The search
runs over the whole space. Nothing here opens the published accuracies: the rows are judged elsewhere.

"By MACs" at a latency budget is what somebody gets who counts MACs alone: of the networks that a search
along the front of MACs returns, the best by posterior that keeps the latency; and the reverse.

    bcnet-deploy profile --run-dir cbm --model channel_bench_macro_mobilenet --num-classes 10 \\
        --input-size 3x32x32 --levels 4 --device cpu-1thread
    python benchmarks/bm_found_by_supernet.py --rules bilateral-complementary-distilled --seeds 0 \\
        --table cbm/latency/cpu-1thread.json --measure
    python benchmarks/bm_found_by_supernet.py --books BOOKS --table cbm/latency/cpu-1thread.json --measure

A supernet that is not trained yet is trained first, as by :mod:`bm_ranking` and in its folder: an hour of a
core and more. A score that was had is kept beside the supernet: run again after a kill, it goes on. With
``--books`` scores are looked up in books of :mod:`score_book`, all supernets there.

``beliefs.csv`` beside the rows says how probable each search took it that what it found beats each of the
others at its budget. With ``--books`` there is ``on_the_way.csv``, too: what a search finds that scores where
it goes, each network on all images (looked up in seconds; a supernet would score for an hour).
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from bm_ranking import LEVELS, MODEL, RECIPE, Plan, run_name, shared_data, sides_of, trained
from score_book import BookAccuracy, ScoreBook, passes_of

import bcnet_deploy as bd
from bcnet_deploy import files
from bcnet_deploy.data import DataSplits, PlainBatches, load_data
from bcnet_deploy.lut import LatencyTable
from bcnet_deploy.search import SearchResult
from bcnet_deploy.search.lattice import Lattice, uniform_ladder
from bcnet_deploy.search.posterior import INTERVAL, Posterior
from bcnet_deploy.train.evaluate import SupernetEvaluator

Int64 = npt.NDArray[np.int64]
RESULTS = Path(__file__).resolve().parent / "results" / "search"
QUANTILES = tuple(q / 10 for q in range(1, 10))
RANDOM_NETWORKS = 5
FIELDS = (
    "rule", "seed", "budget_kind", "budget", "searched_by", "arch", "score", "posterior", "low", "high",
    "predicted_ms", "measured_ms", "evaluations", "image_passes",
)  # fmt: skip
BELIEFS = ("rule", "seed", "budget_kind", "budget", "found", "against", "rival", "probability")
ON_THE_WAY = (
    "rule", "seed", "budget_kind", "budget", "found", "image_passes", "found_on_the_way",
    "image_passes_on_the_way",
)  # fmt: skip


class Scored(Protocol):
    """An accuracy whose searches' image passes are known."""

    def __call__(self, widths: Any) -> npt.NDArray[np.float64]: ...

    def noise(self, widths: Any, images: int | None = None) -> npt.NDArray[np.float64]: ...

    def passes_of(self, result: SearchResult) -> int: ...


class OnAllImages:
    """An accuracy that cannot race: every score is of all images."""

    shares_weights = True

    def __init__(self, accuracy: Scored) -> None:
        self._accuracy = accuracy

    def __call__(self, widths: Any) -> npt.NDArray[np.float64]:
        return self._accuracy(widths)

    def noise(self, widths: Any) -> npt.NDArray[np.float64]:
        return self._accuracy.noise(widths)


class Remembered:
    """An evaluator whose answers are kept in a file, so that searches share them and a kill loses none.

    ``passes_of`` counts what a search would have used by itself.
    """

    shares_weights = True

    def __init__(self, evaluator: SupernetEvaluator, path: Path, identity: str) -> None:
        self._evaluator = evaluator
        self.images, self.image_passes = evaluator.images, 0
        self.prefixes = evaluator.prefixes
        self._log = files.JsonLines(path, "supernet scores", header={"supernet": identity})
        self._known: dict[tuple[bytes, int], tuple[float, float]] = {
            (np.array(row["widths"], dtype=np.int64).tobytes(), row["images"]): (row["score"], row["noise"])
            for _, row in self._log.read()
        }

    def on(self, widths: Any, images: int) -> npt.NDArray[np.float64]:
        return self._answers(widths, images)[:, 0]

    def __call__(self, widths: Any) -> npt.NDArray[np.float64]:
        return self.on(widths, self.images)

    def noise(self, widths: Any, images: int | None = None) -> npt.NDArray[np.float64]:
        return self._answers(widths, images or self.images)[:, 1]

    def passes_of(self, result: SearchResult) -> int:
        """Images through the network, on all sides, for the statistics and scores of one search."""
        recalibration = sum(len(batch[0]) for batch in self._evaluator.train_batches)
        return passes_of(result, len(self._evaluator.side_names), self.images, recalibration)

    def _answers(self, widths: Any, images: int) -> npt.NDArray[np.float64]:
        rows = np.ascontiguousarray(widths, dtype=np.int64)
        new = [row for row in rows if (row.tobytes(), images) not in self._known]
        if new:
            fresh = np.unique(np.stack(new), axis=0)
            scores, noises = self._evaluator.on(fresh, images), self._evaluator.binomial_noise(fresh, images)
            self.image_passes = self._evaluator.image_passes
            self._log.append(
                {"widths": row.tolist(), "images": images, "score": float(s), "noise": float(n)}
                for row, s, n in zip(fresh, scores, noises, strict=True)
            )
            for row, s, n in zip(fresh, scores, noises, strict=True):
                self._known[row.tobytes(), images] = float(s), float(n)
        return np.array([self._known[row.tobytes(), images] for row in rows])


@dataclass(frozen=True)
class Chosen:
    """One network at one budget."""

    kind: str
    budget: float
    searched_by: str
    widths: Int64
    posterior: Posterior
    evaluations: int
    image_passes: int


class Budgets:
    """The space's networks with their MACs and predicted latencies, and the budgets on both."""

    def __init__(self, space: bd.WidthSpace, table: LatencyTable, quantiles: Sequence[float]) -> None:
        self.space, self.lattice, self.table = space, Lattice(space.variables), table.for_space(space)
        self.everything = self.lattice.widths(self.lattice.all())
        self.costs = {kind: self.cost(kind, self.everything) for kind in ("macs", "latency")}
        self.limits = {kind: np.quantile(values, quantiles) for kind, values in self.costs.items()}

    def cost(self, kind: str, widths: Int64) -> npt.NDArray[np.float64]:
        values = self.space.macs(widths) if kind == "macs" else self.table.predict(widths)
        return np.asarray(values, dtype=np.float64)

    def constraint(self, kind: str, limit: float) -> dict[str, Any]:
        return {"macs": limit} if kind == "macs" else {"latency_ms": (self.table, limit)}


def chosen(budgets: Budgets, accuracy: Scored, evaluations: int, seed: int) -> Iterator[Chosen]:
    """Every network of every budget; what was found by the budget's own kind comes first."""
    other = {"macs": "latency", "latency": "macs"}
    fronts = {
        kind: bd.search(
            budgets.space, accuracy, budgets.constraint(kind, float(budgets.costs[kind].max())), evaluations,
            seed, pareto=True,
        )
        for kind in other
    }  # fmt: skip
    ladder = budgets.lattice.widths(uniform_ladder(budgets.lattice))
    for kind, limits in budgets.limits.items():
        for number, limit in enumerate(limits):
            budget = float(limit)
            found = bd.search(budgets.space, accuracy, budgets.constraint(kind, budget), evaluations, seed)
            assert found.posterior is not None, "supernet scores have noise"

            def row(
                by: str, widths: Int64, result: SearchResult | None = None, *, kind: str = kind,
                budget: float = budget, posterior: Posterior = found.posterior,
            ) -> Chosen:  # fmt: skip
                used = (0, 0) if result is None else (result.evaluations, accuracy.passes_of(result))
                return Chosen(kind, budget, by, widths, posterior, *used)

            yield row(kind, found.widths, found)
            front = fronts[other[kind]]
            inside = np.flatnonzero(budgets.cost(kind, front.front.widths) <= budget)
            if len(inside):
                best = inside[front.front.accuracy[inside].argmax()]
                yield row(other[kind], front.front.widths[best], front)
            uniform = ladder[budgets.cost(kind, ladder) <= budget]
            if len(uniform):
                yield row("uniform", uniform[-1])
            within = budgets.everything[budgets.costs[kind] <= budget]
            yield row("largest", within[budgets.cost("macs", within).argmax()])
            drawn = np.random.default_rng([seed, number]).permutation(len(within))[:RANDOM_NETWORKS]
            for one in drawn:
                yield row("random", within[one])


def arch_of(indices: Int64) -> str:
    return "".join(str(i + 1) for i in indices)


def beliefs_of(budgets: Budgets, networks: Sequence[Chosen]) -> list[dict[str, Any]]:
    """How probable each search took it that what it found is better than each of the others."""
    rows = []
    for one in networks:
        if one.searched_by == one.kind:
            found = one
        ours, theirs = budgets.lattice.nearest(np.stack([found.widths, one.widths]))
        if (ours != theirs).any():
            probability = found.posterior.probability_better(ours, theirs)
            rows.append(
                {
                    "budget_kind": one.kind, "budget": f"{one.budget:.6g}", "found": arch_of(ours),
                    "against": one.searched_by, "rival": arch_of(theirs), "probability": f"{probability:.4f}",
                }
            )  # fmt: skip
    return rows


def on_the_way(
    budgets: Budgets, accuracy: Scored, networks: Sequence[Chosen], evaluations: int, seed: int
) -> list[dict[str, Any]]:
    """What searches find that score where they go, beside what was found."""
    rows = []
    for found in (one for one in networks if one.searched_by == one.kind):
        limit = budgets.constraint(found.kind, found.budget)
        slow = bd.search(budgets.space, OnAllImages(accuracy), limit, evaluations, seed, design=False)
        ours, theirs = budgets.lattice.nearest(np.stack([found.widths, slow.widths]))
        rows.append(
            {
                "budget_kind": found.kind, "budget": f"{found.budget:.6g}", "found": arch_of(ours),
                "image_passes": found.image_passes, "found_on_the_way": arch_of(theirs),
                "image_passes_on_the_way": accuracy.passes_of(slow),
            }
        )  # fmt: skip
    return rows


def rows_of(budgets: Budgets, accuracy: Scored, networks: Sequence[Chosen]) -> list[dict[str, Any]]:
    """The table's rows, but for the measured latency."""
    rows: list[dict[str, Any]] = []
    for one in networks:
        indices = budgets.lattice.nearest(one.widths[None])
        mean, deviation = (float(values[0]) for values in one.posterior.predict(indices))
        reach = deviation * _normal_quantile((1 + INTERVAL) / 2)
        rows.append(
            {
                "budget_kind": one.kind, "budget": f"{one.budget:.6g}",
                "searched_by": one.searched_by, "arch": arch_of(indices[0]),
                "score": f"{float(accuracy(one.widths[None])[0]):.4f}", "posterior": f"{mean:.4f}",
                "low": f"{mean - reach:.4f}", "high": f"{mean + reach:.4f}",
                "predicted_ms": f"{float(budgets.cost('latency', one.widths[None])[0]):.6g}",
                "measured_ms": "", "evaluations": one.evaluations, "image_passes": one.image_passes,
            }
        )  # fmt: skip
    return rows


def _normal_quantile(probability: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(probability)


def measured(archs: Sequence[str], space: bd.WidthSpace, device: str, rounds: int) -> dict[str, float]:
    """Milliseconds by arch, all networks interleaved in one run."""
    from bcnet_deploy.bench import BenchSettings, bench
    from bcnet_deploy.export import export_onnx

    model = bd.build_model(MODEL, num_classes=10)
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for arch in archs:
            widths = np.array([int(digit) for digit in arch]) * space.full // LEVELS
            paths[arch] = Path(folder) / f"{arch}.onnx"
            export_onnx(space.extract(model, widths), paths[arch], space.input_size, parity_inputs=None)
        settings = BenchSettings(rounds=rounds, runs=20, batches=(), layers=False)
        result = bench(paths, device, settings=settings)
    return {
        name: next(iter(network.runtimes.values())).latency.low_ms
        for name, network in result.networks.items()
    }


def write_rows(
    path: Path, rows: list[dict[str, Any]], fields: Sequence[str], supernet: dict[str, Any] | None = None
) -> None:
    """The rows, of ``supernet`` or as they say, in place of former ones of their supernets; others stay."""
    rows = [{**(supernet or {}), **row} for row in rows]
    kept: list[dict[str, Any]] = []
    if path.exists():
        ours = {(row["rule"], str(row["seed"])) for row in rows}
        with path.open(encoding="utf-8") as file:
            kept = [row for row in csv.DictReader(file) if (row["rule"], row["seed"]) not in ours]
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows([*kept, *rows])
    files.write_text(path, text.getvalue())


def open_supernet(rule: str, seed: int, plan: Plan, splits: DataSplits) -> SupernetEvaluator:
    """The evaluator of a finished training of :mod:`bm_ranking`; an unfinished one goes on."""
    folder = plan.work / run_name(rule, seed, plan)
    recipe = {**RECIPE, "augment": plan.augment}
    supernet, config, _ = trained(rule, seed, plan.cost, recipe, splits, folder)
    cpu = torch.device("cpu")
    train = PlainBatches(splits.train, splits, config.batch_size, cpu, limit=plan.recalibration_images)
    val = PlainBatches(
        splits.val, splits, 2 * config.batch_size, cpu, limit=max(plan.held_out_images), mixed=True
    )
    return SupernetEvaluator(supernet, train, val, sides=sides_of(rule))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder with CIFAR-10; default $BCNET_SHARED_DATA")
    parser.add_argument("--books", type=Path, help="folder of score books, in place of supernets")
    parser.add_argument("--work", type=Path, help="folder of bm_ranking's trainings; default its own")
    parser.add_argument("--rules", default="bilateral-complementary-distilled")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--cost", type=float, default=600_000.0)
    parser.add_argument("--size", type=int, default=16, help="pixels of the images in training and scoring")
    parser.add_argument("--recalibration", type=int, default=512)
    parser.add_argument("--held-out", type=int, default=2000)
    parser.add_argument("--evaluations", type=int, default=400)
    parser.add_argument("--table", type=Path, required=True, help="latency table of the network at 3x32x32")
    parser.add_argument("--measure", action="store_true", help="measure the networks on the table's device")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "found_by_supernet.csv")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    space = bd.WidthSpace.from_model(bd.build_model(MODEL, num_classes=10), (3, 32, 32), levels=LEVELS)
    table = LatencyTable.load(options.table)
    budgets = Budgets(space, table, QUANTILES)
    for rule, seed, accuracy in supernets(options, space):
        networks = list(chosen(budgets, accuracy, options.evaluations, seed))
        supernet = {"rule": rule, "seed": seed}
        write_rows(options.out, rows_of(budgets, accuracy, networks), FIELDS, supernet)
        write_rows(options.out.with_name("beliefs.csv"), beliefs_of(budgets, networks), BELIEFS, supernet)
        if options.books:
            slow = on_the_way(budgets, accuracy, networks, options.evaluations, seed)
            write_rows(options.out.with_name("on_the_way.csv"), slow, ON_THE_WAY, supernet)
        print(f"{rule} seed {seed}: {len(networks)} rows in {options.out}", flush=True)
    if options.measure:
        with options.out.open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        times = measured(sorted({row["arch"] for row in rows}), space, table.device, options.rounds)
        measured_rows = [{**row, "measured_ms": f"{times[row['arch']]:.6g}"} for row in rows]
        write_rows(options.out, measured_rows, FIELDS)
    return 0


def supernets(options: argparse.Namespace, space: bd.WidthSpace) -> Iterator[tuple[str, int, Scored]]:
    """(rule, seed, scores) of every supernet asked for."""
    if options.books:
        for path in sorted(options.books.glob("*.npz")):
            book = ScoreBook.load(path)
            yield book.about["rule"], book.about["seed"], BookAccuracy(book, space, options.recalibration)
        return
    from bcnet_deploy.data.archives import cache_folder

    work = options.work or cache_folder() / "ranking"
    data = shared_data(options.data)
    splits = load_data(str(data / "cifar10-imagefolder.tar.xz"), (3, options.size, options.size))
    plan = Plan(
        options.cost, options.size, RECIPE["augment"], options.recalibration, (options.held_out,), data, work
    )
    for rule in options.rules.split(","):
        for seed in map(int, options.seeds.split(",")):
            folder = work / run_name(rule, seed, plan)
            identity = f"{folder.name} {options.recalibration} {options.held_out}"
            evaluator = open_supernet(rule, seed, plan, splits)
            yield rule, seed, Remembered(evaluator, folder / "found_scores.jsonl", identity)


if __name__ == "__main__":
    sys.exit(main())
