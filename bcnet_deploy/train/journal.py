"""What training writes down as it goes: loss records, curves, TensorBoard, progress.

Losses stay on the device until :meth:`Journal.flush` fetches those of many steps at once, which is also
when one that is not finite is found, with the step and the widths it came from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bcnet_deploy import files
from bcnet_deploy.errors import ConfigError, TrainingError
from bcnet_deploy.train.distributed import Ranks
from bcnet_deploy.train.samplers import Step

OnProgress = Callable[[float, str], None]
"""Called with the share done, 0..1, and a note for people."""


@dataclass(frozen=True)
class Now:
    """Where training is: ``share_done`` 0..1, ``rate`` the learning rate, ``seconds`` trained."""

    step: int
    epoch: float
    share_done: float
    rate: float
    seconds: float
    last_good: str


@dataclass(frozen=True)
class Pending:
    """Losses that are still on the device, one a path, and what they belong to."""

    step: int
    paths: Step
    losses: torch.Tensor


class Journal:
    """The logs of one training run; only the first rank writes, all of them flush together.

    Args:
        folder: gets ``records.jsonl`` (of a supernet) and ``curves.jsonl``.
        batch_size: over all ranks, for the speed.
        progress: told the share done at each flush.

    Attributes:
        lengths: bytes of the logs that the checkpoint knows of, by name; None where it knows of none.
    """

    def __init__(self, folder: Path, batch_size: int, ranks: Ranks, progress: OnProgress | None) -> None:
        self.folder, self.batch_size, self.ranks = folder, batch_size, ranks
        self.pending: list[Pending] = []
        self.last_loss = float("nan")
        self.lengths: dict[str, int | None] = {"records": None, "curves": None}
        self._progress = progress
        self._records: files.JsonLines | None = None
        self._curves: files.JsonLines | None = None
        self._board: Any = None
        self._logged = (0, 0.0)

    def open(self, now: Now, *, supernet: bool, tensorboard: bool) -> None:
        """Open the files, cut back to their ``lengths``.

        Raises:
            ConfigError: TensorBoard is asked for and not installed.
            RunDirError, CheckpointError: see :class:`bcnet_deploy.files.JsonLines`.
        """
        self._logged = (now.step, now.seconds)
        if not self.ranks.first:
            return
        if tensorboard:
            self._board = _tensorboard(self.folder)
        if supernet:
            self._records = self._log("records")
        self._curves = self._log("curves")

    def _log(self, name: str) -> files.JsonLines:
        return files.JsonLines(
            self.folder / f"{name}.jsonl", f"log of {name}", keep_bytes=self.lengths[name] or 0,
            durable=False, remedy="restore the file or start in another folder",
        )  # fmt: skip

    def close(self) -> None:
        """Close what is open."""
        for log in (self._records, self._curves, self._board):
            if log is not None:
                log.close()
        self._records = self._curves = self._board = None

    def sync(self) -> dict[str, int | None]:
        """Force the files to disk; their lengths in bytes, None where there is no file."""
        logs = {"records": self._records, "curves": self._curves}
        return {name: log.sync() if log is not None else None for name, log in logs.items()}

    def flush(self, now: Now) -> None:
        """Fetch the losses of the steps since the last flush, check and write them.

        Raises:
            TrainingError: a loss is not finite.
        """
        if not self.pending:
            return
        waiting, self.pending = self.pending, []
        sizes = [len(item.losses) for item in waiting]
        fetched = self.ranks.mean(torch.cat([item.losses for item in waiting])).cpu()
        rows: list[dict[str, Any]] = []
        step_losses = []
        for item, losses in zip(waiting, fetched.split(sizes), strict=True):
            if not bool(torch.isfinite(losses).all()):
                raise TrainingError(_not_finite(item, losses, now.last_good))
            values = losses.tolist()
            step_losses.append(sum(values) / len(values))
            rows += _record_rows(item, values)
        self.last_loss = sum(step_losses) / len(step_losses)
        if self._records is not None:
            self._records.append(rows)
        before, then = self._logged
        speed = (now.step - before) * self.batch_size / max(now.seconds - then, 1e-9)
        self._logged = (now.step, now.seconds)
        if self._curves is not None:
            row = {
                "step": now.step, "epoch": now.epoch, "rate": now.rate, "loss": self.last_loss,
                "images_per_second": round(speed, 1), "seconds": round(now.seconds, 2),
            }  # fmt: skip
            self._curves.append([row])
            self._draw("train", now.step, {key: row[key] for key in ("rate", "loss", "images_per_second")})
        if self._progress is not None:
            note = f"step {now.step}, loss {self.last_loss:.3f}, {speed:.0f} images/s"
            self._progress(min(now.share_done, 1.0), note)

    def evaluated(self, now: Now, figures: dict[str, float]) -> None:
        """Write figures of held-out data."""
        if self._curves is not None:
            self._curves.append([{"step": now.step, "epoch": now.epoch, **figures}])
            self._draw("held_out", now.step, figures)

    def _draw(self, group: str, step: int, figures: dict[str, float]) -> None:
        if self._board is not None:
            for key, value in figures.items():
                self._board.add_scalar(f"{group}/{key}", value, step)


def _not_finite(item: Pending, losses: torch.Tensor, last_good: str) -> str:
    index = int((~torch.isfinite(losses)).nonzero()[0])
    which = ""
    if item.paths:
        path = item.paths[index]
        which = f", widths {path.widths.tolist()}, {path.side} side"
    return (
        f"the loss is {float(losses[index])} at step {item.step}{which}; {last_good}; "
        "lower learning_rate, set clip_norm or warmup_epochs, or train without amp"
    )


def _record_rows(item: Pending, values: list[float]) -> list[dict[str, Any]]:
    """One row a width vector of the step: its mean loss over its sides, under the widths that were run.

    Teachers and anchors are left out: the full width of every step would fill the lowest losses that the
    prior reads. Their loss on the same batch is kept beside the others' as ``reference``: a batch that is
    hard for one is hard for all.
    """
    by_widths: dict[tuple[int, ...], list[float]] = {}
    references = []
    for path, value in zip(item.paths, values, strict=False):
        if path.role in ("teacher", "anchor"):
            references.append(value)
            continue
        by_widths.setdefault(tuple(path.widths.tolist()), []).append(value)
    known = {"reference": sum(references) / len(references)} if references else {}
    return [
        {"step": item.step, "widths": list(widths), "loss": sum(found) / len(found), **known}
        for widths, found in by_widths.items()
    ]


def check_tensorboard() -> None:
    """Raise :class:`ConfigError` where TensorBoard is not installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "tensorboard: true needs the package tensorboard; pip install tensorboard"
        ) from error


def _tensorboard(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"))
