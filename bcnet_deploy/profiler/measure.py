"""One network, one session: its latency as users see it, and where the time goes.

The session is profiled first; after its profile is closed the same session runs unprofiled, so both
figures are of the same weights in the same memory. A session is gone before the next one is made;
only the session of the probe stays (:mod:`bcnet_deploy.runtime.pace`), with threads that sleep.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bcnet_deploy.profiler.layer_map import LayerMap
from bcnet_deploy.runtime.base import Array, Runner

Floats = npt.NDArray[np.float64]
MakeRunner = Callable[[bytes, bool], Runner]
"""(serialised ONNX, profiling) -> an inactive runner."""


@dataclass(frozen=True)
class Timing:
    """How often to run. ``profiled`` and ``plain`` are timed runs after ``warmup`` dropped ones."""

    warmup: int = 2
    profiled: int = 8
    plain: int = 8


@dataclass(frozen=True)
class Sample:
    """One measured network.

    Attributes:
        latency_ms: the fastest of the unprofiled runs.
        layers_us: of each layer, mean of the faster half of the profiled runs.
        nodes: of each layer, how many nodes the runtime ran for it.
    """

    latency_ms: float
    layers_us: Floats
    nodes: npt.NDArray[np.int64]

    def fastest_of(self, other: Sample) -> Sample:
        """The faster figure of two measurements of one network, for each layer and for the whole."""
        return Sample(
            min(self.latency_ms, other.latency_ms), np.minimum(self.layers_us, other.layers_us), self.nodes
        )


def low(times: Floats, axis: int = 0) -> Floats:
    """The fastest run: whatever else the machine does only ever adds time.

    On machines with neighbours the minimum repeats best; quantiles and medians carry their load.
    """
    return np.asarray(times.min(axis=axis))


def faster_half(times: Floats) -> Floats:
    """(runs, layers) -> (layers,) mean of those runs that were faster as a whole.

    Profiles count whole microseconds, and layers may take two: a mean settles what one run cannot tell.
    """
    order = np.argsort(times.sum(axis=1), kind="stable")
    return np.asarray(times[order[: max(1, len(times) // 2)]].mean(axis=0))


def without_stamps(times_us: Floats, nodes: npt.ArrayLike, node_us: float) -> Floats:
    """Profiled times of layers less what profiling adds to each of their ``nodes``; at least 0."""
    return np.maximum(times_us - node_us * np.asarray(nodes), 0.0)


def measure(
    make_runner: MakeRunner, network: bytes, layer_map: LayerMap, timing: Timing, image: Array
) -> Sample:
    """Profile and time one network. Raises :class:`EngineError`."""
    with make_runner(network, True) as runner:
        feeds = {runner.inputs[0].name: image}
        nodes = runner.node_times(feeds, runs=timing.profiled, warmup=timing.warmup)
        plain = runner.latencies(feeds, runs=timing.plain, warmup=1)
    return Sample(float(low(plain)), faster_half(layer_map.layer_times(nodes)), layer_map.node_counts(nodes))


def measure_plain(
    make_runner: MakeRunner, network: bytes, image: Array, *, runs: int, warmup: int = 2
) -> Floats:
    """Milliseconds of unprofiled runs of one network: (runs,). Raises :class:`EngineError`."""
    with make_runner(network, False) as runner:
        return runner.latencies({runner.inputs[0].name: image}, runs=runs, warmup=warmup)
