"""Which regression of a supernet's scores foretells the scores of *another* supernet? And its posteriors.

``scores.csv`` holds what supernets of several rules and seeds give 640 networks of Channel-Bench-Macro. A
form is chosen by scores alone: fitted to one supernet's, its posterior is ranked against raw scores of the
supernets of another rule (Kendall; over all, and over those without a layer at level 1). Evidence and the
error of leaving one out are told beside it: both only ask how well the *same* supernet is described,
artefacts included. The shares of :data:`bcnet_deploy.search.posterior.BETWEEN_SUPERNETS` are computed here.
The published accuracies are opened by ``--judge`` alone, after everything is written.

    python benchmarks/bm_posterior.py            # results/ranking/posterior.csv, posterior_forms.csv
    python benchmarks/bm_posterior.py --judge    # the same, then Kendall against the published accuracies
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
from bm_ranking import LEVELS, MODEL, RESULTS, shared_data, sides_of
from scipy.stats import kendalltau, multivariate_normal

import bcnet_deploy as bd
from bcnet_deploy import files
from bcnet_deploy.search.lattice import Lattice
from bcnet_deploy.search.posterior import BETWEEN_SUPERNETS, Posterior
from bcnet_deploy.search.regression import GroupedRegression, joined

Float = npt.NDArray[np.float64]
SETTING = {"cost": "600000", "size": "16", "augment": "none", "images": "2000"}
JUDGES = ("bilateral-complementary-distilled", "sandwich")
"""Rules of which several seeds were trained in full."""
CHOSEN_BY = (0, 1, 2)
"""Seeds whose scores chose the form and gave the shares; the others are judged alone."""
DEFAULT = JUDGES[0]


@dataclass(frozen=True)
class Scores:
    """What one supernet gives the 640 networks; ``noise`` is binomial, both sides taken as independent."""

    rule: str
    seed: int
    archs: tuple[str, ...]
    score: Float
    noise: Float


def binomial_noise(percent: Float, images: int, sides: int) -> Float:
    """(N,) standard deviations in points, from smoothed shares: no image count makes a score exact."""
    share = (percent / 100 * images + 1) / (images + 2)
    return np.asarray(100 * np.sqrt(share * (1 - share) / (images * sides)))


def read_scores(path: Path) -> list[Scores]:
    """All supernets of :data:`SETTING`."""
    found: dict[tuple[str, int], list[dict[str, str]]] = {}
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if all(row[key] == value for key, value in SETTING.items()):
                found.setdefault((row["rule"], int(row["seed"])), []).append(row)
    result = []
    for (rule, seed), rows in sorted(found.items()):
        score = np.array([float(row["score"]) for row in rows])
        noise = binomial_noise(score, int(SETTING["images"]), len(sides_of(rule)))
        result.append(Scores(rule, seed, tuple(row["arch"] for row in rows), score, noise))
    return result


class Forms:
    """Terms of the candidate regressions, of the 640 networks."""

    def __init__(self, space: bd.WidthSpace, archs: tuple[str, ...]) -> None:
        digits = np.array([[int(d) for d in arch] for arch in archs])
        everything = np.array(list(product(range(1, LEVELS + 1), repeat=len(archs[0]))))
        x, macs, params = (
            (of(digits) - of(everything).mean(axis=0)) / of(everything).std(axis=0)
            for of in (
                np.log,
                lambda d: np.log(space.macs(d * space.full // LEVELS))[:, None],
                lambda d: np.log(space.params(d * space.full // LEVELS))[:, None],
            )
        )
        upper = np.triu_indices(x.shape[1], 1)
        mean = x.mean(axis=1, keepdims=True)
        self.without_level_1 = (digits > 1).all(axis=1)
        self.kinds: dict[str, Float] = {
            "common slope": mean * np.sqrt(x.shape[1]),
            "slopes": x - mean,
            "log MACs": macs,
            "log params": params,
            "squares": x**2,
            "products": x[:, upper[0]] * x[:, upper[1]],
        }

    def terms(self, form: str) -> tuple[Float, npt.NDArray[np.int64]]:
        return joined([self.kinds[kind] for kind in form.split(" + ")])


CANDIDATES = (
    "log MACs",
    "log MACs + log params",
    "common slope",
    "common slope + log MACs",
    "common slope + slopes",
    "common slope + slopes + log MACs",
    "common slope + slopes + log MACs + log params",
    "common slope + slopes + squares",
    "common slope + slopes + products",
    "common slope + slopes + squares + products",
    "common slope + slopes + squares + products + log MACs",
)
FULL = "common slope + slopes + squares + products"


@dataclass(frozen=True)
class Fit:
    """One form fitted to one supernet: effects (N,) by kind, log evidence, left-out error (RMS)."""

    effects: dict[str, Float]
    evidence: float
    left_out: float

    def posterior(self, shares: dict[str, float] | None = None) -> Float:
        return np.asarray(sum((shares or {}).get(kind, 1.0) * e for kind, e in self.effects.items()))


def fit(forms: Forms, form: str, scores: Scores) -> Fit:
    """By evidence, from the scores and their noise."""
    terms, labels = forms.terms(form)
    regression = GroupedRegression()
    regression.fit(terms, labels, scores.score, scores.noise)
    matrix = terms - regression.centre
    noise = (regression.noise_ratio * scores.noise) ** 2
    marginal = np.diag(noise) + (matrix / regression.precision) @ matrix.T + 1e3
    evidence = multivariate_normal.logpdf(scores.score - scores.score.mean(), cov=marginal)
    inverse = np.linalg.inv(marginal)
    left_out = (inverse @ (scores.score - scores.score.mean())) / np.diag(inverse)
    kinds = form.split(" + ")
    effects = {kind: matrix[:, labels == i] @ regression.weights[labels == i] for i, kind in enumerate(kinds)}
    return Fit(effects, float(evidence), float(np.sqrt(np.mean(left_out**2))))


def gaussian_process(forms: Forms, scores: Scores, trend: bool) -> Fit:
    """Squared-exponential kernel on log widths, with or without a linear part; scikit-learn's."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, WhiteKernel

    x = forms.kinds["slopes"] + forms.kinds["common slope"] / np.sqrt(forms.kinds["slopes"].shape[1])
    kernel = ConstantKernel(1.0) * RBF(3.0) + WhiteKernel(0.3)
    if trend:
        kernel = kernel + ConstantKernel(0.1) * DotProduct(1.0)
    target = (scores.score - scores.score.mean()) / scores.score.std()
    model = GaussianProcessRegressor(kernel).fit(x, target)
    smooth = model.predict(x)
    inverse = np.linalg.inv(model.kernel_(x))
    left_out = (inverse @ target) / np.diag(inverse) * scores.score.std()
    evidence = model.log_marginal_likelihood_value_ - len(x) * np.log(scores.score.std())
    return Fit({"all": smooth * scores.score.std()}, float(evidence), float(np.sqrt(np.mean(left_out**2))))


def between_rules(all_scores: list[Scores]) -> list[tuple[int, int]]:
    """Pairs of supernets of different rules, both ways."""
    judged = [i for i, s in enumerate(all_scores) if s.rule in JUDGES and s.seed in CHOSEN_BY]
    return [(a, b) for a in judged for b in judged if all_scores[a].rule != all_scores[b].rule]


def agreement(
    posteriors: dict[int, Float], all_scores: list[Scores], keep: npt.NDArray[np.bool_] | None = None
) -> float:
    """Mean Kendall of one supernet's posterior with the raw scores of supernets of the other rule."""
    rows = slice(None) if keep is None else keep
    return float(
        np.mean([
            kendalltau(posteriors[a][rows], all_scores[b].score[rows]).statistic
            for a, b in between_rules(all_scores)
        ])
    )  # fmt: skip


def transfer_shares(forms: Forms, fits: dict[int, Fit], all_scores: list[Scores]) -> dict[str, float]:
    """Of each kind of effect: covariance between supernets of different rules over their variance.

    The common slope is the trend: its share is 1 by definition, other shares are relative to it.
    """
    shares = {"common slope": 1.0}
    for kind in ("slopes", "squares", "products"):
        effects = {i: fit.effects[kind] for i, fit in fits.items()}
        between = np.mean([effects[a] @ effects[b] for a, b in between_rules(all_scores)])
        within = np.mean([e @ e for e in effects.values()])
        shares[kind] = float(np.clip(between / within, 0, 1))
    return shares


Table = list[dict[str, object]]


def forms_table(
    forms: Forms, all_scores: list[Scores], processes: bool
) -> tuple[Table, dict[str, float], dict[str, dict[int, Float]]]:
    """What the scores say about each form; the shares; and the posteriors by form and supernet."""
    judged = [i for i, s in enumerate(all_scores) if s.rule in JUDGES and s.seed in CHOSEN_BY]
    rows: Table = []
    by_form: dict[str, dict[int, Float]] = {}

    def add(name: str, fits: dict[int, Fit], shares: dict[str, float] | None = None) -> None:
        posteriors = {i: f.posterior(shares) for i, f in fits.items()}
        rows.append(
            {
                "form": name,
                "other_rule": round(agreement(posteriors, all_scores), 4),
                "other_rule_without_level_1": round(
                    agreement(posteriors, all_scores, forms.without_level_1), 4
                ),
                "log_evidence": round(float(np.mean([f.evidence for f in fits.values()])), 1),
                "left_out_error": round(float(np.mean([f.left_out for f in fits.values()])), 4),
            }
        )
        by_form[name] = posteriors

    makers: list[tuple[str, Callable[[Scores], Fit]]] = [
        (form, lambda scores, form=form: fit(forms, form, scores))
        for form in CANDIDATES  # type: ignore[misc]
    ]
    if processes:
        makers += [
            ("Gaussian process", lambda scores: gaussian_process(forms, scores, False)),
            ("Gaussian process + slopes", lambda scores: gaussian_process(forms, scores, True)),
        ]
    add("raw scores", {i: Fit({"all": all_scores[i].score}, np.nan, np.nan) for i in judged})
    shares: dict[str, float] = {}
    for name, make in makers:
        fits = {i: make(all_scores[i]) for i in judged}
        add(name, fits)
        if name == FULL:
            shares = transfer_shares(forms, fits, all_scores)
            add(f"{name}, by shares", fits, shares)
    return rows, shares, by_form


def indices_of(archs: Sequence[str]) -> npt.NDArray[np.int64]:
    return np.array([[int(digit) - 1 for digit in arch] for arch in archs])


def fitted(space: bd.WidthSpace, scores: Scores) -> Posterior:
    """The product's own posterior of one supernet's scores."""
    model = Posterior(Lattice(space.variables), BETWEEN_SUPERNETS)
    model.fit(indices_of(scores.archs), scores.score, scores.noise)
    return model


def write_csv(path: Path, rows: Table) -> None:
    lines = [",".join(rows[0]), *(",".join(str(v) for v in row.values()) for row in rows)]
    files.write_text(path, "\n".join(lines) + "\n")
    print(f"written: {path}")


def judge(
    data: Path, forms: Forms, all_scores: list[Scores], posteriors: list[Float],
    by_form: dict[str, dict[int, Float]],
) -> None:  # fmt: skip
    """Kendall against the published accuracies, over all and without level 1."""
    with (data / "channel_bench_macro_mobilenet.csv").open(encoding="utf-8") as file:
        truth = {row["arch"]: float(row["acc_mean"]) for row in csv.DictReader(file)}
    known = np.array([arch in truth for arch in all_scores[0].archs])
    values = np.array([truth.get(arch, np.nan) for arch in all_scores[0].archs])
    wide = known & forms.without_level_1

    def kendall(scores: Float) -> tuple[float, float]:
        return tuple(float(kendalltau(scores[rows], values[rows]).statistic) for rows in (known, wide))  # type: ignore[return-value]

    print(f"Kendall with the published accuracies, {known.sum()} networks / {wide.sum()} without level 1")
    for scores, posterior in zip(all_scores, posteriors, strict=True):
        raw, smooth = kendall(scores.score), kendall(posterior)
        print(
            f"  {scores.rule:36} seed {scores.seed}: raw {raw[0]:.3f} / {raw[1]:.3f}, "
            f"posterior {smooth[0]:.3f} / {smooth[1]:.3f}"
        )
    for rule in JUDGES:
        for chose in (True, False):
            found = [
                kendall(p)
                for s, p in zip(all_scores, posteriors, strict=True)
                if s.rule == rule and (s.seed in CHOSEN_BY) == chose
            ]
            if found:
                mean = np.mean(found, axis=0)
                seeds = "seeds that chose the form" if chose else "other seeds"
                print(f"  {rule}, mean of {len(found)} {seeds}: {mean[0]:.3f} / {mean[1]:.3f}")
    print("all forms, mean of three seeds by rule:")
    for name, by_supernet in by_form.items():
        parts = []
        for rule in JUDGES:
            found = [kendall(p) for i, p in by_supernet.items() if all_scores[i].rule == rule]
            parts.append("{:.3f} / {:.3f}".format(*np.mean(found, axis=0)))
        print(f"  {name:60} {'   '.join(parts)}")


def regrets(data: Path, space: bd.WidthSpace, all_scores: list[Scores], models: list[Posterior]) -> None:
    """True regret of the highest posterior, and of the most MACs, at nine budgets of MACs.

    Among the networks whose accuracy is published; budgets are the deciles of all networks' MACs.
    """
    with (data / "channel_bench_macro_mobilenet.csv").open(encoding="utf-8") as file:
        truth = {row["arch"]: float(row["acc_mean"]) for row in csv.DictReader(file)}
    everything = Lattice(space.variables).all()
    macs = space.macs(Lattice(space.variables).widths(everything))
    known = np.array(["".join(str(i + 1) for i in row) in truth for row in everything])
    values = np.array([truth.get("".join(str(i + 1) for i in row), np.nan) for row in everything])
    budgets = np.quantile(macs, np.arange(1, 10) / 10)

    def regret(scores: Float) -> list[float]:
        rows = [np.flatnonzero(known & (macs <= budget)) for budget in budgets]
        return [float(values[r].max() - values[r[scores[r].argmax()]]) for r in rows]

    print("true regret in points at nine budgets of MACs, and the mean:")
    print("  most MACs:", np.round(regret(macs.astype(np.float64)), 2), f"{np.mean(regret(macs * 1.0)):.3f}")
    for scores, model in zip(all_scores, models, strict=True):
        found = regret(model.predict(everything)[0])
        print(f"  {scores.rule} seed {scores.seed}:", np.round(found, 2), f"{np.mean(found):.3f}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scores", type=Path, default=RESULTS / "scores.csv")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--judge", action="store_true", help="then open the published accuracies")
    parser.add_argument("--data", help="folder with the published table; default $BCNET_SHARED_DATA")
    parser.add_argument("--no-processes", action="store_true", help="leave Gaussian processes out: minutes")
    options = parser.parse_args(arguments)
    space = bd.WidthSpace.from_model(bd.build_model(MODEL, num_classes=10), (3, 32, 32), levels=LEVELS)
    all_scores = read_scores(options.scores)
    forms = Forms(space, all_scores[0].archs)
    rows, shares, by_form = forms_table(forms, all_scores, not options.no_processes)
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    print("shares between rules:", {kind: round(share, 3) for kind, share in shares.items()})
    print("shares in the product:", BETWEEN_SUPERNETS)
    models = [fitted(space, scores) for scores in all_scores]
    found = [
        model.predict(indices_of(scores.archs)) for model, scores in zip(models, all_scores, strict=True)
    ]
    write_csv(options.out / "posterior_forms.csv", rows)
    write_csv(
        options.out / "posterior.csv",
        [
            {"rule": s.rule, "seed": s.seed, "arch": arch, "posterior": f"{m:.4f}", "sd": f"{d:.4f}"}
            for s, (mean, deviation) in zip(all_scores, found, strict=True)
            for arch, m, d in zip(s.archs, mean, deviation, strict=True)
        ],
    )
    if options.judge:
        judge(shared_data(options.data), forms, all_scores, [mean for mean, _ in found], by_form)
        regrets(shared_data(options.data), space, all_scores, models)
    return 0


if __name__ == "__main__":
    sys.exit(main())
