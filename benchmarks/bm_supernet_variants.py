"""Better supernets at equal cost? Variants of the default rule, told apart without the published accuracies.

Each variant changes one thing of :mod:`bm_ranking`'s default (both sides, complement, distilled). It trains
Channel-Bench-Macro's MobileNet on CIFAR-10 at the same cost (a smaller one where images are larger, so that
the multiply-accumulates are equal), then scores 105 networks, the same for all, as a search draws them.

    python benchmarks/bm_supernet_variants.py run --variants default,spread --seeds 0 --cost 80000
    python benchmarks/bm_supernet_variants.py report            # criteria without the published accuracies
    python benchmarks/bm_supernet_variants.py report --judge    # the same, then against them

Everything resumes after a kill. Scores are in ``results/ranking/variants.csv``.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from bm_ranking import CPU, LEVELS, MODEL, RECIPE, RESULTS, shared_data, trained
from filelock import FileLock
from scipy.special import betaincinv
from scipy.stats import kendalltau
from score_book import PREFIXES, ScoreBook

import bcnet_deploy as bd
from bcnet_deploy import files
from bcnet_deploy.data import DataSplits, PlainBatches, load_data
from bcnet_deploy.search.branches import CONCENTRATION
from bcnet_deploy.search.design import drawn
from bcnet_deploy.search.lattice import Lattice
from bcnet_deploy.search.posterior import BETWEEN_SUPERNETS, Posterior
from bcnet_deploy.train.checkpoint import load_checkpoint
from bcnet_deploy.train.config import TrainConfig
from bcnet_deploy.train.evaluate import SupernetEvaluator, binomial_deviation
from bcnet_deploy.train.samplers import (
    SIDES,
    Bilateral,
    Distilled,
    Slice,
    Step,
    WidthGrid,
    Widths,
    WidthSampler,
    both_sides,
)

Float = npt.NDArray[np.float64]
SCORES = RESULTS / "variants.csv"
FIELDS = ("variant", "seed", "cost", "size", "steps", "arch", "left", "right", "left_loss", "right_loss")
NETWORKS, HELD_OUT, RECALIBRATION = 105, 2000, 512
RULE = "bilateral-complementary-distilled"


class Wide(Bilateral):
    """A level is as probable as it is wide, so that there are no complements: three quarters on average."""

    def draw(self) -> list[Step]:
        def one(choices: tuple[int, ...]) -> int:
            weights = np.arange(1.0, len(choices) + 1)
            return choices[self.rng.choice(len(choices), p=weights / weights.sum())]

        return [both_sides(np.array([one(choices) for choices in self.grid.choices], dtype=np.int64))]


class Spread(Bilateral):
    """Vectors of all sizes, as a search draws them, where independent levels are near half of the size."""

    def draw(self) -> list[Step]:
        size = self.rng.random()
        part = self.rng.random(len(self.grid.choices))
        share = betaincinv(CONCENTRATION * size + 1e-3, CONCENTRATION * (1 - size) + 1e-3, part)
        widths = np.array(
            [c[min(int(s * len(c)), len(c) - 1)] for c, s in zip(self.grid.choices, share, strict=True)],
            dtype=np.int64,
        )
        return [both_sides(widths), both_sides(self.grid.complement(widths))]


class OneStep(Bilateral):
    """A vector and its complement in one step: one teacher for four pupils, which have more of the loss."""

    def draw(self) -> list[Step]:
        widths = self.grid.draw(self.rng)
        pair: list[Widths] = [widths, self.grid.complement(widths)]
        return [tuple(Slice(one, side, 0.25) for one in pair for side in SIDES)]


class FromFullWidth(WidthSampler):
    """The full width alone for so many steps, then another rule: a warm start."""

    def __init__(self, inner: WidthSampler, steps: int) -> None:
        super().__init__(inner.grid, inner.rng)
        self.inner, self.sides, self.left = inner, inner.sides, steps

    def draw(self) -> list[Step]:
        if self.left > 0:
            self.left -= 1
            return [(Slice(self.grid.full, "left"),)]
        return list(self.inner.draw())

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "left": self.left}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.left = int(state["left"])


Make = Callable[[WidthGrid, np.random.Generator, TrainConfig], WidthSampler]
_WARM = 0.25
"""Share of the cost that a warm start spends on the full width."""


def warm(grid: WidthGrid, rng: np.random.Generator, config: TrainConfig) -> WidthSampler:
    assert config.cost is not None
    return FromFullWidth(Distilled(Bilateral(grid, rng)), round(_WARM * config.cost / config.batch_size))


@dataclass(frozen=True)
class Variant:
    """What differs from the default.

    Attributes:
        says: for the table.
        rule: of :mod:`bm_ranking`, where the smallest level differs.
        make: the sampler; None is the rule's.
        recipe: settings. size: pixels.
    """

    says: str
    rule: str = RULE
    make: Make | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    size: int = 16


# Twenty falls of this factor end at a twentieth of the peak; the recipe has one "epoch".
_FLOOR = {"schedule": "exponential", "gamma": 0.05 ** (1 / 20), "step_epochs": 0.05}
_AVERAGED = {"ema_decay": 0.99}
VARIANTS = {
    "default": Variant("as it is", recipe=_AVERAGED),
    "wide": Variant(
        "level as probable as it is wide, no complement", make=lambda g, r, c: Distilled(Wide(g, r))
    ),
    "spread": Variant("vectors of all sizes, with complement", make=lambda g, r, c: Distilled(Spread(g, r))),
    "one-step": Variant(
        "one teacher for a vector and its complement", make=lambda g, r, c: Distilled(OneStep(g, r))
    ),
    "warm": Variant("a quarter of the cost on the full width first", make=warm),
    "floor": Variant("rate falls exponentially to a twentieth", recipe={**_FLOOR, **_AVERAGED}),
    "min": Variant("smallest level m = 1", rule="bilateral-complementary-min-distilled"),
    "pixels-32": Variant("32x32 pixels, a quarter of the images", size=32),
}
"""Weights are averaged beside ``default`` and ``floor``, which changes nothing in their training; the
averaged weights are scored as ``<variant>+average``."""


def networks(space: bd.WidthSpace) -> npt.NDArray[np.int64]:
    """(105, L) choice indices: what a search draws with its generator's seed 0."""
    return drawn(Lattice(space.variables), NETWORKS, np.random.default_rng(0), PREFIXES)


def arch_of(indices: npt.NDArray[np.int64]) -> str:
    return "".join(str(index + 1) for index in indices)


def add(rows: list[dict[str, Any]]) -> None:
    """Write a supernet's rows into :data:`SCORES`, in place of its former ones."""
    with FileLock(SCORES.with_suffix(".lock")):
        former = list(csv.DictReader(SCORES.open())) if SCORES.exists() else []
        new = {identity(row) for row in rows}
        text = io.StringIO()
        writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows([*(row for row in former if identity(row) not in new), *rows])
        files.write_text(SCORES, text.getvalue())


def identity(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[key]) for key in ("variant", "seed", "cost", "size"))


def run_one(name: str, seed: int, cost: float, splits: DataSplits, work: Path) -> None:
    """Train a variant and score the networks; does nothing where that is done."""
    variant = VARIANTS[name]
    asked = {"variant": name, "seed": seed, "cost": f"{cost:.0f}", "size": variant.size}
    if SCORES.exists() and identity(asked) in {identity(row) for row in csv.DictReader(SCORES.open())}:
        return
    folder = work / f"{name}_seed{seed}_cost{cost:.0f}"
    recipe = {**RECIPE, **variant.recipe}
    own_cost = cost * (16 / variant.size) ** 2
    supernet, config, outcome = trained(
        variant.rule, seed, own_cost, recipe, splits, folder, sampler=variant.make
    )
    states = {name: supernet.state_dict()}  # the variant's own last: it says that all are scored
    if config.ema_decay:
        tensors, _ = load_checkpoint(folder / "checkpoint.safetensors")
        live = {key.removeprefix("model."): t for key, t in tensors.items() if key.startswith("model.")}
        states = {f"{name}+average": {k: t.clone() for k, t in states[name].items()}, name: live}
    space = supernet.space
    train = PlainBatches(splits.train, splits, 32, CPU, limit=RECALIBRATION)
    val = PlainBatches(splits.val, splits, 64, CPU, limit=HELD_OUT, mixed=True)
    indices = networks(space)
    widths = Lattice(space.variables).widths(indices)
    for label, state in states.items():
        supernet.load_state_dict(state)
        evaluator = SupernetEvaluator(supernet, train, val)
        sides = np.concatenate([evaluator.sides(widths[at : at + 32]) for at in range(0, NETWORKS, 32)])
        losses = evaluator.losses(widths)
        add(
            [
                {
                    "variant": label, "seed": seed, "cost": f"{cost:.0f}", "size": variant.size,
                    "steps": outcome.steps, "arch": arch_of(row),
                    "left": f"{left:.2f}", "right": f"{right:.2f}",
                    "left_loss": f"{loss[0]:.4f}", "right_loss": f"{loss[1]:.4f}",
                }
                for row, (left, right), loss in zip(indices, sides, losses, strict=True)
            ]
        )  # fmt: skip
        print(f"{label} seed {seed}: scored, left to right {evaluator.agreement()[0]:.2f}", flush=True)


@dataclass(frozen=True)
class Scored:
    """The 105 networks' scores by one supernet, and the posterior of all networks by them."""

    variant: str
    seed: int
    cost: str
    sides: Float
    losses: Float
    everywhere: Float

    @property
    def scores(self) -> Float:
        return np.asarray(self.sides.mean(axis=1))


def posterior_of(space: bd.WidthSpace, indices: npt.NDArray[np.int64], sides: Float) -> Float:
    """(16384,) posterior means of all networks."""
    lattice = Lattice(space.variables)
    posterior = Posterior(lattice, BETWEEN_SUPERNETS)
    posterior.fit(indices, sides.mean(axis=1), binomial_deviation(sides, HELD_OUT))
    return posterior.predict(lattice.all())[0]


def read(space: bd.WidthSpace) -> list[Scored]:
    found: dict[tuple[str, ...], list[dict[str, str]]] = {}
    with SCORES.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found.setdefault(identity(row), []).append(row)
    result = []
    for rows in found.values():
        indices = np.array([[int(d) - 1 for d in row["arch"]] for row in rows])
        sides = np.array([[float(row["left"]), float(row["right"])] for row in rows])
        losses = np.array([[float(row["left_loss"]), float(row["right_loss"])] for row in rows])
        first = rows[0]
        result.append(
            Scored(
                first["variant"], int(first["seed"]), first["cost"], sides, losses,
                posterior_of(space, indices, sides),
            )
        )  # fmt: skip
    return result


def from_book(space: bd.WidthSpace, book: ScoreBook) -> Scored:
    """The same networks' scores in a book of all of them: the default at full cost."""
    indices = networks(space)
    rows = indices @ LEVELS ** np.arange(indices.shape[1] - 1, -1, -1)
    sides = book.sides(rows, HELD_OUT)
    about = book.about
    return Scored(
        "default", about["seed"], f"{about['cost']:.0f}", sides, book.loss[rows].astype(np.float64),
        posterior_of(space, indices, sides),
    )  # fmt: skip


def beyond_size(space: bd.WidthSpace, sides: Float) -> Float:
    """(105, 2): what is left of each side's scores without their straight line in mean log width."""
    logs = np.log(Lattice(space.variables).widths(networks(space))).mean(axis=1)
    line = np.stack([np.ones_like(logs), logs], axis=1)
    return np.asarray(sides - line @ np.linalg.lstsq(line, sides, rcond=None)[0])


def tau(a: Float, b: Float) -> float:
    return float(kendalltau(a, b).statistic)


def mean(values: list[float], digits: int = 2) -> str:
    if not values:
        return "–"
    spread = f" ± {np.std(values, ddof=1) / np.sqrt(len(values)):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def report(data: Path, books: Path | None, judged: bool) -> None:
    """A Markdown table by cost and variant."""
    space = bd.WidthSpace.from_model(bd.build_model(MODEL, num_classes=10), (3, 32, 32), levels=LEVELS)
    everything = Lattice(space.variables).all()
    archs = [arch_of(row) for row in everything]
    macs = space.macs(Lattice(space.variables).widths(everything)).astype(np.float64)
    kept = [ScoreBook.load(path) for path in sorted(books.glob("*.npz"))] if books else []
    all_scored = read(space) + [from_book(space, book) for book in kept if book.about["rule"] == RULE]
    others = [
        posterior_of(space, everything, book.sides(np.arange(len(everything)), HELD_OUT))
        for book in kept
        if book.about["rule"] == "sandwich"
    ]
    truth: dict[str, float] = {}
    if judged:
        with (data / "channel_bench_macro_mobilenet.csv").open(encoding="utf-8") as file:
            truth = {row["arch"]: float(row["acc_mean"]) for row in csv.DictReader(file)}
    known = np.array([arch in truth for arch in archs])
    values = np.array([truth.get(arch, np.nan) for arch in archs])
    wide = known & (everything > 0).all(axis=1)
    budgets = np.quantile(macs, np.arange(1, 10) / 10)

    def regret(scores: Float) -> float:
        rows = [np.flatnonzero(known & (macs <= budget)) for budget in budgets]
        return float(np.mean([values[r].max() - values[r[scores[r].argmax()]] for r in rows]))

    header = [
        "cost", "variant", "seeds", "left to right", "beyond size", "seeds: scores",
        "seeds: posterior", "others", "spread",
        "top-1", *(["Kendall, posterior", "no level 1", "regret"] if judged else []),
    ]  # fmt: skip
    print("| " + " | ".join(header) + " |", "|---" * len(header) + "|", sep="\n")
    for cost, name in dict.fromkeys((one.cost, one.variant) for one in all_scored):
        group = [one for one in all_scored if (one.cost, one.variant) == (cost, name)]
        pairs = list(combinations(group, 2))
        cells = [
            cost, name, str(len(group)),
            mean([tau(one.sides[:, 0], one.sides[:, 1]) for one in group]),
            mean([tau(*beyond_size(space, one.sides).T) for one in group]),
            mean([tau(a.scores, b.scores) for a, b in pairs]),
            mean([tau(a.everywhere, b.everywhere) for a, b in pairs]),
            mean([tau(one.everywhere, other) for one in group for other in others]),
            mean([float(one.scores.std()) for one in group]),
            mean([float(one.scores.mean()) for one in group], 1),
        ]  # fmt: skip
        if judged:
            cells += [
                mean([tau(one.everywhere[known], values[known]) for one in group], 3),
                mean([tau(one.everywhere[wide], values[wide]) for one in group], 3),
                mean([regret(one.everywhere) for one in group], 3),
            ]
        print("| " + " | ".join(cells) + " |")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["run", "report"])
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--cost", type=float, default=80_000.0, help="full-width passes of 16x16 images")
    parser.add_argument("--work", type=Path, help="folder for checkpoints; default beside the unpacked data")
    parser.add_argument("--data", help="folder with CIFAR-10 and the tables; default $BCNET_SHARED_DATA")
    parser.add_argument("--books", type=Path, help="score books: full supernets of sandwich, to agree with")
    parser.add_argument("--judge", action="store_true", help="then open the published accuracies")
    options = parser.parse_args(arguments)
    data = shared_data(options.data)
    if options.action == "report":
        report(data, options.books, options.judge)
        return 0
    torch.set_num_threads(1)
    from bcnet_deploy.data.archives import cache_folder

    work = options.work or cache_folder() / "variants"
    for seed in map(int, options.seeds.split(",")):
        for name in options.variants.split(","):
            size = VARIANTS[name].size
            splits = load_data(str(data / "cifar10-imagefolder.tar.xz"), (3, size, size))
            run_one(name, seed, options.cost, splits, work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
