"""Narrowing a trained network in several steps, with some training between them.

A network that loses most of its channels at once forgets more than one that loses them bit by bit and
recovers in between (Han et al., NeurIPS 2015, section 3; Molchanov et al., ICLR 2017). The training is shared
out over the steps, so that it costs no more than doing all at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from bcnet_deploy.data import DataSplits
from bcnet_deploy.errors import ConfigError
from bcnet_deploy.importance import Importance
from bcnet_deploy.models.ref import ModelRef
from bcnet_deploy.nn import load_subnet
from bcnet_deploy.space import WidthSpace
from bcnet_deploy.space.slicing import stored_units
from bcnet_deploy.tasks import Task
from bcnet_deploy.train.config import TrainConfig
from bcnet_deploy.train.pruned import permuted_on
from bcnet_deploy.train.retrain import retrain, withdraw


def stage_config(config: TrainConfig, steps: int) -> TrainConfig:
    """The settings of one of so many steps: each has the same share of the training, and its own schedule.

    Raises:
        ConfigError: ``steps`` is below 1.
    """
    if steps < 1:
        raise ConfigError(f"steps is {steps}; allowed: whole numbers from 1")
    return config.replace(
        epochs=config.epochs / steps, min_steps=-(-config.min_steps // steps),
        cost=None if config.cost is None else config.cost / steps,
        warmup_epochs=config.warmup_epochs / steps, step_epochs=config.step_epochs / steps,
        milestones=tuple(milestone / steps for milestone in config.milestones),
    )  # fmt: skip


def stage_widths(space: WidthSpace, start: npt.ArrayLike, end: npt.ArrayLike, steps: int) -> npt.NDArray[Any]:
    """(steps, L) widths that lead from ``start`` to ``end``, each variable by the same factor a step.

    The last row is ``end``; no row is narrower than it or wider than ``start``.
    """
    first, last = np.asarray(start, dtype=np.float64), np.asarray(end, dtype=np.float64)
    unit = np.array([variable.step for variable in space.variables])
    shares = (np.arange(1, steps + 1) / steps)[:, None]
    rows = np.ceil(first ** (1 - shares) * last**shares / unit - 1e-9).astype(np.int64) * unit
    return np.asarray(np.clip(rows, last, first), dtype=np.int64)


def shrink(
    model: nn.Module,
    space: WidthSpace,
    initial: nn.Module,
    widths: npt.ArrayLike,
    splits: DataSplits,
    config: TrainConfig,
    folder: Path,
    *,
    steps: int,
    model_ref: ModelRef | dict[str, Any],
    importance: str | Importance = "l2",
    task: Task | None = None,
    teacher: nn.Module | None = None,
    seed: int = 0,
    device: torch.device | None = None,
    fresh: bool = False,
    progress: Callable[[float, str], None] | None = None,
) -> nn.Module:
    """All steps but the last: what the last one, an ordinary retraining to ``widths``, starts from.

    After each step the channels are put in order of importance again: what was learned in it counts.

    Args:
        model: the full model of the space; not changed.
        initial: trained network in order of importance, as wide as ``widths`` at least.
        widths: (L,) where the last step ends.
        splits: test images are not touched.
        config: of one step, see :func:`stage_config`.
        folder: gets a folder a step, each that of a retraining; steps that are done are skipped.
        steps: 1 gives ``initial`` back.
        importance: as for ``initial``.
        model_ref, task, teacher, seed, device, fresh, progress: see :func:`retrain`.

    Raises:
        BCNetError: see :func:`retrain`.
    """
    row = space.check(widths)[0]
    unit = np.array([variable.step for variable in space.variables])
    held = np.array(stored_units(space.plan, initial)) * unit
    unseen = replace(splits, open_test=lambda: None)
    if fresh and steps > 1:
        # At once: after a kill the same command goes on, and must meet nothing of a former one.
        for place in (folder, *folder.glob("step-*")):
            (place / "checkpoint.safetensors").unlink(missing_ok=True)
            withdraw(place)
    for index, stage in enumerate(stage_widths(space, held, row, steps)[:-1]):
        place = folder / f"step-{index + 1}"

        def tell(share: float, note: str, index: int = index) -> None:
            if progress is not None:
                progress((index + share) / steps, f"step {index + 1} of {steps}: {note}")

        retrain(
            model, space, stage, unseen, config, place, model_ref=model_ref, initial=initial, task=task,
            teacher=teacher, seed=seed, device=device, fresh=fresh, progress=tell,
        )  # fmt: skip
        narrower, _ = load_subnet(place, model)
        initial = permuted_on(narrower.eval(), space, splits, importance, task=task, device=device)
    return initial


__all__ = ["shrink", "stage_config", "stage_widths"]
