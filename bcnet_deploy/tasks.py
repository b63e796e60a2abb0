"""What a network is trained for and judged by: its loss, its metric, and what its outputs mean.

A task of one's own is a subclass of :class:`Task`, or two functions given to :func:`make_task`. It is
named as ``module:function`` in ``TrainConfig.task``, registered in :data:`TASKS`, or given as an object.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from bcnet_deploy import references
from bcnet_deploy.errors import TaskError
from bcnet_deploy.registry import Registry

IGNORED = 255
"""Pixels with this label belong to no class: they teach nothing and are not counted."""


class Task(ABC):
    """One kind of work. Outputs are what the network returns, targets (N, ...) what the data holds.

    Attributes:
        name: in settings and messages.
        metric_name: for people, such as ``top-1``. More is better.
        key: of the metric in files, such as ``top1``.
        unit: of the metric, written after its value.
        move: None, or (targets, :class:`~bcnet_deploy.data.augment.Moves`) -> targets: of a batch whose
            images augmentation has cropped and flipped. Asked for targets that are neither a class an image
            nor masks, which are moved without it.
    """

    move: Callable[[Tensor, Any], Tensor] | None = None
    name: str = "task"
    metric_name: str = "metric"
    key: str = "metric"
    unit: str = ""

    @abstractmethod
    def loss(self, outputs: Any, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """A scalar to be made small: the mean over the batch."""

    @abstractmethod
    def measure(self, outputs: Any, targets: Tensor) -> Tensor:
        """(K,) figures of a batch. They are added over all batches before :meth:`score` reads them."""

    @abstractmethod
    def score(self, sums: Tensor, count: int) -> float:
        """The metric from the (K,) ``sums`` over ``count`` images. More is better."""

    def loss_sum(self, outputs: Any, targets: Tensor) -> Tensor:
        """The loss summed over a batch."""
        return self.loss(outputs, targets) * len(targets)

    def distillation(self, outputs: Any, teacher: Any, temperature: float = 1.0) -> Tensor:
        """How far outputs are from a teacher's. Here: the mean squared difference of every tensor."""
        pairs = zip(pytree.tree_leaves(outputs), pytree.tree_leaves(teacher), strict=True)
        return torch.stack([F.mse_loss(own, other) for own, other in pairs]).sum()

    def decisions(self, outputs: Any) -> Tensor | None:
        """Integers on which two runs of a network should agree; None where the outputs decide nothing."""
        return None

    def check_outputs(self, outputs: Any) -> None:  # noqa: B027 (any outputs will do)
        """Refuse what a network returns where this task cannot use it. Raises :class:`TaskError`."""

    def check_targets(  # noqa: B027 (any targets will do)
        self, targets: Tensor, classes: int, size: tuple[int, int, int], what: str
    ) -> None:
        """Refuse targets that this task cannot use.

        Args:
            targets: (N, ...) of a data set.
            classes: how many there are.
            size: (C, H, W) of the images.
            what: they are called in the message.

        Raises:
            TaskError: they do not fit.
        """


class Classification(Task):
    """One label an image. Cross-entropy and top-1 accuracy.

    Outputs are logits (N, classes): a tensor, the entry ``logits`` or ``out`` of a mapping or named tuple,
    or the only tensor of a structure. Auxiliary classifiers, the entries beside it whose names begin with
    ``aux``, count 0.3 each in the loss (Szegedy et al., "Going deeper with convolutions", section 5).
    """

    name, metric_name, key, unit = "classification", "top-1", "top1", "%"

    def loss(self, outputs: Any, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        logits = self.logits(outputs)
        total = F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
        entries = outputs if isinstance(outputs, Mapping) else getattr(outputs, "_asdict", dict)()
        for name, own in entries.items():
            if str(name).startswith("aux") and isinstance(own, Tensor) and own.shape == logits.shape:
                total = total + 0.3 * F.cross_entropy(own, targets, label_smoothing=label_smoothing)
        return total

    def loss_sum(self, outputs: Any, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(outputs), targets, reduction="sum")

    def measure(self, outputs: Any, targets: Tensor) -> Tensor:
        return (self.logits(outputs).argmax(dim=1) == targets).sum().view(1)

    def score(self, sums: Tensor, count: int) -> float:
        return 100.0 * float(sums[0]) / count

    def distillation(self, outputs: Any, teacher: Any, temperature: float = 1.0) -> Tensor:
        return soft_cross_entropy(self.logits(outputs), self.logits(teacher), temperature)

    def decisions(self, outputs: Any) -> Tensor:
        return self.logits(outputs).argmax(dim=1)

    def check_outputs(self, outputs: Any) -> None:
        self.logits(outputs)

    def logits(self, outputs: Any) -> Tensor:
        """(N, classes) of the outputs. Raises :class:`TaskError`."""
        found = _main_tensor(outputs, self.name, "(N, classes)")
        if found.ndim != 2:
            raise TaskError(
                f"the network's output has the shape {tuple(found.shape)}; classification needs "
                "(N, classes); for another kind of work set task: 'segmentation' or 'module:function'"
            )
        return found

    def check_targets(self, targets: Tensor, classes: int, size: tuple[int, int, int], what: str) -> None:
        if targets.ndim != 1 or targets.is_floating_point():
            masks = targets.ndim == 3 and not targets.is_floating_point()
            other = "masks set task: segmentation" if masks else "such values set task: 'module:function'"
            raise TaskError(
                f"{what}: the targets are {targets.dtype} of the shape {tuple(targets.shape)}; "
                f"classification needs one integer an image; for {other}"
            )
        _check_range(targets, classes, what, ())


class Segmentation(Task):
    """One label a pixel; 255 is ignored. Cross-entropy and mean intersection over union (mean IoU).

    Outputs are logits (N, classes, H, W): a tensor, or torchvision's mapping with ``out`` and, in training,
    ``aux``, which counts half in the loss. Smaller maps are resized to the masks bilinearly. The IoU of a
    class is taken over all the images; classes that are neither there nor predicted do not count.
    """

    name, metric_name, key, unit = "segmentation", "mean IoU", "mean_iou", "%"

    def loss(self, outputs: Any, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        total = self._loss(self.logits(outputs, targets), targets, label_smoothing)
        if isinstance(outputs, Mapping) and isinstance(outputs.get("aux"), Tensor):
            aux = _resized(outputs["aux"], targets)
            total = total + 0.5 * self._loss(aux, targets, label_smoothing)
        return total

    def _loss(self, logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        kept = (targets != IGNORED).sum().clamp(min=1)
        # A batch without one labelled pixel has a loss of 0, not of 0 / 0.
        summed = F.cross_entropy(
            logits, targets, ignore_index=IGNORED, label_smoothing=label_smoothing, reduction="sum"
        )
        return summed / kept

    def measure(self, outputs: Any, targets: Tensor) -> Tensor:
        logits = self.logits(outputs, targets)
        classes = logits.shape[1]
        found = logits.argmax(dim=1).flatten()
        true = targets.flatten()
        kept = true != IGNORED
        true = torch.where(kept, true, 0)
        counts = torch.zeros(3, classes, dtype=torch.float64, device=logits.device)
        counts[0].index_add_(0, true, (kept & (found == true)).double())
        counts[1].index_add_(0, true, kept.double())
        counts[2].index_add_(0, found, kept.double())
        return counts.flatten()

    def score(self, sums: Tensor, count: int) -> float:
        both, true, found = sums.view(3, -1)
        union = true + found - both
        there = union > 0
        return 100.0 * float((both[there] / union[there]).mean()) if bool(there.any()) else 0.0

    def distillation(self, outputs: Any, teacher: Any, temperature: float = 1.0) -> Tensor:
        return soft_cross_entropy(self.logits(outputs), self.logits(teacher), temperature)

    def decisions(self, outputs: Any) -> Tensor:
        return self.logits(outputs).argmax(dim=1)

    def check_outputs(self, outputs: Any) -> None:
        self.logits(outputs)

    def logits(self, outputs: Any, targets: Tensor | None = None) -> Tensor:
        """(N, classes, H, W) of the outputs, at the size of ``targets`` where given. Raises TaskError."""
        found = _main_tensor(outputs, self.name, "(N, classes, H, W)")
        if found.ndim != 4:
            raise TaskError(
                f"the network's output has the shape {tuple(found.shape)}; segmentation needs "
                "(N, classes, H, W); for one label an image set task: classification"
            )
        return found if targets is None else _resized(found, targets)

    def check_targets(self, targets: Tensor, classes: int, size: tuple[int, int, int], what: str) -> None:
        if targets.ndim != 3 or targets.is_floating_point() or tuple(targets.shape[1:]) != tuple(size[1:]):
            raise TaskError(
                f"{what}: the masks are {targets.dtype} of the shape {tuple(targets.shape)}; segmentation "
                f"needs integers (N, {size[1]}, {size[2]}), as large as the images"
            )
        _check_range(targets, classes, what, (IGNORED,))


class FunctionTask(Task):
    """A task of two functions, see :func:`make_task`."""

    def __init__(self, loss: Callable[..., Any], metric: Callable[..., Any]) -> None:
        self._loss, self._metric = loss, metric

    def loss(self, outputs: Any, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        value = self._loss(outputs, targets)
        if not isinstance(value, Tensor):
            raise TaskError(
                f"the loss of task {self.name!r} is {type(value).__name__}; needed: a scalar tensor"
            )
        return value

    def measure(self, outputs: Any, targets: Tensor) -> Tensor:
        value = self._metric(outputs, targets)
        if isinstance(value, Tensor) and value.numel() != 1:
            raise TaskError(
                f"the metric of task {self.name!r} is a tensor of the shape {tuple(value.shape)}; needed: "
                "one number"
            )
        try:
            number = float(value) * len(targets)
        except (TypeError, ValueError) as error:
            raise TaskError(
                f"the metric of task {self.name!r} is {type(value).__name__}; needed: one number"
            ) from error
        return torch.tensor([number], dtype=torch.float64, device=targets.device)

    def score(self, sums: Tensor, count: int) -> float:
        return float(sums[0]) / count


def make_task(
    loss: Callable[[Any, Tensor], Tensor],
    metric: Callable[[Any, Tensor], float],
    *,
    name: str = "custom",
    metric_name: str = "metric",
    unit: str = "",
    distillation: Callable[[Any, Any], Tensor] | None = None,
    move: Callable[[Tensor, Any], Tensor] | None = None,
) -> Task:
    """A task of functions.

    Args:
        loss: (outputs, targets) -> a scalar tensor, the mean over the batch.
        metric: (outputs, targets) -> a number; more is better. It is taken of each batch and averaged over
            the images: a metric that cannot be averaged so needs a subclass of :class:`Task`.
        name: in settings and messages.
        metric_name, unit: for people.
        distillation: (outputs, teacher's outputs) -> a scalar tensor; default: mean squared difference.
        move: brings targets to where augmentation moved their images, see :attr:`Task.move`.
    """
    task = FunctionTask(loss, metric)
    task.move = move
    task.name, task.metric_name, task.unit = name, metric_name, unit
    if distillation is not None:
        task.distillation = lambda outputs, teacher, temperature=1.0: distillation(outputs, teacher)  # type: ignore[method-assign]
    return task


TASKS: Registry[Callable[[], Task]] = Registry("task", "bcnet_deploy.tasks")
"""Tasks by name: functions without arguments that make one."""
TASKS.register("classification")(Classification)
TASKS.register("segmentation")(Segmentation)


def classifies(task: Task | None) -> bool:
    """Whether a task, or none given, is judged by top-1 accuracy."""
    return task is None or isinstance(task, Classification)


def has_learned(score: float, chance: float) -> bool:
    """Whether an accuracy, 0 to 1, is clearly better than guessing: by half of it, or a fifth of the rest."""
    return score > chance + min(0.5 * chance, 0.2 * (1 - chance))


def load_task(reference: str | Task | Callable[[], Task]) -> Task:
    """The task that ``reference`` names or is.

    Args:
        reference: a name in :data:`TASKS`, ``module:function`` or ``file.py:function``, a task, its class, or
            a function without arguments that makes one.

    Raises:
        TaskError: there is none, or what it names makes no :class:`Task`.
    """
    made: Any = reference
    if isinstance(reference, str):
        if references.is_reference(reference):
            made = references.find(reference, "task", TaskError)
        else:
            made = TASKS.get(reference, TaskError)
    if not isinstance(made, Task):
        if not callable(made):
            raise TaskError(f"{reference!r} is {type(made).__name__}; needed: a bcnet_deploy.tasks.Task")
        made = references.call(made, f"making the task {reference!r}: task", TaskError)
    if not isinstance(made, Task):
        raise TaskError(
            f"the task {reference!r} made {type(made).__name__}; needed: a bcnet_deploy.tasks.Task "
            "(bcnet_deploy.tasks.make_task makes one of a loss and a metric)"
        )
    return made


def described(outputs: Any) -> str:
    """The structure of outputs and the shapes of their tensors, for people: ``tuple of (2, 10), (2, 10)``."""
    shapes = [tuple(leaf.shape) for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
    shown = ", ".join(map(str, shapes[:6])) + (f" and {len(shapes) - 6} more" if len(shapes) > 6 else "")
    if isinstance(outputs, Tensor):
        return f"a tensor {shown}"
    keys = f" ({', '.join(map(repr, list(outputs)[:6]))})" if isinstance(outputs, Mapping) else ""
    return f"{type(outputs).__name__}{keys} of {shown or 'no tensor'}"


def built_in_for(outputs: Any) -> str | None:
    """The first of the built-in tasks that can use such outputs; None if none can."""
    for task in (Classification(), Segmentation()):
        try:
            task.check_outputs(outputs)
        except TaskError:
            continue
        return task.name
    return None


def soft_cross_entropy(logits: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross-entropy of (N, classes, ...) ``logits`` to the teacher's softened distribution, times T²."""
    target = F.softmax(teacher.float() / temperature, dim=1)
    loss = -(target * F.log_softmax(logits.float() / temperature, dim=1)).sum(dim=1).mean()
    return loss * temperature**2


def as_float(outputs: Any) -> Any:
    """The outputs with every floating-point tensor as float32."""
    if isinstance(outputs, Tensor):
        return outputs.float()
    return pytree.tree_map_only(Tensor, lambda t: t.float() if t.is_floating_point() else t, outputs)


def detached(outputs: Any) -> Any:
    """The outputs without their graph."""
    return pytree.tree_map_only(Tensor, Tensor.detach, outputs)


def checked_score(task: Task, sums: Tensor, count: int) -> float:
    """:meth:`Task.score`, refused where it is no finite number. Raises :class:`TaskError`."""
    score = task.score(sums, count)
    if not isinstance(score, int | float) or not math.isfinite(score):
        shown = f"a {type(score).__name__}" if not isinstance(score, int | float) else repr(score)
        raise TaskError(
            f"the metric {task.metric_name!r} of task {task.name!r} is {shown} over {count} images; needed: "
            "a finite number, more is better"
        )
    return float(score)


def _main_tensor(outputs: Any, task: str, shape: str) -> Tensor:
    if isinstance(outputs, Tensor):
        return outputs
    for key in ("logits", "out"):
        named = outputs.get(key) if isinstance(outputs, Mapping) else getattr(outputs, key, None)
        if isinstance(named, Tensor):
            return named
    tensors = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
    if len(tensors) == 1:
        return tensors[0]
    kind = type(outputs).__name__
    if isinstance(outputs, Mapping):
        kind += f" with the keys {', '.join(map(repr, list(outputs)[:8]))}"
    raise TaskError(
        f"the network returns {kind} of {len(tensors)} tensors; {task} needs one tensor {shape}, or a "
        "mapping with 'logits' or 'out'; otherwise say which by a task of your own (task: 'module:function')"
    )


def _resized(logits: Tensor, targets: Tensor) -> Tensor:
    if logits.shape[2:] == targets.shape[1:]:
        return logits
    size = list(targets.shape[1:])
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def _check_range(targets: Tensor, classes: int, what: str, besides: tuple[int, ...]) -> None:
    bad = (targets < 0) | (targets >= classes)
    for label in besides:
        bad &= targets != label
    if bool(bad.any()):
        place = bad.nonzero()[0].tolist()
        allowed = ", ".join([f"0..{classes - 1}", *map(str, besides)])
        raise TaskError(
            f"{what}: label {int(targets[tuple(place)])} of image {place[0]} is out of range, and "
            f"{int(bad.sum()) - 1} more; allowed: {allowed}"
        )


__all__ = [
    "TASKS", "Classification", "Segmentation", "Task", "load_task", "make_task", "soft_cross_entropy",
]  # fmt: skip
