"""A small regression that guesses accuracies, to choose which candidates are worth a real evaluation.

Costs are free and evaluations are not: of many feasible candidates only the promising ones are
run. Bayesian linear regression on smooth functions of the widths (each width alone to the third
degree, and products of two) with one prior scale a group of terms, set by evidence maximisation
(MacKay 1992; Bishop 2006, section 3.5). It knows nothing but the accuracies of this search.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.linalg import lapack
from threadpoolctl import ThreadpoolController

from bcnet_deploy.search.lattice import Float

_ITERATIONS = 25
_ALL_PAIRS = 27
"""Variables up to which all products of two are terms; beyond, only those of near variables."""
_BLOCK = 4096
_REFIT = 1.3
"""Prior scales are set again when the data have grown by this factor; weights at every fit."""


class Surrogate:
    """Features of scaled widths in 0..1 and the regression on them.

    Args:
        length: number of variables.
        wide: also the products of first and second degree; left out where they would be too many.
    """

    def __init__(self, length: int, *, wide: bool | None = None) -> None:
        if length <= _ALL_PAIRS:
            self._upper = np.triu_indices(length, 1)
        else:
            # Neighbours in execution order: the matrices grow with the square of the number of terms.
            near = [(i, i + d) for d in (1, 2) for i in range(length - d)]
            self._upper = (np.array([a for a, _ in near]), np.array([b for _, b in near]))
        self._off = ~np.eye(length, dtype=np.bool_).ravel()
        self._wide = length <= 12 if wide is None else wide
        self._mean = 0.0
        self._weights: Float | None = None
        self._centre: Float = np.zeros(0)
        self._covariance: Float = np.zeros((0, 0))
        self._scales: Float | None = None
        self._noise = 1.0
        self._scaled_for = 0
        # Small matrices: more threads than one only wait for one another, and change the last bits.
        self._threads = ThreadpoolController()

    def features(self, scaled: Float) -> tuple[Float, npt.NDArray[np.int64]]:
        """(N, L) -> (N, D) orthonormal polynomials on 0..1 and (D,) the group of each."""
        x = 2 * scaled - 1
        first = np.sqrt(3.0) * x
        second = np.sqrt(5.0) * (3 * x**2 - 1) / 2
        third = np.sqrt(7.0) * (5 * x**3 - 3 * x) / 2
        groups = [first, second, third, first[:, self._upper[0]] * first[:, self._upper[1]]]
        if self._wide:
            products = (first[:, :, None] * second[:, None, :]).reshape(len(x), -1)
            groups.append(products[:, self._off])
        labels = np.concatenate([np.full(g.shape[1], i) for i, g in enumerate(groups)])
        return np.concatenate(groups, axis=1), labels.astype(np.int64)

    def fit(self, scaled: Float, accuracy: Float) -> None:
        """See :meth:`_fit`; on one thread."""
        with self._threads.limit(limits=1, user_api="blas"):
            self._fit(scaled, accuracy)

    def _fit(self, scaled: Float, accuracy: Float) -> None:
        """Fit (N, L) scaled widths to (N,) finite accuracies, N >= 2.

        Values far below the rest are drawn up to a fence (the lower quartile less 1.5 times the
        spread of the quartiles): how bad the worst networks are says little about the best.
        """
        low, high = np.quantile(accuracy, [0.25, 0.75])
        values = np.maximum(accuracy, low - 1.5 * (high - low))
        matrix, labels = self.features(scaled)
        # Centred, which is a free constant term: on a budget's edge the features have means of their own.
        self._centre = matrix.mean(axis=0)
        matrix = matrix - self._centre
        self._mean = float(values.mean())
        centred = values - self._mean
        variance = float(centred.var()) + 1e-12
        groups = int(labels.max()) + 1
        counts = np.bincount(labels, minlength=groups)
        if self._scales is None:
            self._scales = np.full(groups, 10.0)
            self._noise = 5.0
        # Scales are kept relative to the variance, so that the last fit is a start for the next one.
        alpha, beta = self._scales / variance, self._noise / variance
        gram, moment = matrix.T @ matrix, matrix.T @ centred
        total = float(centred @ centred)
        rescale = len(values) >= _REFIT * self._scaled_for
        for _ in range(_ITERATIONS if rescale else 1):
            covariance = _inverse(beta * gram + np.diag(alpha[labels]))
            weights = beta * (covariance @ moment)
            if not rescale:
                break
            known = 1 - alpha[labels] * np.diag(covariance)
            size = np.bincount(labels, weights=weights**2, minlength=groups)
            known_by_group = np.clip(np.bincount(labels, weights=known, minlength=groups), 1e-9, counts)
            new_alpha = np.clip(known_by_group / np.maximum(size, 1e-300), 1e-3 / variance, 1e6 / variance)
            residual = max(total - 2 * float(weights @ moment) + float(weights @ gram @ weights), 1e-300)
            freedom = max(len(values) - float(known_by_group.sum()), 1.0)
            new_beta = float(np.clip(freedom / residual, 0.5 / variance, 1e5 / variance))
            settled = abs(np.log(new_beta / beta)) < 1e-3 and np.abs(np.log(new_alpha / alpha)).max() < 1e-2
            alpha, beta = new_alpha, new_beta
            if settled:
                break
        if rescale:
            self._scaled_for = len(values)
        self._weights, self._covariance = np.asarray(weights, dtype=np.float64), covariance
        self._scales = np.asarray(alpha * variance, dtype=np.float64)
        self._noise = beta * variance

    def predict(self, scaled: Float) -> tuple[Float, Float]:
        """(N, L) -> (N,) mean and (N,) standard deviation of the smooth part (noise not included)."""
        assert self._weights is not None, "fit first"
        means, deviations = [], []
        with self._threads.limit(limits=1, user_api="blas"):
            for start in range(0, len(scaled), _BLOCK):
                matrix = self.features(scaled[start : start + _BLOCK])[0] - self._centre
                variance = ((matrix @ self._covariance) * matrix).sum(axis=1)
                deviations.append(np.sqrt(np.maximum(variance, 0.0)))
                means.append(self._mean + matrix @ self._weights)
        return np.concatenate(means), np.concatenate(deviations)


def _inverse(matrix: Float) -> Float:
    """The inverse of a symmetric positive definite matrix."""
    factor, _ = lapack.dpotrf(matrix, lower=1)
    half, _ = lapack.dpotri(factor, lower=1)
    return np.asarray(np.tril(half) + np.tril(half, -1).T)
