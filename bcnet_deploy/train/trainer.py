"""The training loop of supernets and plain networks: path by path, resumable, without device waits.

One step runs its paths one after another (:mod:`bcnet_deploy.train.paths`) and then updates the weights
once. On a GPU nothing in a step waits for the device: losses stay there and are fetched every
``log_every`` steps (:mod:`bcnet_deploy.train.journal`). A checkpoint holds everything that decides how
training goes on: a resumed run has the same bits.
"""

from __future__ import annotations

import reprlib
import signal
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from bcnet_deploy import files
from bcnet_deploy.data.loader import BatchLoader
from bcnet_deploy.data.plain import in_memory_order
from bcnet_deploy.errors import CheckpointError, ConfigError, TrainingError
from bcnet_deploy.nn import Supernet
from bcnet_deploy.tasks import Task, load_task
from bcnet_deploy.train.checkpoint import load_checkpoint, pack_optimizer, save_checkpoint, unpack_optimizer
from bcnet_deploy.train.config import TrainConfig
from bcnet_deploy.train.distributed import Ranks
from bcnet_deploy.train.graphs import GraphedPaths
from bcnet_deploy.train.journal import Journal, Now, OnProgress, Pending, check_tensorboard
from bcnet_deploy.train.memory import memory_kept
from bcnet_deploy.train.optim import WeightAverage, make_optimizer, rate_factor
from bcnet_deploy.train.paths import PathRunner
from bcnet_deploy.train.samplers import Step, WidthSampler
from bcnet_deploy.train.trial import set_layout

OPERATIONAL = ("checkpoint_every", "log_every", "workers", "tensorboard", "evaluate_every", "cuda_graphs")
"""May change between a checkpoint and its resumption; no weight depends on them but by rounding."""


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
class Position:
    """How far a training is.

    Attributes:
        step: optimiser steps done. cost: image passes weighed by relative MACs. seconds: trained.
        loss: mean of the last logged steps; None before the first.
    """

    step: int = 0
    cost: float = 0.0
    seconds: float = 0.0
    loss: float | None = None


class Trainer:
    """Trains ``network`` in ``folder``; made again with the same arguments, it goes on where it stopped.

    Args:
        network: a :class:`Supernet`, or any network when ``sampler`` is None; moved to the device.
        loader: training batches on the device.
        config: settings.
        folder: gets ``checkpoint.safetensors``, ``curves.jsonl`` and, for a supernet, ``records.jsonl``.
        sampler: which slices to run.
        task: in place of ``config.task``.
        identity: what a checkpoint must be of (space fingerprint, widths); JSON-able.
        seed: of dropout and the like; loader and sampler have their own.
        teacher: network in evaluation mode whose outputs half of the loss follows, see :class:`PathRunner`.
        evaluate: called with the network every ``evaluate_every`` epochs, on all ranks alike (the others
            would wait for the first one anyway); the first rank's figures join the curves.
        resume: False starts anew even where there is a checkpoint, which :meth:`run` removes first.

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
        task: Task | None = None,
        identity: dict[str, Any] | None = None,
        seed: int = 0,
        ranks: Ranks | None = None,
        teacher: nn.Module | None = None,
        evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
        progress: OnProgress | None = None,
        resume: bool = True,
    ) -> None:
        self.device = loader.device
        self.ranks = ranks or Ranks()
        self.config, self.folder, self.seed = config, folder, seed
        self.loader, self.sampler = loader, sampler
        self._evaluate, self._resume = evaluate, resume
        self.supernet = network if isinstance(network, Supernet) else None
        self._check()
        self.network = network.to(self.device)
        set_layout(self.network, config, self.device)
        self.optimizer = make_optimizer(self.network, config)
        self.average = WeightAverage(self.network, config.ema_decay) if config.ema_decay else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.amp == "fp16")
        # A graph holds one process's kernels, of a network that is not compiled.
        self._graphs = (
            config.cuda_graphs and self.device.type == "cuda" and self.ranks.world == 1 and not config.compile
        )
        runner = GraphedPaths if self._graphs else PathRunner
        self.run_paths = runner(
            self._wrapped(), self.supernet, config, self.device, self.scaler, task or load_task(config.task),
            teacher,
        )  # fmt: skip
        self.journal = Journal(folder, config.batch_size, self.ranks, progress)
        if self.supernet is not None:
            space = self.supernet.space
            self._full_macs = float(space.macs(space.full)[0])
        self.total_steps = max(1, config.min_steps, round(config.epochs * loader.batches_per_epoch))
        self.checkpoint_path = folder / "checkpoint.safetensors"
        self.identity = identity or {}
        self.position = Position()
        self._saved_step = -1
        self._generators: dict[str, torch.Tensor] = {}
        if resume and self.checkpoint_path.exists():
            self._restore()

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return self.position.step

    @property
    def share_done(self) -> float:
        """Progress, 0..1, by cost or by steps."""
        return self.position.cost / self.config.cost if self.config.cost else self.step / self.total_steps

    @property
    def last_good(self) -> str:
        """Which checkpoint there is, for messages."""
        if self._saved_step < 0:
            return "no checkpoint had been written yet"
        return f"the last good checkpoint is of step {self._saved_step} ({self.checkpoint_path})"

    def _check(self) -> None:
        if (self.supernet is None) != (self.sampler is None):
            raise ConfigError("a supernet needs a width sampler, and a plain network takes none")
        if self.config.amp == "fp16" and self.device.type != "cuda":
            raise ConfigError("amp 'fp16' needs a CUDA GPU; on this device use bf16 or off")
        if self.config.compile and self.supernet is not None:
            raise ConfigError(
                "compile does not serve a supernet: every width vector would be compiled anew; "
                "set compile: false (retraining a plain network may use it)"
            )

    def _wrapped(self) -> nn.Module:
        runs = self.network
        if self.config.compile:
            runs = cast(nn.Module, torch.compile(runs))
        if self.ranks.world > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            with warnings.catch_warnings():
                # Newer versions rename the argument; older ones do not know the new name.
                warnings.simplefilter("ignore", FutureWarning)
                # Every rank sees other images, so running statistics differ; the first rank's are saved.
                runs = DistributedDataParallel(runs, device_ids=ids, broadcast_buffers=False)
        return runs

    def run(self) -> TrainOutcome:
        """Train to the end.

        Raises:
            TrainingError: a loss or weight is not finite, or memory ran out; the last checkpoint stays.
            KeyboardInterrupt: Ctrl-C or SIGTERM, after a checkpoint was written.
        """
        devices = [self.device.index or 0] if self.device.type == "cuda" else []
        position, config = self.position, self.config
        try:
            if config.tensorboard:
                check_tensorboard()
            if not self._resume and self.ranks.first:
                # The logs are begun anew: a former checkpoint would not fit them after a kill.
                self.checkpoint_path.unlink(missing_ok=True)
            self.journal.open(self._now(), supernet=self.supernet is not None, tensorboard=config.tensorboard)
            started = time.perf_counter() - position.seconds
            with torch.random.fork_rng(devices=devices), StopRequest() as stop, memory_kept(self.device):
                self._start_generators()
                while self.share_done < 1:
                    self._advance()
                    position.seconds = time.perf_counter() - started
                    due = self.step % config.log_every == 0
                    if due:
                        self._flush()
                    if self.share_done >= 1:
                        break  # the last step is evaluated, then saved
                    if self._evaluation_due():
                        self._flush()
                        self._evaluate_now()
                    if self.step % config.checkpoint_every == 0:
                        self.save()
                    # Ranks may be told to stop at different steps: they agree where all of them meet.
                    if (due or self.ranks.world == 1) and self._all_agree(stop.requested):
                        self.save()
                        raise KeyboardInterrupt
                self._flush()
                if self._saved_step != self.step:
                    self._evaluate_now()
                    self.save()
                    if self._all_agree(stop.requested):
                        raise KeyboardInterrupt
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if (advice := memory_advice(error, config, self.device)) is not None:
                raise TrainingError(f"{advice}; {self.last_good}") from error
            raise
        finally:
            self.journal.close()
            self.loader.close()
        rate = self.step * config.batch_size / position.seconds if position.seconds else 0.0
        return TrainOutcome(self.step, position.cost, self.journal.last_loss, position.seconds, rate)

    def _advance(self) -> None:
        """One step: every path forward and backward, then the update."""
        self.network.train()
        drawn = self.sampler.next_step() if self.sampler is not None else None
        images, labels = self.loader.next_batch()
        images = in_memory_order(images, channels_last=self.config.channels_last)
        factor = rate_factor(self.config, min(self.share_done, 1.0), self.config.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * factor
        # Kept and cleared: fresh memory for full-size gradients costs more than it saves, and graphs need it.
        self.optimizer.zero_grad(set_to_none=self.supernet is None and not self._graphs)
        losses = self.run_paths(drawn, images, labels)
        if self.config.clip_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update()
        self.position.step += 1
        self.position.cost += self._cost_of(drawn)
        self.journal.pending.append(Pending(self.step, drawn or (), losses))

    def _cost_of(self, drawn: Step | None) -> float:
        """Image passes of a step, each weighed by its MACs relative to the full width's."""
        if drawn is None or self.supernet is None:
            return float(self.config.batch_size)
        macs = sum(float(self.supernet.space.macs(path.widths)[0]) for path in drawn)
        return self.config.batch_size * macs / self._full_macs

    def _all_agree(self, stop: bool) -> bool:
        if self.ranks.world == 1:
            return stop
        return bool(self.ranks.total(torch.tensor(float(stop), device=self.device)) > 0)

    def _now(self) -> Now:
        rate = self.optimizer.param_groups[0]["lr"]
        epoch = self.step / self.loader.batches_per_epoch
        return Now(self.step, epoch, self.share_done, rate, self.position.seconds, self.last_good)

    def _flush(self) -> None:
        self.journal.flush(self._now())

    def _evaluation_due(self) -> bool:
        if self._evaluate is None or not self.config.evaluate_every or self.share_done >= 1:
            return False
        every = self.config.evaluate_every * self.loader.batches_per_epoch
        return int(self.step / every) > int((self.step - 1) / every)

    def _evaluate_now(self) -> None:
        if self._evaluate is None:
            return
        self._require_finite(self.network.state_dict())
        with self.averaged():
            figures = self._evaluate(self.network)
        self.journal.evaluated(self._now(), figures)

    def keep_average(self) -> None:
        """Give the network its averaged weights for good, if there is an average; training has ended."""
        if self.average is not None:
            self.average.swap()
            self.average = None

    def averaged(self) -> AbstractContextManager[None]:
        """Within it the network has its averaged weights, if there is an average."""
        return self.average.swapped() if self.average is not None else nullcontext()

    def save(self) -> None:
        """Write records, curves and, on the first rank, the checkpoint.

        Raises:
            TrainingError: a loss or weight is not finite; the former checkpoint stays.
        """
        self._flush()
        self.position.loss = self.journal.last_loss
        if self.ranks.first:
            self._write_checkpoint(self.journal.sync())
        self._saved_step = self.step

    def _require_finite(self, tensors: dict[str, torch.Tensor]) -> None:
        finite = [torch.isfinite(t).all() for t in tensors.values() if t.is_floating_point()]
        if not bool(torch.stack(finite).all()):
            raise TrainingError(
                f"a weight is not finite after step {self.step}; {self.last_good}; "
                "lower learning_rate, or set clip_norm"
            )

    def _write_checkpoint(self, lengths: dict[str, int | None]) -> None:
        tensors = {f"model.{name}": tensor for name, tensor in self.network.state_dict().items()}
        self._require_finite(tensors)
        optimizer_tensors, optimizer_rest = pack_optimizer(self.optimizer)
        tensors |= {f"optimizer.{name}": tensor for name, tensor in optimizer_tensors.items()}
        if self.average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in self.average.tensors.items()}
        tensors["generator.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["generator.cuda"] = torch.cuda.get_rng_state(self.device)
        state = {
            **asdict(self.position), "identity": self.identity, "config": self.config.to_dict(),
            "loader": self.loader.state_dict(),
            "sampler": self.sampler.state_dict() if self.sampler is not None else None,
            "scaler": self.scaler.state_dict(), "optimizer": optimizer_rest,
            "average_updates": self.average.updates if self.average is not None else 0, "logs": lengths,
        }  # fmt: skip
        save_checkpoint(self.checkpoint_path, tensors, state)

    def _restore(self) -> None:
        """Put the checkpoint's state back."""
        tensors, state = load_checkpoint(self.checkpoint_path)
        parts: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts.setdefault(part, {})[rest] = tensor
        with files.malformed(
            f"checkpoint {self.checkpoint_path}", CheckpointError,
            "it may be of another network: start anew with --fresh",
        ):  # fmt: skip
            self._check_checkpoint(state)
            for name, generator in parts.get("generator", {}).items():
                if name == self.device.type or name == "cpu":
                    torch.Generator(name).set_state(generator)
            self.network.load_state_dict(parts["model"])
            unpack_optimizer(self.optimizer, parts.get("optimizer", {}), state["optimizer"])
            if self.average is not None:
                for name, tensor in self.average.tensors.items():
                    tensor.copy_(parts["average"][name])
                self.average.updates = _whole(state["average_updates"], "updates of the average")
            if self.config.amp == "fp16":
                self.scaler.load_state_dict(state["scaler"])
            if self.sampler is not None:
                self.sampler.load_state_dict(state["sampler"])
            self.loader.load_state_dict(state["loader"])
            self.position = _position(state)
            if self.loader.position != self.step:
                raise ValueError(f"step {self.step} and position {self.loader.position} of the images")
            self.journal.lengths = {
                name: None if (length := state["logs"][name]) is None else _whole(length, "length of a log")
                for name in self.journal.lengths
            }
        self._generators = parts.get("generator", {})
        self._saved_step = self.step
        if self.position.loss is not None:
            self.journal.last_loss = self.position.loss

    def _check_checkpoint(self, state: dict[str, Any]) -> None:
        if state["identity"] != self.identity:
            raise CheckpointError(
                f"checkpoint {self.checkpoint_path} is of {state['identity']}, this run is of "
                f"{self.identity}; use another folder, or start anew with --fresh"
            )
        own, then = self.config.to_dict(), state["config"]
        changed = [key for key in own if key not in OPERATIONAL and own[key] != then.get(key)]
        if changed:
            changes = ", ".join(f"{key}: {then.get(key)} -> {own[key]}" for key in changed)
            raise CheckpointError(
                f"checkpoint {self.checkpoint_path} was trained with other settings ({changes}); "
                "use the same settings, another folder, or start anew with --fresh"
            )

    def _start_generators(self) -> None:
        """Torch's own generators, which dropout draws from: the checkpoint's, or of the seed.

        One rank's states are in a checkpoint, so several ranks are seeded anew.
        """
        torch.manual_seed(self.seed + self.ranks.rank)
        if self.ranks.world == 1 and "cpu" in self._generators:
            torch.set_rng_state(self._generators["cpu"])
            if self.device.type == "cuda" and "cuda" in self._generators:
                torch.cuda.set_rng_state(self._generators["cuda"], self.device)


def _position(state: dict[str, Any]) -> Position:
    """What a checkpoint says of how far it is. Raises KeyError, TypeError or ValueError."""
    step, loss = _whole(state["step"], "step"), state["loss"]
    cost, seconds = float(state["cost"]), float(state["seconds"])
    if not 0 <= cost <= _MOST or not 0 <= seconds <= _MOST:
        raise ValueError(f"its cost {cost!r} or seconds {seconds!r}")
    return Position(step, cost, seconds, None if loss is None else float(loss))


def _whole(value: Any, what: str) -> int:
    """A count of a checkpoint. Raises ValueError."""
    if type(value) is not int or not 0 <= value <= _MOST:
        raise ValueError(f"its {what}, {reprlib.repr(value)}")
    return value


_MOST = 10**12


class StopRequest:
    """Ctrl-C and SIGTERM as a request to stop after the current step.

    Within it the first Ctrl-C or SIGTERM sets ``requested``; a second one acts as before. Outside
    the main thread Python delivers no signals, and nothing is changed.
    """

    def __init__(self) -> None:
        self.requested = False
        self._former: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._former[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exception: object) -> None:
        self._put_back()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._put_back()

    def _put_back(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}


_MEMORY_SIGNS = ("can't allocate memory", "not enough memory", "out of memory", "std::bad_alloc")


def memory_advice(error: BaseException, config: TrainConfig, device: torch.device) -> str | None:
    """What to change after an out-of-memory ``error``; None if it is another error."""
    text = str(error).lower()
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    if not known and not any(sign in text for sign in _MEMORY_SIGNS):
        return None
    part = max(1, config.batch_size // config.accumulation)
    half = max(1, part // 2)
    return (
        f"out of memory on {device} with {part} images at once (batch_size {config.batch_size}, accumulation "
        f"{config.accumulation}); set accumulation: {-(-config.batch_size // half)} for the same batch in "
        f"parts of {half}, or lower batch_size"
    )


__all__ = ["OnProgress", "TrainOutcome", "Trainer"]
