"""Losses and metrics of the tasks against PyTorch's and torchmetrics'; what does not fit is named."""

from __future__ import annotations

import math
from collections import OrderedDict, namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torchmetrics.classification import MulticlassJaccardIndex

from bcnet_deploy.errors import TaskError
from bcnet_deploy.tasks import (
    TASKS,
    Classification,
    Segmentation,
    Task,
    checked_score,
    load_task,
    make_task,
)

Pair = namedtuple("Pair", ["logits", "aux"])


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("wrap", ["tensor", "logits", "out", "named", "only"])
def test_classification_takes_logits_from_any_clear_structure(wrap: str) -> None:
    logits = torch.randn(6, 4, generator=rng())
    outputs: Any = {
        "tensor": logits,
        "logits": {"logits": logits, "features": torch.zeros(6, 9)},
        "out": OrderedDict(out=logits, aux=torch.zeros(6, 4)),
        "named": Pair(logits, torch.zeros(6, 4)),
        "only": [logits],
    }[wrap]
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    task = Classification()
    # Zeros tell four classes apart by log 4, whatever the labels.
    side = 0.3 * math.log(4) if wrap in ("out", "named") else 0.0
    expected = float(F.cross_entropy(logits, labels, label_smoothing=0.1)) + side
    assert float(task.loss(outputs, labels, 0.1)) == pytest.approx(expected, rel=1e-6)
    right = (logits.argmax(1) == labels).float().mean()
    assert task.score(task.measure(outputs, labels), 6) == pytest.approx(100 * float(right))
    assert task.decisions(outputs).tolist() == logits.argmax(1).tolist()


@given(
    classes=st.integers(2, 7),
    seed=st.integers(0, 2**31),
    ignored=st.floats(0, 0.9),
    batches=st.integers(1, 3),
)
def test_mean_iou_is_torchmetrics(classes: int, seed: int, ignored: float, batches: int) -> None:
    task, g = Segmentation(), rng(seed)
    theirs = MulticlassJaccardIndex(classes, ignore_index=255)
    sums, count = torch.zeros(3 * classes, dtype=torch.float64), 0
    for _ in range(batches):
        # Few classes in the masks, so that some are in neither.
        masks = torch.randint(0, max(1, classes - 1), (2, 5, 6), generator=g)
        masks[torch.rand(masks.shape, generator=g) < ignored] = 255
        logits = torch.randn(2, classes, 5, 6, generator=g)
        logits[:, 0] += 1
        theirs.update(logits.argmax(1), masks)
        sums += task.measure(logits, masks)
        count += 2
    assert task.score(sums, count) == pytest.approx(100 * float(theirs.compute()), abs=1e-4)


def test_segmentation_loss_is_over_labelled_pixels_and_half_of_the_auxiliary() -> None:
    task, masks = Segmentation(), torch.randint(0, 3, (2, 6, 6), generator=rng())
    masks[:, 0] = 255
    out, aux = torch.randn(2, 3, 6, 6, generator=rng(1)), torch.randn(2, 3, 3, 3, generator=rng(2))
    larger = F.interpolate(aux, size=[6, 6], mode="bilinear", align_corners=False)
    for smoothing in (0.0, 0.1):
        expected = [
            F.cross_entropy(x, masks, ignore_index=255, label_smoothing=smoothing) for x in (out, larger)
        ]
        torch.testing.assert_close(task.loss(out, masks, smoothing), expected[0])
        both = task.loss({"out": out, "aux": aux}, masks, smoothing)
        torch.testing.assert_close(both, expected[0] + 0.5 * expected[1])
    assert float(task.loss(out, torch.full_like(masks, 255))) == 0
    probabilities = out.softmax(1)
    entropy = -(probabilities * probabilities.log()).sum(1).mean()
    torch.testing.assert_close(task.distillation(out, {"out": out}), entropy)


def test_a_task_of_functions() -> None:
    task = make_task(F.mse_loss, lambda y, t: -F.mse_loss(y, t), name="depth", metric_name="-MSE", unit=" m²")
    outputs, targets = torch.randn(7, 2, generator=rng()), torch.randn(7, 2, generator=rng(1))
    assert float(task.loss(outputs, targets)) == float(F.mse_loss(outputs, targets))
    sums = sum(task.measure(outputs[s], targets[s]) for s in (slice(0, 4), slice(4, 7)))
    assert isinstance(sums, torch.Tensor)
    assert task.score(sums, 7) == pytest.approx(-float(F.mse_loss(outputs, targets)), rel=1e-5)
    assert (task.name, task.metric_name, task.unit) == ("depth", "-MSE", " m²")
    pair = {"a": outputs, "b": outputs}
    assert float(task.distillation(pair, {"a": targets, "b": outputs})) == pytest.approx(
        float(F.mse_loss(outputs, targets))
    )


def own_task() -> Task:
    return make_task(F.mse_loss, lambda y, t: 0.0, name="own")


def test_tasks_by_name_reference_file_class_and_object(tmp_path: Path) -> None:
    file = tmp_path / "work.py"
    file.write_text(
        "from bcnet_deploy.tasks import Segmentation\nclass Mine(Segmentation):\n    name = 'mine'\n"
        "wrong = lambda: 3\ndef failing(): raise OSError('no file')\n"
    )
    assert {"classification", "segmentation"} <= set(TASKS.names())
    assert isinstance(load_task("segmentation"), Segmentation)
    assert load_task(f"{__name__}:own_task").name == "own"
    assert load_task(f"{file}:Mine").name == "mine"
    assert isinstance(load_task(Classification), Classification)
    assert load_task(own_task).name == "own"
    for given_, words in (
        ("segmentatio", "unknown task 'segmentatio'; did you mean 'segmentation'"),
        (f"{file}:wrong", "made int; needed: a bcnet_deploy.tasks.Task"),
        (f"{file}:failing", "OSError: no file"),
        (f"{file}:Min", "no function 'Min'; did you mean 'Mine'"),
        (3, "3 is int; needed"),
    ):
        with pytest.raises(TaskError, match=words):
            load_task(given_)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        (lambda y, t: float("nan"), "is nan over 4 images"),
        (lambda y, t: y, r"is a tensor of the shape \(4, 2\); needed: one number"),
        (lambda y, t: "good", "is str; needed: one number"),
    ],
)
def test_a_metric_that_is_no_number_is_named(metric: Any, words: str) -> None:
    task, y = make_task(F.mse_loss, metric), torch.zeros(4, 2)
    with pytest.raises(TaskError, match=words):
        checked_score(task, task.measure(y, y), 4)


@pytest.mark.parametrize(
    ("task", "targets", "words"),
    [
        ("classification", torch.zeros(2, 4, 4, dtype=torch.long), "for masks set task: segmentation"),
        ("classification", torch.tensor([0, 3]), r"label 3 of image 1 .* allowed: 0\.\.2"),
        ("segmentation", torch.zeros(2, dtype=torch.long), r"needs integers \(N, 4, 4\)"),
        ("segmentation", torch.zeros(2, 4, 5, dtype=torch.long), r"shape \(2, 4, 5\)"),
        ("segmentation", torch.zeros(2, 4, 4), "torch.float32"),
        (
            "segmentation",
            torch.full((2, 4, 4), 254),
            r"label 254 of image 0 .* allowed: 0\.\.2, 255",
        ),
        ("segmentation", torch.full((2, 4, 4), -1), "label -1"),
    ],
)
def test_targets_that_do_not_fit_are_refused(task: str, targets: torch.Tensor, words: str) -> None:
    with pytest.raises(TaskError, match=words):
        load_task(task).check_targets(targets, 3, (1, 4, 4), "x")


def test_targets_that_fit_are_taken() -> None:
    load_task("classification").check_targets(torch.tensor([0, 2]), 3, (1, 4, 4), "x")
    masks = torch.tensor([[[0, 1], [2, 255]]])
    load_task("segmentation").check_targets(masks, 3, (1, 2, 2), "x")


@pytest.mark.parametrize(
    ("task", "outputs", "words"),
    [
        ("classification", (torch.zeros(2, 3), torch.zeros(2, 3)), "returns tuple of 2 tensors"),
        ("classification", {"a": torch.zeros(2), "b": torch.zeros(2)}, "with the keys 'a', 'b'"),
        ("classification", torch.zeros(2, 3, 4, 4), r"shape \(2, 3, 4, 4\); classification needs"),
        ("segmentation", torch.zeros(2, 3), r"shape \(2, 3\); segmentation needs"),
        ("classification", None, "0 tensors"),
    ],
)
def test_outputs_that_mean_nothing_are_refused(task: str, outputs: Any, words: str) -> None:
    with pytest.raises(TaskError, match=words):
        load_task(task).measure(outputs, torch.zeros(2, dtype=torch.long))
