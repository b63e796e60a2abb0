"""A step on a few images before training begins: what would fail later is refused now, or settled.

Settled with a note: fewer images than a batch, a network that does not run in channels_last, an output that
the loss ignores. Refused: everything that a task, a network and data disagree on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from bcnet_deploy.data import Augmentation, DataSplits, ImageSet, PlainBatches
from bcnet_deploy.data.plain import drawing_order
from bcnet_deploy.data.splits import are_values, as_targets
from bcnet_deploy.errors import BCNetError, ConfigError, DataError, TaskError, TrainingError
from bcnet_deploy.nn import Supernet
from bcnet_deploy.tasks import Task, as_float, checked_score
from bcnet_deploy.train.config import TrainConfig

IMAGES, TARGETS = 8, 64


def try_step(
    network: nn.Module,
    splits: DataSplits,
    config: TrainConfig,
    task: Task,
    device: torch.device,
    *,
    world: int = 1,
    teacher: nn.Module | None = None,
) -> tuple[TrainConfig, tuple[str, ...]]:
    """The settings that training can use, and notes on what was changed.

    The network is run on a few training images, forward and backward: a supernet at its full and narrowest
    widths, on batches of two sizes. Weights, statistics and random generators are as before afterwards.

    Args:
        network: moved to the device, in the memory order that the returned settings say.
        world: processes that share a batch.
        teacher: in evaluation mode on the device; its outputs must fit the network's.

    Raises:
        DataError: there are no images, or fewer than processes.
        TaskError: targets, outputs, loss or metric do not fit each other, or outputs the teacher's.
        TrainingError: the network or the teacher fails on images of this data, or it is not of 32-bit floats.
        ConfigError: it cannot be trained on batches as small as these.
    """
    config, notes = _fitting_batch(splits, config, world)
    _check_targets(splits, task)
    if config.augment != "none":
        notes += _moving(splits, config, task)
    for name, tensor in network.named_parameters():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise TrainingError(
                f"the model's weight {name} is {tensor.dtype}; training takes 32-bit weights: build the "
                "model with .float(), and set amp: bf16 or fp16 for speed"
            )
    network.to(device)
    count = min(IMAGES, len(splits.train))
    batch = PlainBatches(splits.train, splits, count, device, limit=count, channels_last=False)[0]
    with _undisturbed(network, device):
        config = _fitting_layout(network, batch[0], config, device, notes)
        shapes: dict[Any, str] = {}
        for training in (True, False):
            network.train(training)
            for _ in _widths_of(network):
                for size in dict.fromkeys((count, max(2, count - 1))):
                    if size <= count:
                        _try_task(network, batch, size, config, task, shapes, notes)
        if teacher is not None:
            if config.channels_last and _error_of(teacher, _laid_out(batch[0], config)) is not None:
                config = config.replace(channels_last=False)
                set_layout(network, config, device)
                notes.append(
                    "the teacher does not run in channels_last memory order, so channels_last is off"
                )
            _try_teacher(network, teacher, _laid_out(batch[0], config), task)
        if config.batch_size // world // config.accumulation <= 1:
            _try_one_image(network, batch[0], config)
    return config, tuple(dict.fromkeys(notes))


def try_scores(network: nn.Module, splits: DataSplits, task: Task, device: torch.device) -> None:
    """Refuse targets, outputs, metric and loss that do not fit each other, where nothing is to be trained.

    Raises:
        TaskError: naming what does not fit.
        TrainingError: the network fails on images of this data.
    """
    _check_targets(splits, task)
    count = min(IMAGES, len(splits.val))
    images, targets = PlainBatches(
        splits.val, splits, count, device, limit=count, channels_last=False
    )[0]  # fmt: skip
    with _undisturbed(network, device), torch.no_grad():
        network.eval()
        if (error := _error_of(network, images)) is not None:
            raise TrainingError(
                f"the model fails on {count} held-out images: {type(error).__name__}: {_first_line(error)}"
            ) from error
        outputs = as_float(network(images))
        _try_metric(outputs, targets, task)
        _called(lambda: task.loss_sum(outputs, targets), "loss", task)


def _check_targets(splits: DataSplits, task: Task) -> None:
    for images, what in ((splits.train, "training"), (splits.val, "held-out")):
        task.check_targets(
            _targets_of(images), splits.num_classes, splits.input_size, f"{splits.name}, {what} images"
        )


def _moving(splits: DataSplits, config: TrainConfig, task: Task) -> list[str]:
    """What to say of targets whose images augmentation moves.

    Raises:
        TaskError: they have a value at each pixel and would stay, or the task's ``move`` fails on them.
    """
    size = splits.input_size[1:]
    targets = _targets_of(splits.train)[:IMAGES]
    if not are_values(targets, size):
        return []
    said = f"augment {config.augment!r} crops or flips the images, and the targets of task {task.name!r}"
    if task.move is not None:
        move, given = task.move, as_targets(targets)
        generator = torch.Generator().manual_seed(0)
        images = torch.zeros(len(given), 1, *size)
        moves = Augmentation(config.augment, (0.0,), (1.0,)).draw(images, generator)
        moved = _called(lambda: move(given.clone(), moves), "move", task)
        if not isinstance(moved, torch.Tensor) or moved.shape != given.shape or moved.dtype != given.dtype:
            shown = type(moved).__name__
            if isinstance(moved, torch.Tensor):
                shown = f"{moved.dtype} of the shape {tuple(moved.shape)}"
            raise TaskError(
                f"the move of task {task.name!r} makes {shown} of targets {given.dtype} of the shape "
                f"{tuple(given.shape)}; needed: the same shape and type"
            )
        return []
    if tuple(targets.shape[-2:]) == tuple(size):
        raise TaskError(
            f"{said} have a value at each pixel and would stay as they are; give the task a move "
            "(lambda targets, moves: moves.maps(targets)), or set augment: none"
        )
    return [f"{said} stay as they are: if they name places, give the task a move, or set augment: none"]


def set_layout(network: nn.Module, config: TrainConfig, device: torch.device) -> None:
    """Put the weights into the memory order that the settings ask for."""
    if not isinstance(network, Supernet) or device.type == "cuda":
        # On a CPU the library packs a supernet's slices anew in each step, faster from the plain order.
        order = torch.channels_last if config.channels_last else torch.contiguous_format
        # Not all of the network at once, which takes banks of kernels (5-d) for images, and fails on them.
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.ndim == 4:
                tensor.data = tensor.data.to(memory_format=order)


def runs_in_channels_last(network: nn.Module, input_size: tuple[int, ...], device: torch.device) -> bool:
    """Whether the network takes images in channels_last memory order, as code with ``view`` may not."""
    images = torch.empty(2, *input_size, device=device, memory_format=torch.channels_last).zero_()
    with _undisturbed(network, device), torch.no_grad():
        network.eval()
        return _error_of(network, images) is None


def outputs_on_zeros(network: nn.Module, input_size: tuple[int, ...]) -> Any:
    """What the network returns in evaluation mode on two images (2, C, H, W) of zeros, on its own device.

    Raises:
        TrainingError: it fails on them.
    """
    device = next((tensor.device for tensor in network.parameters()), torch.device("cpu"))
    with _undisturbed(network, device), torch.no_grad():
        network.eval()
        try:
            return network(torch.zeros(2, *input_size, device=device))
        except Exception as error:  # the user's forward may raise anything
            raise TrainingError(
                f"the model fails on two images of zeros {input_size}: {type(error).__name__}: "
                f"{_first_line(error)}"
            ) from error


def _targets_of(images: ImageSet) -> torch.Tensor:
    """All of them where they are in memory; else of some images: masks are files, too."""
    if images.memory is not None:
        return images.labels
    return torch.stack([images.target(int(i), None) for i in drawing_order(len(images))[:TARGETS]])


def _laid_out(images: torch.Tensor, config: TrainConfig) -> torch.Tensor:
    """A copy surely in the order of the settings: images of one channel may pass for either."""
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    return torch.empty_like(images, memory_format=layout).copy_(images)


def _fitting_batch(splits: DataSplits, config: TrainConfig, world: int) -> tuple[TrainConfig, list[str]]:
    count = len(splits.train)
    if count >= config.batch_size:
        return config, []
    batch = count // world * world
    if not batch:
        raise DataError(f"{splits.name} has {count} training images for {world} process(es); add images")
    note = f"{count} training images are fewer than a batch of {config.batch_size}: the batch is {batch}"
    return config.replace(batch_size=batch), [note]


def _fitting_layout(
    network: nn.Module, images: torch.Tensor, config: TrainConfig, device: torch.device, notes: list[str]
) -> TrainConfig:
    network.train()
    set_layout(network, config, device)
    error = _error_of(network, _laid_out(images, config), backward=True)
    if error is None:
        return config
    if config.channels_last:
        config = config.replace(channels_last=False)
        set_layout(network, config, device)
        if (plain := _error_of(network, images, backward=True)) is None:
            notes.append(
                "the model does not run in channels_last memory order, so channels_last is off "
                f"({_first_line(error)}); .reshape or .flatten in place of .view may allow it"
            )
            return config
        error = plain
    raise TrainingError(
        f"the model fails on {len(images)} training images of the shape {tuple(images.shape[1:])}: "
        f"{type(error).__name__}: {_first_line(error)}"
    ) from error


def _error_of(network: nn.Module, images: torch.Tensor, *, backward: bool = False) -> Exception | None:
    """What the network raises on images, forward and backward."""
    try:
        outputs = network(images)
        taught = [t for t in pytree.tree_leaves(outputs) if isinstance(t, torch.Tensor) and t.requires_grad]
        if backward and taught:
            torch.stack([t.float().sum() for t in taught]).sum().backward()
    except BCNetError:
        raise
    except Exception as error:  # the user's forward may raise anything
        return error
    return None


def _try_task(
    network: nn.Module,
    batch: tuple[torch.Tensor, torch.Tensor],
    size: int,
    config: TrainConfig,
    task: Task,
    shapes: dict[Any, str],
    notes: list[str],
) -> None:
    """Loss and metric of the first ``size`` images; the outputs' structure is compared with former ones."""
    images = _laid_out(batch[0][:size], config)
    targets = batch[1][:size]
    if (error := _error_of(network, images)) is not None:
        raise TrainingError(
            f"the model fails on a batch of {size}: {type(error).__name__}: {_first_line(error)}"
        ) from error
    outputs = as_float(network(images))
    leaves, spec = pytree.tree_flatten(outputs)
    shape = ", ".join(f"{leaf.ndim}-d" if isinstance(leaf, torch.Tensor) else "?" for leaf in leaves)
    described = f"{spec} ({shape})" if not isinstance(outputs, torch.Tensor) else shape
    former = shapes.setdefault(network.training, described)
    if described != former:
        raise TaskError(
            f"the model's outputs change with the {'widths or the ' if isinstance(network, Supernet) else ''}"
            f"batch: once {former}, once {described}; return the same structure always"
        )
    if not network.training:
        _try_metric(outputs, targets, task)
        return
    loss = _called(lambda: task.loss(outputs, targets, config.label_smoothing), "loss", task)
    if not isinstance(loss, torch.Tensor) or loss.ndim or not loss.requires_grad:
        shown = f"a tensor {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise TaskError(
            f"the loss of task {task.name!r} is {shown}"
            f"{'' if getattr(loss, 'requires_grad', True) else ' that does not depend on the weights'}; "
            "needed: a scalar tensor with a gradient"
        )
    if not bool(torch.isfinite(loss)):
        raise TaskError(f"the loss of task {task.name!r} is {loss.item()} before any training")
    _called(lambda: task.distillation(outputs, outputs), "distillation loss", task)
    _look_at_ignored(network, outputs, loss, task, notes)


def _try_teacher(network: nn.Module, teacher: nn.Module, images: torch.Tensor, task: Task) -> None:
    with torch.no_grad():
        if (error := _error_of(teacher, images)) is not None:
            raise TrainingError(
                f"the teacher fails on {len(images)} training images: {type(error).__name__}: "
                f"{_first_line(error)}; take another one, or train without one"
            ) from error
        guide = as_float(teacher(images))
        outputs = as_float(network(images))
        shapes = [
            [tuple(leaf.shape) for leaf in pytree.tree_leaves(each) if isinstance(leaf, torch.Tensor)]
            for each in (outputs, guide)
        ]
        if isinstance(outputs, torch.Tensor) and shapes[0] != shapes[1]:
            raise TaskError(
                f"the teacher's outputs are {shapes[1]}, the network's {shapes[0]}: they must be of one "
                "shape, which is that of the classes; take another teacher, or train without one"
            )
        _called(lambda: task.distillation(outputs, guide), "distillation loss from the teacher", task)


def _try_metric(outputs: Any, targets: torch.Tensor, task: Task) -> None:
    with torch.no_grad():
        sums = _called(lambda: task.measure(outputs, targets), "metric", task)
    if not isinstance(sums, torch.Tensor) or sums.ndim != 1:
        raise TaskError(f"measure() of task {task.name!r} gives {type(sums).__name__}; needed: a tensor (K,)")
    checked_score(task, sums.double().cpu(), len(targets))


def _look_at_ignored(
    network: nn.Module, outputs: Any, loss: torch.Tensor, task: Task, notes: list[str]
) -> None:
    """Note outputs that the loss ignores; refuse where weights would never be trained for that.

    Raises:
        TaskError: naming the outputs and the first of the weights.
    """
    named = [
        (path, leaf)
        for path, leaf in pytree.tree_flatten_with_path(outputs)[0]
        if isinstance(leaf, torch.Tensor) and leaf.requires_grad
    ]
    if len(named) < 2:
        return
    leaves = [leaf for _, leaf in named]
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True, retain_graph=True)
    ignored = [place for place, gradient in zip(named, gradients, strict=True) if gradient is None]
    if not ignored:
        return
    shown = ", ".join(pytree.keystr(path) for path, _ in ignored)
    outputs_shown = f"the output{'s' if len(ignored) > 1 else ''} {shown}"
    weights = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
    heads = torch.stack([leaf.float().sum() for _, leaf in ignored]).sum()
    by_loss, by_heads = (_reached(end, list(weights.values())) for end in (loss, heads))
    untrained = [
        name for name, own, theirs in zip(weights, by_loss, by_heads, strict=True) if theirs and not own
    ]
    if untrained:
        more = f" and {len(untrained) - 1} more weights" if len(untrained) > 1 else ""
        raise TaskError(
            f"the loss of task {task.name!r} ignores {outputs_shown}, so that {untrained[0]}{more} "
            "would never be trained; take them into the loss of a task of your own (task: "
            "'module:function'), freeze them with requires_grad_(False), or leave that output out"
        )
    notes.append(f"the loss of task {task.name!r} ignores {outputs_shown}: nothing is trained by that alone")


def _reached(end: torch.Tensor, weights: list[nn.Parameter]) -> list[bool]:
    """Of each weight whether ``end`` depends on it."""
    found: tuple[torch.Tensor | None, ...]
    found = torch.autograd.grad(end, weights, allow_unused=True, retain_graph=True)
    return [gradient is not None for gradient in found]


def _try_one_image(network: nn.Module, images: torch.Tensor, config: TrainConfig) -> None:
    network.train()
    error = _error_of(network, _laid_out(images[:1], config))
    if error is not None:
        raise ConfigError(
            f"batch_size {config.batch_size} with accumulation {config.accumulation} trains on one image at "
            f"a time, which this model does not take ({_first_line(error)}); set a larger batch_size, or a "
            "smaller accumulation"
        ) from error


def _called(function: Any, what: str, task: Task) -> Any:
    try:
        return function()
    except BCNetError:
        raise
    except Exception as error:
        raise TaskError(
            f"the {what} of task {task.name!r} fails on the model's outputs: {type(error).__name__}: "
            f"{_first_line(error)}"
        ) from error


def _widths_of(network: nn.Module) -> Iterator[None]:
    """Sets a supernet's full width, then its narrowest; a plain network is as it is."""
    if not isinstance(network, Supernet):
        yield
        return
    for widths in (network.space.full, network.space.narrowest):
        network.set_active(widths)
        yield


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]


@contextmanager
def _undisturbed(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Buffers, modes, the active slice, gradients and random generators are put back."""
    modes = [(module, module.training) for module in network.modules()]
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    gradients = [(parameter, parameter.grad) for parameter in network.parameters()]
    active = network.active if isinstance(network, Supernet) else None
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        with torch.random.fork_rng(devices=[device.index or 0] if device.type == "cuda" else []):
            yield
    finally:
        with torch.no_grad():
            for name, buffer in network.named_buffers():
                if name in buffers:
                    buffer.copy_(buffers[name])
        for module, mode in modes:
            module.training = mode
        for parameter, gradient in gradients:
            parameter.grad = gradient
        if active is not None:
            network.set_active(*active)  # type: ignore[operator]
