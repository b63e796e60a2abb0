"""The training loop of supernets and plain networks: path by path, resumable, without device waits.

One step runs its paths one after another (forward, backward of the weighted loss), so that only one
path's activations are alive, and then updates the weights once. On a GPU nothing in a step waits for
the device: losses stay there and are fetched every ``log_every`` steps, which is also when a loss that
is not finite is found (with the step and widths it came from).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from bcnet_deploy.data.loader import BatchLoader
from bcnet_deploy.errors import CheckpointError, ConfigError, TrainingError
from bcnet_deploy.nn import Supernet
from bcnet_deploy.train.checkpoint import load_checkpoint, pack_optimizer, save_checkpoint, unpack_optimizer
from bcnet_deploy.train.config import TrainConfig
from bcnet_deploy.train.distributed import Ranks
from bcnet_deploy.train.memory import memory_advice
from bcnet_deploy.train.optim import WeightAverage, make_optimizer, rate_factor, soft_cross_entropy
from bcnet_deploy.train.records import JsonLines
from bcnet_deploy.train.samplers import Path as SlicePath
from bcnet_deploy.train.samplers import Step, WidthSampler
from bcnet_deploy.train.signals import StopRequest

Progress = Callable[[float, str], None]
"""Called with the share done, 0..1, and a note for people."""

OPERATIONAL = ("checkpoint_every", "log_every", "workers", "tensorboard", "evaluate_every")
"""Settings that may change between a checkpoint and its resumption: the weights do not depend on them."""


@dataclass(frozen=True)
class TrainOutcome:
    """What a training run came to.

    Attributes:
        steps: optimiser steps. cost: image passes weighed by relative MACs.
        loss: mean label loss of the last logged steps.
        seconds: time spent training, interruptions not counted.
    """

    steps: int
    cost: float
    loss: float
    seconds: float
    images_per_second: float


@dataclass
class _Pending:
    """Losses that are still on the device, and what they belong to."""

    step: int
    paths: tuple[SlicePath, ...]
    losses: torch.Tensor


class Trainer:
    """Trains ``network`` in ``folder``; made again with the same arguments, it goes on where it stopped.

    Args:
        network: a :class:`Supernet`, or any classifier when ``sampler`` is None; moved to the device.
        loader: training batches on the device.
        config: settings.
        folder: gets ``checkpoint.safetensors``, ``curves.jsonl`` and, for a supernet, ``records.jsonl``.
        sampler: which slices to run.
        identity: what a checkpoint must be of (space fingerprint, widths); JSON-able.
        seed: of dropout and the like; loader and sampler have their own.
        teacher: network in evaluation mode whose outputs half of a plain network's loss follows.
        evaluate: called with the network every ``evaluate_every`` epochs; its figures join the curves.
        resume: False starts anew even where there is a checkpoint.

    Raises:
        CheckpointError: the checkpoint in ``folder`` is damaged, or of another network or settings.
        ConfigError: settings that do not fit the device or the network.
    """

    def __init__(
        self,
        network: nn.Module,
        loader: BatchLoader,
        config: TrainConfig,
        folder: Path,
        *,
        sampler: WidthSampler | None = None,
        identity: dict[str, Any] | None = None,
        seed: int = 0,
        ranks: Ranks | None = None,
        teacher: nn.Module | None = None,
        evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
        progress: Progress | None = None,
        resume: bool = True,
    ) -> None:
        self.device = loader.device
        self.ranks = ranks or Ranks()
        self.config, self.folder, self.seed = config, folder, seed
        self.loader, self.sampler, self.teacher = loader, sampler, teacher
        self.identity = identity or {}
        self._evaluate, self._progress = evaluate, progress
        self.supernet = network if isinstance(network, Supernet) else None
        if (self.supernet is None) != (sampler is None):
            raise ConfigError("a supernet needs a width sampler, and a plain network takes none")
        if config.amp == "fp16" and self.device.type != "cuda":
            raise ConfigError("amp 'fp16' needs a CUDA GPU; on this device use bf16 or off")
        if config.compile and self.supernet is not None:
            raise ConfigError(
                "compile does not serve a supernet: every width vector would be compiled anew; "
                "set compile: false (retraining a plain network may use it)"
            )
        self._layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self.network = network.to(self.device)
        if self.supernet is None or self.device.type == "cuda":
            # On a CPU the library packs a supernet's slices anew in each step, faster from the plain order.
            self.network.to(memory_format=self._layout)
        self._runs: nn.Module = self._wrapped()
        self.optimizer = make_optimizer(self.network, config)
        self.average = WeightAverage(self.network, config.ema_decay) if config.ema_decay else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.amp == "fp16")
        self.step = 0
        self.cost = 0.0
        self.seconds = 0.0
        self._last_loss = float("nan")
        self._saved_step = -1
        self._pending: list[_Pending] = []
        self._logged = (0, 0.0)
        if self.supernet is not None:
            space = self.supernet.space
            self._full_macs = float(space.macs(space.full)[0])
        per_epoch = loader.batches_per_epoch
        self.total_steps = max(1, round(config.epochs * per_epoch))
        self._generators: dict[str, torch.Tensor] = {}
        self._lengths: dict[str, int | None] = {"records": None, "curves": None}
        if resume and self.checkpoint_path.exists():
            self._restore()

    @property
    def checkpoint_path(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    @property
    def share_done(self) -> float:
        """Progress, 0..1, by cost or by steps."""
        return self.cost / self.config.cost if self.config.cost else self.step / self.total_steps

    def _wrapped(self) -> nn.Module:
        runs = self.network
        if self.config.compile:
            runs = cast(nn.Module, torch.compile(runs))
        if self.ranks.world > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            # Every rank sees other images, so running statistics differ; the first rank's are saved.
            runs = DistributedDataParallel(runs, device_ids=ids, broadcast_buffers=False)
        return runs

    # -- the loop ------------------------------------------------------------------------------

    def run(self) -> TrainOutcome:
        """Train to the end.

        Raises:
            TrainingError: a loss or weight is not finite, or memory ran out; the last checkpoint stays.
            KeyboardInterrupt: Ctrl-C or SIGTERM, after a checkpoint was written.
        """
        writes = self.ranks.first
        board = _tensorboard(self.folder) if writes and self.config.tensorboard else None
        records = self._log("records") if writes and self.supernet is not None else None
        curves = self._log("curves") if writes else None
        devices = [self.device.index or 0] if self.device.type == "cuda" else []
        started = time.perf_counter() - self.seconds
        self._logged = (self.step, self.seconds)
        try:
            with torch.random.fork_rng(devices=devices), StopRequest() as stop:
                self._start_generators()
                while self.share_done < 1:
                    self._advance()
                    self.seconds = time.perf_counter() - started
                    due = self.step % self.config.log_every == 0
                    if due:
                        self._flush(records, curves, board)
                    if self._evaluation_due():
                        self._flush(records, curves, board)
                        self._evaluate_now(curves, board)
                    if self.step % self.config.checkpoint_every == 0:
                        self._flush(records, curves, board)
                        self.save(records, curves)
                    # Ranks may be told to stop at different steps: they agree where all of them meet.
                    if (due or self.ranks.world == 1) and self._all_agree(stop.requested):
                        self._flush(records, curves, board)
                        self.save(records, curves)
                        raise KeyboardInterrupt
                self._flush(records, curves, board)
                if self._saved_step != self.step:
                    self._evaluate_now(curves, board)
                    self.save(records, curves)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if (advice := memory_advice(error, self.config, self.device)) is not None:
                raise TrainingError(f"{advice}; {self._last_good()}") from error
            raise
        finally:
            for log in (records, curves, board):
                if log is not None:
                    log.close()
        rate = self.step * self.config.batch_size / self.seconds if self.seconds else 0.0
        return TrainOutcome(self.step, self.cost, self._last_loss, self.seconds, rate)

    def _advance(self) -> None:
        """One step: every path forward and backward, then the update."""
        self.network.train()
        drawn = self.sampler.next_step() if self.sampler is not None else None
        images, labels = self.loader.next_batch()
        images = images.to(memory_format=self._layout)
        factor = rate_factor(self.config, min(self.share_done, 1.0), self.config.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * factor
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._paths(drawn, images, labels)
        if self.config.clip_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update()
        self.step += 1
        self.cost += self._cost_of(drawn)
        self._pending.append(_Pending(self.step, drawn.paths if drawn else (), losses))

    def _paths(self, drawn: Step | None, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Backward of every path and part of the batch; returns each path's label loss, on the device."""
        image_parts = images.chunk(self.config.accumulation)
        label_parts = labels.chunk(self.config.accumulation)
        paths: tuple[SlicePath | None, ...] = drawn.paths if drawn is not None else (None,)
        taught: dict[int, list[torch.Tensor]] = {}
        losses = []
        for index, path in enumerate(paths):
            if path is not None and self.supernet is not None:
                self.supernet.set_active(path.widths, path.side)
            parts = []
            for part, (x, y) in enumerate(zip(image_parts, label_parts, strict=True)):
                last = index == len(paths) - 1 and part == len(image_parts) - 1
                share = len(x) / len(images)
                with self._synchronised(last):
                    with self._autocast():
                        logits = self._runs(x)
                    logits = logits.float()
                    smoothed = F.cross_entropy(logits, y, label_smoothing=self.config.label_smoothing)
                    loss = smoothed
                    if path is not None and path.role == "teacher":
                        taught.setdefault(index, []).append(logits.detach())
                    elif path is not None and path.role == "pupil":
                        loss = soft_cross_entropy(logits, taught[path.teacher_index][part])
                    elif self.teacher is not None:
                        with torch.no_grad(), self._autocast():
                            guide = self.teacher(x)
                        loss = 0.5 * smoothed + 0.5 * soft_cross_entropy(
                            logits, guide, self.config.temperature
                        )
                    weight = share * (path.weight if path is not None else 1.0)
                    self.scaler.scale(loss * weight).backward()
                parts.append(smoothed.detach() * share)
            losses.append(torch.stack(parts).sum())
        return torch.stack(losses)

    def _cost_of(self, drawn: Step | None) -> float:
        """Image passes of a step, each weighed by its MACs relative to the full width's."""
        if drawn is None or self.supernet is None:
            return float(self.config.batch_size)
        macs = sum(float(self.supernet.space.macs(path.widths)[0]) for path in drawn.paths)
        return self.config.batch_size * macs / self._full_macs

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.config.amp == "off":
            return nullcontext()
        dtype = torch.bfloat16 if self.config.amp == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype)

    def _synchronised(self, last: bool) -> AbstractContextManager[Any]:
        """Ranks exchange gradients once, in the step's last backward, when all paths have added theirs."""
        if isinstance(self._runs, DistributedDataParallel) and not last:
            return self._runs.no_sync()
        return nullcontext()

    def _all_agree(self, stop: bool) -> bool:
        if self.ranks.world == 1:
            return stop
        return bool(self.ranks.total(torch.tensor(float(stop), device=self.device)) > 0)

    # -- logs ----------------------------------------------------------------------------------

    def _log(self, name: str) -> JsonLines:
        return JsonLines(self.folder / f"{name}.jsonl", self._lengths[name])

    def _flush(self, records: JsonLines | None, curves: JsonLines | None, board: Any) -> None:
        """Fetch the losses of the steps since the last flush, check and write them."""
        if not self._pending:
            return
        sizes = [len(item.losses) for item in self._pending]
        fetched = self.ranks.mean(torch.cat([item.losses for item in self._pending])).cpu()
        rows: list[dict[str, Any]] = []
        step_losses = []
        for item, losses in zip(self._pending, fetched.split(sizes), strict=True):
            if not bool(torch.isfinite(losses).all()):
                self._pending.clear()
                raise TrainingError(self._not_finite(item, losses))
            values = losses.tolist()
            step_losses.append(sum(values) / len(values))
            rows += _record_rows(item, values)
        self._pending.clear()
        self._last_loss = sum(step_losses) / len(step_losses)
        if records is not None:
            records.append(rows)
        before, then = self._logged
        elapsed = max(self.seconds - then, 1e-9)
        speed = (self.step - before) * self.config.batch_size / elapsed
        self._logged = (self.step, self.seconds)
        if curves is not None:
            row = {
                "step": self.step, "epoch": self.step / self.loader.batches_per_epoch,
                "rate": self.optimizer.param_groups[0]["lr"], "loss": self._last_loss,
                "images_per_second": round(speed, 1), "seconds": round(self.seconds, 2),
            }  # fmt: skip
            curves.append([row])
            if board is not None:
                for key in ("rate", "loss", "images_per_second"):
                    board.add_scalar(f"train/{key}", row[key], self.step)
        if self._progress is not None:
            note = f"step {self.step}, loss {self._last_loss:.3f}, {speed:.0f} images/s"
            self._progress(min(self.share_done, 1.0), note)

    def _not_finite(self, item: _Pending, losses: torch.Tensor) -> str:
        index = int((~torch.isfinite(losses)).nonzero()[0])
        which = ""
        if item.paths:
            path = item.paths[index]
            which = f", widths {path.widths.tolist()}, {path.side} side"
        return (
            f"the loss is {float(losses[index])} at step {item.step}{which}; {self._last_good()}; "
            "lower learning_rate, set clip_norm or warmup_epochs, or train without amp"
        )

    def _last_good(self) -> str:
        if self._saved_step < 0:
            return "no checkpoint had been written yet"
        return f"the last good checkpoint is of step {self._saved_step} ({self.checkpoint_path})"

    def _evaluation_due(self) -> bool:
        if self._evaluate is None or not self.config.evaluate_every or self.share_done >= 1:
            return False
        every = self.config.evaluate_every * self.loader.batches_per_epoch
        return int(self.step / every) > int((self.step - 1) / every)

    def _evaluate_now(self, curves: JsonLines | None, board: Any) -> None:
        if self._evaluate is None:
            return
        with self.averaged():
            figures = self._evaluate(self.network)
        if curves is not None:
            epoch = self.step / self.loader.batches_per_epoch
            curves.append([{"step": self.step, "epoch": epoch, **figures}])
        if board is not None:
            for key, value in figures.items():
                board.add_scalar(f"held_out/{key}", value, self.step)

    def averaged(self) -> AbstractContextManager[None]:
        """Within it the network has its averaged weights, if there is an average."""
        return _Swapped(self.average) if self.average is not None else nullcontext()

    # -- checkpoints ---------------------------------------------------------------------------

    def save(self, records: JsonLines | None = None, curves: JsonLines | None = None) -> None:
        """Write the checkpoint (first rank only).

        Raises:
            TrainingError: a weight is not finite; the former checkpoint stays.
        """
        self._saved_step, previous = self.step, self._saved_step
        if not self.ranks.first:
            return
        tensors = {f"model.{name}": tensor for name, tensor in self.network.state_dict().items()}
        finite = [torch.isfinite(t).all() for t in tensors.values() if t.is_floating_point()]
        if not bool(torch.stack(finite).all()):
            self._saved_step = previous
            raise TrainingError(
                f"a weight is not finite after step {self.step}; {self._last_good()}; "
                "lower learning_rate, or set clip_norm"
            )
        optimizer_tensors, optimizer_rest = pack_optimizer(self.optimizer)
        tensors |= {f"optimizer.{name}": tensor for name, tensor in optimizer_tensors.items()}
        if self.average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in self.average.tensors.items()}
        tensors |= {f"generator.{name}": state for name, state in self._generator_states().items()}
        state = {
            "identity": self.identity, "config": self.config.to_dict(), "step": self.step, "cost": self.cost,
            "seconds": self.seconds, "loss": self._last_loss if self._last_loss == self._last_loss else None,
            "loader": self.loader.state_dict(),
            "sampler": self.sampler.state_dict() if self.sampler is not None else None,
            "scaler": self.scaler.state_dict(), "optimizer": optimizer_rest,
            "average_updates": self.average.updates if self.average is not None else 0,
            "records_bytes": records.sync() if records is not None else None,
            "curves_bytes": curves.sync() if curves is not None else None,
        }  # fmt: skip
        save_checkpoint(self.checkpoint_path, tensors, state)

    def _restore(self) -> None:
        tensors, state = load_checkpoint(self.checkpoint_path)
        if state.get("identity") != self.identity:
            raise CheckpointError(
                f"checkpoint {self.checkpoint_path} is of {state.get('identity')}, this run is of "
                f"{self.identity}; use another folder, or start anew with --fresh"
            )
        own, then = self.config.to_dict(), state["config"]
        changed = [key for key in own if key not in OPERATIONAL and own[key] != then.get(key)]
        if changed:
            listed = ", ".join(f"{key}: {then.get(key)} -> {own[key]}" for key in changed)
            raise CheckpointError(
                f"checkpoint {self.checkpoint_path} was trained with other settings ({listed}); "
                "use the same settings, another folder, or start anew with --fresh"
            )
        parts: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts.setdefault(part, {})[rest] = tensor
        try:
            self.network.load_state_dict(parts["model"])
        except RuntimeError as error:
            raise CheckpointError(
                f"checkpoint {self.checkpoint_path} is of another network: {str(error).splitlines()[0]}"
            ) from error
        unpack_optimizer(self.optimizer, parts.get("optimizer", {}), state["optimizer"])
        if self.average is not None:
            for name, tensor in self.average.tensors.items():
                tensor.copy_(parts["average"][name])
            self.average.updates = state["average_updates"]
        if self.config.amp == "fp16":
            self.scaler.load_state_dict(state["scaler"])
        self._generators = parts.get("generator", {})
        if self.sampler is not None:
            self.sampler.load_state_dict(state["sampler"])
        self.loader.load_state_dict(state["loader"])
        self.step, self.cost, self.seconds = state["step"], state["cost"], state["seconds"]
        self._last_loss = state["loss"] if state["loss"] is not None else float("nan")
        self._saved_step = self.step
        if self.ranks.first:
            self._lengths = {"records": state["records_bytes"], "curves": state["curves_bytes"]}

    def _generator_states(self) -> dict[str, torch.Tensor]:
        states = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        return states

    def _start_generators(self) -> None:
        """Torch's own generators, which dropout draws from; the caller's are put back afterwards."""
        torch.manual_seed(self.seed + self.ranks.rank)
        if "cpu" in self._generators and self.ranks.world == 1:
            torch.set_rng_state(self._generators["cpu"])
        if "cuda" in self._generators and self.device.type == "cuda" and self.ranks.world == 1:
            torch.cuda.set_rng_state(self._generators["cuda"], self.device)


class _Swapped(AbstractContextManager[None]):
    def __init__(self, average: WeightAverage) -> None:
        self._average = average

    def __enter__(self) -> None:
        self._average.swap()

    def __exit__(self, *exception: object) -> None:
        self._average.swap()


def _record_rows(item: _Pending, values: list[float]) -> list[dict[str, Any]]:
    """One row a width vector of the step: its mean loss over its sides, under the widths that were run."""
    by_widths: dict[tuple[int, ...], list[float]] = {}
    for path, value in zip(item.paths, values, strict=False):
        by_widths.setdefault(tuple(path.widths.tolist()), []).append(value)
    return [
        {"step": item.step, "widths": list(widths), "loss": sum(found) / len(found)}
        for widths, found in by_widths.items()
    ]


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "tensorboard: true needs the package tensorboard; pip install tensorboard"
        ) from error
    return SummaryWriter(str(folder / "tensorboard"))
