"""A search by the accuracy after fine-tuning, by many processes at once, for :mod:`bm_trained`.

    python -m benchmarks.tuned_search explore   --network mobilenet --folder FOLDER --worker 3 --device cuda
    python -m benchmarks.tuned_search finalists --network mobilenet --folder FOLDER
    python -m benchmarks.tuned_search rates     --network mobilenet --folder FOLDER --device cuda
    python -m benchmarks.tuned_search explore   --network mobilenet --folder FOLDER --scored full \\
        --steps 1056 --rate 0.01
    python -m benchmarks.tuned_search nearest   --network mobilenet --folder FOLDER --scored full

``explore`` fine-tunes networks that are near a budget for some steps, and keeps their held-out accuracy. The
first are drawn around uniform widths; then each process draws what to try next from the posterior of all
scores so far (Thompson sampling). ``finalists`` searches the mean of that posterior: the networks that
:mod:`bm_trained` measures and fine-tunes as ``found``. With ``--source pruned`` or ``supernet`` the posterior
is of scores without fine-tuning, of networks drawn over all sizes: ``found-drawn``, ``found-supernet``.
``nearest`` does as ``finalists`` without the evolutionary search: it climbs from the best networks near the
budget. ``--scored`` names the folder of scores, so that fine-tunings of other lengths are kept apart.
``rates`` compares learning rates of the final fine-tuning on uniform widths. Test images take no part in any
of them. ``search --scores tuned`` does as ``explore`` and ``finalists``, in one process.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from bcnet_deploy import files
from bcnet_deploy.lut.steps import learned_choices
from bcnet_deploy.models import load_weights
from bcnet_deploy.search.design import PER_TERM, drawn
from bcnet_deploy.search.lattice import Lattice, keys
from bcnet_deploy.search.near import lower_bound, near_budgets, thompson
from bcnet_deploy.search.posterior import Posterior
from bcnet_deploy.train import open_pruned_evaluator
from bcnet_deploy.train.evaluate import binomial_deviation
from bcnet_deploy.train.pruned import permuted_on
from bcnet_deploy.train.retrain import slice_of
from benchmarks.bm_trained import NETWORKS, Bench, fine_tune, read

Int64 = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]
DRAWN = 36
"""Networks scored before the posterior is asked what to try next."""
SLACKS = (0.97, 0.98, 0.99, 1.0, 1.01, 1.02)
"""Of the predicted budget: what is measured decides."""
IMAGES, MOST_DRAWN = 640, 160
"""Held-out images of a score without training, and most networks that get one."""
SEARCH_RATE, FINAL_RATES = 0.02, (0.01, 0.02, 0.04, 0.08)


class Arm:
    """One network at one budget: what may be tried, and what is known."""

    def __init__(self, job: Bench, budget: float, scored: str = "explored") -> None:
        self.job, self.budget = job, budget
        self.table = job.table()
        self.folder = job.folder / scored / str(budget)
        self.lattice = Lattice(job.space.with_choices(learned_choices(job.space, [self.table])).variables)
        measured = read(job, "measured")
        paths = sorted((job.folder / "networks").glob(f"{budget}-*.json"))
        names = [path.stem for path in paths if path.stem in measured]
        ratio = np.median(
            [measured[n] / job.about(budget, n.partition("-")[2])["predicted_ms"] for n in names]
        )
        self.limit_ms = budget * measured["full"] / float(ratio)
        self.pool = near_budgets(
            self.lattice, lambda rows: self.used(rows) <= 1.0, self.used, np.random.default_rng(0)
        )

    def used(self, rows: Int64) -> Float:
        """(N, L) choice indices -> (N,) predicted share of the budget."""
        return np.asarray(self.table.predict(self.lattice.widths(rows)) / self.limit_ms)

    def known(self) -> tuple[Int64, Float]:
        """(n, L) choice indices that were scored, (n,) their accuracies."""
        rows, scores = [], []
        for path in sorted(self.folder.glob("*.json")):
            about = json.loads(path.read_text())
            rows.append(about["widths"])
            scores.append(about["val_top1"])
        if not rows:
            return np.zeros((0, self.lattice.length), dtype=np.int64), np.zeros(0)
        return self.lattice.nearest(np.array(rows)), np.array(scores)

    def posterior(self) -> tuple[Posterior, Int64]:
        """Of what is known, and the rows that are."""
        rows, scores = self.known()
        posterior = Posterior(self.lattice)
        posterior.fit(rows, scores, binomial_deviation(scores[:, None], len(self.job.splits().val)))
        return posterior, rows

    def next(self, rng: np.random.Generator) -> Int64:
        """(L,) widths to try."""
        count = len(list(self.folder.glob("*.json")))
        if count < DRAWN:
            return self.lattice.widths(self.pool[rng.integers(len(self.pool))][None])[0]
        posterior, known = self.posterior()
        seen = set(keys(known))
        fresh = self.pool[[key not in seen for key in keys(self.pool)]]
        if not len(fresh):
            raise RuntimeError("every network of the pool is scored")
        return self.lattice.widths(thompson(posterior, fresh, rng)[None])[0]


def explore(
    jobs: list[Bench], budgets: list[float], steps: int, worker: int, until: float,
    scored: str = "explored", rate: float = SEARCH_RATE,
) -> None:  # fmt: skip
    """Score networks until the time is over, the budgets in turn."""
    arms = [Arm(job, budget, scored) for job in jobs for budget in budgets]
    permuted = {
        job.network: permuted_on(job.trained(), job.space, job.splits(), "l2", device=torch.device("cpu"))
        for job in jobs
    }
    splits = {job.network: replace(job.splits(), open_test=lambda: None) for job in jobs}
    rng = np.random.default_rng([1, worker])
    turn, longest = worker, 0.0
    while time.monotonic() + longest < until:
        arm = arms[turn % len(arms)]
        turn += 1
        started = time.monotonic()
        row = arm.next(rng)
        key = "-".join(map(str, row.tolist()))
        path = arm.folder / f"{key}.json"
        if path.exists():
            continue
        result = fine_tune(
            arm.job, splits[arm.job.network], arm.budget, "", steps, arm.folder / f"{key}-{worker}",
            seed=worker, start=slice_of(permuted[arm.job.network], arm.job.space, row), row=row,
            rate=rate,
        )  # fmt: skip
        seconds = time.monotonic() - started
        longest = max(longest, seconds)
        about = {
            "widths": row.tolist(), "val_top1": result.val_metric, "steps": steps,
            "seconds": round(seconds, 2),
            "predicted_ms": float(arm.table.predict(row[None])[0]), "worker": worker,
        }  # fmt: skip
        files.write_json(path, about)
        print(f"{arm.job.network} {arm.budget} {key}: {result.val_metric:.2f}, {seconds:.1f} s", flush=True)


def drawn_scores(job: Bench, supernet: bool) -> tuple[Int64, Float, Float]:
    """(n, L) widths drawn over all sizes, (n,) their held-out accuracies as slices, (n,) the noise.

    Of the base network in order of importance, or of the short supernet. Kept, since budgets share them.
    """
    path = job.folder / f"drawn-{'supernet' if supernet else 'pruned'}.json"
    if path.exists():
        kept = json.loads(path.read_text())
        return np.array(kept["widths"]), np.array(kept["scores"]), np.array(kept["noise"])
    splits, cpu = job.splits(), torch.device("cpu")
    if supernet:
        scored = job.space.extract(job.model, job.space.full)
        load_weights(scored, job.folder / "supernet" / "weights.safetensors")
    else:
        scored = permuted_on(job.trained(), job.space, splits, "l2", device=cpu)
    evaluator = open_pruned_evaluator(
        scored, job.space, splits, importance=None, limit=IMAGES, batch_size=32, device=cpu
    )
    lattice = Lattice(job.space.with_choices(learned_choices(job.space, [job.table()])).variables)
    count = PER_TERM * Posterior(lattice).most_terms
    widths = lattice.widths(drawn(lattice, min(count, MOST_DRAWN), np.random.default_rng(2)))
    scores = evaluator(widths)
    noise = evaluator.noise(widths)
    kept = {"widths": widths.tolist(), "scores": scores.tolist(), "noise": noise.tolist()}
    files.write_json(path, kept)
    return widths, scores, noise


def finalists(job: Bench, budget: float, source: str) -> None:
    """Keep the networks of the highest posterior values at latencies about the budget, the highest first.

    The value is the posterior's lower bound: what no scored network is like is not believed.

    The posterior is of accuracies after fine-tuning (``tuned``), or of slices drawn over all sizes: of the
    base network (``pruned``), of the short supernet (``supernet``).
    """
    from bcnet_deploy.search import search

    method = {"tuned": "found", "pruned": "found-drawn", "supernet": "found-supernet"}[source]
    if job.candidates(budget, method):
        return
    arm = Arm(job, budget)
    started = time.process_time()
    if source == "tuned":
        posterior, known = arm.posterior()
    else:
        widths, scores, noise = drawn_scores(job, source == "supernet")
        known, posterior = arm.lattice.nearest(widths), Posterior(arm.lattice)
        posterior.fit(known, scores, np.maximum(noise, 0.1))
    print(f"{job.network} {budget} {source}: {len(known)} scored, {posterior.notes()}", flush=True)

    def value(widths: Int64) -> Float:
        return lower_bound(posterior, arm.lattice.nearest(widths))

    begin = arm.lattice.widths(arm.pool)
    begin = begin[np.argsort(-value(begin))[:40]]
    space = job.space.with_choices(learned_choices(job.space, [arm.table]))
    rows = dict.fromkeys(
        tuple(
            search(
                space, value, {"latency_ms": (arm.table, arm.limit_ms * slack)}, 2000, seed,
                confidence=None, initial=begin,
            ).widths.tolist()
        )
        for slack in SLACKS for seed in range(2)
    )  # fmt: skip
    widths = np.array(list(rows))
    keep_all(arm, posterior, widths[np.argsort(-value(widths))], method, started)


def keep_all(arm: Arm, posterior: Posterior, widths: Int64, method: str, started: float) -> None:
    """Keep the networks of (n, L) widths by their order; ``started`` is in seconds of this process."""
    job = arm.job
    permuted = permuted_on(job.trained(), job.space, job.splits(), "l2", device=torch.device("cpu"))
    mean, deviation = posterior.predict(arm.lattice.nearest(widths))
    for index, row in enumerate(widths):
        print(f"  {row} {mean[index]:.2f} ± {deviation[index]:.2f}", flush=True)
        network = slice_of(permuted, job.space, row)
        job.keep(arm.budget, f"{method}~{index:02d}", network, time.process_time() - started)


CLIMBERS, CLIMBS = 32, 400
"""Networks from which ``nearest`` climbs, and steps of each."""


def nearest(job: Bench, budget: float, scored: str, method: str, count: int = 4) -> None:
    """Keep the best ``count`` networks near the budget by the posterior's lower bound, as ``finalists`` does.

    From the best of the pool and of those scored, two widths at a time change by a choice or two, as long as
    the bound rises within the budget.
    """
    if job.candidates(budget, method):
        return
    arm, started = Arm(job, budget, scored), time.process_time()
    posterior, known = arm.posterior()
    rng, top = np.random.default_rng(3), arm.lattice.top
    begin = np.unique(np.concatenate([arm.pool, known[arm.used(known) <= 1.0]]), axis=0)
    best = begin[np.argsort(-lower_bound(posterior, begin))[:CLIMBERS]]
    value = lower_bound(posterior, best)
    for _ in range(CLIMBS):
        change = np.zeros_like(best)
        for _ in range(2):
            change[np.arange(len(best)), rng.integers(best.shape[1], size=len(best))] = rng.choice(
                [-2, -1, 1, 2], size=len(best)
            )
        tried = np.clip(best + change, 0, top)
        reached = lower_bound(posterior, tried)
        better = (arm.used(tried) <= 1.0) & (reached > value)
        best, value = np.where(better[:, None], tried, best), np.where(better, reached, value)
    best, first = np.unique(best, axis=0, return_index=True)
    print(f"{job.network} {budget} {scored}: {len(known)} scored, {posterior.notes()}", flush=True)
    order = np.argsort(-value[first])[:count]
    keep_all(arm, posterior, arm.lattice.widths(best[order]), method, started)


def rates(jobs: list[Bench], budgets: list[float], steps: int, share: tuple[int, int], until: float) -> None:
    """Held-out accuracy of uniform widths after fine-tuning at several rates."""
    todo = [(job, budget, rate) for budget in budgets for job in jobs for rate in FINAL_RATES]
    for job, budget, rate in todo[share[0] :: share[1]]:
        path = job.folder / "rates" / f"{budget}-{rate}.json"
        if path.exists() or time.monotonic() > until:
            continue
        name = job.candidates(budget, "uniform")[1]
        splits = replace(job.splits(), open_test=lambda: None)
        result = fine_tune(job, splits, budget, name, steps, path.with_suffix(""), seed=0, rate=rate)
        files.write_json(path, {"rate": rate, "steps": steps, "val_top1": result.val_metric})
        print(f"{job.network} {budget} rate {rate}: {result.val_metric:.2f} {result.seconds} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("step", choices=("explore", "finalists", "nearest", "rates"))
    parser.add_argument("--network", choices=NETWORKS, nargs="+", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.33, 0.2])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--source", choices=("tuned", "pruned", "supernet"), default="tuned")
    parser.add_argument("--scored", default="explored", help="folder of the scores of explore and nearest")
    parser.add_argument("--method", default="found", help="of nearest: what its networks are called")
    parser.add_argument("--rate", type=float, default=SEARCH_RATE, help="learning rate of explore")
    parser.add_argument("--steps", type=int, default=176, help="of explore and rates")
    parser.add_argument(
        "--worker", type=int, default=0, help="number of this process among those that explore"
    )
    parser.add_argument("--share", type=int, nargs=2, default=(0, 1), help="which of how many processes")
    parser.add_argument("--until-s", type=float, default=1e9, help="no training begins that may end later")
    options = parser.parse_args()
    torch.set_num_threads(1)
    until = time.monotonic() + options.until_s
    jobs = [Bench(name, options.folder, "", torch.device(options.device)) for name in options.network]
    share = (options.share[0], options.share[1])
    if options.step == "explore":
        explore(jobs, options.budgets, options.steps, options.worker, until, options.scored, options.rate)
    elif options.step == "nearest":
        for job in jobs:
            for budget in options.budgets:
                nearest(job, budget, options.scored, options.method)
    elif options.step == "rates":
        rates(jobs, options.budgets, options.steps, share, until)
    else:
        for job in jobs:
            for budget in options.budgets:
                finalists(job, budget, options.source)


if __name__ == "__main__":
    main()
