"""Several processes under torchrun: who we are, gradients averaged, records and scores gathered."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from bcnet_deploy.errors import ConfigError, DeviceError


@dataclass(frozen=True)
class Ranks:
    """This process among ``world``; one process alone needs no process group."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def mean(self, tensor: torch.Tensor) -> torch.Tensor:
        """The mean over the ranks (of a copy)."""
        if self.world == 1:
            return tensor
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total / self.world

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks (of a copy)."""
        if self.world == 1:
            return tensor
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    def barrier(self) -> None:
        """Wait for all the ranks."""
        if self.world > 1:
            dist.barrier()


@contextmanager
def process_group(device: torch.device) -> Iterator[Ranks]:
    """Join torchrun's processes (environment RANK, WORLD_SIZE, ...); one rank without torchrun.

    A process group that already exists is used and left alone.

    Raises:
        ConfigError: torchrun's variables are incomplete.
    """
    if dist.is_available() and dist.is_initialized():
        yield Ranks(dist.get_rank(), dist.get_world_size())
        return
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(f"WORLD_SIZE is set but {', '.join(missing)} is not; start with torchrun")
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def pick_device(name: str | None = None) -> torch.device:
    """The device of a name; by default this process's GPU where there is one, else the CPU.

    Raises:
        DeviceError: a GPU is named that is not there.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if name is None or name == "auto":
        return torch.device("cuda", local % count) if count else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"unknown device {name!r}; allowed: auto, cpu, cuda, cuda:N") from error
    if device.type == "cuda":
        index = device.index if device.index is not None else local
        if index >= count:
            raise DeviceError(
                f"device {name!r} asked for, but this machine has {count} usable CUDA GPU(s); "
                "use --compute cpu, or check the driver with 'bcnet-deploy doctor'"
            )
        return torch.device("cuda", index)
    if device.type != "cpu":
        raise DeviceError(f"device {name!r} is not supported for training; allowed: auto, cpu, cuda, cuda:N")
    return device
