"""Running statistics of one sub-network."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import chain

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bcnet_deploy.errors import EvaluationError
from bcnet_deploy.nn.supernet import Supernet


def recalibrate(network: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Replace running statistics by the plain average over ``batches``.

    Weights shared by many sub-networks leave statistics that fit none of them: before a sub-network
    is evaluated, those of its slice are reset and averaged anew, for each side by itself. So are those of
    other normalisations, the user's own among them, if what they keep is a running average. A
    buffer that training changes in another way is left as it is, with a warning.

    Args:
        network: a plain network, or a :class:`Supernet`, of which the active slice is recalibrated.
        batches: image batches (N, C, H, W) of *training* data; about 20 are enough.

    Raises:
        EvaluationError: ``batches`` is empty.
    """
    model = network.model if isinstance(network, Supernet) else network
    layers = [
        module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats
    ]
    others = _owners_of_buffers(model, layers)
    if not layers and not others:
        return
    remaining = iter(batches)
    first = next(remaining, None)
    if first is None:
        raise EvaluationError("batch-norm recalibration needs at least one batch; given: none")
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        own: _RunningAverages | None = None
        if others:
            with _training(network, others.values()), torch.random.fork_rng(devices=[]):
                own = _RunningAverages(network, others, first)
        # A momentum of None averages cumulatively.
        stack.enter_context(_training(network, [*layers, *(own.modules if own else ())]))
        momenta = [(layer, layer.momentum) for layer in layers]
        stack.callback(_set_momenta, momenta)
        with _of(network):
            for layer in layers:
                layer.momentum = None
                layer.reset_running_stats()
        for batch in chain([first], remaining):
            network(batch)
            if own:
                own.collect()
        if own:
            own.finish()


def keeps_other_statistics(model: nn.Module) -> bool:
    """Whether modules other than batch norms hold buffers that might be running averages."""
    return bool(_owners_of_buffers(model, [m for m in model.modules() if isinstance(m, _BatchNorm)]))


def _set_momenta(momenta: list[tuple[_BatchNorm, float | None]]) -> None:
    for layer, momentum in momenta:
        layer.momentum = momentum


class _RunningAverages:
    """Buffers of any module that keep ``(1 - m) * former + m * batch`` in training, with ``m`` unknown.

    One batch seen from two former values tells ``m``: the results differ by ``1 - m`` times what the former
    values differ by. Each batch then starts from the same former value, so that its own statistics follow.

    Args:
        network: in the mode in which it will be run.
        owners: modules whose floating-point buffers are looked at.
        batch: to find out with; buffers are as before afterwards.
    """

    def __init__(self, network: nn.Module, owners: dict[str, nn.Module], batch: torch.Tensor) -> None:
        self.network = network
        self.owners = owners
        self.count = 0
        self.former = self._read()
        network(batch)
        once = self._read()
        changed = {
            name
            for name, tensor in once.items()
            if name in self.former
            and tensor.is_floating_point()
            and not torch.equal(tensor, self.former[name])
        }
        # Far enough that a maximum or the like shows that it is no average.
        shift = {name: 1 + 4 * float(once[name].abs().max()) for name in changed}
        self._write({name: tensor + shift.get(name, 0) for name, tensor in self.former.items()})
        network(batch)
        again = self._read()
        self._write(self.former)
        self.kept: dict[str, float] = {}
        for name in sorted(changed):
            share = (again[name] - once[name]).double() / shift[name]
            kept = float(share.mean())
            if 0 <= kept < 1 - 1e-6 and float((share - kept).abs().max()) < 1e-3:
                self.kept[name] = kept
            elif not 1 - 1e-6 <= kept <= 1 + 1e-6:
                warnings.warn(
                    f"{name} changes in training and is no running average; it is not recalibrated",
                    stacklevel=4,
                )
        self.sums = {name: torch.zeros_like(self.former[name], dtype=torch.float64) for name in self.kept}

    @property
    def modules(self) -> list[nn.Module]:
        """Those that keep a running average."""
        return [owner for path, owner in self.owners.items() if any(_owner(n) == path for n in self.kept)]

    def collect(self) -> None:
        """After a batch: take its statistics, and start from the former values again."""
        read = self._read()
        for name, total in self.sums.items():
            total += read[name]
        self.count += 1
        self._write(self.former)

    def finish(self) -> None:
        """Put the average of all batches in place."""
        self._write(
            {
                name: (self.sums[name] / self.count - kept * self.former[name]) / (1 - kept)
                for name, kept in self.kept.items()
            }
        )

    def _read(self) -> dict[str, torch.Tensor]:
        with _of(self.network):
            return {
                f"{path}.{key}": tensor.clone()
                for path, owner in self.owners.items()
                for key, tensor in owner._buffers.items()
                if tensor is not None
            }

    def _write(self, values: dict[str, torch.Tensor]) -> None:
        with _of(self.network):
            for name, value in values.items():
                tensor = self.owners[_owner(name)]._buffers[name.rpartition(".")[2]]
                if tensor is not None:
                    tensor.copy_(value)


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _owners_of_buffers(model: nn.Module, known: list[_BatchNorm]) -> dict[str, nn.Module]:
    """Modules by path, other than ``known``, that hold a floating-point buffer."""
    return {
        path: module
        for path, module in model.named_modules()
        if module not in known
        and any(tensor is not None and tensor.is_floating_point() for tensor in module._buffers.values())
    }


def _of(network: nn.Module) -> AbstractContextManager[nn.Module]:
    """The model that runs: of a supernet its active slice."""
    return network.sliced() if isinstance(network, Supernet) else nullcontext(network)


@contextmanager
def _training(network: nn.Module, training: Iterable[nn.Module]) -> Iterator[None]:
    """Everything in evaluation mode but these modules; restored on exit."""
    flags = [(module, module.training) for module in network.modules()]
    try:
        for module, _ in flags:
            module.training = False
        for module in training:
            module.training = True
        yield
    finally:
        for module, flag in flags:
            module.training = flag
