"""One life cycle for every runtime: activate, infer (any number of times), deactivate.

A runner is cheap to construct and holds nothing; ``activate`` loads the network onto the device and
``deactivate`` frees it again, threads and device memory included. Used as a context manager it
cannot be left active by an exception. Timing follows one convention everywhere: milliseconds of one
inference with its inputs already in place, warm-up runs dropped, every timed run returned (the
caller chooses the statistic).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from bcnet_deploy.errors import EngineError

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of a network: name, shape (-1: any size) and numpy dtype name."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class NodeTime:
    """What the runtime's own profile says of one of its nodes.

    ``name`` and ``op`` are the runtime's (fused names included); shapes are those of the tensors that
    entered and left the node, weights included where the runtime reports them; ``durations_us`` has one
    value for each profiled run, in microseconds.
    """

    name: str
    op: str
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]
    durations_us: tuple[float, ...]


class Runner(ABC):
    """A network on a runtime. Subclasses implement the ``_`` methods; the checks live here.

    Args:
        name: shown in messages.

    All methods raise :class:`EngineError` for a wrong state, wrong feeds or a failure of the runtime.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._active = False

    @property
    def is_active(self) -> bool:
        return self._active

    def activate(self) -> None:
        """Load the network. Raises :class:`EngineError` when it is active already or refused."""
        if self._active:
            raise EngineError(f"{self.name} is active already; deactivate it before activating it again")
        self._activate()
        self._active = True

    def deactivate(self) -> None:
        """Free everything. Does nothing when inactive, so that it is safe in ``finally``."""
        if self._active:
            self._active = False
            self._deactivate()

    def __enter__(self) -> Self:
        self.activate()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.deactivate()

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """The inputs of the active network, in order."""
        self._require_active("inputs")
        return self._inputs()

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """The outputs of the active network, in order."""
        self._require_active("outputs")
        return self._outputs()

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once: input arrays by name to output arrays by name."""
        self._require_active("infer")
        self.check_feeds(feeds)
        return self._infer(feeds)

    def latencies(self, feeds: Mapping[str, Array], *, runs: int, warmup: int = 2) -> Floats:
        """Time ``runs`` inferences after ``warmup`` untimed ones: milliseconds, shape (runs,)."""
        self._require_active("latencies")
        self._check_counts(runs, warmup)
        self.check_feeds(feeds)
        return self._latencies(feeds, runs, warmup)

    def node_times(self, feeds: Mapping[str, Array], *, runs: int, warmup: int = 2) -> list[NodeTime]:
        """Profile ``runs`` inferences after ``warmup`` dropped ones: the runtime's nodes in execution order.

        A runtime may allow this only once in an activation, and only if it was constructed for it.
        """
        self._require_active("node_times")
        self._check_counts(runs, warmup)
        self.check_feeds(feeds)
        return self._node_times(feeds, runs, warmup)

    def random_feeds(self, rng: np.random.Generator) -> dict[str, Array]:
        """Standard normal inputs of the right shapes (sizes of -1 become 1)."""
        return {
            info.name: rng.standard_normal([size if size > 0 else 1 for size in info.shape]).astype(
                info.dtype
            )
            for info in self.inputs
        }

    def check_feeds(self, feeds: Mapping[str, Array]) -> None:
        """Raises :class:`EngineError` naming the input whose name, shape or dtype is wrong."""
        expected = {info.name: info for info in self._inputs()}
        if set(feeds) != set(expected):
            raise EngineError(
                f"{self.name} was given the inputs {sorted(feeds)}; it takes exactly {sorted(expected)}"
            )
        for name, info in expected.items():
            value = feeds[name]
            fits = len(value.shape) == len(info.shape) and all(
                want in (-1, have) for want, have in zip(info.shape, value.shape, strict=True)
            )
            if not fits or value.dtype.name != info.dtype:
                raise EngineError(
                    f"{self.name}: input {name!r} has shape {tuple(value.shape)} and type "
                    f"{value.dtype.name}; the network takes {info.shape} and {info.dtype}"
                )

    def _require_active(self, what: str) -> None:
        if not self._active:
            raise EngineError(
                f"{self.name} is not active, so there is no {what!r}; "
                "use it as 'with runner:' or call activate()"
            )

    def _check_counts(self, runs: int, warmup: int) -> None:
        if runs < 1 or warmup < 0:
            raise EngineError(
                f"{self.name}: runs must be 1 or more and warmup 0 or more; given {runs} and {warmup}"
            )

    @abstractmethod
    def _activate(self) -> None: ...

    @abstractmethod
    def _deactivate(self) -> None: ...

    @abstractmethod
    def _inputs(self) -> tuple[TensorInfo, ...]: ...

    @abstractmethod
    def _outputs(self) -> tuple[TensorInfo, ...]: ...

    @abstractmethod
    def _infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]: ...

    @abstractmethod
    def _latencies(self, feeds: Mapping[str, Array], runs: int, warmup: int) -> Floats: ...

    @abstractmethod
    def _node_times(self, feeds: Mapping[str, Array], runs: int, warmup: int) -> list[NodeTime]: ...
