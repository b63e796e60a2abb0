"""Trains a supernet of :mod:`bm_ranking` and scores *every* network of its space, on a GPU.

    python benchmarks/score_book.py make --rule sandwich --seed 3 --device cuda --work WORK --out BOOKS

A book holds, for each of the 16,384 networks and each side, how many of every hundred held-out images were
right. A search that asks for scores then looks them up, as if it had run the supernet: searches can be
repeated and compared without the weights. ``BOOKS/<run>.npz`` is the book, ``BOOKS/<run>.json`` says what
was trained; ``score_book.py rank --out BOOKS`` adds the 640 vectors' scores to those of
:mod:`bm_ranking`. Half an hour of a CPU's core for the scores alone; a minute of a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from bm_ranking import (
    CPU,
    LEVELS,
    RECIPE,
    RESULTS,
    RULES,
    joined,
    shared_data,
    sides_of,
    trained,
    vectors,
)  # fmt: skip
from decoded import read_decoded
from prefix_scores import PrefixScorer
from ranking_runs import add_run
from torch import nn
from torch.nn import functional as F

from bcnet_deploy import files
from bcnet_deploy.data import load_data
from bcnet_deploy.search import SearchResult
from bcnet_deploy.space.widths import WidthSpace
from bcnet_deploy.train.evaluate import binomial_deviation
from bcnet_deploy.train.memory import memory_kept

Int64 = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]
ARCHIVE = "cifar10-imagefolder.tar.xz"
PREFIXES = ((0,), (0, 1), (0, 1, 2), (0, 1, 2, 3, 4), (0, 1, 2, 3, 4, 5), (0, 1, 2, 3, 4, 5, 6))
"""What :class:`SupernetEvaluator` says of this network: a search draws networks that share these."""
GROUP = 100
"""Images whose right answers are counted together, every other one by itself."""


def everything(variables: int, levels: int = LEVELS) -> Int64:
    """(levels**variables, variables) levels, 1 the narrowest, in the order of the books."""
    return np.array(list(product(range(1, levels + 1), repeat=variables)), dtype=np.int64)


@dataclass(frozen=True)
class ScoreBook:
    """Right answers of every network.

    Attributes:
        right: (N, sides, groups, 2) of each :data:`GROUP` held-out images, of every other one.
        seen: likewise of training images without augmentation; no groups where none were asked.
        loss: (N, sides) mean cross-entropy on the held-out images.
        about: what was trained: rule, seed, cost, config.
    """

    right: npt.NDArray[np.uint8]
    seen: npt.NDArray[np.uint8]
    loss: npt.NDArray[np.float32]
    about: dict[str, Any]

    @property
    def images(self) -> int:
        """Held out."""
        return int(self.right.shape[2]) * GROUP

    def sides(self, rows: Int64, images: int) -> Float:
        """(n,) rows of the book -> (n, sides) top-1 in percent on the first images."""
        groups = -(-images // GROUP)
        return np.asarray(self.right[rows, :, :groups].sum(axis=(2, 3)) * 100.0 / (groups * GROUP))

    def halves(self, rows: Int64) -> Float:
        """(n, 2) top-1, mean of the sides, on every other image and on the rest."""
        return np.asarray(self.right[rows].mean(axis=1).sum(axis=1) * 200.0 / self.images)

    def save(self, path: Path) -> None:
        with files.replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, right=self.right, seen=self.seen, loss=self.loss)
        files.write_json(path.with_suffix(".json"), self.about)

    @classmethod
    def load(cls, path: Path) -> ScoreBook:
        with np.load(path) as data:
            about = json.loads(path.with_suffix(".json").read_text())
            return cls(data["right"], data["seen"], data["loss"], about)


def passes_of(result: SearchResult, sides: int, images: int, recalibration: int) -> int:
    """Image passes of one search, for scores of at most so many images and for statistics."""
    scored = result.evaluations * images if result.images is None else result.images
    return sides * (scored + result.evaluations * recalibration)


class BookAccuracy:
    """A book as the accuracy of a search: what :class:`SupernetEvaluator` says of the same supernet.

    Args:
        book: of ``space``.
        space: whose widths are asked for.
        recalibration: images for batch-norm statistics, counted as passes.

    Attributes:
        image_passes: that a supernet would have taken, on all sides.
    """

    shares_weights = True
    prefixes = PREFIXES

    def __init__(self, book: ScoreBook, space: WidthSpace, recalibration: int = 512) -> None:
        self.book, self.images, self.image_passes = book, book.images, 0
        self._recalibration, self._sides = recalibration, book.right.shape[1]
        self._full = space.full
        self._seen: dict[int, int] = {}

    def __call__(self, widths: npt.ArrayLike) -> Float:
        return self.on(widths, self.images)

    def on(self, widths: npt.ArrayLike, images: int) -> Float:
        rows = self.rows(widths)
        for row in rows.tolist():
            before = self._seen.get(row, -self._recalibration)
            self._seen[row] = max(images, before)
            self.image_passes += self._sides * max(images - before, 0)
        return np.asarray(self.book.sides(rows, images).mean(axis=1))

    def noise(self, widths: npt.ArrayLike, images: int | None = None) -> Float:
        """(n,) binomial standard deviations in points, as the package's evaluator gives them."""
        count = -(-(images or self.images) // GROUP) * GROUP
        return binomial_deviation(self.book.sides(self.rows(widths), count), count)

    def passes_of(self, result: SearchResult) -> int:
        """Images through the network, on all sides, for the statistics and scores of one search."""
        return passes_of(result, self._sides, self.images, self._recalibration)

    def rows(self, widths: npt.ArrayLike) -> Int64:
        levels = np.atleast_2d(np.asarray(widths, dtype=np.int64)) * LEVELS // self._full
        weights = LEVELS ** np.arange(len(self._full) - 1, -1, -1)
        return np.asarray((levels - 1) @ weights)


@torch.no_grad()
def right_answers(scorer: PrefixScorer) -> Iterator[tuple[int, int, torch.Tensor, torch.Tensor]]:
    """(row of the book, side, right, loss) of every network: right (images,) bool, loss (images,).

    The last variable is the width of the features that the classifier reads. Each feature has a filter and a
    norm of its own, so those of a narrow layer are among those of the widest.
    """
    space, classifier = scorer.supernet.space, scorer.supernet.model.classifier
    assert isinstance(classifier, nn.Linear), "the last stage of this network"
    most = int(space.full[-1])
    for begun, levels in enumerate(everything(len(space.full) - 1)):
        widths = np.array([*levels, LEVELS]) * space.full // LEVELS
        for side_at, side in enumerate(scorer.sides):
            features = scorer.features(widths, side)
            for last in range(1, LEVELS + 1):
                count = most * last // LEVELS
                kept = slice(0, count) if side == "left" else slice(most - count, most)
                logits = F.linear(features[:, kept], classifier.weight[:, kept], classifier.bias).float()
                loss = F.cross_entropy(logits, scorer.labels, reduction="none")
                yield begun * LEVELS + last - 1, side_at, logits.argmax(1) == scorer.labels, loss


def score_everything(scorer: PrefixScorer, held_out: int, about: dict[str, Any]) -> ScoreBook:
    """The book of a scorer whose first ``held_out`` images are held out and the rest seen in training."""
    count = LEVELS ** len(scorer.supernet.space.full)
    groups = len(scorer.labels) // GROUP
    sides = len(scorer.sides)
    device = scorer.labels.device
    right = torch.zeros(count, sides, groups, 2, dtype=torch.uint8, device=device)
    losses = torch.zeros(count, sides, device=device)
    with memory_kept(device):
        for row, side, correct, loss in right_answers(scorer):
            # (groups, 50, 2): every other image of a hundred
            right[row, side] = correct[: groups * GROUP].view(groups, GROUP // 2, 2).sum(1).to(torch.uint8)
            losses[row, side] = loss[:held_out].mean()
    own = held_out // GROUP
    return ScoreBook(
        right[:, :, :own].cpu().numpy(), right[:, :, own:].cpu().numpy(), losses.cpu().numpy(), about
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["make", "rank"])
    parser.add_argument("--rule", choices=RULES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--set", nargs="*", default=[], help="settings other than the recipe's, as ema_decay=0.999"
    )
    parser.add_argument("--name", help="of the variant, where --set is given")
    parser.add_argument("--cost", type=float, default=600_000.0)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--recalibration", type=int, default=512)
    parser.add_argument("--held-out", type=int, default=2000)
    parser.add_argument("--seen", type=int, default=0, help="training images to score too")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", help="folder with CIFAR-10; default $BCNET_SHARED_DATA")
    parser.add_argument(
        "--decoded", type=Path, help="images as bm_trained keeps them, in place of the archive"
    )
    parser.add_argument("--work", type=Path, help="folder of checkpoints")
    parser.add_argument("--out", type=Path, required=True, help="folder of books")
    options = parser.parse_args(arguments)
    if options.action == "rank":
        for path in sorted(options.out.glob("*.npz")):
            add_run(RESULTS, run_of(ScoreBook.load(path), vectors(shared_data(options.data))))
        return 0
    if not options.rule or not options.work:
        parser.error("make needs --rule and --work")
    make(options)
    return 0


def run_of(book: ScoreBook, archs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """A run of :mod:`bm_ranking`: the scores of its (arch, draw) vectors."""
    weights = LEVELS ** np.arange(len(archs[0][0]) - 1, -1, -1)
    rows = np.array([[int(digit) - 1 for digit in arch] for arch, _ in archs]) @ weights
    sides, halves = book.sides(rows, book.images), book.halves(rows)
    scores = [
        {
            "arch": arch, "draw": draw, "score": float(by_side.mean()), "loss": float(book.loss[row].mean()),
            "accuracy_by_side": by_side.tolist(), "loss_by_side": book.loss[row].tolist(),
            "accuracy_by_half": by_half.tolist(),
        }
        for (arch, draw), row, by_side, by_half in zip(archs, rows, sides, halves, strict=True)
    ]  # fmt: skip
    about = {key: value for key, value in book.about.items() if key not in ("name", "changes")}
    return {
        **about, "augment": book.about["config"]["augment"], "min_level": 0,
        "held_out_loss": float(np.mean([row["loss"] for row in scores])),
        "held_out_accuracy": float(np.mean([row["score"] for row in scores])), "scores": scores,
    }  # fmt: skip


def make(options: argparse.Namespace) -> None:
    """Train a supernet and write its book."""
    torch.set_num_threads(1)
    device = torch.device(options.device)
    data = shared_data(options.data)
    size = (3, options.size, options.size)
    splits = read_decoded(options.decoded) if options.decoded else load_data(str(data / ARCHIVE), size)
    changes = {key: json.loads(value) for key, _, value in (one.partition("=") for one in options.set)}
    name = f"{options.name or options.rule}_seed{options.seed}_cost{options.cost:.0f}_size{options.size}"
    supernet, config, outcome = trained(
        options.rule, options.seed, options.cost,
        {**RECIPE, "checkpoint_every": 4000, "cuda_graphs": True, **changes}, splits,
        options.work / name, device,
    )  # fmt: skip
    calibration, _ = joined(splits.train, splits, options.recalibration, device)
    images, labels = joined(splits.val, splits, options.held_out, device)
    if options.seen:
        # Other training images than those of the statistics: a draw's first ones are these.
        seen, answers = joined(splits.train, splits, options.recalibration + options.seen, device)
        images = torch.cat([images, seen[options.recalibration :]])
        labels = torch.cat([labels, answers[options.recalibration :]])
    chunk = 64 if device == CPU else len(labels)
    about = {
        "name": name, "rule": options.rule, "seed": options.seed, "cost": options.cost, "size": options.size,
        "changes": changes, "steps": outcome.steps, "cost_spent": outcome.cost,
        "train_seconds": round(outcome.seconds, 1), "train_loss": outcome.loss, "config": config.to_dict(),
        "sides": list(sides_of(options.rule)), "recalibration_images": options.recalibration,
        "held_out_images": options.held_out, "torch": torch.__version__, "device": options.device,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }  # fmt: skip
    scorer = PrefixScorer(supernet, calibration, images, labels, sides_of(options.rule), chunk)
    options.out.mkdir(parents=True, exist_ok=True)
    score_everything(scorer, options.held_out, about).save(options.out / f"{name}.npz")
    print(f"{name}: book written", flush=True)


if __name__ == "__main__":
    sys.exit(main())
