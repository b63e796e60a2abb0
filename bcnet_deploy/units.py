"""Quantities as people write them: ``5ms``, ``300M``, ``0.5x``, ``2m``, ``64MiB``."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable
from dataclasses import dataclass

from bcnet_deploy.errors import UnitError

_NUMBER = re.compile(r"\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)\s*([A-Za-zµ]*|%)\s*$", re.ASCII)

_MILLISECONDS = {"ns": 1e-6, "us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4, "min": 6e4, "h": 3.6e6}
_SHARES = {"x": 1.0, "%": 0.01}
_COUNTS = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}
_BYTES = {
    "": 1.0, "B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9,
    "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9,
    "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30,
}  # fmt: skip

LARGEST_SIDE, LARGEST_INPUT = 2**15, 2**28


@dataclass(frozen=True)
class Quantity:
    """A budget: an absolute ``value`` in base units, or a ``relative`` share of the full network."""

    value: float
    relative: bool = False

    def resolve(self, full: float) -> float:
        """The absolute budget for a network whose full cost is ``full``."""
        return self.value * full if self.relative else self.value


Range = tuple[float, float, Callable[[float], str]]
"""The least and the largest value, and how it is shown."""


def _parse(text: str, units: dict[str, float], allowed: Range, accepted: str) -> Quantity:
    match = _NUMBER.match(text) if len(text) <= 60 else None
    unit = match.group(2) if match is not None else ""
    if match is None or unit not in units:
        raise UnitError(f"cannot read {reprlib.repr(text)}; accepted forms: {accepted}")
    value = float(match.group(1)) * units[unit]
    least, largest, show = SHARES if unit in _SHARES else allowed
    if value <= 0:
        raise UnitError(f"{text!r} is not a positive quantity; accepted forms: {accepted}")
    if not least <= value <= largest:
        raise UnitError(
            f"{text!r} is out of range; allowed: {show(least)} to {show(largest)}; accepted forms: {accepted}"
        )
    return Quantity(value, relative=unit in _SHARES)


def parse_latency(text: str) -> Quantity:
    """A latency budget in milliseconds, 1 ns to 1 h. A unit is required unless the budget is relative.

    Raises:
        UnitError: the text is no latency, or out of range.
    """
    units = {unit: factor for unit, factor in _MILLISECONDS.items() if unit not in ("m", "min", "h")}
    accepted = "'5ms', '800us', '0.1s', '0.5x' or '50%' (of the full network)"
    return _parse(text, units | _SHARES, LATENCIES_MS, accepted)


def parse_count(text: str) -> Quantity:
    """A budget of multiply-accumulates or parameters, 1 to 1e18: ``300M``, ``1.2G``, ``0.5x``.

    Raises:
        UnitError: the text is no count, or out of range.
    """
    accepted = "'300M', '1.2G', '50000', '0.5x' or '50%' (of the full network)"
    return _parse(text, _COUNTS | _SHARES, COUNTS, accepted)


def parse_bytes(text: str) -> Quantity:
    """A budget of memory in bytes, 1 to 1e15: ``64MiB``, ``10MB``, ``0.5x``.

    Raises:
        UnitError: the text is no size, or out of range.
    """
    accepted = "'64MiB', '10MB', '0.5x' or '50%' (of the full network)"
    return _parse(text, _BYTES | _SHARES, BYTES, accepted)


def parse_duration(text: str) -> float:
    """A time budget in seconds, 1 ms to 1000 h: ``120s``, ``2m``, ``1h``. A unit is required.

    Raises:
        UnitError: the text is no duration, or out of range.
    """
    return _parse(text, _MILLISECONDS, DURATIONS_MS, "'120s', '2m', '1h'").value / 1e3


def parse_size(text: str) -> tuple[int, int, int]:
    """An input size: ``3x224x224``, or ``224`` for three channels and a square.

    Raises:
        UnitError: the text is not a size of positive integers, or too large for any memory.
    """
    parts = [part.strip() for part in text.lower().replace("×", "x").split("x")]
    accepted = "'3x224x224' (channels x height x width) or '224'"
    if len(parts) not in (1, 3) or not all(re.fullmatch(r"0*[1-9][0-9]*", part) for part in parts):
        raise UnitError(f"cannot read input size {reprlib.repr(text)}; accepted forms: {accepted}")
    if any(len(part) > 9 or int(part) > LARGEST_SIDE for part in parts):
        raise UnitError(
            f"input size {reprlib.repr(text)} is out of range; allowed: up to {LARGEST_SIDE} each; "
            f"accepted forms: {accepted}"
        )
    numbers = [int(part) for part in parts]
    size = (3, numbers[0], numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1], numbers[2])
    if math.prod(size) > LARGEST_INPUT:
        raise UnitError(
            f"input size {reprlib.repr(text)} has {format_count(math.prod(size))} values; allowed: up to "
            f"{format_count(LARGEST_INPUT)}; accepted forms: {accepted}"
        )
    return size


def format_count(value: float) -> str:
    """``300.8M``, ``4.09G``, ``950``: three or four significant digits."""
    for factor, suffix in ((1.0, ""), (1e3, "k"), (1e6, "M"), (1e9, "G")):
        if _below_1000(text := f"{value / factor:.4g}"):
            return f"{text}{suffix}"
    return f"{value / 1e12:.4g}T"


def format_milliseconds(value: float) -> str:
    """``5.12 ms``, ``812 µs``, ``1.20 s``."""
    for factor, suffix in ((1e-3, "µs"), (1.0, "ms")):
        if _below_1000(text := f"{value / factor:.3g}"):
            return f"{text} {suffix}"
    return f"{value / 1e3:.2f} s"


def format_bytes(value: float) -> str:
    """``13.4 MiB``: powers of 1024."""
    if abs(float(f"{value:.0f}")) < 2**10:
        return f"{value:.0f} B"
    for factor, suffix in ((2**10, "KiB"), (2**20, "MiB")):
        if _below_1000(text := f"{value / factor:.3g}"):
            return f"{text} {suffix}"
    return f"{value / 2**30:.3g} GiB"


def _below_1000(text: str) -> bool:
    """Whether a figure as it is printed has no more than three digits before the point."""
    return abs(float(text)) < 1000


# What a network or a machine could have, and nothing that overflows later.
LATENCIES_MS: Range = (1e-6, 3.6e6, format_milliseconds)
DURATIONS_MS: Range = (1.0, 3.6e9, format_milliseconds)
COUNTS: Range = (1.0, 1e18, format_count)
BYTES: Range = (1.0, 1e15, format_bytes)
SHARES: Range = (1e-6, 1e3, lambda share: f"{share:g}x")
