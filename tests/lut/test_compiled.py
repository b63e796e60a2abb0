"""Compiled sums against the plain sum."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bcnet_deploy.lut.compiled import CompiledSum, Term


def quadratic(variables: tuple[int, ...], scale: float) -> Term:
    def evaluate(widths: np.ndarray) -> np.ndarray:
        return (
            scale * np.prod(1.0 + widths[:, list(variables)], axis=1)
            if variables
            else np.full(len(widths), scale)
        )

    return Term(variables, evaluate)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_equals_the_sum_of_its_terms(data: st.DataObject) -> None:
    channels = data.draw(st.lists(st.integers(1, 30), min_size=1, max_size=5))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    choices = [sorted({int(rng.integers(1, c + 1)) for _ in range(4)}) for c in channels]
    terms = []
    for _ in range(data.draw(st.integers(0, 8))):
        size = data.draw(st.integers(0, min(4, len(channels))))
        terms.append(
            quadratic(tuple(sorted(rng.permutation(len(channels))[:size].tolist())), float(rng.random()))
        )
    compiled = CompiledSum(terms, channels, choices, constant=3.0)
    # Any width, not only the choices.
    widths = np.stack(
        [rng.integers(1, c + 1, size=data.draw(st.integers(1, 40))) for c in channels[:1]], axis=1
    )
    widths = np.stack([rng.integers(1, c + 1, size=len(widths)) for c in channels], axis=1)
    expected = 3.0 + sum((term.evaluate(widths) for term in terms), np.zeros(len(widths)))
    np.testing.assert_allclose(compiled(widths), expected, rtol=1e-5)


def test_large_batches_in_threads_equal_small_ones() -> None:
    rng = np.random.default_rng(0)
    channels = [40, 30, 20]
    terms = [quadratic((0, 1), 0.1), quadratic((1, 2), 0.2), quadratic((0, 1, 2), 0.3), quadratic((2,), 0.4)]
    compiled = CompiledSum(terms, channels, [[c] for c in channels])
    widths = np.stack([rng.integers(1, c + 1, size=50_000) for c in channels], axis=1)
    whole = compiled(widths)
    parts = np.concatenate([compiled(part) for part in np.array_split(widths, 23)])
    np.testing.assert_array_equal(whole, parts)
    assert compiled(widths[:0]).shape == (0,)
