"""Accuracy of networks, and of the supernet's sub-networks: left and right, statistics of their own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bcnet_deploy.data import DataSplits, PlainBatches
from bcnet_deploy.errors import EvaluationError, TaskError
from bcnet_deploy.nn import Supernet, recalibrate
from bcnet_deploy.nn.recalibration import keeps_other_statistics
from bcnet_deploy.tasks import Classification, Task, as_float, checked_score
from bcnet_deploy.train.chain import Chain, Stage, Widths, batch_norms, stages_of
from bcnet_deploy.train.distributed import Ranks
from bcnet_deploy.train.memory import memory_kept
from bcnet_deploy.train.samplers import SIDES
from bcnet_deploy.train.trial import runs_in_channels_last

STATISTICS_IMAGES, STATISTICS_BATCHES = 512, 4
"""Training images of the batch-norm statistics of a score: so many, and at least so many batches. With more,
scores change by less than their own noise, and take up to twice as long (docs/search.md)."""

Batch = tuple[torch.Tensor, torch.Tensor]
Floats = npt.NDArray[np.float64]


def image_count(batches: Sequence[Batch]) -> int:
    """Images over all the batches, without reading them where the batches know."""
    if isinstance(batches, PlainBatches):
        return batches.image_count
    return sum(len(labels) for _, labels in batches)


def _images_of(batch: torch.Tensor | Batch) -> torch.Tensor:
    return batch if isinstance(batch, torch.Tensor) else batch[0]


def score_batches(
    splits: DataSplits, batch_size: int, device: torch.device, *, limit: int | None, channels_last: bool
) -> tuple[PlainBatches, PlainBatches]:
    """What a :class:`SupernetEvaluator` runs: training images for statistics, and held-out ones.

    Args:
        batch_size: training images a batch; held-out ones take two at once.
        limit: held-out images; None: all.
        channels_last: memory order of the images.
    """
    count = max(STATISTICS_IMAGES, STATISTICS_BATCHES * batch_size)
    train = PlainBatches(splits.train, splits, batch_size, device, limit=count, channels_last=channels_last)
    val = PlainBatches(
        splits.val, splits, 2 * batch_size, device, limit=limit, channels_last=channels_last, mixed=True
    )
    return train, val


@torch.no_grad()
def totals_of(
    network: nn.Module,
    batches: Sequence[Batch],
    task: Task,
    context: AbstractContextManager[Any] | None = None,
) -> torch.Tensor:
    """(K + 1,) on the device: the task's K figures and its loss, summed; nothing waits for the device."""
    totals = torch.zeros(1, dtype=torch.float64, device=batches[0][0].device)
    for images, targets in batches:  # a sequence that is read lazily is read once
        with context or nullcontext():
            outputs = network(images)
        totals = totals + _figures(task, outputs, targets)
    return totals


def _figures(task: Task, outputs: Any, targets: torch.Tensor) -> torch.Tensor:
    """(K + 1,): the task's K figures and its loss, summed over the batch."""
    outputs = as_float(outputs)
    figures = task.measure(outputs, targets).double(), task.loss_sum(outputs, targets).double().view(1)
    return torch.cat(figures)


def evaluate_network(
    network: nn.Module, batches: Sequence[Batch], task: Task | None = None
) -> tuple[float, float]:
    """(metric, mean loss) of a network, in evaluation mode; by default top-1 in percent and cross-entropy.

    Raises:
        EvaluationError: there are no batches.
        TaskError: the metric or the loss is no finite number.
    """
    task = task or Classification()
    count = image_count(batches)
    if not count:
        raise EvaluationError("evaluation needs at least one image; given: none")
    training = network.training
    network.eval()
    try:
        totals = totals_of(network, batches, task).cpu()
    finally:
        network.train(training)
    loss = float(totals[-1]) / count
    if not math.isfinite(loss):
        raise TaskError(
            f"the loss of task {task.name!r} is {loss} on {count} held-out images; its loss_sum must give a "
            "finite number for what the network makes of them"
        )
    return checked_score(task, totals[:-1], count), loss


Statistics = list[tuple[torch.Tensor, torch.Tensor]]
"""Mean and variance of each batch norm."""


@dataclass
class _Progress:
    """What this process has of a vector and side: sums (K + 1,) by held-out batch, and statistics."""

    by_batch: list[torch.Tensor] = field(default_factory=list)
    statistics: Statistics | None = None


def binomial_deviation(percent: Floats, images: int) -> Floats:
    """(N, sides) percent of right answers -> (N,) standard deviations in points of the mean of the sides.

    One right and one wrong answer are added, so that no number of images makes a score exact. The sides count
    as independent readings.
    """
    share = (percent / 100 * images + 1) / (images + 2)
    return np.asarray(100.0 * np.sqrt((share * (1 - share) / images).mean(axis=1) / percent.shape[1]))


class SupernetEvaluator:
    """The metric of width vectors (top-1 in percent): the mean of left and right, each side recalibrated.

    Every vector is run once on every image: later calls answer from memory. Vectors of one call that begin
    alike share what they begin with, so that a vector costs less among many. With several ranks each takes a
    share of the new vectors, so all of them must call with the same ones. The supernet's weights, statistics
    and active slice are the same afterwards.

    Args:
        supernet: trained; on the batches' device.
        train_batches: images (B, C, H, W) for batch-norm statistics, or (images, labels); see
            :func:`score_batches`.
        val_batches: (images, labels), held out of the training data. To ask for a part of the images, their
            order must have nothing to do with their class.
        task: its metric and loss; default: classification.
        sides: sides to average; ``("left",)`` for a supernet trained on left slices alone.
        amp: ``off`` or ``bf16``.
        progress: called with (vectors done, vectors of this call).
        shares_weights: whether the weights were trained for all widths at once: a search then takes what it
            sees for effects of this supernet, which hold for networks in general in part. Otherwise they are
            scores of networks before training.

    Attributes:
        images: held out.
        image_passes: images that went through the network in this process, on either side, for statistics or
            scores. Those of shared stages count as if each vector had run them.
        noise: see :meth:`binomial_noise`; absent for tasks other than classification.
        bounds: the least and the largest metric that there can be; None: any number.

    Raises:
        EvaluationError: there are no batches.
    """

    def __init__(
        self,
        supernet: Supernet,
        train_batches: Sequence[torch.Tensor | Batch],
        val_batches: Sequence[Batch],
        *,
        task: Task | None = None,
        sides: Sequence[str] = SIDES,
        amp: str = "off",
        ranks: Ranks | None = None,
        progress: Callable[[int, int], None] | None = None,
        shares_weights: bool = True,
    ) -> None:
        if not len(train_batches) or not len(val_batches):
            raise EvaluationError(
                "evaluation needs training and held-out batches; "
                f"given: {len(train_batches)} and {len(val_batches)}"
            )
        self.supernet = supernet
        self.task = task or Classification()
        self.train_batches = train_batches
        self.val_batches = val_batches
        self.val_count = self.images = image_count(val_batches)
        self.image_passes = 0
        self.bounds = (0.0, 100.0) if self.task.unit == "%" else None
        self.shares_weights, self.before_training = shares_weights, not shares_weights
        self.side_names = tuple(sides)
        self.ranks = ranks or Ranks()
        if isinstance(self.task, Classification):
            self.noise = self.binomial_noise
        self._amp = amp
        self._progress = progress
        self._known: dict[Widths, dict[int, Floats]] = {}
        self._begun: dict[tuple[Widths, str], _Progress] = {}
        self._stages: tuple[Stage, ...] | None = None

    @property
    def evaluations(self) -> int:
        """Distinct vectors that were run on data."""
        return len(self._known)

    @property
    def prefixes(self) -> tuple[tuple[int, ...], ...]:
        """Variables that each stage depends on which vectors of one call can share; shallow ones first."""
        with _Untouched(self.supernet):
            return tuple(stage.variables for stage in self._shared_stages())

    def __call__(self, widths: npt.ArrayLike) -> Floats:
        """(N, L) widths -> (N,) of the metric. Raises :class:`bcnet_deploy.errors.WidthError`."""
        return np.asarray(self.sides(widths).mean(axis=1))

    def on(self, widths: npt.ArrayLike, images: int) -> Floats:
        """(N, L) widths -> (N,) of the metric on the first held-out batches that hold ``images`` images."""
        return np.asarray(self._results(widths, images)[:, 0].mean(axis=1))

    def binomial_noise(self, widths: npt.ArrayLike, images: int | None = None) -> Floats:
        """(N, L) widths -> (N,) standard deviations in points of what a call, or :meth:`on`, returns.

        Binomial, of shares to which one right and one wrong answer are added, so that no number of images
        makes a score exact. The sides count as independent readings.
        """
        return binomial_deviation(self._results(widths, images)[:, 0], self._batches_of(images)[1])

    def sides(self, widths: npt.ArrayLike) -> Floats:
        """(N, L) widths -> (N, number of sides) of the metric."""
        return self._results(widths)[:, 0]

    def losses(self, widths: npt.ArrayLike) -> Floats:
        """(N, L) widths -> (N, number of sides) mean loss on the held-out batches."""
        return self._results(widths)[:, 1]

    def agreement(self) -> tuple[float, int]:
        """How alike left and right rank the vectors that were run on all images: Kendall's tau, and how many.

        Two readings of the same networks: what they do not agree in says nothing of the networks. NaN with
        one side, or where nothing can be ranked.
        """
        from scipy.stats import kendalltau

        rows = [
            known[len(self.val_batches)][0]
            for known in self._known.values()
            if len(self.val_batches) in known
        ]
        if len(self.side_names) != 2 or len(rows) < 2:
            return float("nan"), len(rows)
        left, right = np.array(rows).T
        return float(kendalltau(left, right).statistic), len(rows)

    def _results(self, widths: npt.ArrayLike, images: int | None = None) -> Floats:
        """(N, 2, sides): metric and loss on the first held-out batches."""
        rows = [tuple(row.tolist()) for row in self.supernet.space.check(widths)]
        batches, count = self._batches_of(images)
        new = [row for row in dict.fromkeys(rows) if batches not in self._known.get(row, {})]
        if new:
            found = torch.zeros(len(new), 2, len(self.side_names), dtype=torch.float64)
            with _Untouched(self.supernet), memory_kept(self.val_batches[0][0].device):
                chain = Chain(self.supernet, self._shared_stages())
                new = chain.order(new)
                mine = np.array_split(np.arange(len(new)), self.ranks.world)[self.ranks.rank].tolist()
                self._run([new[at] for at in mine], batches, chain)
            for at in mine:
                for column, side in enumerate(self.side_names):
                    total = torch.stack(self._begun[new[at], side].by_batch[:batches]).sum(dim=0).cpu()
                    found[at, 0, column] = checked_score(self.task, total[:-1], count)
                    found[at, 1, column] = total[-1] / count
                    if batches == len(self.val_batches):
                        del self._begun[new[at], side]
            found = self.ranks.total(found.to(self.val_batches[0][0].device)).cpu()
            for row, result in zip(new, found.numpy(), strict=True):
                self._known.setdefault(row, {})[batches] = result
        return np.stack([self._known[row][batches] for row in rows])

    def _batches_of(self, images: int | None) -> tuple[int, int]:
        """Number of the first held-out batches that hold so many images, and how many these hold."""
        count = 0
        if images is not None and images < self.val_count:
            for index in range(len(self.val_batches)):
                count += len(self.val_batches[index][1])
                if count >= images:
                    return index + 1, count
        return len(self.val_batches), self.val_count

    def _shared_stages(self) -> tuple[Stage, ...]:
        """Found once, by runs that change the supernet's statistics."""
        if self._stages is None:
            alone = keeps_other_statistics(self.supernet.model)
            with self._context():
                images = _images_of(self.train_batches[0])
                self._stages = () if alone else stages_of(self.supernet, images)
        return self._stages

    def _run(self, rows: list[Widths], batches: int, chain: Chain) -> None:
        """Bring vectors, in the chain's order, to so many held-out batches."""
        for side in self.side_names:
            for row in rows:
                self._begun.setdefault((row, side), _Progress())
        tell = _Teller(len(rows), self._work(rows, batches), self._progress)
        for side in self.side_names:
            if chain.stages:
                self._calibrate(
                    chain, [r for r in rows if self._begun[r, side].statistics is None], side, tell
                )
                self._score(chain, rows, side, batches, tell)
                continue
            for row in rows:
                self.supernet.set_active(np.array(row, dtype=np.int64), side)
                with self._context():
                    recalibrate(self.supernet, map(_images_of, self.train_batches))
                self.image_passes += sum(len(_images_of(batch)) for batch in self.train_batches)
                tell.advance(len(self.train_batches))
                self._score(chain, [row], side, batches, tell)

    def _work(self, rows: list[Widths], batches: int) -> int:
        """Batches that the network will run."""
        begun = [self._begun[row, side] for row in rows for side in self.side_names]
        statistics = sum(one.statistics is None for one in begun) * len(self.train_batches)
        return statistics + sum(max(batches - len(one.by_batch), 0) for one in begun)

    def _calibrate(self, chain: Chain, rows: list[Widths], side: str, tell: _Teller) -> None:
        """Batch-norm statistics of each vector, averaged over the training batches from nothing.

        As :func:`bcnet_deploy.nn.recalibrate` does, but all vectors see a batch, then the next one.
        """
        norms = batch_norms(self.supernet.model)
        momenta = [norm.momentum for norm in norms]
        averages: list[Statistics] = [[] for _ in rows]
        self.supernet.eval()
        try:
            for index, batch in enumerate(self.train_batches if rows else ()):
                images = _images_of(batch)
                for norm in norms:
                    norm.training, norm.momentum = True, 1 / (index + 1)
                chain.start()
                for at, row in enumerate(rows):

                    def before(skipped: set[int], at: int = at) -> None:
                        for i in set(range(len(norms))) - skipped:
                            if averages[at]:
                                _write(norms[i], averages[at][i])
                            else:
                                norms[i].reset_running_stats()

                    def after(skipped: set[int], at: int = at) -> None:
                        # What was not run again is as of the vector before: one copy serves both.
                        averages[at] = [
                            averages[at - 1][i] if i in skipped else _read(norm)
                            for i, norm in enumerate(norms)
                        ]

                    self._pass(chain, row, side, images, before, after)
                    tell.advance()
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
        for row, statistics in zip(rows, averages, strict=True):
            self._begun[row, side].statistics = statistics

    def _score(self, chain: Chain, rows: list[Widths], side: str, batches: int, tell: _Teller) -> None:
        """Run each vector on the held-out batches that it has not seen."""
        norms = batch_norms(self.supernet.model)
        self.supernet.eval()
        for index in range(batches):
            todo = [row for row in rows if len(self._begun[row, side].by_batch) <= index]
            if not todo:
                continue
            images, targets = self.val_batches[index]
            chain.start()
            for row in todo:
                begun = self._begun[row, side]

                def before(skipped: set[int], statistics: Statistics | None = begun.statistics) -> None:
                    if statistics is not None:
                        for i in set(range(len(norms))) - skipped:
                            _write(norms[i], statistics[i])

                begun.by_batch.append(
                    _figures(self.task, self._pass(chain, row, side, images, before), targets)
                )
                tell.advance()

    def _pass(
        self, chain: Chain, row: Widths, side: str, images: torch.Tensor,
        *around: Callable[[set[int]], None],
    ) -> Any:  # fmt: skip
        self.supernet.set_active(np.array(row, dtype=np.int64), side)
        self.image_passes += len(images)
        with torch.no_grad(), self._context():
            return chain.run(row, images, *around)

    def _context(self) -> AbstractContextManager[Any]:
        if self._amp == "off":
            return nullcontext()
        return torch.autocast(self.val_batches[0][0].device.type, torch.bfloat16)


class _Teller:
    """Tells how many vectors are done, by the share of all batches that were run."""

    def __init__(self, vectors: int, batches: int, progress: Callable[[int, int], None] | None) -> None:
        self._vectors, self._batches, self._progress = vectors, batches, progress
        self._run = 0

    def advance(self, batches: int = 1) -> None:
        before = self._run * self._vectors // self._batches
        self._run += batches
        after = self._run * self._vectors // self._batches
        if after > before and self._progress is not None:
            self._progress(after, self._vectors)


def _read(norm: _BatchNorm) -> tuple[torch.Tensor, torch.Tensor]:
    assert norm.running_mean is not None and norm.running_var is not None, "it keeps statistics"
    return norm.running_mean.clone(), norm.running_var.clone()


def _write(norm: _BatchNorm, statistics: tuple[torch.Tensor, torch.Tensor]) -> None:
    assert norm.running_mean is not None and norm.running_var is not None, "it keeps statistics"
    norm.running_mean.copy_(statistics[0])
    norm.running_var.copy_(statistics[1])


def calibrated_teacher(
    supernet: Supernet, splits: DataSplits, batch_size: int, device: torch.device
) -> nn.Module:
    """The supernet's full width as a plain network with statistics of its own, in evaluation mode."""
    network = supernet.extract(supernet.space.full).to(device)
    batches = PlainBatches(
        splits.train, splits, batch_size, device, limit=20 * batch_size,
        channels_last=runs_in_channels_last(network, splits.input_size, device),
    )  # fmt: skip
    recalibrate(network, map(_images_of, batches))
    return network.eval()


class _Untouched(AbstractContextManager[None]):
    """Puts a supernet's buffers, mode and active slice back."""

    def __init__(self, supernet: Supernet) -> None:
        self._supernet = supernet

    def __enter__(self) -> None:
        self._active = self._supernet.active
        self._training = self._supernet.training
        self._buffers = {name: buffer.clone() for name, buffer in self._supernet.named_buffers()}

    def __exit__(self, *exception: object) -> None:
        with torch.no_grad():
            for name, buffer in self._supernet.named_buffers():
                buffer.copy_(self._buffers[name])
        self._supernet.train(self._training)
        self._supernet.set_active(*self._active)
