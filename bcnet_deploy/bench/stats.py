"""What is said of a set of timed runs.

Runs come in rounds, between which other networks ran, so that a drift of the machine touches all alike.
``low`` is the undisturbed time, defined as the profiler defines it for the networks that it holds out: a
round is the fastest of its runs, a network the median of its rounds. It is what latency tables predict;
median and p90 are what users see.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bcnet_deploy.profiler.measure import low

Floats = npt.NDArray[np.float64]
_SPLITS = 200


@dataclass(frozen=True)
class LatencyStats:
    """Milliseconds of one inference.

    Attributes:
        runs: timed runs, ``rounds`` of equally many.
        low_ms: median over the rounds of each one's fastest run; what is compared with predictions.
        median_ms, p90_ms: of all runs.
        spread: (p90 - p10) / median.
        noise_floor: how far ``low_ms`` of one half of the rounds is from that of the other, relative:
            root mean square over random halves. No prediction can be judged finer than this.
        round_medians_ms: in the order measured.
    """

    runs: int
    rounds: int
    low_ms: float
    median_ms: float
    p90_ms: float
    spread: float
    noise_floor: float | None
    round_medians_ms: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form."""
        return {**asdict(self), "round_medians_ms": [round(value, 6) for value in self.round_medians_ms]}


def summarise(times: Floats, rng: np.random.Generator) -> LatencyStats:
    """Statistics of ``times`` (rounds, runs) in milliseconds; one round has no noise floor."""
    flat = times.reshape(-1)
    p10, median, p90 = (float(value) for value in np.quantile(flat, [0.1, 0.5, 0.9]))
    return LatencyStats(
        runs=flat.size, rounds=len(times), low_ms=undisturbed(times), median_ms=median, p90_ms=p90,
        spread=(p90 - p10) / median, noise_floor=noise_floor(times, rng),
        round_medians_ms=tuple(np.median(times, axis=1).tolist()),
    )  # fmt: skip


def undisturbed(times: Floats) -> float:
    """Milliseconds of (rounds, runs): the median over the rounds of the fastest run in each."""
    return float(np.median(low(times, axis=1)))


def noise_floor(times: Floats, rng: np.random.Generator) -> float | None:
    """Split-half noise of :func:`undisturbed` over the rounds of (rounds, runs); None for one round."""
    rounds = len(times)
    if rounds < 2:
        return None
    squares = []
    for _ in range(_SPLITS):
        order = rng.permutation(rounds)
        first, second = (undisturbed(times[half]) for half in np.array_split(order, 2))
        squares.append(((first - second) / ((first + second) / 2)) ** 2)
    return float(np.sqrt(np.mean(squares)))
