"""Conformance suites: subclass one in your tests to show that your own part fits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bcnet_deploy.references import lazy

if TYPE_CHECKING:
    from bcnet_deploy.testing.runtimes import RunnerConformance as RunnerConformance
    from bcnet_deploy.testing.runtimes import RuntimeConformance as RuntimeConformance
    from bcnet_deploy.testing.samplers import SamplerConformance as SamplerConformance
    from bcnet_deploy.testing.strategies import StrategyConformance as StrategyConformance

_PLACES = {
    "RunnerConformance": "runtimes", "RuntimeConformance": "runtimes", "SamplerConformance": "samplers",
    "StrategyConformance": "strategies",
}  # fmt: skip
__all__ = list(_PLACES)
__getattr__, __dir__ = lazy(__name__, _PLACES)
