"""The search strategies by name; a callable ``Context -> str`` is one too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from bcnet_deploy.errors import ConfigError
from bcnet_deploy.registry import Registry

if TYPE_CHECKING:
    from bcnet_deploy.search.baselines import Context


class Strategy(Protocol):
    """Spends the evaluations of a context. Returns why it stopped, for people.

    :class:`bcnet_deploy.testing.strategies.StrategyConformance` says what it must keep to.
    """

    def __call__(self, context: Context, /) -> str: ...


STRATEGIES: Registry[Strategy] = Registry(
    "strategy",
    "bcnet_deploy.strategies",
    built_in={
        "nsga2": "bcnet_deploy.search.nsga2:nsga2",
        "random": "bcnet_deploy.search.baselines:random_search",
        "greedy": "bcnet_deploy.search.baselines:greedy",
        "uniform": "bcnet_deploy.search.baselines:uniform_scaling",
        "exhaustive": "bcnet_deploy.search.baselines:exhaustive",
    },
)


def strategy_of(given: str | Strategy) -> tuple[str, Strategy]:
    """Name and function of a strategy. Raises :class:`ConfigError` for an unknown name, or no callable."""
    if isinstance(given, str):
        return given, STRATEGIES.get(given)
    if not callable(given):
        raise ConfigError(
            f"strategy is {given!r}; allowed: {', '.join(STRATEGIES.names())}, or a callable Context -> str"
        )
    return str(getattr(given, "__name__", type(given).__name__)), given
