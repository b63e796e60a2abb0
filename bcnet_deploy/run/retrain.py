"""The fourth step: a chosen network, trained to the end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcnet_deploy import files
from bcnet_deploy.errors import CheckpointError, ConfigError
from bcnet_deploy.run.directory import RunDir
from bcnet_deploy.run.engine import Progress, Step, carry_out, first_rank, silent
from bcnet_deploy.run.originals import permuted, require_trained
from bcnet_deploy.run.settings import RetrainSettings, named_task
from bcnet_deploy.run.supernets import load_supernet, supernet_info
from bcnet_deploy.run.widths import named, read_widths

if TYPE_CHECKING:
    from torch import nn

    from bcnet_deploy.run.widths import Widths
    from bcnet_deploy.train import RetrainResult, TrainConfig


@dataclass(frozen=True)
class RetrainStepResult:
    """A finished network.

    Attributes:
        network: ``found``, ``uniform`` or ``full``.
        folder: weights, description and curves.
        widths: by variable name.
        trained: accuracies and costs.
        ran: whether this call trained.
        notes: of the data: what was skipped or converted.
    """

    network: str
    folder: Path
    widths: dict[str, int]
    trained: RetrainResult
    ran: bool
    notes: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.folder / "weights.safetensors", self.folder / "subnet.yaml", self.folder / "result.json")

    @property
    def test_top1(self) -> float | None:
        """Percent on the test images, which nothing had seen before; None where the data has none."""
        return self.trained.test_top1

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            **self.trained.to_dict(),
            "network": self.network,
            "folder": str(self.folder),
            "notes": [*self.notes, *self.trained.notes],
            "ran": self.ran,
        }


def retrain(
    run: RunDir,
    settings: RetrainSettings,
    progress: Progress = silent,
    *,
    fresh: bool = False,
    replace: bool = False,
) -> RetrainStepResult:
    """Train one network and take its accuracy on the test images.

    With trained weights, a network starts from the channels kept of the original and follows its outputs;
    ``full`` is the original itself, measured and not trained.

    Args:
        run: a run with data; after ``search``, but for the full network and for widths of the user's own.
        settings: which network, and how.
        progress: told the share done.
        fresh: start anew even where there is a checkpoint or result.
        replace: also where they are of other settings; without it, a checkpoint of those is refused.

    Raises:
        MissingStepError: there was no search yet, or no supernet to start from.
        ConfigError, WidthError: the widths given are none of the model's.
        BCNetError: see :func:`bcnet_deploy.train.retrain.retrain`.
    """
    from bcnet_deploy.train.retrain import load_result

    config = run.load()
    start = settings.start or ("original" if config.model.trained else "scratch")
    distill = start == "original" if settings.distill is None else settings.distill
    in_full = settings.config(run.data_reference(), trained=start == "original", task=named_task(config))
    if start == "original":
        require_trained(run)
    elif settings.steps > 1:
        raise ConfigError(
            f"steps is {settings.steps}, but training starts from {start}; leave it out, or start from the "
            "original (--from original)"
        )
    which, seed = settings.network, config.seed if settings.seed is None else settings.seed
    space = run.space()
    if settings.widths is not None:
        widths = read_widths(settings.widths, space)
    else:
        widths = run.widths(which, space)
    shared = start == "supernet" or (distill and not config.model.trained)
    if shared:
        supernet_info(run)
    settings = settings.replace(start=start, distill=distill)
    folder = run.retrained(which)
    notes: list[str] = []
    step = Step(
        name=f"retrain-{which}",
        identity={
            **run.identity(), "seed": seed, "retrain": in_full.to_dict(),
            "which": which, "widths": widths.tolist(), "given": settings.widths is not None,
            "start": start, "distill": distill,
            **({"importance": settings.importance} if start == "original" else {}),
            **({"steps": settings.steps} if settings.steps > 1 else {}),
        },
        # Not the search's file: the full network, and one found again, are what they were.
        inputs=[run.weights] if shared else [],
        outputs=[folder / name for name in ("weights.safetensors", "subnet.yaml", "result.json")],
        work=lambda anew, tell: _retrain(run, settings, in_full, seed, widths, anew, tell, notes),
    )  # fmt: skip
    done = carry_out(run, step, progress, fresh=fresh, replace=replace)
    trained = load_result(folder)
    return RetrainStepResult(which, folder, named(widths, space), trained, done.ran, tuple(notes))


def _retrain(
    run: RunDir, settings: RetrainSettings, config: TrainConfig, seed: int, widths: Widths, fresh: bool,
    progress: Progress, notes: list[str],
) -> None:  # fmt: skip
    import torch

    from bcnet_deploy.train.distributed import pick_device
    from bcnet_deploy.train.evaluate import calibrated_teacher
    from bcnet_deploy.train.retrain import keep_trained
    from bcnet_deploy.train.retrain import retrain as train_network
    from bcnet_deploy.train.shrink import shrink, stage_config

    device = pick_device(settings.compute)
    splits = run.data()
    notes += splits.notes
    model, space = run.build(seed)
    if settings.start == "original" and settings.network == "full" and settings.widths is None:
        keep_trained(
            model, space, splits, config, run.retrained("full"), model_ref=run.load().model, device=device
        )
        return
    initial: nn.Module | None = None
    teacher = model if settings.distill and run.load().model.trained else None
    if settings.start == "original":
        initial, _ = permuted(run, settings.importance)
        config = stage_config(config, settings.steps)
        initial = shrink(
            model, space, initial, widths, splits, config, run.retrained(settings.network),
            steps=settings.steps, model_ref=run.load().model, importance=settings.importance,
            teacher=teacher, device=device, fresh=fresh, seed=seed,
            progress=progress,
        )  # fmt: skip
    elif settings.start == "supernet":
        initial = load_supernet(run)
    if settings.distill and teacher is None:
        teacher = calibrated_teacher(load_supernet(run), splits, config.batch_size, torch.device("cpu"))
    before = (settings.steps - 1) / settings.steps

    def last(share: float, note: str) -> None:
        progress(before + share / settings.steps, note)

    train_network(
        model, space, widths, splits, config, run.retrained(settings.network), model_ref=run.load().model,
        initial=initial, teacher=teacher, device=device, fresh=fresh,
        seed=seed, progress=last, widths_from=settings.widths,
    )  # fmt: skip
    if first_rank():
        _say_whose(run.retrained(settings.network) / "subnet.yaml", settings.widths)


def _say_whose(path: Path, widths_from: str | None) -> None:
    """Whose the widths are, where a training that had finished as the other's is taken over."""
    info = files.read_yaml(path, CheckpointError, "sub-network description")
    with files.malformed(path, CheckpointError, "run 'bcnet-deploy retrain --fresh'"):
        extra = {key: value for key, value in info["extra"].items() if key != "widths_from"}
    if widths_from is not None:
        extra["widths_from"] = widths_from
    if extra != info["extra"]:
        files.write_yaml(path, {**info, "extra": extra})


__all__ = ["RetrainStepResult", "retrain"]
