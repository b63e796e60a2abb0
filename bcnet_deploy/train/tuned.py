"""Ranking width vectors by what each network reaches after a short fine-tuning.

Before fine-tuning a slice's accuracy says what it has lost, not what it can learn again. A few hundred steps
say it, at the cost of that training for each network (docs/trained.md has both compared).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from bcnet_deploy.data import DataSplits
from bcnet_deploy.data.plain import drawing_order
from bcnet_deploy.space import WidthSpace
from bcnet_deploy.tasks import Classification, Task, load_task
from bcnet_deploy.train.config import TrainConfig
from bcnet_deploy.train.evaluate import Floats, binomial_deviation
from bcnet_deploy.train.retrain import retrain

TUNE_STEPS = 150
"""Steps of fine-tuning before a network is scored."""


class TunedEvaluator:
    """The held-out metric of each network after ``steps`` steps of fine-tuning, taught by the full network.

    Every vector is trained once: later calls answer from memory. Test images are not opened.

    Args:
        model: trained, its channels in order of importance; networks start from its left slices, and learn
            from it.
        space: of the model.
        splits: training and held-out images.
        config: settings of the training; its length is ``steps``.
        steps: of a network's training.
        task: default: that of ``config``.
        limit: held-out images of a score; default: all.
        seed: of order and crops, the same for all networks.
        device: default: the GPU where there is one.
        progress: called with (vectors done, vectors of this call).

    Attributes:
        noise: widths -> (N,) binomial standard deviations in points; absent where the task is not
            classification.
    """

    trains_each = True
    side_names = ("left",)

    def __init__(
        self,
        model: nn.Module,
        space: WidthSpace,
        splits: DataSplits,
        config: TrainConfig | None = None,
        *,
        steps: int = TUNE_STEPS,
        task: Task | None = None,
        limit: int | None = None,
        seed: int = 0,
        device: torch.device | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        config = config or TrainConfig.load("finetune")
        batch = max(min(config.batch_size, len(splits.train)), 1)
        # An epoch has whole batches alone.
        epochs = steps / max(len(splits.train) // batch, 1)
        self._config = config.replace(
            epochs=epochs, warmup_epochs=min(config.warmup_epochs, epochs / 10), min_steps=0, cost=None,
            batch_size=batch,
        )  # fmt: skip
        held_out = splits.val
        if limit is not None and limit < len(held_out):
            held_out = held_out.subset(drawing_order(len(held_out))[:limit])
        self._splits = replace(splits, val=held_out, open_test=lambda: None)
        self._model, self.space, self.val_count = model, space, len(held_out)
        self._task, self._seed, self._device, self._progress = task, seed, device, progress
        self._known: dict[tuple[int, ...], float] = {}
        if isinstance(task or load_task(config.task), Classification):
            self.noise = self._binomial_noise

    def __call__(self, widths: npt.ArrayLike) -> Floats:
        """(N, L) widths -> (N,) of the metric. Raises :class:`bcnet_deploy.errors.WidthError`."""
        rows = [tuple(row.tolist()) for row in self.space.check(widths)]
        new = [row for row in dict.fromkeys(rows) if row not in self._known]
        for done, row in enumerate(new, start=1):
            with tempfile.TemporaryDirectory(prefix="bcnet-tuned-") as folder:
                result = retrain(
                    self._model, self.space, row, self._splits, self._config, Path(folder), model_ref={},
                    initial=self._model, task=self._task, teacher=self._model, seed=self._seed,
                    device=self._device,
                )  # fmt: skip
            self._known[row] = result.val_metric
            if self._progress is not None:
                self._progress(done, len(new))
        return np.array([self._known[row] for row in rows])

    def sides(self, widths: npt.ArrayLike) -> Floats:
        """(N, L) widths -> (N, 1) of the metric."""
        return self(widths)[:, None]

    def _binomial_noise(self, widths: npt.ArrayLike) -> Floats:
        return binomial_deviation(self.sides(widths), self.val_count)
