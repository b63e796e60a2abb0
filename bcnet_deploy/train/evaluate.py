"""Accuracy of networks, and of the supernet's sub-networks: left and right, statistics of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from bcnet_deploy.data import DataSplits, PlainBatches
from bcnet_deploy.errors import EvaluationError
from bcnet_deploy.nn import Supernet, recalibrate
from bcnet_deploy.tasks import Classification, Task, as_float, checked_score
from bcnet_deploy.train.distributed import Ranks
from bcnet_deploy.train.samplers import SIDES
from bcnet_deploy.train.trial import runs_in_channels_last

Batch = tuple[torch.Tensor, torch.Tensor]
Floats = npt.NDArray[np.float64]


def image_count(batches: Sequence[Batch]) -> int:
    """Images over all the batches, without reading them where the batches know."""
    if isinstance(batches, PlainBatches):
        return batches.image_count
    return sum(len(labels) for _, labels in batches)


def _images_of(batch: torch.Tensor | Batch) -> torch.Tensor:
    return batch if isinstance(batch, torch.Tensor) else batch[0]


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
        outputs = as_float(outputs)
        figures = task.measure(outputs, targets).double(), task.loss_sum(outputs, targets).double().view(1)
        totals = totals + torch.cat(figures)
    return totals


def evaluate_network(
    network: nn.Module, batches: Sequence[Batch], task: Task | None = None
) -> tuple[float, float]:
    """(metric, mean loss) of a network, in evaluation mode; by default top-1 in percent and cross-entropy.

    Raises:
        EvaluationError: there are no batches.
        TaskError: the metric is no finite number.
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
    return checked_score(task, totals[:-1], count), float(totals[-1]) / count


class SupernetEvaluator:
    """The metric of width vectors (top-1 in percent): the mean of left and right, each side recalibrated.

    Every vector is run once: later calls answer from memory. With several ranks each takes a share of
    the new vectors, so all of them must call with the same ones. The supernet's weights, statistics
    and active slice are the same afterwards.

    Args:
        supernet: trained; on the batches' device.
        train_batches: images (B, C, H, W) for batch-norm statistics, about 20 batches, or (images, labels).
        val_batches: (images, labels), held out of the training data.
        task: its metric and loss; default: classification.
        sides: sides to average; ``("left",)`` for a supernet trained on left slices alone.
        amp: ``off`` or ``bf16``.
        progress: called with (vectors done, vectors of this call).

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
        self.val_count = image_count(val_batches)
        self.side_names = tuple(sides)
        self.ranks = ranks or Ranks()
        self._amp = amp
        self._progress = progress
        self._known: dict[tuple[int, ...], Floats] = {}

    @property
    def evaluations(self) -> int:
        """Distinct vectors that were run on data."""
        return len(self._known)

    def __call__(self, widths: npt.ArrayLike) -> Floats:
        """(N, L) widths -> (N,) of the metric. Raises :class:`bcnet_deploy.errors.WidthError`."""
        return np.asarray(self.sides(widths).mean(axis=1))

    def sides(self, widths: npt.ArrayLike) -> Floats:
        """(N, L) widths -> (N, number of sides) of the metric."""
        return self._results(widths)[:, 0]

    def losses(self, widths: npt.ArrayLike) -> Floats:
        """(N, L) widths -> (N, number of sides) mean loss on the held-out batches."""
        return self._results(widths)[:, 1]

    def _results(self, widths: npt.ArrayLike) -> Floats:
        """(N, 2, sides): metric and loss."""
        rows = [tuple(row.tolist()) for row in self.supernet.space.check(widths)]
        new = [row for row in dict.fromkeys(rows) if row not in self._known]
        if new:
            mine = list(range(self.ranks.rank, len(new), self.ranks.world))
            totals = []
            with _Untouched(self.supernet):
                for done, index in enumerate(mine):
                    totals += [self._run(new[index], side) for side in self.side_names]
                    if self._progress is not None:
                        self._progress(done + 1, len(mine))
            found = torch.zeros(len(new), 2, len(self.side_names), dtype=torch.float64)
            for place, total in enumerate(totals):
                index, side = divmod(place, len(self.side_names))
                total = total.cpu()
                found[mine[index], 0, side] = checked_score(self.task, total[:-1], self.val_count)
                found[mine[index], 1, side] = total[-1] / self.val_count
            found = self.ranks.total(found.to(self.val_batches[0][0].device)).cpu()
            for row, result in zip(new, found.numpy(), strict=True):
                self._known[row] = result
        return np.stack([self._known[row] for row in rows])

    def _run(self, widths: tuple[int, ...], side: str) -> torch.Tensor:
        self.supernet.set_active(np.array(widths, dtype=np.int64), side)
        with self._context():
            recalibrate(self.supernet, map(_images_of, self.train_batches))
        self.supernet.eval()
        return totals_of(self.supernet, self.val_batches, self.task, self._context())

    def _context(self) -> AbstractContextManager[Any]:
        if self._amp == "off":
            return nullcontext()
        return torch.autocast(self.val_batches[0][0].device.type, torch.bfloat16)


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
