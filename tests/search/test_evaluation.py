"""Evaluations: asked once, errors named, nothing lost by a kill."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import bcnet_deploy as bd
from tests.search.fakes import FakeSpace, Hashed

ROOT = Path(__file__).parents[2]
LADDER = tuple(range(4, 33, 4))
SPACE = FakeSpace((LADDER,) * 6)
BUDGET = {"macs": "0.4x"}


class Failing(Hashed):
    """Fails for vectors whose first width is 8."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def __call__(self, widths):
        values = super().__call__(widths)
        bad = np.asarray(widths)[:, 0] == 8
        if bad.any() and self.how == "raise":
            raise RuntimeError("out of memory")
        return np.where(bad, {"nan": np.nan, "inf": np.inf, "raise": 0.0}[self.how], values)


@pytest.mark.parametrize("how", ["nan", "inf", "raise"])
def test_a_failing_evaluation_stops_and_names_the_vector(how, tmp_path):
    path = tmp_path / "journal.jsonl"
    with pytest.raises(bd.EvaluationError, match=r"widths \[8, .*failed") as caught:
        bd.search(SPACE, Failing(how), BUDGET, 200, checkpoint=path)
    assert ("out of memory" if how == "raise" else how) in str(caught.value)
    kept = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    assert kept, "what was evaluated before must be kept"
    assert all(Hashed().value(row["widths"]) == row["accuracy"] and row["widths"][0] != 8 for row in kept)


@pytest.mark.parametrize("how", ["nan", "inf", "raise"])
def test_a_failing_evaluation_is_skipped_when_told_so(how):
    result = bd.search(SPACE, Failing(how), BUDGET, 200, on_error="skip")
    assert result.failures and all(widths[0] == 8 for widths, _ in result.failures)
    assert result.widths[0] != 8 and (np.asarray(result.front)[:, 0] != 8).all()
    assert result.evaluations == 200


class Binomial(Failing):
    """Its noise is computed from the accuracy, so that a network without one has no noise either."""

    def noise(self, widths):
        return np.sqrt(np.abs(self(widths)) + 1) - np.zeros(len(widths))


@pytest.mark.parametrize("how", ["nan", "inf"])
def test_a_network_without_an_accuracy_needs_no_noise(how, tmp_path):
    path = tmp_path / "journal.jsonl"
    with pytest.raises(bd.EvaluationError, match=r"widths \[8, .*failed"):
        bd.search(SPACE, Binomial(how), BUDGET, 200, checkpoint=path)
    assert len(path.read_text().splitlines()) > 1, "the others of its batch are kept"
    result = bd.search(SPACE, Binomial(how), BUDGET, 200, on_error="skip")
    assert result.failures and all(widths[0] == 8 for widths, _ in result.failures)
    assert result.evaluations == 200


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are counted in Linux's /proc")
def test_a_search_leaves_no_file_open(tmp_path):
    opened = len(os.listdir("/proc/self/fd"))
    for seed in range(3):
        bd.search(SPACE, Hashed(), BUDGET, 20, seed, checkpoint=tmp_path / f"{seed}.jsonl")
        with pytest.raises(bd.EvaluationError):
            bd.search(SPACE, lambda w: np.zeros(3), BUDGET, 20, checkpoint=tmp_path / f"{seed}.bad.jsonl")
    assert len(os.listdir("/proc/self/fd")) == opened


@pytest.mark.parametrize("answer", [lambda w: np.zeros(3), lambda w: 1.0, lambda w: np.zeros((len(w), 2))])
def test_a_wrong_shape_is_refused(answer):
    with pytest.raises(bd.EvaluationError, match="shape"):
        bd.search(SPACE, answer, BUDGET, 200)


def test_all_absent_is_an_error_not_a_result():
    with pytest.raises(bd.EvaluationError, match="-inf"):
        bd.search(SPACE, lambda w: np.full(len(w), -np.inf), BUDGET, 100)


@pytest.mark.parametrize("kind", ["shares_weights", "trains_each", "before_training"])
@pytest.mark.parametrize("failing", [11, 12])
def test_where_all_but_one_or_all_networks_fail(kind, failing):
    """Scores with a noise, whose posterior has nothing to be fitted to until then."""

    class Failing(Hashed):
        def __call__(self, widths):
            if len(widths) == 1:
                super().__call__(widths)
            if len(self.asked) <= failing:
                raise RuntimeError("no such kernel")
            return np.full(len(widths), 80.0)

        def noise(self, widths):
            return np.ones(len(widths))

    accuracy = Failing()
    setattr(accuracy, kind, True)
    if failing == 12:
        with pytest.raises(bd.EvaluationError, match=r"none of the .*the first failure: .*no such kernel"):
            bd.search(SPACE, accuracy, BUDGET, 12, on_error="skip")
        return
    result = bd.search(SPACE, accuracy, BUDGET, 12, on_error="skip")
    assert result.accuracy == 80.0 == result.belief.mean and len(result.failures) == 11


def test_batches_are_as_told_and_answers_do_not_depend_on_them():
    sizes = []

    def accuracy(widths):
        sizes.append(len(widths))
        return Hashed()(widths)

    by_three = bd.search(SPACE, accuracy, BUDGET, 100, batch_size=3)
    assert max(sizes) == 3
    assert by_three.to_dict() == bd.search(SPACE, Hashed(), BUDGET, 100).to_dict()


def test_the_callable_cannot_spoil_the_search_by_writing_into_its_argument():
    def accuracy(widths):
        values = Hashed()(widths)
        widths[:] = 0
        return values

    assert (
        bd.search(SPACE, accuracy, BUDGET, 100).to_dict() == bd.search(SPACE, Hashed(), BUDGET, 100).to_dict()
    )


def test_a_finished_search_is_replayed_without_evaluating(tmp_path):
    path = tmp_path / "deep" / "journal.jsonl"
    first = bd.search(SPACE, Hashed(), BUDGET, 150, checkpoint=path)
    again = Hashed()
    assert bd.search(SPACE, again, BUDGET, 150, checkpoint=path).to_dict() == first.to_dict()
    assert not again.asked
    # More evaluations go on from there; a journal never changes what a search finds.
    more = bd.search(SPACE, again, BUDGET, 200, checkpoint=path).to_dict()
    assert more == bd.search(SPACE, Hashed(), BUDGET, 200).to_dict() and len(again.asked) <= 60


@pytest.mark.parametrize(
    "tail", ['{"widths": [4, 8', '{"widths": [4, 8, 4, 4, 4, 4], "accuracy": 0.1}', "\x00\x00"]
)
def test_a_torn_last_line_is_dropped(tmp_path, tail):
    path = tmp_path / "journal.jsonl"
    expected = bd.search(SPACE, Hashed(), BUDGET, 100, checkpoint=path).to_dict()
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:40]) + "\n" + tail)
    assert bd.search(SPACE, Hashed(), BUDGET, 100, checkpoint=path).to_dict() == expected


def test_a_journal_of_another_evaluator_or_no_journal_is_refused(tmp_path):
    path = tmp_path / "journal.jsonl"
    bd.search(SPACE, Hashed(), BUDGET, 20, checkpoint=path, evaluator_id="supernet a")
    with pytest.raises(bd.CheckpointError, match="supernet a.*supernet b"):
        bd.search(SPACE, Hashed(), BUDGET, 20, checkpoint=path, evaluator_id="supernet b")
    other = FakeSpace((LADDER,) * 6)
    other.choices_fingerprint = "learned"
    with pytest.raises(bd.CheckpointError, match="choices '', .* 'learned'"):
        bd.search(other, Hashed(), BUDGET, 20, checkpoint=path, evaluator_id="supernet a")
    for text in ("hello\n", "{}\n", '{"kind": "search journal", "format": 1}\nnonsense\n', ""):
        path.write_text(text)
        with pytest.raises(bd.CheckpointError, match="delete"):
            bd.search(SPACE, Hashed(), BUDGET, 20, checkpoint=path)


CHILD = """
import sys, time
import numpy as np
import bcnet_deploy as bd
from tests.search.test_evaluation import SPACE, BUDGET
from tests.search.fakes import Hashed
inner = Hashed()
def accuracy(widths):
    time.sleep(0.004)
    return inner(widths)
bd.search(SPACE, accuracy, BUDGET, 300, seed=6, checkpoint=sys.argv[1], batch_size=1)
"""


def test_killed_at_any_moment_the_result_is_the_same(tmp_path):
    path = tmp_path / "journal.jsonl"
    rng = np.random.default_rng(3)
    counts = []
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(path)], cwd=ROOT)
        before = path.stat().st_size if path.exists() else 0
        deadline = time.monotonic() + 60
        while not path.exists() or path.stat().st_size <= before + 200:
            assert time.monotonic() < deadline and child.poll() is None
            time.sleep(0.01)
        time.sleep(float(rng.uniform(0, 0.3)))
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        counts.append(len(path.read_text().splitlines()))
    assert counts == sorted(counts) and counts[0] > 1 and counts[-1] < 300
    rest = Hashed()
    resumed = bd.search(SPACE, rest, BUDGET, 300, seed=6, checkpoint=path)
    assert resumed.to_dict() == bd.search(SPACE, Hashed(), BUDGET, 300, seed=6).to_dict()
    assert len(rest.asked) <= 300 - (counts[-1] - 2)


@pytest.mark.parametrize(("value", "bounds", "taken"), [
    (1e9, (0.0, 100.0), False), (-0.5, (0.0, 100.0), False), (100.0, (0.0, 100.0), True), (1e9, None, True),
])  # fmt: skip
def test_a_journal_with_an_accuracy_that_cannot_be_is_refused(tmp_path, value, bounds, taken):
    class Bounded(Hashed):
        pass

    Bounded.bounds = bounds
    path = tmp_path / "journal.jsonl"
    arguments = {"evaluations": 12, "population_size": 6, "checkpoint": path}
    bd.search(SPACE, Bounded(), BUDGET, **arguments)
    rows = path.read_text().splitlines()
    rows[-1] = json.dumps({**json.loads(rows[-1]), "accuracy": value})
    path.write_text("\n".join(rows) + "\n")
    if taken:
        assert bd.search(SPACE, Bounded(), BUDGET, **arguments).evaluations == 12
        return
    said = re.escape(f"line {len(rows)}: accuracy is {value:g}; allowed: 0 to 100")
    with pytest.raises(bd.CheckpointError, match=said):
        bd.search(SPACE, Bounded(), BUDGET, **arguments)


def test_interrupt_passes_through_and_keeps_the_journal(tmp_path):
    path = tmp_path / "journal.jsonl"
    asked = Hashed()

    def accuracy(widths):
        if len(asked.asked) > 60:
            raise KeyboardInterrupt
        return asked(widths)

    with pytest.raises(KeyboardInterrupt):
        bd.search(SPACE, accuracy, BUDGET, 200, checkpoint=path, batch_size=5)
    assert len(path.read_text().splitlines()) == 1 + len(asked.asked)


def test_accuracies_that_differ_in_the_last_bit_are_one(tmp_path):
    """The mean of two sides depends on the order of the sum: 85.83333333333333 and ...34 are equal."""
    low, high = 85.83333333333333, 85.83333333333334
    assert low < high
    space = FakeSpace(((1, 2), (1, 2)))

    def accuracy(widths):
        return np.where(np.asarray(widths).sum(axis=1) > 2, high, low)

    path = tmp_path / "journal.jsonl"
    result = bd.search(space, accuracy, {"macs": "1x"}, 4, checkpoint=path)
    assert result.front.tolist() == [[1, 1]], "the cheapest is as good as the others"
    # A journal written before is read the same way.
    lines = path.read_text().splitlines()
    rows = [json.loads(line) for line in lines[1:]]
    old = [json.dumps({**row, "accuracy": low if row["widths"] == [1, 1] else high}) for row in rows]
    path.write_text("\n".join([lines[0], *old]) + "\n")
    assert bd.search(space, accuracy, {"macs": "1x"}, 4, checkpoint=path).to_dict() == result.to_dict()
    for value in (1e300, -1e300, 123456789.123456789012):
        assert bd.search(space, lambda w, v=value: np.full(len(w), v), {"macs": "1x"}, 4).accuracy == value


def test_an_exception_without_text_is_named_by_its_type():
    def accuracy(widths):
        raise MemoryError

    with pytest.raises(bd.EvaluationError, match=r"failed: MemoryError\. .*on_error='skip'"):
        bd.search(SPACE, accuracy, BUDGET, 20)
