"""Conformance suites: subclass one in your tests to show that your own part fits."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bcnet_deploy.testing.runtimes import RunnerConformance as RunnerConformance
    from bcnet_deploy.testing.runtimes import RuntimeConformance as RuntimeConformance
    from bcnet_deploy.testing.samplers import SamplerConformance as SamplerConformance
    from bcnet_deploy.testing.strategies import StrategyConformance as StrategyConformance

_LAZY = {
    "RunnerConformance": "runtimes", "RuntimeConformance": "runtimes", "SamplerConformance": "samplers",
    "StrategyConformance": "strategies",
}  # fmt: skip
__all__ = list(_LAZY)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"bcnet_deploy.testing.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'bcnet_deploy.testing' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
