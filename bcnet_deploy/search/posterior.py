"""What noisy scores of many networks say about each of them: posterior mean, interval, probability.

A score is a sum of three things: what the widths do to any network trained this way, what they do in this one
supernet alone, and noise by the few images. All scores together tell the first from the last: a regression on
log widths with known noise. What is one supernet's alone cannot be told from its own scores. How much of
each kind of effect other supernets share is a measured constant, the :class:`Transfer`.

Terms, x = log width: the sum of all x (one slope common to all layers), each layer's deviation from it, x^2,
and products of two. Let t be the effects of one kind in this supernet and r their share. Then the effects in
any network, given t, are normal with mean r*t and variance r*(1 - r) times the prior variance of t.

What residuals have beyond the stated noise is the network's own. It counts where the score is of the network
itself, and not where it is one supernet's: there residuals of two supernets are uncorrelated (0.00). With
fewer networks than terms it also has the effects of the kinds that are left out, which count by their shares.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from bcnet_deploy.search.lattice import Float, Int64, Lattice, keys
from bcnet_deploy.search.regression import GroupedRegression, fenced, joined, pairs_of

if TYPE_CHECKING:
    from bcnet_deploy.search.evaluation import Evaluator

INTERVAL = 0.95
"""Two-sided probability of the intervals."""
_EXACT = 1e-6
"""Standard deviation, as a share of the scores' scatter, where all of them are stated to have none."""
_LYING = 2.0
"""Residuals are said to exceed the stated noise beyond this factor."""


@dataclass(frozen=True)
class Transfer:
    """Shares of the effects in one supernet that hold for networks in general, 0 to 1.

    Attributes:
        common: of the slope that all layers have in common.
        layers: of each layer's deviation from it.
        squares: of curvature.
        products: of what two widths do together.
        own: of what no term explains and images do not either.
    """

    common: float = 1.0
    layers: float = 1.0
    squares: float = 1.0
    products: float = 1.0
    own: float = 1.0


BETWEEN_SUPERNETS = Transfer(1.0, 0.35, 0.19, 0.72, 0.0)
"""Shares that supernets of two training rules have in common, by their scores alone.

Channel-Bench-Macro's MobileNet, three seeds a rule; ``benchmarks/bm_posterior.py`` computes them.
"""


class Posterior:
    """The regression of a search's scores, and what it says about any network.

    Args:
        lattice: the space's choices.
        transfer: all shares 1 takes the supernet's effects for the network's own.

    Attributes:
        form: the terms in use. Fewer networks than terms leave the last kinds out.
        noise_ratio: residuals over the stated noise, as standard deviations. Below 1 where all networks are
            scored on the same images, far above 1 where the noise is not what was stated.
    """

    FORMS = (
        "mean", "common slope", "slopes", "slopes and curvature", "slopes, curvature and products",
    )  # fmt: skip

    def __init__(self, lattice: Lattice, transfer: Transfer | None = None) -> None:
        self._lattice = lattice
        transfer = transfer or Transfer()
        self._shares = (transfer.common, transfer.layers, transfer.squares, transfer.products)
        logs = [np.log(choices.astype(np.float64)) for choices in lattice.choices]
        self._middle = np.array([values.mean() for values in logs])
        # One unit for all layers: doubling a width is worth the same anywhere before anything is known.
        self._unit = float(np.sqrt(np.mean([values.var() for values in logs]))) or 1.0
        # Deviations of slopes from their mean: an orthonormal basis of what is orthogonal to the sum.
        length = lattice.length
        full = np.linalg.qr(np.concatenate([np.ones((length, 1)), np.eye(length)[:, 1:]], axis=1))[0]
        self._deviations = full[:, 1:]
        self._pairs = pairs_of(length)
        self._regression = GroupedRegression()
        self.form = self.FORMS[0]
        self._kinds = 0
        self._constant, self._constant_variance = 0.0, 1.0  # of all networks alike, before any fit
        self._own_share = transfer.own
        self._own_variance = 0.0
        self._own: dict[bytes, tuple[float, float]] = {}

    def fit(self, indices: Int64, scores: Float, noise: Float) -> None:
        """Fit (N, L) choice indices to (N,) finite scores with (N,) stated standard deviations, N >= 1."""
        self._kinds = self._affordable(len(scores))
        self.form = self.FORMS[self._kinds]
        self._own.clear()
        self._own_variance = 0.0
        values = fenced(scores)
        if not self._kinds:
            weights = 1 / noise**2
            self._constant = float(weights @ values / weights.sum())
            self._constant_variance = float(1 / weights.sum())
            # Whatever widths do is in the scores alone: each counts for its own network.
            self._own_variance = float(values.var()) if len(values) > 1 else float(noise[0] ** 2)
            self._keep_own(indices, values - self._constant, noise)
            return
        terms, labels = self._terms(indices)
        fitted = self._regression
        fitted.fit(terms, labels, values, noise)
        self._constant, self._constant_variance = fitted.constant, fitted.constant_variance
        usual = 1 / float(np.mean(1 / noise**2))
        # A ratio's square scatters by sqrt(2 / N): what is within two of these is taken for chance.
        excess = self.noise_ratio**2 - 1 - 2 * np.sqrt(2 / len(scores))
        self._own_variance = self._share_of_residuals() * usual * max(float(excess), 0.0)
        if self._own_variance:
            residual = scores - fitted.constant - (terms - fitted.centre) @ fitted.weights
            self._keep_own(indices, residual, noise)

    def _share_of_residuals(self) -> float:
        """Share, of what no term in use explains, that holds for networks in general.

        Residuals have the effects of the kinds that are left out too: their mean share, weighed by terms.
        """
        left_out = np.diff(self._sizes, prepend=0)[self._kinds :]
        if not left_out.sum():
            return self._own_share
        return max(self._own_share, float(np.average(self._shares[self._kinds :], weights=left_out)))

    def _keep_own(self, indices: Int64, residual: Float, noise: Float) -> None:
        """Mean and variance of each network's own effect, by what its score has beyond the terms."""
        gain = self._own_variance / (self._own_variance + noise**2)
        for key, own, left in zip(
            keys(indices), gain * residual, self._own_variance * (1 - gain), strict=True
        ):
            self._own[key] = float(own), float(left)

    def _own_effects(self, indices: Int64) -> tuple[Float, Float]:
        """(N, L) -> (N,) mean and variance of what is each network's own."""
        if not self._own_variance:
            return np.zeros(len(indices)), np.zeros(len(indices))
        found = np.array([self._own.get(key, (0.0, self._own_variance)) for key in keys(indices)])
        return found[:, 0], found[:, 1]

    def fit_answers(self, evaluator: Evaluator) -> bool:
        """Fit to all answers of a search that could be had. With none, nothing is fitted: returns whether."""
        rows = np.isfinite(evaluator.accuracy)
        if rows.any():
            noise = evaluator.noise[rows]
            scores = evaluator.accuracy[rows]
            if (noise > 0).any():
                # A noise of 0 among others that have some would leave these without a say.
                floor = 0.1 * float(np.median(noise[noise > 0]))
            else:
                floor = _EXACT * (float(scores.std()) or float(np.abs(scores).max()) or 1.0)
            self.fit(evaluator.indices[rows], scores, np.maximum(noise, floor))
        return bool(rows.any())

    @property
    def noise_ratio(self) -> float:
        return self._regression.noise_ratio

    def notes(self) -> list[str]:
        """What a reader must know: terms left out, noise that is not what was stated."""
        found = []
        if self._kinds < len(self.FORMS) - 1:
            found.append(f"too few networks were scored for all terms: fitted {self.form} alone")
        if self.noise_ratio > _LYING:
            found.append(
                f"scores scatter {self.noise_ratio:.1f} times as much as their stated noise: networks differ "
                "in what these terms do not explain, or the noise is not what was stated"
            )
        return found

    @property
    def most_terms(self) -> int:
        """Terms of the richest form."""
        return int(self._sizes[-1])

    @property
    def _sizes(self) -> Int64:
        """Terms of each form but the mean."""
        length = self._lattice.length
        return np.cumsum([1, length - 1, length, len(self._pairs[0])])

    def _affordable(self, count: int) -> int:
        """Number of kinds of terms with at most as many terms as there are networks."""
        return int((self._sizes + 2 <= count).sum())

    def _terms(self, indices: Int64) -> tuple[Float, npt.NDArray[np.int64]]:
        x = (np.log(self._lattice.widths(indices).astype(np.float64)) - self._middle) / self._unit
        kinds = [
            x.sum(axis=1, keepdims=True) / np.sqrt(x.shape[1]),
            x @ self._deviations,
            x**2,
            x[:, self._pairs[0]] * x[:, self._pairs[1]],
        ]
        return joined(kinds[: self._kinds])

    def predict(self, indices: Int64) -> tuple[Float, Float]:
        """(N, L) -> (N,) posterior mean and (N,) standard deviation, in units of the scores."""
        own, left = self._own_effects(indices)
        mean = variance = np.zeros(len(indices))
        if self._kinds:
            terms, labels = self._terms(indices)
            mean, variance = self._effect(terms - self._regression.centre, labels)
        return self._constant + mean + own, np.sqrt(variance + left + self._constant_variance)

    def probability_better(self, first: Int64, second: Int64) -> float:
        """Probability that the network of (L,) indices ``first`` is better than ``second``."""
        if (first == second).all():
            return 0.5
        both = np.stack([first, second])
        own, left = self._own_effects(both)
        mean = variance = np.zeros(1)
        if self._kinds:
            terms, labels = self._terms(both)
            mean, variance = self._effect((terms[0] - terms[1])[None], labels)
        difference = float(mean[0] + own[0] - own[1])
        deviation = float(np.sqrt(variance[0] + left.sum()))
        if deviation <= 1e-12 * abs(self._constant):
            return 0.5 + 0.5 * float(np.sign(np.round(difference, 9)))
        return NormalDist().cdf(difference / deviation)

    def overlap(self, indices: Int64, best: Int64) -> Float:
        """(N, L) -> (N,) probabilities to be better than ``best``, as far as more images could tell."""
        if not self._kinds:
            return np.full(len(indices), 0.5)
        terms, labels = self._terms(np.concatenate([indices, best[None]]))
        shared = (terms[:-1] - terms[-1]) * np.array(self._shares)[labels]
        fitted = self._regression
        own, left = self._own_effects(np.concatenate([indices, best[None]]))
        variance = ((shared @ fitted.covariance) * shared).sum(axis=1) + left[:-1] + left[-1]
        deviation = np.sqrt(np.maximum(variance, 0.0))
        mean = shared @ fitted.weights + own[:-1] - own[-1]
        ratio = np.divide(mean, deviation, out=np.zeros_like(mean), where=deviation > 0)
        return np.asarray(ndtr(ratio))

    def _effect(self, terms: Float, labels: npt.NDArray[np.int64]) -> tuple[Float, Float]:
        """Centred terms (N, D) -> (N,) mean and variance of what holds for networks in general."""
        fitted = self._regression
        share = np.array(self._shares)[labels]
        shared = terms * share
        variance = ((shared @ fitted.covariance) * shared).sum(axis=1)
        variance += (terms**2) @ (share * (1 - share) / fitted.precision)
        return shared @ fitted.weights, np.maximum(variance, 0.0)


@dataclass(frozen=True)
class Belief:
    """What all scores together say about the network that was found, in units of the scores.

    Attributes:
        mean: posterior mean of its accuracy.
        low, high: interval of probability :data:`INTERVAL`.
        beats_uniform: probability that it is better than the uniformly scaled network it is compared with.
        form: the terms that were fitted.
        noise_ratio: scatter of the scores over their stated noise.
        notes: what a reader must know.
    """

    mean: float
    low: float
    high: float
    beats_uniform: float
    form: str
    noise_ratio: float
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, posterior: Posterior, found: Int64, uniform: Int64) -> Belief:
        """Of (L,) indices ``found``, against (L,) indices ``uniform``."""
        mean, deviation = (float(v[0]) for v in posterior.predict(found[None]))
        reach = NormalDist().inv_cdf((1 + INTERVAL) / 2) * deviation
        return cls(
            mean, mean - reach, mean + reach, posterior.probability_better(found, uniform), posterior.form,
            posterior.noise_ratio, tuple(posterior.notes()),
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "interval_probability": INTERVAL, "notes": list(self.notes)}
