"""What a checkpoint holds of a training run, and putting it back: the run then goes on bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bcnet_deploy.data.loader import BatchLoader
from bcnet_deploy.errors import CheckpointError, TrainingError
from bcnet_deploy.train.checkpoint import load_checkpoint, pack_optimizer, save_checkpoint, unpack_optimizer
from bcnet_deploy.train.config import TrainConfig
from bcnet_deploy.train.optim import WeightAverage
from bcnet_deploy.train.samplers import WidthSampler

OPERATIONAL = ("checkpoint_every", "log_every", "workers", "tensorboard", "evaluate_every")
"""Settings that may change between a checkpoint and its resumption: the weights do not depend on them."""


@dataclass
class TrainState:
    """Everything that decides how training goes on, by reference, and how far it is.

    Attributes:
        path: of the checkpoint. identity: what it must be of; JSON-able.
        step: optimiser steps done. cost: image passes weighed by relative MACs. seconds: trained.
        loss: mean of the last logged steps.
        saved_step: step of the checkpoint; -1 where there is none.
        lengths: bytes of the logs that the checkpoint knows of, by name; None where it knows of none.
        generators: states of torch's own generators that the checkpoint was written with.
    """

    path: Path
    network: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: WeightAverage | None
    loader: BatchLoader
    sampler: WidthSampler | None
    config: TrainConfig
    identity: dict[str, Any]
    step: int = 0
    cost: float = 0.0
    seconds: float = 0.0
    loss: float = float("nan")
    saved_step: int = -1
    lengths: dict[str, int | None] = field(default_factory=lambda: {"records": None, "curves": None})
    generators: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def last_good(self) -> str:
        """Which checkpoint there is, for messages."""
        if self.saved_step < 0:
            return "no checkpoint had been written yet"
        return f"the last good checkpoint is of step {self.saved_step} ({self.path})"

    def save(self, lengths: dict[str, int | None]) -> None:
        """Write the checkpoint; the logs are on disk with these ``lengths``.

        Raises:
            TrainingError: a weight is not finite; the former checkpoint stays.
            RunDirError: the folder cannot be written.
        """
        tensors = {f"model.{name}": tensor for name, tensor in self.network.state_dict().items()}
        finite = [torch.isfinite(t).all() for t in tensors.values() if t.is_floating_point()]
        if not bool(torch.stack(finite).all()):
            raise TrainingError(
                f"a weight is not finite after step {self.step}; {self.last_good}; "
                "lower learning_rate, or set clip_norm"
            )
        optimizer_tensors, optimizer_rest = pack_optimizer(self.optimizer)
        tensors |= {f"optimizer.{name}": tensor for name, tensor in optimizer_tensors.items()}
        if self.average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in self.average.tensors.items()}
        tensors |= {f"generator.{name}": state for name, state in self._generator_states().items()}
        state = {
            "identity": self.identity, "config": self.config.to_dict(), "step": self.step, "cost": self.cost,
            "seconds": self.seconds, "loss": self.loss if self.loss == self.loss else None,
            "loader": self.loader.state_dict(),
            "sampler": self.sampler.state_dict() if self.sampler is not None else None,
            "scaler": self.scaler.state_dict(), "optimizer": optimizer_rest,
            "average_updates": self.average.updates if self.average is not None else 0,
            "records_bytes": lengths["records"], "curves_bytes": lengths["curves"],
        }  # fmt: skip
        save_checkpoint(self.path, tensors, state)
        self.saved_step = self.step

    def restore(self) -> None:
        """Put the checkpoint's state back.

        Raises:
            CheckpointError: it is damaged, or of another network, space or settings.
        """
        try:
            self._restore(*load_checkpoint(self.path))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"checkpoint {self.path} is not as training writes it ({type(error).__name__}: {error}); "
                "restore a copy, or start anew with --fresh"
            ) from error

    def _restore(self, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        self._check(state)
        parts: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts.setdefault(part, {})[rest] = tensor
        try:
            self.network.load_state_dict(parts["model"])
        except RuntimeError as error:
            raise CheckpointError(
                f"checkpoint {self.path} is of another network: {str(error).splitlines()[0]}"
            ) from error
        unpack_optimizer(self.optimizer, parts.get("optimizer", {}), state["optimizer"])
        if self.average is not None:
            for name, tensor in self.average.tensors.items():
                tensor.copy_(parts["average"][name])
            self.average.updates = state["average_updates"]
        if self.config.amp == "fp16":
            self.scaler.load_state_dict(state["scaler"])
        self.generators = parts.get("generator", {})
        if self.sampler is not None:
            self.sampler.load_state_dict(state["sampler"])
        self.loader.load_state_dict(state["loader"])
        self.step, self.cost, self.seconds = state["step"], state["cost"], state["seconds"]
        self.loss = state["loss"] if state["loss"] is not None else float("nan")
        self.saved_step = self.step
        self.lengths = {"records": state["records_bytes"], "curves": state["curves_bytes"]}

    def start_generators(self, seed: int, *, alone: bool) -> None:
        """Torch's own generators, which dropout draws from: the checkpoint's, or of ``seed``.

        One rank's states are in a checkpoint, so several ranks (not ``alone``) are seeded anew.
        """
        torch.manual_seed(seed)
        if "cpu" in self.generators and alone:
            torch.set_rng_state(self.generators["cpu"])
        if "cuda" in self.generators and self.loader.device.type == "cuda" and alone:
            torch.cuda.set_rng_state(self.generators["cuda"], self.loader.device)

    def _check(self, state: dict[str, Any]) -> None:
        if state.get("identity") != self.identity:
            raise CheckpointError(
                f"checkpoint {self.path} is of {state.get('identity')}, this run is of "
                f"{self.identity}; use another folder, or start anew with --fresh"
            )
        own, then = self.config.to_dict(), state["config"]
        changed = [key for key in own if key not in OPERATIONAL and own[key] != then.get(key)]
        if changed:
            raise CheckpointError(
                f"checkpoint {self.path} was trained with other settings ({_changes(changed, then, own)}); "
                "use the same settings, another folder, or start anew with --fresh"
            )

    def _generator_states(self) -> dict[str, torch.Tensor]:
        states = {"cpu": torch.get_rng_state()}
        if self.loader.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.loader.device)
        return states


def _changes(keys: Sequence[str], then: dict[str, Any], now: dict[str, Any]) -> str:
    return ", ".join(f"{key}: {then.get(key)} -> {now[key]}" for key in keys)
