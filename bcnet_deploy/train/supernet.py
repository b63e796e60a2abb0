"""Training a supernet in a folder, loading it again, and an evaluator for what was trained."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bcnet_deploy import files
from bcnet_deploy.data import Augmentation, BatchLoader, DataSplits
from bcnet_deploy.errors import CheckpointError, DataError
from bcnet_deploy.nn import Supernet
from bcnet_deploy.space import WidthSpace
from bcnet_deploy.tasks import Task, load_task
from bcnet_deploy.train.config import TrainConfig
from bcnet_deploy.train.distributed import Ranks, pick_device, process_group
from bcnet_deploy.train.evaluate import SupernetEvaluator, score_batches
from bcnet_deploy.train.samplers import SAMPLERS, SIDES, SamplerSource, Side, WidthGrid, make_sampler
from bcnet_deploy.train.trainer import OnProgress, Trainer
from bcnet_deploy.train.trial import try_step
from bcnet_deploy.validation import written_as

WEIGHTS = "supernet.safetensors"
_AGAIN = "train again with 'bcnet-deploy train --fresh'"
DESCRIPTION = "supernet.json"
"""Written last, so that it is there only when training has finished."""
FORMAT = 1
CURVE_IMAGES = 2000
"""Held-out images of the accuracies that are taken during training."""


@dataclass(frozen=True)
class SupernetResult:
    """A finished supernet training.

    Attributes:
        steps, cost, seconds, loss: see :class:`bcnet_deploy.train.trainer.TrainOutcome`.
        val_metric: on held-out data of the ``full``, ``half`` and ``narrowest`` widths.
        sides: whose mean is a width vector's score.
        metric_name, unit: of the metric: ``top-1`` in ``%``.
        notes: what was settled before training began, for people.
    """

    steps: int
    cost: float
    seconds: float
    loss: float
    images_per_second: float
    val_metric: dict[str, float]
    sides: tuple[Side, ...] = SIDES
    metric_name: str = "top-1"
    unit: str = "%"
    notes: tuple[str, ...] = ()

    @property
    def val_top1(self) -> dict[str, float]:
        """:attr:`val_metric` of a classification."""
        return self.val_metric

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the metric also under ``val_top1`` where it is that."""
        named = {"val_top1": self.val_metric} if self.metric_name == "top-1" else {}
        return {**asdict(self), **named}

    @classmethod
    def load(cls, path: Path) -> SupernetResult:
        """The result in a supernet's description, also of a version that knew top-1 alone.

        Raises:
            CheckpointError: the file is damaged.
        """
        data = files.read_json(path, CheckpointError, "supernet description")
        with files.malformed(path, CheckpointError, _AGAIN):
            result = dict(data["result"])
        return written_as(
            cls, {"val_metric": result.get("val_top1"), **result}, path, CheckpointError, _AGAIN
        )


def train_supernet(
    supernet: Supernet,
    splits: DataSplits,
    config: TrainConfig,
    folder: Path,
    *,
    sampler: SamplerSource | None = None,
    task: Task | None = None,
    teacher: nn.Module | None = None,
    seed: int = 0,
    device: torch.device | None = None,
    fresh: bool = False,
    progress: OnProgress | None = None,
) -> SupernetResult:
    """Train a supernet, or go on with it; under torchrun on all the processes together.

    Args:
        supernet: initial weights; moved to the device and trained in place. Where weights are averaged
            (``ema_decay``) it has the averaged ones in the end.
        splits: training and held-out images; test images are not touched.
        config: settings.
        folder: gets checkpoint, ``records.jsonl``, ``curves.jsonl``, and at the end the weights.
        sampler: a rule as an object, in place of ``config.rule``.
        task: in place of ``config.task``.
        teacher: a trained network, frozen, whose outputs half of each path's loss follows, and all of a
            pupil's: the original that the supernet's weights come from.
        seed: of widths, order and crops.
        device: default: the GPU where there is one.
        fresh: start anew even where there is a checkpoint.
        progress: told the share done and a note.

    Raises:
        TrainingError, CheckpointError, DataError, ConfigError, TaskError: see :class:`Trainer`,
            :func:`bcnet_deploy.train.trial.try_step` and :class:`bcnet_deploy.data.BatchLoader`.
    """
    device = device or pick_device()
    space = supernet.space
    check_fit(splits, space)
    task = task or load_task(config.task)
    if teacher is not None:
        teacher = teacher.to(device).eval()
    with process_group(device) as ranks:
        config, notes = try_step(
            supernet, splits, config, task, device, world=ranks.world, teacher=teacher
        )  # fmt: skip
        rng = np.random.default_rng([seed, 1])
        rule = make_sampler(sampler or config.rule, WidthGrid.of(supernet), rng, config)
        held_out = _HeldOut(supernet, splits, config, task, device, ranks, rule.sides)
        trainer = Trainer(
            supernet, make_loader(splits, config, device, seed, ranks, task), config, folder, sampler=rule,
            task=task,
            identity={
                "task": task.name, "space": space.fingerprint, "min_level": space.min_level,
                "levels": space.levels,
                **({"teacher": weights_digest(teacher)} if teacher is not None else {}),
            },
            teacher=teacher,
            seed=seed, ranks=ranks, evaluate=held_out, progress=progress, resume=not fresh,
        )  # fmt: skip
        if fresh and ranks.first:
            # After a kill the former weights must not be taken for the new ones.
            (folder / DESCRIPTION).unlink(missing_ok=True)
        outcome = trainer.run()
        trainer.keep_average()  # the supernet in memory is the one that is scored and saved
        if not held_out.metric:
            held_out(supernet)  # a run that was killed between its last step and here
        result = SupernetResult(
            outcome.steps, outcome.cost, round(outcome.seconds, 2), outcome.loss,
            round(outcome.images_per_second, 1), held_out.metric, rule.sides,
            task.metric_name, task.unit, notes,
        )  # fmt: skip
        if ranks.first:
            _save(supernet, splits, config, seed, folder, result)
        ranks.barrier()
    return result


class _HeldOut:
    """Held-out metric of three widths of a supernet in training; the last one is kept."""

    def __init__(
        self,
        supernet: Supernet,
        splits: DataSplits,
        config: TrainConfig,
        task: Task,
        device: torch.device,
        ranks: Ranks,
        sides: tuple[Side, ...],
    ) -> None:
        self._open = partial(
            make_evaluator, supernet, splits, config, task=task, device=device, sides=sides,
            ranks=ranks, limit=CURVE_IMAGES,
        )  # fmt: skip
        space = supernet.space
        self._points = {"full": space.full, "half": space.uniform(0.5), "narrowest": space.narrowest}
        self._key = task.key
        self.metric: dict[str, float] = {}

    def __call__(self, network: nn.Module) -> dict[str, float]:
        # An evaluator remembers each vector: the weights have changed, so it takes a new one.
        metric = self._open()(np.stack(list(self._points.values()))).tolist()
        self.metric = dict(zip(self._points, metric, strict=True))
        return {f"val_{self._key}_{name}": value for name, value in self.metric.items()}


def weights_digest(model: nn.Module) -> str:
    """Identifies the values of a model's tensors: training never goes on from a checkpoint of other ones."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def check_fit(splits: DataSplits, space: WidthSpace) -> None:
    """Raise :class:`DataError` if the images are not of the space's size."""
    if tuple(splits.input_size) != tuple(space.input_size):
        raise DataError(
            f"{splits.name} was loaded at size {splits.input_size}, the width space is for "
            f"{tuple(space.input_size)}; load the data at that size"
        )


def make_loader(
    splits: DataSplits, config: TrainConfig, device: torch.device, seed: int, ranks: Ranks,
    task: Task | None = None,
) -> BatchLoader:  # fmt: skip
    """This rank's training batches; ``task`` moves targets with their images."""
    return BatchLoader(
        splits.train, config.batch_size, Augmentation(config.augment, splits.mean, splits.std), device,
        seed=seed, rank=ranks.rank, world=ranks.world, workers=config.workers,
        move=None if task is None else task.move,
    )  # fmt: skip


def make_evaluator(
    supernet: Supernet,
    splits: DataSplits,
    config: TrainConfig,
    *,
    device: torch.device,
    task: Task | None = None,
    sides: Sequence[str] | None = None,
    ranks: Ranks | None = None,
    limit: int | None = None,
    amp: str = "off",
    progress: Callable[[int, int], None] | None = None,
) -> SupernetEvaluator:
    """An evaluator on the held-out images, recalibrating on some training images (:func:`score_batches`).

    ``task`` and ``sides`` are those that the supernet was trained with; by default ``config.task`` and the
    sides of ``config.rule``.
    """
    train, val = score_batches(
        splits, config.batch_size, device, limit=limit, channels_last=config.channels_last
    )
    return SupernetEvaluator(
        supernet, train, val, task=task or load_task(config.task),
        sides=sides or SAMPLERS.get(config.rule).sides, amp=amp, ranks=ranks, progress=progress,
    )  # fmt: skip


def _save(
    supernet: Supernet,
    splits: DataSplits,
    config: TrainConfig,
    seed: int,
    folder: Path,
    result: SupernetResult,
) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in supernet.state_dict().items()}
    files.write_tensors(folder / WEIGHTS, tensors)
    description = {
        "format": FORMAT, "space": supernet.space.fingerprint,
        "model": supernet.space.model_name, "input_size": list(supernet.space.input_size),
        "levels": supernet.space.levels,
        "min_level": supernet.space.min_level, "data": splits.name, "mean": list(splits.mean),
        "std": list(splits.std), "seed": seed, "config": config.to_dict(), "sides": list(result.sides),
        "result": result.to_dict(),
    }  # fmt: skip
    files.write_json(folder / DESCRIPTION, description)
