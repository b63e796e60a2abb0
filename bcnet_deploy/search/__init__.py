"""Search: the most accurate widths within hard budgets on one device or several.

The package is callable, because ``bcnet_deploy.search`` names both it and the function:
``bcnet_deploy.search(space, accuracy, ...)`` works whichever of the two was imported first.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from bcnet_deploy.search.api import STRATEGIES, search
from bcnet_deploy.search.constraints import Budget, Constraints, build_constraints
from bcnet_deploy.search.feasibility import BudgetConflictError, BudgetInfeasibleError
from bcnet_deploy.search.front import Front
from bcnet_deploy.search.result import Generation, SearchResult

__all__ = [
    "STRATEGIES",
    "Budget",
    "BudgetConflictError",
    "BudgetInfeasibleError",
    "Constraints",
    "Front",
    "Generation",
    "SearchResult",
    "build_constraints",
    "search",
]


class _CallableModule(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> SearchResult:
        return search(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
