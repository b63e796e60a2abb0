"""Quantities as people write them: ``5ms``, ``300M``, ``0.5x``, ``2m``, ``64MiB``."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from bcnet_deploy.errors import UnitError

_NUMBER = re.compile(r"\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)\s*([A-Za-zµ]*)\s*$")

_MILLISECONDS = {"ns": 1e-6, "us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4, "min": 6e4, "h": 3.6e6}
_COUNTS = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}
_BYTES = {
    "": 1.0, "B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9,
    "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9,
    "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30,
}  # fmt: skip


@dataclass(frozen=True)
class Quantity:
    """A budget: an absolute ``value`` in base units, or a ``relative`` share of the full network."""

    value: float
    relative: bool = False

    def resolve(self, full: float) -> float:
        """The absolute budget for a network whose full cost is ``full``."""
        return self.value * full if self.relative else self.value


def _parse(text: str, units: dict[str, float], accepted: str) -> float:
    match = _NUMBER.match(text)
    if match is None or match.group(2) not in units:
        raise UnitError(f"cannot read {text!r}; accepted forms: {accepted}")
    value = float(match.group(1)) * units[match.group(2)]
    if not math.isfinite(value) or value <= 0:
        raise UnitError(f"{text!r} is not a positive finite quantity; accepted forms: {accepted}")
    return value


def _parse_quantity(text: str, units: dict[str, float], accepted: str) -> Quantity:
    stripped = text.strip()
    if stripped.endswith("x"):
        return Quantity(_parse(stripped[:-1], {"": 1.0}, accepted), relative=True)
    if stripped.endswith("%"):
        return Quantity(_parse(stripped[:-1], {"": 0.01}, accepted), relative=True)
    return Quantity(_parse(stripped, units, accepted))


def parse_latency(text: str) -> Quantity:
    """A latency budget in milliseconds. A unit is required unless the budget is relative.

    Raises:
        UnitError: the text is not a positive latency.
    """
    units = {unit: factor for unit, factor in _MILLISECONDS.items() if unit not in ("m", "min", "h")}
    return _parse_quantity(text, units, "'5ms', '800us', '0.1s', '0.5x' or '50%' (of the full network)")


def parse_count(text: str) -> Quantity:
    """A budget of multiply-accumulates or parameters: ``300M``, ``1.2G``, ``0.5x``.

    Raises:
        UnitError: the text is not a positive count.
    """
    return _parse_quantity(text, _COUNTS, "'300M', '1.2G', '50000', '0.5x' or '50%' (of the full network)")


def parse_bytes(text: str) -> Quantity:
    """A budget of memory in bytes: ``64MiB``, ``10MB``, ``0.5x``.

    Raises:
        UnitError: the text is not a positive size.
    """
    return _parse_quantity(text, _BYTES, "'64MiB', '10MB', '0.5x' or '50%' (of the full network)")


def parse_duration(text: str) -> float:
    """A time budget in seconds: ``120s``, ``2m``, ``1h``; a bare number is seconds.

    Raises:
        UnitError: the text is not a positive duration.
    """
    return _parse(text, {**_MILLISECONDS, "": 1e3}, "'120s', '2m', '1h'") / 1e3


def parse_size(text: str) -> tuple[int, int, int]:
    """An input size: ``3x224x224``, or ``224`` for three channels and a square.

    Raises:
        UnitError: the text is not a size of positive integers.
    """
    parts = text.lower().replace("×", "x").split("x")
    accepted = "'3x224x224' (channels x height x width) or '224'"
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts) or len(parts) not in (1, 3):
        raise UnitError(f"cannot read input size {text!r}; accepted forms: {accepted}")
    numbers = [int(part) for part in parts]
    return (3, numbers[0], numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1], numbers[2])


def format_count(value: float) -> str:
    """``300.8M``, ``4.09G``, ``950``: three or four significant digits."""
    for factor, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.4g}{suffix}"
    return f"{value:.4g}"


def format_milliseconds(value: float) -> str:
    """``5.12 ms``, ``812 µs``, ``1.20 s``."""
    if value >= 1e3:
        return f"{value / 1e3:.2f} s"
    return f"{value:.3g} ms" if value >= 1 else f"{value * 1e3:.3g} µs"


def format_bytes(value: float) -> str:
    """``13.4 MiB``: powers of 1024."""
    for factor, suffix in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {suffix}"
    return f"{value:.0f} B"
