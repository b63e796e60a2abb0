"""Which channels of a trained network matter most, and a permutation that puts them first."""

from bcnet_deploy.importance.permutation import order_of, permutable, permute, permute_by_importance
from bcnet_deploy.importance.scores import IMPORTANCES, Importance, Scores, importance_scores, per_variable

__all__ = [
    "IMPORTANCES",
    "Importance",
    "Scores",
    "importance_scores",
    "order_of",
    "per_variable",
    "permutable",
    "permute",
    "permute_by_importance",
]
