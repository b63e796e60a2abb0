"""Bayesian linear regression with one prior scale a group of terms, and the one that screens candidates.

The scales are set by evidence maximisation (MacKay 1992; Bishop 2006, section 3.5).
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
_PSEUDO = 10.0
"""Networks' worth of belief in a stated noise."""

Labels = npt.NDArray[np.int64]


def pairs_of(length: int) -> tuple[Labels, Labels]:
    """Indices of the pairs of variables whose products are terms: the matrices grow with their square."""
    if length <= _ALL_PAIRS:
        first, second = np.triu_indices(length, 1)
        return first.astype(np.int64), second.astype(np.int64)
    near = np.array([(i, i + d) for d in (1, 2) for i in range(length - d)], dtype=np.int64)
    return near[:, 0], near[:, 1]


class GroupedRegression:
    """Weights of terms with a normal prior; each group of terms has one scale.

    Attributes:
        centre: (D,) the mean row of the terms, which is subtracted: a free constant.
        weights: (D,) posterior mean. ``covariance``: (D, D).
        precision: (D,) of the prior of each weight.
        constant: of the centre. ``constant_variance``: its own.
        noise_ratio: residuals over the stated noise, as standard deviations; 1 where none is stated.
    """

    def __init__(self) -> None:
        self._scales: Float | None = None
        self._noise = 5.0
        self._scaled_for = 0
        self.noise_ratio = 1.0
        # Small matrices: more threads than one only wait for one another, and change the last bits.
        self._threads = ThreadpoolController()

    def fit(self, terms: Float, labels: Labels, values: Float, noise: Float | None = None) -> None:
        """Fit N >= 2 finite values.

        Args:
            terms: (N, D).
            labels: (D,) the group of each term.
            values: (N,)
            noise: (N,) stated standard deviations of the values. Their common factor is fitted too.
        """
        with self._threads.limit(limits=1, user_api="blas"):
            self._fit(terms, labels, values, noise)

    def _fit(self, terms: Float, labels: Labels, values: Float, noise: Float | None) -> None:
        stated = 0.0 if noise is None else 1 / float(np.mean(1 / noise**2))
        share = np.ones(len(values)) if noise is None else stated / noise**2
        total_share = float(share.sum())
        # Centred, which is a free constant term: on a budget's edge the terms have means of their own.
        self.centre = np.asarray(share @ terms / total_share)
        matrix = terms - self.centre
        self.constant = float(share @ values / total_share)
        centred = values - self.constant
        variance = max(float(centred.var()), stated) + 1e-12
        groups = int(labels.max()) + 1
        counts = np.bincount(labels, minlength=groups)
        if self._scales is None or len(self._scales) != groups:
            self._scales, self._scaled_for = np.full(groups, 10.0), 0
        # Scales are kept relative to the variance, so that the last fit is a start for the next one.
        alpha, beta = self._scales / variance, self._noise / variance
        weighted = matrix * share[:, None]
        gram, moment = matrix.T @ weighted, weighted.T @ centred
        total = float(share @ centred**2)
        believed = _PSEUDO if noise is not None else 0.0
        rescale = len(values) >= _REFIT * self._scaled_for
        for _ in range(_ITERATIONS if rescale else 1):
            used = alpha, beta
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
            new_beta = (freedom + believed) / (residual + believed * stated)
            new_beta = float(np.clip(new_beta, 0.5 / variance, 1e5 / variance))
            settled = abs(np.log(new_beta / beta)) < 1e-3 and np.abs(np.log(new_alpha / alpha)).max() < 1e-2
            alpha, beta = new_alpha, new_beta
            if settled:
                break
        if rescale:
            self._scaled_for = len(values)
        self.weights, self.covariance = np.asarray(weights, dtype=np.float64), covariance
        self.precision = np.asarray(used[0][labels], dtype=np.float64)
        self.constant_variance = 1 / (used[1] * total_share)
        self._scales = np.asarray(alpha * variance, dtype=np.float64)
        self._noise = beta * variance
        if noise is not None:
            self.noise_ratio = float(1 / np.sqrt(used[1] * stated))


class Surrogate:
    """Guesses accuracies, to choose which candidates are worth a real evaluation.

    Costs are free and evaluations are not. The terms are smooth functions of the widths: each width alone to
    the third degree, and products of two. It knows nothing but the accuracies of this search.

    Args:
        length: number of variables.
        wide: also the products of first and second degree; left out where they would be too many.
    """

    def __init__(self, length: int, *, wide: bool | None = None) -> None:
        self._upper = pairs_of(length)
        self._off = ~np.eye(length, dtype=np.bool_).ravel()
        self._wide = length <= 12 if wide is None else wide
        self._regression = GroupedRegression()
        self._threads = ThreadpoolController()

    def features(self, scaled: Float) -> tuple[Float, Labels]:
        """(N, L) -> (N, D) orthonormal polynomials on 0..1 and (D,) the group of each."""
        x = 2 * scaled - 1
        first = np.sqrt(3.0) * x
        second = np.sqrt(5.0) * (3 * x**2 - 1) / 2
        third = np.sqrt(7.0) * (5 * x**3 - 3 * x) / 2
        groups = [first, second, third, first[:, self._upper[0]] * first[:, self._upper[1]]]
        if self._wide:
            products = (first[:, :, None] * second[:, None, :]).reshape(len(x), -1)
            groups.append(products[:, self._off])
        return joined(groups)

    def fit(self, scaled: Float, accuracy: Float) -> None:
        """Fit (N, L) scaled widths to (N,) finite accuracies, N >= 2."""
        self._regression.fit(*self.features(scaled), fenced(accuracy))

    def predict(self, scaled: Float) -> tuple[Float, Float]:
        """(N, L) -> (N,) mean and (N,) standard deviation of the smooth part (noise not included)."""
        fitted = self._regression
        means, deviations = [], []
        with self._threads.limit(limits=1, user_api="blas"):
            for start in range(0, len(scaled), _BLOCK):
                matrix = self.features(scaled[start : start + _BLOCK])[0] - fitted.centre
                variance = ((matrix @ fitted.covariance) * matrix).sum(axis=1)
                deviations.append(np.sqrt(np.maximum(variance, 0.0)))
                means.append(fitted.constant + matrix @ fitted.weights)
        return np.concatenate(means), np.concatenate(deviations)


def joined(groups: list[Float]) -> tuple[Float, Labels]:
    """Groups of terms, each (N, D of the group) -> (N, D) and (D,) the group of each."""
    labels = np.concatenate([np.full(g.shape[1], i) for i, g in enumerate(groups)])
    return np.concatenate(groups, axis=1), labels.astype(np.int64)


def fenced(accuracy: Float) -> Float:
    """Values far below the rest drawn up to a fence: the lower quartile less 1.5 times the quartiles' spread.

    How bad the worst networks are says little about the best.
    """
    low, high = np.quantile(accuracy, [0.25, 0.75])
    return np.asarray(np.maximum(accuracy, low - 1.5 * (high - low)))


def _inverse(matrix: Float) -> Float:
    """The inverse of a symmetric positive definite matrix."""
    factor, _ = lapack.dpotrf(matrix, lower=1)
    half, _ = lapack.dpotri(factor, lower=1)
    return np.asarray(np.tril(half) + np.tril(half, -1).T)
