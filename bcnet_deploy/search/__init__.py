"""Search: the most accurate widths within hard budgets on one device or several.

Names are loaded when first used, so that a list of strategies costs no SciPy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bcnet_deploy.references import lazy, make_callable

if TYPE_CHECKING:
    from bcnet_deploy.search.api import search as search
    from bcnet_deploy.search.baselines import Context as Context
    from bcnet_deploy.search.constraints import Budget as Budget
    from bcnet_deploy.search.constraints import Constraints as Constraints
    from bcnet_deploy.search.constraints import build_constraints as build_constraints
    from bcnet_deploy.search.evaluation import RacingAccuracy as RacingAccuracy
    from bcnet_deploy.search.explain import uniform_to_compare as uniform_to_compare
    from bcnet_deploy.search.feasibility import BudgetConflictError as BudgetConflictError
    from bcnet_deploy.search.feasibility import BudgetInfeasibleError as BudgetInfeasibleError
    from bcnet_deploy.search.feasibility import with_attainable_confidence as with_attainable_confidence
    from bcnet_deploy.search.posterior import Belief as Belief
    from bcnet_deploy.search.posterior import Posterior as Posterior
    from bcnet_deploy.search.posterior import Transfer as Transfer
    from bcnet_deploy.search.result import Front as Front
    from bcnet_deploy.search.result import Generation as Generation
    from bcnet_deploy.search.result import SearchResult as SearchResult
    from bcnet_deploy.search.strategies import STRATEGIES as STRATEGIES
    from bcnet_deploy.search.strategies import Strategy as Strategy

_PLACES = {
    "search": "api",
    "Context": "baselines",
    "Budget": "constraints",
    "Constraints": "constraints",
    "build_constraints": "constraints",
    "RacingAccuracy": "evaluation",
    "uniform_to_compare": "explain",
    "BudgetConflictError": "feasibility",
    "BudgetInfeasibleError": "feasibility",
    "with_attainable_confidence": "feasibility",
    "Belief": "posterior",
    "Posterior": "posterior",
    "Transfer": "posterior",
    "Front": "result",
    "Generation": "result",
    "SearchResult": "result",
    "STRATEGIES": "strategies",
    "Strategy": "strategies",
}
__all__ = sorted(_PLACES)
__getattr__, __dir__ = lazy(__name__, _PLACES)


# Importing a subpackage always binds it to its parent, so bd.search is this module: it has to be callable.
make_callable(__name__, "bcnet_deploy.search.api:search")
