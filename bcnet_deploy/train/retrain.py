"""Training a chosen width vector as a plain network: the final figures come from here."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from bcnet_deploy import files
from bcnet_deploy.data import DataSplits, PlainBatches
from bcnet_deploy.errors import CheckpointError, WidthError
from bcnet_deploy.models.ref import ModelRef
from bcnet_deploy.nn import Supernet, recalibrate, save_subnet
from bcnet_deploy.nn.subnet import DESCRIPTION
from bcnet_deploy.space import WidthSpace
from bcnet_deploy.space.slicing import extract, stored_units
from bcnet_deploy.tasks import Task, load_task
from bcnet_deploy.train.config import TrainConfig
from bcnet_deploy.train.distributed import pick_device, process_group
from bcnet_deploy.train.evaluate import evaluate_network
from bcnet_deploy.train.supernet import check_fit, make_loader, weights_digest
from bcnet_deploy.train.trainer import OnProgress, Trainer
from bcnet_deploy.train.trial import runs_in_channels_last, try_scores, try_step
from bcnet_deploy.validation import written_as

RESULT = "result.json"
RECALIBRATION_BATCHES = 20
"""Of training images, for the statistics of averaged weights."""


@dataclass(frozen=True)
class RetrainResult:
    """A finished network.

    Attributes:
        widths: (L,) by variable.
        val_metric: on the held-out images.
        test_metric, test_loss: on the test images, looked at once; None where the data has no test split.
        inherited: whether training started from trained weights.
        metric_name, unit: of the metric: ``top-1`` in ``%``.
        notes: what was settled before training began, for people.
    """

    widths: tuple[int, ...]
    macs: int
    params: int
    val_metric: float
    test_metric: float | None
    test_loss: float | None
    test_images: int
    steps: int
    seconds: float
    images_per_second: float
    inherited: bool
    metric_name: str = "top-1"
    unit: str = "%"
    notes: tuple[str, ...] = ()

    @property
    def val_top1(self) -> float:
        """:attr:`val_metric` of a classification."""
        return self.val_metric

    @property
    def test_top1(self) -> float | None:
        """:attr:`test_metric` of a classification."""
        return self.test_metric

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the metric also under ``val_top1`` and ``test_top1`` where it is that."""
        named = {"val_top1": self.val_metric, "test_top1": self.test_metric}
        return {**asdict(self), **(named if self.metric_name == "top-1" else {})}


def retrain(
    model: nn.Module,
    space: WidthSpace,
    widths: npt.ArrayLike,
    splits: DataSplits,
    config: TrainConfig,
    folder: Path,
    *,
    model_ref: ModelRef | dict[str, Any],
    initial: nn.Module | None = None,
    task: Task | None = None,
    teacher: nn.Module | None = None,
    seed: int = 0,
    device: torch.device | None = None,
    fresh: bool = False,
    progress: OnProgress | None = None,
    widths_from: str | None = None,
) -> RetrainResult:
    """Train the network of ``widths``, or go on with it, and take its final accuracy.

    Args:
        model: the full model of ``space``; not changed.
        widths: (L,).
        splits: the test images are opened when training has ended, not before.
        config: settings; those of supernets are ignored.
        folder: gets ``weights.safetensors``, ``subnet.yaml``, ``curves.jsonl``, ``result.json``.
        model_ref: how to build the full model again, for ``subnet.yaml``.
        initial: start from the left slice of this network of the space: a trained one in order of
            importance, a supernet, or a network that is already narrower; default: newly drawn weights.
        task: in place of ``config.task``.
        teacher: trained network whose outputs half of the loss follows (knowledge distillation).
        seed: of initial weights, order and crops.
        device: default: the GPU where there is one.
        fresh: start anew even where there is a checkpoint or result.
        progress: told the share done and a note.
        widths_from: where widths of the user's own come from; noted in ``subnet.yaml``.

    Raises:
        WidthError: the widths are not in the space, or ``initial`` is narrower than they are.
        TrainingError, CheckpointError, DataError, ConfigError, TaskError: see :class:`Trainer` and
            :func:`bcnet_deploy.train.trial.try_step`.
    """
    device = device or pick_device()
    check_fit(splits, space)
    row = space.check(widths)[0]
    task = task or load_task(config.task)
    identity = {
        "task": task.name, "space": space.fingerprint, "widths": row.tolist(), "seed": seed,
        "data": splits.name,
        "initial": None if initial is None else weights_digest(initial),
        "teacher": None if teacher is None else weights_digest(teacher),
    }  # fmt: skip
    digest = _digest(identity, config)
    if not fresh and (finished := _finished(folder, digest)) is not None:
        return finished
    if initial is None:
        network = space.extract(model, row).cpu()  # where the generator is
        reinitialise(network, torch.Generator().manual_seed(seed))
    else:
        network = slice_of(initial, space, row)
    if teacher is not None:
        teacher = teacher.to(device).eval()
    with process_group(device) as ranks:
        config, notes = try_step(
            network, splits, config, task, device, world=ranks.world, teacher=teacher
        )  # fmt: skip
        val = PlainBatches(
            splits.val, splits, 2 * config.batch_size, device, channels_last=config.channels_last
        )

        def held_out(current: nn.Module) -> dict[str, float]:
            metric, loss = evaluate_network(current, val, task)
            return {f"val_{task.key}": metric, "val_loss": loss}

        trainer = Trainer(
            network, make_loader(splits, config, device, seed, ranks, task), config, folder,
            identity=identity, task=task, seed=seed, ranks=ranks, teacher=teacher, evaluate=held_out,
            progress=progress, resume=not fresh,
        )  # fmt: skip
        if ranks.first:
            withdraw(folder)
        outcome = trainer.run()
        with trainer.averaged():
            if config.ema_decay:
                train = PlainBatches(
                    splits.train, splits, config.batch_size, device,
                    limit=RECALIBRATION_BATCHES * config.batch_size, channels_last=config.channels_last,
                )  # fmt: skip
                recalibrate(network, (images for images, _ in train))
            val_metric, _ = evaluate_network(network, val, task)
            test = _test(network, splits, config, task, device)
            result = RetrainResult(
                tuple(row.tolist()), int(space.macs(row)[0]), int(space.params(row)[0]), val_metric, *test,
                outcome.steps, round(outcome.seconds, 2), round(outcome.images_per_second, 1),
                initial is not None, task.metric_name, task.unit, notes,
            )  # fmt: skip
            if ranks.first:
                _save(
                    folder,
                    network,
                    space,
                    row,
                    splits,
                    task,
                    model_ref,
                    seed,
                    result,
                    digest,
                    config,
                    widths_from,
                )
        ranks.barrier()
    return result


def keep_trained(
    model: nn.Module,
    space: WidthSpace,
    splits: DataSplits,
    config: TrainConfig,
    folder: Path,
    *,
    model_ref: ModelRef | dict[str, Any],
    device: torch.device | None = None,
) -> RetrainResult:
    """The trained full network as it is, measured like a retrained one and saved beside those.

    Args:
        model: the full network of ``space`` with its weights.
        splits: the held-out and the test images are run; nothing is trained.
        config: its task and batch size.
        folder: as for :func:`retrain`.
        model_ref: how to build the model again.
        device: default: the GPU where there is one.

    Raises:
        DataError, TaskError: the images or targets do not fit.
    """
    device = device or pick_device()
    check_fit(splits, space)
    task = load_task(config.task)
    network = model.to(device)
    try_scores(network, splits, task, device)
    withdraw(folder)
    last = runs_in_channels_last(network, splits.input_size, device)
    config = config.replace(channels_last=last)
    val = PlainBatches(splits.val, splits, 2 * config.batch_size, device, channels_last=last)
    val_metric, _ = evaluate_network(network, val, task)
    row = space.full
    result = RetrainResult(
        tuple(row.tolist()), int(space.macs(row)[0]), int(space.params(row)[0]), val_metric,
        *_test(network, splits, config, task, device), 0, 0.0, 0.0, True, task.metric_name, task.unit,
        ("the original, as it was given; not trained here",),
    )  # fmt: skip
    _save(folder, network, space, row, splits, task, model_ref, None, result, "", config, None)
    return result


def _save(
    folder: Path, network: nn.Module, space: WidthSpace, row: npt.NDArray[np.int64], splits: DataSplits,
    task: Task, model_ref: ModelRef | dict[str, Any], seed: int | None, result: RetrainResult, digest: str,
    config: TrainConfig, widths_from: str | None,
) -> None:  # fmt: skip
    extra = {
        "mean": list(splits.mean), "std": list(splits.std), "classes": list(splits.classes),
        "preprocessing": splits.preprocessing.to_dict(),
        "data": splits.name, "task": task.name, "metric_name": task.metric_name,
        f"test_{task.key}": result.test_metric, f"val_{task.key}": result.val_metric, "seed": seed,
        **({"widths_from": widths_from} if widths_from else {}),
    }  # fmt: skip
    clean = network.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    save_subnet(folder, clean, row, space, model_ref, extra)
    files.write_json(folder / RESULT, {**result.to_dict(), "digest": digest, "config": config.to_dict()})


def slice_of(source: nn.Module, space: WidthSpace, widths: npt.ArrayLike) -> nn.Module:
    """The left slice of a network of the space, of any widths at least these, as a plain network.

    Raises:
        WidthError: the widths are not in the space, or the network is narrower than they are.
        CheckpointError: the network is not of this space.
    """
    if isinstance(source, Supernet):
        return source.extract(widths)
    units, stored = space.units(widths)[0], stored_units(space.plan, source)
    for variable, wanted, held in zip(space.variables, units, stored, strict=True):
        if wanted > held:
            raise WidthError(
                f"{variable.name} shall have {wanted * variable.step} channels; the network to start from "
                f"has {held * variable.step}; start from a wider one"
            )
    return extract(space.plan, source, units.tolist(), stored=stored)


def reinitialise(network: nn.Module, generator: torch.Generator) -> None:
    """Draw new weights, as for a network built with these widths.

    Convolutions: normal with variance 2 / fan-out (He et al., 2015); linear layers: uniform within
    1 / sqrt(fan-in); norms: 1 and 0, statistics reset. Parameters of other modules are kept: they are
    slices of the full model's initial ones. So is whatever training does not change: parameters without
    gradient, and buffers (a fixed filter may be either), frozen norms with their statistics.
    """
    with torch.no_grad():
        for module in network.modules():
            trained = {name for name, p in module.named_parameters(recurse=False) if p.requires_grad}
            if isinstance(module, nn.modules.conv._ConvNd):
                weight = module.weight
                # Per group, outputs each input feeds, times the kernel's positions.
                fan_out = weight.shape[0] // module.groups * math.prod(weight.shape[2:])
                if "weight" in trained:
                    weight.normal_(0.0, (2.0 / fan_out) ** 0.5, generator=generator)
            elif isinstance(module, nn.Linear):
                bound = module.in_features**-0.5
                if "weight" in trained:
                    module.weight.uniform_(-bound, bound, generator=generator)
            elif isinstance(module, nn.modules.batchnorm._NormBase):
                if "weight" in trained:
                    module.weight.fill_(1)
                if trained or module.weight is None:
                    module.reset_running_stats()
            else:
                continue
            if "bias" in trained and module.bias is not None:
                module.bias.zero_()


def withdraw(folder: Path) -> None:
    """Take a former network away, of other settings or to be made anew.

    After a kill neither its result nor its weights must be taken for those of the one that was begun.
    """
    for name in (RESULT, DESCRIPTION):
        (folder / name).unlink(missing_ok=True)


def load_result(folder: Path) -> RetrainResult:
    """What ``result.json`` of a finished retraining says. Raises :class:`CheckpointError`."""
    data = files.read_json(folder / RESULT, CheckpointError, "retraining result")
    again = "run 'bcnet-deploy retrain --fresh'"
    return written_as(RetrainResult, data, folder / RESULT, CheckpointError, again)


def _test(
    network: nn.Module, splits: DataSplits, config: TrainConfig, task: Task, device: torch.device
) -> tuple[float | None, float | None, int]:
    images = splits.open_test()
    if images is None:
        return None, None, 0
    batches = PlainBatches(images, splits, 2 * config.batch_size, device, channels_last=config.channels_last)
    metric, loss = evaluate_network(network, batches, task)
    return metric, loss, batches.image_count


def _digest(identity: dict[str, Any], config: TrainConfig) -> str:
    text = json.dumps([identity, config.to_dict()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _finished(folder: Path, digest: str) -> RetrainResult | None:
    """The result in ``folder`` if it is of the same network, data and settings."""
    if not (folder / RESULT).exists():
        return None
    data = files.read_json(folder / RESULT, CheckpointError, "retraining result")
    if not isinstance(data, dict) or data.get("digest") != digest:
        return None
    return load_result(folder)


__all__ = ["RetrainResult", "keep_trained", "load_result", "reinitialise", "retrain", "withdraw"]
