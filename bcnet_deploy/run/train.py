"""The second step: the supernet that ranks widths."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcnet_deploy.run.directory import RunDir
from bcnet_deploy.run.engine import Progress, Step, carry_out, first_rank, silent
from bcnet_deploy.run.originals import permuted
from bcnet_deploy.run.settings import TrainSettings, named_task

if TYPE_CHECKING:
    from bcnet_deploy.train import SupernetResult, TrainConfig


@dataclass(frozen=True)
class TrainResult:
    """A trained supernet.

    Attributes:
        folder: weights, loss records and curves.
        trained: its figures.
        notes: of the data: what was skipped or converted.
        ran: whether this call trained.
    """

    folder: Path
    trained: SupernetResult
    notes: tuple[str, ...]
    ran: bool

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.folder / "supernet.safetensors", self.folder / "supernet.json")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        notes = [*self.notes, *self.trained.notes]
        return {**self.trained.to_dict(), "folder": str(self.folder), "notes": notes, "ran": self.ran}


def train(
    run: RunDir,
    settings: TrainSettings,
    progress: Progress = silent,
    *,
    fresh: bool = False,
    replace: bool = False,
) -> TrainResult:
    """Train the supernet, or go on where training was interrupted; under torchrun all processes together.

    Args:
        run: a run with data.
        settings: recipe and changes.
        progress: told the share done.
        fresh: start anew even where there is a checkpoint.
        replace: also where the checkpoint is of other settings; without it, that is refused.

    Raises:
        DataError: no data is named.
        ConfigError: a setting is not allowed.
        BCNetError: see :func:`bcnet_deploy.train.train_supernet`.
    """
    config = run.load()
    settings_in_full = settings.config(
        run.data_reference(), trained=config.model.trained, task=named_task(config)
    )
    seed = config.seed if settings.seed is None else settings.seed
    notes: list[str] = []
    order = {"importance": settings.importance, "both_ends": settings.both_ends}
    step = Step(
        name="train",
        identity={
            **run.identity(), "seed": seed, "train": settings_in_full.to_dict(),
            **(order if config.model.trained else {}),
        },
        inputs=[], outputs=[run.weights, run.supernet_file],
        work=lambda anew, tell: _train(run, settings, settings_in_full, seed, anew, tell, notes),
    )  # fmt: skip
    done = carry_out(run, step, progress, fresh=fresh, replace=replace)
    from bcnet_deploy.train.supernet import SupernetResult

    return TrainResult(run.train, SupernetResult.load(run.supernet_file), tuple(notes), done.ran)


def _train(
    run: RunDir, settings: TrainSettings, config: TrainConfig, seed: int, fresh: bool, progress: Progress,
    notes: list[str],
) -> None:  # fmt: skip
    import torch

    from bcnet_deploy.nn import Supernet
    from bcnet_deploy.train.distributed import pick_device
    from bcnet_deploy.train.supernet import train_supernet

    device = pick_device(settings.compute)
    splits = run.data()
    notes += splits.notes
    model, space = run.build(seed)
    teacher = None
    if run.load().model.trained:
        teacher = model
        model, space = permuted(run, settings.importance, both_ends=settings.both_ends)
    if first_rank():
        run.keep_space(space)
    supernet = Supernet(model, space, generator=torch.Generator().manual_seed(seed))
    train_supernet(
        supernet,
        splits,
        config,
        run.train,
        seed=seed,
        device=device,
        fresh=fresh,
        progress=progress,
        teacher=teacher,
    )


__all__ = ["TrainResult", "train"]
