"""From one trained network to narrower ones at the same measured latency: found, uniform, and other pruners.

    python -m benchmarks.bm_trained data     --network mobilenet --folder FOLDER --data DATA
    python -m benchmarks.bm_trained base     --network mobilenet --folder FOLDER --data DATA
    python -m benchmarks.bm_trained supernet --network mobilenet --folder FOLDER --data DATA --limit-s 60
    python -m benchmarks.bm_trained profile  --network mobilenet --folder FOLDER
    python -m benchmarks.bm_trained choose   --network mobilenet --folder FOLDER --data DATA
    python -m benchmarks.bm_trained measure  --network mobilenet --folder FOLDER
    python -m benchmarks.bm_trained tune     --network mobilenet --folder FOLDER --data DATA
    python -m benchmarks.bm_trained collect  --network mobilenet --folder FOLDER

Each step skips what is done and goes on after a kill. ``data`` keeps the decoded images in FOLDER, for many
processes. ``base`` trains the full network; ``--device cuda`` with its own settings, and with
``--limit-s`` until the time is over, the rate annealed by time. ``supernet`` trains a short supernet from
it, by time. ``profile`` makes the latency table of the full network, one thread. ``choose`` makes the pruned
networks at every budget, a share of the full network's latency, several each: ``found-pruned`` searches by
scores of pruned networks; the others take the largest network of their kind that the table says keeps the
budget, or a little more or less. :mod:`benchmarks.tuned_search` makes those of ``found`` and
``found-supernet``. ``measure`` times all of them interleaved, and keeps those that measure within the
budget, of a kind by size the largest. ``tune`` fine-tunes each, all alike, half the loss from the full
network. ``collect`` puts their rows into ``benchmarks/results/trained/summary.csv``, and their means into the
table of ``docs/trained.md``. FOLDER is outside the repository: weights are not committed.
"""

from __future__ import annotations

import argparse
import copy
import csv
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from bcnet_deploy import files
from bcnet_deploy.bench import BenchSettings, bench
from bcnet_deploy.data import DataSplits, PlainBatches, load_data
from bcnet_deploy.data.plain import drawing_order
from bcnet_deploy.devices import load_device
from bcnet_deploy.errors import InfeasibleError
from bcnet_deploy.export import export_onnx
from bcnet_deploy.export.metadata import ModelMetadata
from bcnet_deploy.importance import importance_scores, permute
from bcnet_deploy.lut import LatencyTable
from bcnet_deploy.lut.steps import learned_choices
from bcnet_deploy.models import build_model, load_weights
from bcnet_deploy.models.ref import ModelRef
from bcnet_deploy.nn import Supernet
from bcnet_deploy.nn.subnet import own_tensors
from bcnet_deploy.profiler.profiling import profile_device
from bcnet_deploy.search.lattice import Lattice
from bcnet_deploy.space import WidthSpace
from bcnet_deploy.space.slicing import stored_units
from bcnet_deploy.train import (
    RetrainResult,
    TrainConfig,
    evaluate_network,
    open_pruned_evaluator,
    retrain,
)
from bcnet_deploy.train.distributed import Ranks
from bcnet_deploy.train.pruned import permuted_on
from bcnet_deploy.train.retrain import reinitialise, slice_of
from bcnet_deploy.train.samplers import WidthGrid, make_sampler
from bcnet_deploy.train.supernet import make_loader
from bcnet_deploy.train.trainer import Trainer
from benchmarks.decoded import keep_decoded, read_decoded

SIZE, LEVELS, CLASSES = (3, 16, 16), 16, 10
DEVICE = "cpu-1thread"
CPU = torch.device("cpu")
BUDGETS = (0.5, 0.33, 0.2)
SEEDS = (0, 1, 2)
RANDOM_MORE = 160
"""Steps more for random weights: about what the search for ``found-pruned`` costs."""
GRANULES = (8, 16)
"""Channels to which the methods that round do so; what fits more within the latency is taken."""
RESULTS = Path(__file__).resolve().parent / "results" / "trained"
COLUMNS = ("network", "budget", "method", "seed", "measured_ms", "macs", "test_top1")

BASE = TrainConfig(
    epochs=7, batch_size=32, learning_rate=0.05, weight_decay=5e-4, warmup_epochs=0.2, augment="crop-flip",
    workers=0, checkpoint_every=200, log_every=50,
)  # fmt: skip
GPU_BASE = TrainConfig(
    epochs=30, batch_size=256, learning_rate=0.15, weight_decay=5e-4, warmup_epochs=1.5, augment="crop-flip",
    workers=0, checkpoint_every=10**9, log_every=100, cuda_graphs=True,
)  # fmt: skip
"""Small networks on a GPU cost a launch a layer, whatever the batch: it is larger there."""

GPU_TUNE = TrainConfig.load("finetune").replace(
    batch_size=128, learning_rate=0.04, workers=0, checkpoint_every=10**9, log_every=200, cuda_graphs=True
)
GPU_SUPERNET = TrainConfig.load("short_supernet").replace(
    batch_size=128, learning_rate=0.02, workers=0, checkpoint_every=10**9, log_every=50, cuda_graphs=True
)

TUNE_IMAGES, HELD_OUT = 6400, 2000
"""On a CPU: one pass over the first of the training images, drawn once, and of the held-out ones. No image
comes twice, so none needs augmentation, and the teacher says only once what it makes of each. The rate is the
one of 0.0015, 0.005 and 0.01 after which uniform widths did best on held-out images. The recipe's 0.02 is
worse still: so few steps do not bring back what a high rate undoes."""
TUNE = TrainConfig.load("finetune").replace(
    epochs=1,
    batch_size=32,
    learning_rate=0.005,
    augment="none",
    warmup_epochs=0.05,
    workers=0,
    checkpoint_every=25,
)
RANDOM_RATE = 0.05
"""Learning rate from random weights: that of the base training."""


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        out: Tensor = self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))
        return out


def resnet20(num_classes: int = CLASSES) -> nn.Module:
    """CIFAR's ResNet-20 (He et al., 2016, section 4.2) at twice its widths, projections as shortcuts."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True)
    ]  # fmt: skip
    inputs = 32
    for outputs, stride in ((32, 1), (64, 2), (128, 2)):
        for index in range(3):
            layers.append(_Block(inputs, outputs, stride if index == 0 else 1))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, num_classes))


NETWORKS = {"mobilenet": "channel_bench_macro_mobilenet", "resnet20": "benchmarks.bm_trained:resnet20"}


class Remembered(nn.Module):
    """A teacher that runs on each image once and answers from memory, which ``path`` keeps."""

    def __init__(self, network: nn.Module, path: Path) -> None:
        super().__init__()
        self.network = network
        self.path = path
        self.answers: dict[str, Tensor] = torch.load(path, weights_only=True) if path.exists() else {}

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.contiguous().numpy()
        keys = [hashlib.blake2b(image.tobytes(), digest_size=12).hexdigest() for image in pixels]
        new = [index for index, key in enumerate(keys) if key not in self.answers]
        if new:
            for index, answer in zip(new, self.network(images[new]), strict=True):
                self.answers[keys[index]] = answer.clone()
        return torch.stack([self.answers[key] for key in keys])

    @torch.no_grad()
    def prepare(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Answer every image once, before any training, and keep the answers."""
        if self.answers:
            return
        for images, _ in batches:
            self(images)
        with files.replacing(self.path) as temporary:
            torch.save(self.answers, temporary)


@dataclass
class Bench:
    """One network of the benchmark and its files."""

    network: str
    folder: Path
    data: str
    device: torch.device = CPU

    def __post_init__(self) -> None:
        self.decoded = self.folder / "data.safetensors"
        self.folder = self.folder / self.network
        self.folder.mkdir(parents=True, exist_ok=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = build_model(NETWORKS[self.network], num_classes=CLASSES)
        self.space = WidthSpace.from_model(self.model, SIZE, levels=LEVELS)
        self.ref = ModelRef(NETWORKS[self.network], CLASSES, SIZE, LEVELS)

    def splits(self) -> DataSplits:
        """The data, decoded images read from the folder where ``data`` has put them."""
        if not self.decoded.exists():
            return load_data(self.data, SIZE, num_classes=CLASSES)
        return read_decoded(self.decoded)

    def keep_data(self) -> None:
        """Decode once for all the processes that train."""
        if not self.decoded.exists():
            keep_decoded(self.splits(), self.decoded)

    def trained(self) -> nn.Module:
        load_weights(self.model, self.folder / "base" / "weights.safetensors")
        return self.model.eval()

    def table(self) -> LatencyTable:
        return LatencyTable.load(self.folder / "table.json").for_space(self.space)

    def full_ms(self) -> float:
        return float(self.table().predict(self.space.full[None])[0])

    # -- networks as files ---------------------------------------------------------------------

    def path(self, budget: float, name: str) -> Path:
        return self.folder / "networks" / f"{budget}-{name}.json"

    def keep(self, budget: float, name: str, pruned: nn.Module, seconds: float) -> None:
        """Note which channels of the base network a pruned one keeps, and what is known of it."""
        kept = kept_units(self.space, self.model, pruned)
        row = np.array([len(units) * v.step for units, v in zip(kept, self.space.variables, strict=True)])
        about = {
            "widths": row.tolist(), "macs": int(self.space.macs(row)[0]), "seconds": round(seconds, 1),
            "predicted_ms": float(self.table().predict(row[None])[0]), "kept": kept,
        }  # fmt: skip
        files.write_json(self.path(budget, name), about)
        shown = {key: value for key, value in about.items() if key != "kept"}
        print(f"{self.network} {budget} {name}: {shown}", flush=True)

    def about(self, budget: float, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.path(budget, name).read_text())
        return found

    def widths(self, budget: float, name: str) -> npt.NDArray[np.int64]:
        return np.array(self.about(budget, name)["widths"], dtype=np.int64)

    def start(self, budget: float, name: str) -> nn.Module:
        """The pruned network, cut from the base network."""
        orders = []
        for variable, kept in zip(self.space.variables, self.about(budget, name)["kept"], strict=True):
            rest = sorted(set(range(variable.units)) - set(kept))
            orders.append(torch.tensor([*kept, *rest]))
        return slice_of(permute(self.trained(), self.space, orders), self.space, self.widths(budget, name))

    def candidates(self, budget: float, method: str) -> list[str]:
        """Names of a method's networks at a budget: one, or several that differ in latency or score."""
        found = sorted((self.folder / "networks").glob(f"{budget}-{method}~*.json"))
        return [path.stem.removeprefix(f"{budget}-") for path in found]


def kept_units(space: WidthSpace, full: nn.Module, pruned: nn.Module) -> list[list[int]]:
    """Which units of each variable a pruned network keeps, by the scales and shifts of its norms.

    Raises:
        ValueError: a weight of the pruned network is none of the full network's.
    """
    tensors, narrow = own_tensors(full), own_tensors(pruned)
    marks: dict[int, list[str]] = {}
    for name, axes in space.slices.items():
        if tensors[name].ndim == 1 and tensors[name].is_floating_point() and "running" not in name:
            (segment,) = axes[0]
            if segment.variable >= 0 and segment.repeat == 1:
                marks.setdefault(segment.variable, []).append(name)
    kept = []
    for index in range(len(space.variables)):
        wide = torch.stack([tensors[name] for name in marks[index]], dim=1).double()
        thin = torch.stack([narrow[name] for name in marks[index]], dim=1).double()
        distance = torch.cdist(thin, wide)
        if bool((distance.min(dim=1).values > 1e-6).any()):
            raise ValueError(
                f"{space.variables[index].name} of the pruned network is no part of the full one"
            )
        kept.append(distance.argmin(dim=1).tolist())
        if len(set(kept[-1])) != len(kept[-1]):
            raise ValueError(f"channels of {space.variables[index].name} are too alike to tell apart")
    return kept


# -- methods: each gives the pruned network of a latency in milliseconds -----------------------


@dataclass
class Search:
    """Settings of the search for ``found``.

    Attributes:
        finalists: networks of a search that are measured; the first that keeps the budget is taken.
        slack: of the predicted budget, since the table errs; what is measured decides.
    """

    evaluations: int = 48
    images: int = 640
    importance: str = "l2"
    finalists: int = 8
    slack: float = 1.02


SLACKS = (1.04, 1.02, 1.0, 0.98)
"""Of the predicted budget, for methods that choose by size: the largest that measures within it is taken."""


def found_pruned(job: Bench, splits: DataSplits, limit_ms: float, how: Search) -> Iterator[nn.Module]:
    """Slices of the network in order of importance, ranked by their recalibrated scores, nothing trained."""
    from bcnet_deploy.search import search  # not before: where networks are only trained, pymoo may be absent

    permuted = permuted_on(job.trained(), job.space, splits, how.importance, device=CPU)
    evaluator = open_pruned_evaluator(
        permuted, job.space, splits, importance=None, limit=how.images, batch_size=32, device=CPU
    )
    table = job.table()
    space = job.space.with_choices(learned_choices(job.space, [table]))  # a step of the latency each
    lattice = Lattice(space.variables)
    begun = job.folder / f"begin-{limit_ms:.4f}.json"
    if not begun.exists():
        files.write_json(begun, allocations(job, permuted, splits, limit_ms).tolist())
    first = lattice.widths(lattice.nearest(np.array(json.loads(begun.read_text()))))
    result = search(
        space, evaluator, {"latency_ms": (table, limit_ms * how.slack)}, how.evaluations,
        population_size=20, confidence=None, initial=first, batch_size=4, evaluator_id=how.importance,
        checkpoint=job.folder / f"search-{limit_ms:.4f}.jsonl",
    )  # fmt: skip
    if result.posterior is None:
        raise RuntimeError("scores without noise have no posterior to choose finalists by")
    within = result.evaluated[table.predict(result.evaluated) <= limit_ms * how.slack]
    value = result.posterior.predict(lattice.nearest(within))[0]
    order = np.argsort(-value)
    print(f"{job.network}: of {len(within)}, posterior {value[order][:8].round(2)}", flush=True)
    for row in within[order[: how.finalists]]:
        yield slice_of(permuted, job.space, row)


def allocations(
    job: Bench, permuted: nn.Module, splits: DataSplits, limit_ms: float
) -> npt.NDArray[np.int64]:
    """Where a search begins: uniform widths, and those that keep the units of the largest scores.

    Scores of a variable are divided by their mean, so that variables can be compared.
    """
    shares = np.linspace(0.05, 1.0, 96)
    families = [[uniform_row(job, share, 1) for share in shares]]
    steps = np.array([variable.step for variable in job.space.variables])
    for importance in ("l2", "l2-normalised", "taylor"):
        batches = list(PlainBatches(splits.train, splits, 64, CPU, limit=256))
        scores = [
            value / value.mean() for value in importance_scores(permuted, job.space, importance, batches)
        ]
        thresholds = torch.cat(scores).quantile(torch.from_numpy(1 - shares))
        units = [[max(1, int((value >= least).sum())) for value in scores] for least in thresholds]
        families.append([np.array(row) * steps for row in units])
    table = job.table()
    chosen = []
    for family in map(np.stack, families):
        fits = np.flatnonzero(table.predict(family) <= limit_ms)
        chosen.append(family[fits[-1]])
    return np.stack(chosen)


def largest(
    make: Callable[[float, int], nn.Module], job: Bench, limits_ms: list[float]
) -> Iterator[nn.Module]:
    """For each latency, the network with the most multiply-accumulates of a family by share kept that fits.

    All shares are tried: latency does not rise with every channel, so that a bisection would stop early.
    """
    steps = np.array([variable.step for variable in job.space.variables])
    family = [(share, granule) for granule in GRANULES for share in np.linspace(0.1, 0.9, 217).tolist()]
    rows = np.stack([np.array(stored_units(job.space.plan, make(*member))) * steps for member in family])
    macs, predicted = job.space.macs(rows), job.table().predict(rows)
    for limit in limits_ms:
        if not (predicted <= limit).any():
            raise InfeasibleError("no network of this family keeps the budget; raise --budgets")
        yield make(*family[int(np.where(predicted <= limit, macs, -1).argmax())])


def uniform_row(job: Bench, share: float, granule: int) -> npt.NDArray[np.int64]:
    """Every width times the same share, to multiples of a number of channels."""
    rounded = np.maximum(granule, np.round(job.space.full * share / granule) * granule)
    return np.minimum(rounded, job.space.full).astype(np.int64)


def uniform(job: Bench, splits: DataSplits, limits_ms: list[float], importance: str) -> Iterator[nn.Module]:
    """Uniform widths, the same order of channels as ``found``."""
    permuted = permuted_on(job.trained(), job.space, splits, importance, device=CPU)

    def make(share: float, granule: int) -> nn.Module:
        return slice_of(permuted, job.space, uniform_row(job, share, granule))

    return largest(make, job, limits_ms)


def torch_pruning(
    job: Bench, splits: DataSplits, limits_ms: list[float], *, taylor: bool
) -> Iterator[nn.Module]:
    """Torch-Pruning's global pruner, as its README calls it."""
    import torch_pruning as tp

    trained = job.trained()
    if taylor:
        for images, labels in PlainBatches(splits.train, splits, 64, CPU, limit=1024):
            F.cross_entropy(trained(images), labels).backward()

    def make(share: float, granule: int) -> nn.Module:
        model = copy.deepcopy(trained)
        for ours, theirs in zip(model.parameters(), trained.parameters(), strict=True):
            ours.grad = None if theirs.grad is None else theirs.grad.clone()
        importance = (
            tp.importance.GroupTaylorImportance() if taylor else tp.importance.GroupMagnitudeImportance(p=2)
        )
        pruner = tp.pruner.BasePruner(
            model, torch.randn(1, *SIZE), importance=importance, global_pruning=True,
            pruning_ratio=1 - share, round_to=granule,
            ignored_layers=[m for m in model.modules() if isinstance(m, nn.Linear)],
        )  # fmt: skip
        pruner.step()
        model.zero_grad(set_to_none=True)
        return model

    return largest(make, job, limits_ms)


def modelopt(job: Bench, splits: DataSplits, macs: int) -> nn.Module:
    """NVIDIA Model-Optimizer's fastnas to the multiply-accumulates given: it knows no milliseconds.

    Its scores: as many held-out images, and statistics averaged over as many training images, as ours.
    """
    import modelopt.torch.prune as mtp

    val = PlainBatches(splits.val, splits, 64, CPU, limit=Search.images)
    train = PlainBatches(splits.train, splits, 32, CPU, limit=20 * 32)
    rules = {"channels_ratio": tuple(0.1 * i for i in range(1, 11)), "channel_divisor": GRANULES[0]}
    norms = {"features_ratio": rules["channels_ratio"], "feature_divisor": GRANULES[0]}
    kinds = {
        "nn.Conv2d": {"*": {**rules, "kernel_size": ()}}, "nn.BatchNorm2d": {"*": norms},
        "nn.Linear": {"*": norms},
    }  # fmt: skip
    pruned, _ = mtp.prune(
        copy.deepcopy(job.trained()), mode=[("fastnas", kinds)], constraints={"flops": 2 * macs},
        dummy_input=torch.randn(1, *SIZE),
        config={
            "data_loader": list(train), "max_iter_data_loader": len(train), "verbose": False,
            "collect_func": lambda batch: batch[0],
            "score_func": lambda network: evaluate_network(network, val)[0],
            "checkpoint": str(job.folder / "fastnas.pth"),
        },
    )  # fmt: skip
    network: nn.Module = pruned
    return network


def choose(job: Bench, budgets: list[float], methods: list[str], how: Search) -> None:
    """Networks of every method at every budget, several each: what they measure decides."""
    splits, full_ms = job.splits(), job.full_ms()
    job.trained()
    limits = [budget * full_ms * slack for budget in budgets for slack in SLACKS]
    families: dict[str, Callable[[], Iterator[nn.Module]]] = {
        "uniform": lambda: uniform(job, splits, limits, how.importance),
        "torch-pruning-l2": lambda: torch_pruning(job, splits, limits, taylor=False),
        "torch-pruning-taylor": lambda: torch_pruning(job, splits, limits, taylor=True),
    }
    for method in (name for name in families if name in methods):
        if job.candidates(budgets[-1], method):
            continue
        started = time.process_time()
        for index, network in enumerate(families[method]()):
            budget = budgets[index // len(SLACKS)]
            name = f"{method}~{index % len(SLACKS)}"
            job.keep(budget, name, network, time.process_time() - started)
    for budget in budgets:
        searches: dict[str, Callable[[], Iterable[nn.Module]]] = {
            "found-pruned": lambda: found_pruned(job, splits, budget * full_ms, how),  # noqa: B023
            "modelopt": lambda: [modelopt(job, splits, int(job.about(budget, "found-pruned~0")["macs"]))],  # noqa: B023
        }
        for method in (name for name in searches if name in methods):
            if job.candidates(budget, method):
                continue
            started = time.process_time()
            for index, network in enumerate(searches[method]()):
                job.keep(budget, f"{method}~{index}", network, time.process_time() - started)


# -- training ----------------------------------------------------------------------------------


class TimedTrainer(Trainer):
    """Trains for ``limit_s`` seconds: the share done, and with it the rate, follows the clock."""

    limit_s = 0.0

    @property
    def share_done(self) -> float:
        return self.position.seconds / self.limit_s


def base(job: Bench, config: TrainConfig, limit_s: float | None) -> None:
    """Train the full network from random weights."""
    folder, splits = job.folder / "base", job.splits()
    if limit_s is None:
        retrain(
            job.model, job.space, job.space.full, splits, config, folder, model_ref=job.ref, device=job.device
        )
        return
    network = job.space.extract(job.model, job.space.full)
    reinitialise(network, torch.Generator().manual_seed(0))
    loader = make_loader(splits, config, job.device, 0, Ranks())
    trainer = TimedTrainer(network, loader, config, folder, resume=False)
    trainer.limit_s = limit_s
    outcome = trainer.run()
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)
    score = {
        name: evaluate_network(network, PlainBatches(images, splits, 500, job.device))[0]
        for name, images in (("val_top1", splits.val), ("test_top1", splits.load_test()))
    }
    save_file(own_tensors(network.to("cpu")), str(folder / "weights.safetensors"))
    about = {
        **score, "steps": outcome.steps, "seconds": outcome.seconds, "loss": outcome.loss,
        "epochs": outcome.steps / loader.batches_per_epoch, "macs": int(job.space.macs(job.space.full)[0]),
        "device": torch.cuda.get_device_name() if job.device.type == "cuda" else "cpu",
        "config": config.to_dict(),
    }  # fmt: skip
    files.write_json(folder / "result.json", about)
    print(f"{job.network}: {about}", flush=True)


def supernet(job: Bench, limit_s: float) -> None:
    """A short supernet: the base network in order of importance, taught by itself; kept as a full network."""
    folder, splits, config = job.folder / "supernet", job.splits(), GPU_SUPERNET
    teacher = job.trained().to(job.device)
    permuted = permuted_on(teacher, job.space, splits, "l2", device=job.device)
    network = Supernet(permuted, job.space, generator=torch.Generator().manual_seed(0)).to(job.device)
    rule = make_sampler(config.rule, WidthGrid.of(network), np.random.default_rng([0, 1]), config)
    loader = make_loader(splits, config, job.device, 0, Ranks())
    trainer = TimedTrainer(
        network, loader, config, folder, sampler=rule, teacher=teacher.eval(), resume=False
    )
    trainer.limit_s = limit_s
    outcome = trainer.run()
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)
    save_file(own_tensors(network.extract(job.space.full).to("cpu")), str(folder / "weights.safetensors"))
    about = {
        "steps": outcome.steps, "seconds": outcome.seconds, "cost": outcome.cost, "loss": outcome.loss,
        "config": config.to_dict(),
    }  # fmt: skip
    files.write_json(folder / "result.json", about)
    print(f"{job.network}: {about}", flush=True)


# -- measured latency decides, then fine-tuning -------------------------------------------------


def measure(job: Bench, rounds: int) -> None:
    """Every network of every budget, interleaved; then which of them each method is held to."""
    rows = {"full": job.space.full}
    for path in sorted((job.folder / "networks").glob("*.json")):
        rows[path.stem] = np.array(json.loads(path.read_text())["widths"], dtype=np.int64)
    same: dict[tuple[int, ...], str] = {}
    paths = {}
    for name, row in rows.items():
        if same.setdefault(tuple(row.tolist()), name) != name:
            continue  # another method has the same widths: measured once
        by_name = {v.name: int(width) for v, width in zip(job.space.variables, row, strict=True)}
        note = ModelMetadata(
            model=job.ref.to_dict(), which=name, widths=by_name, fingerprint=job.space.fingerprint
        )
        paths[name] = job.folder / "onnx" / f"{name}.onnx"
        paths[name].parent.mkdir(exist_ok=True)
        if not paths[name].exists():
            network = job.space.extract(job.model, row).eval()
            export_onnx(network, paths[name], SIZE, parity_inputs=None, metadata=note)
    settings = BenchSettings(rounds=rounds, runs=30, batches=(), layers=False)
    result = bench(paths, DEVICE, settings=settings, table=job.table(), space=job.space)
    result.save(job.folder / "bench.json")
    low = {
        n: e["runtimes"]["onnxruntime-cpu"]["latency"]["low_ms"]
        for n, e in read(job, "bench")["networks"].items()
    }
    measured = {name: low[same[tuple(row.tolist())]] for name, row in rows.items()}
    files.write_json(job.folder / "measured.json", measured)
    settle(job, measured)


def read(job: Bench, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((job.folder / f"{name}.json").read_text())
    return found


OVER, NEARLY = 1.005, 0.97
"""What repeating a measurement may add to a budget. Uniform widths that take less of it have a wider
neighbour tuned beside them, if one exceeds it by less than 2%."""


def settle(job: Bench, measured: dict[str, float]) -> None:
    """For each budget and method, the networks that measure within the budget; of families the largest."""
    chosen: dict[str, dict[str, list[str]]] = {}
    for budget in BUDGETS:
        limit = budget * measured["full"] * OVER
        for method in METHODS:
            names = [n for n in job.candidates(budget, method) if f"{budget}-{n}" in measured]
            within = [name for name in names if measured[f"{budget}-{name}"] <= limit] or sorted(
                names, key=lambda name: measured[f"{budget}-{name}"]
            )[:1]
            if method.startswith("found"):
                within = sorted(within)  # by what their search thinks of them
            elif within:
                within = [max(within, key=lambda name: int(job.about(budget, name)["macs"]))]
            if method == "uniform" and measured[f"{budget}-{within[0]}"] < NEARLY * limit:
                over = [name for name in names if measured[f"{budget}-{name}"] > limit]
                nearest = min(over, key=lambda name: measured[f"{budget}-{name}"], default=None)
                if nearest and measured[f"{budget}-{nearest}"] < limit * 1.02:
                    chosen.setdefault(str(budget), {})["uniform-wider"] = [nearest]
            if within:
                chosen.setdefault(str(budget), {})[method] = within
                shares = [measured[f"{budget}-{name}"] / measured["full"] for name in within]
                print(f"{job.network} {budget} {method}: {within}, measured {np.round(shares, 3)} of full")
    files.write_json(job.folder / "chosen.json", chosen)


def fine_tune(
    job: Bench, splits: DataSplits, budget: float, name: str, steps: int, folder: Path, *, seed: int,
    random: bool = False, start: nn.Module | None = None, row: npt.NDArray[np.int64] | None = None,
    rate: float | None = None,
) -> RetrainResult:  # fmt: skip
    """A network of a budget, from what it keeps of the base network, half the loss from the base network."""
    on_gpu = job.device.type == "cuda"
    config = GPU_TUNE if on_gpu else TUNE
    base = copy.deepcopy(job.trained())
    teacher = base if on_gpu else Remembered(base, job.folder / "teacher.pt")
    if not on_gpu:
        first, held_out = drawing_order(len(splits.train)), drawing_order(len(splits.val))
        splits = replace(
            splits, train=splits.train.subset(first[:TUNE_IMAGES]), val=splits.val.subset(held_out[:HELD_OUT])
        )
    if isinstance(teacher, Remembered):
        teacher.prepare(PlainBatches(splits.train, splits, 64, CPU))
    config = config.replace(epochs=steps * config.batch_size / len(splits.train), min_steps=0)
    if random:
        config = config.replace(learning_rate=RANDOM_RATE * config.batch_size / BASE.batch_size)
    elif rate:
        config = config.replace(learning_rate=rate)
    if start is None and not random:
        start = job.start(budget, name)
    result = retrain(
        job.model, job.space, job.widths(budget, name) if row is None else row, splits, config, folder,
        model_ref=job.ref, initial=start, teacher=teacher, seed=seed, device=job.device,
    )  # fmt: skip
    for left in ("checkpoint.safetensors", "weights.safetensors"):
        (folder / left).unlink(missing_ok=True)
    return result


def winner(job: Bench, budget: float, method: str) -> str | None:
    """The network of a method: the one of former seeds, else the first that measures within the budget."""
    names = {
        json.loads(path.read_text()) for path in job.folder.glob(f"tuned/{budget}-{method}-[0-9]/name.json")
    }
    if len(names) > 1:
        raise ValueError(f"{job.network} {budget} {method}: seeds are of several networks, {sorted(names)}")
    if names:
        return names.pop()
    return next(iter(read(job, "chosen").get(str(budget), {}).get(method, [])), None)


def tune(
    jobs: list[Bench], budgets: list[float], methods: list[str], seeds: list[int], steps: int, more: int,
    share: tuple[int, int], until: float, rate: float | None,
) -> None:  # fmt: skip
    """Fine-tune each method's network, all alike; random weights get as many steps more as the search cost.

    That is ``more``.
    """
    todo = [
        (job, seed, budget, method)
        for seed in seeds
        for budget in sorted(budgets)
        for job in jobs
        for method in methods
    ]
    longest = 0.0
    for job, seed, budget, method in todo[share[0] :: share[1]]:
        random = method == "random-weights"
        name = winner(job, budget, "found-pruned" if random else method)
        folder = job.folder / "tuned" / f"{budget}-{method}-{seed}"
        if name is None or (folder / "result.json").exists() or time.monotonic() + longest > until:
            continue
        started = time.monotonic()
        total = steps + (more if random else 0)
        result = fine_tune(
            job, job.splits(), budget, name, total, folder, seed=seed, random=random, rate=rate
        )
        files.write_json(folder / "name.json", name)
        longest = max(longest, time.monotonic() - started)
        print(
            f"{job.network} {budget} {method} {seed}: {name}, test {result.test_top1}, val "
            f"{result.val_metric:.2f}, {total} steps {result.seconds} s of {longest:.0f}", flush=True,
        )  # fmt: skip


def collect(job: Bench) -> None:
    """Put this network's rows in the place of its former ones."""
    path = RESULTS / "summary.csv"
    rows = []
    if path.exists():
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["network"] != job.network]
    measured = read(job, "measured")

    def add(budget: float, method: str, seed: int, macs: object, top1: float, ms: float) -> None:
        values = (job.network, budget, method, seed, f"{ms:.4f}", macs, round(top1, 2))
        rows.append({key: str(value) for key, value in zip(COLUMNS, values, strict=True)})

    base = read(job, "base/result")
    add(1.0, "full", 0, base["macs"], base["test_top1"], measured["full"])
    for result in sorted((job.folder / "tuned").glob("*/result.json")):
        name, _, seed = result.parent.name.rpartition("-")
        budget, _, method = name.partition("-")
        data = json.loads(result.read_text())
        network = json.loads((result.parent / "name.json").read_text())
        add(
            float(budget), method, int(seed), data["macs"], data["test_top1"], measured[f"{budget}-{network}"]
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


PAGE, BEGIN, END = RESULTS.parents[2] / "docs" / "trained.md", "<!-- summary -->\n", "<!-- end -->"


def show() -> None:
    """Means over seeds with their standard errors, as the table of the page."""
    with (RESULTS / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [
        "| network | budget | method | measured | of full | MACs | test top-1 ± standard error | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    full = {row["network"]: float(row["measured_ms"]) for row in rows if row["method"] == "full"}
    for key in dict.fromkeys((row["network"], row["budget"], row["method"]) for row in rows):
        own = [row for row in rows if (row["network"], row["budget"], row["method"]) == key]
        top1 = np.array([float(row["test_top1"]) for row in own])
        error = f" ± {top1.std(ddof=1) / len(top1) ** 0.5:.2f}" if len(top1) > 1 else ""
        ms, macs = float(own[0]["measured_ms"]), int(own[0]["macs"])
        lines.append(
            f"| {key[0]} | {key[1]}x | {key[2]} | {ms * 1e3:.0f} µs | {ms / full[key[0]]:.3f}x "
            f"| {macs / 1e6:.1f}M | {top1.mean():.2f}{error} | {len(top1)} |"
        )
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    files.write_text(PAGE, before + BEGIN + "\n".join(lines) + "\n" + END + rest.partition(END)[2])
    print("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "step",
        choices=(
            "data",
            "base",
            "supernet",
            "profile",
            "choose",
            "measure",
            "tune",
            "collect",
        ),
    )
    parser.add_argument("--network", choices=NETWORKS, nargs="+", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--data", default="")
    parser.add_argument("--budgets", type=float, nargs="+", default=list(BUDGETS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--evaluations", type=int, default=Search.evaluations)
    parser.add_argument("--importance", default=Search.importance)
    parser.add_argument("--seconds", type=float, default=150.0, help="of the profile")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of base and tune")
    parser.add_argument("--epochs", type=float, help="of base")
    parser.add_argument("--limit-s", type=float, help="of base, in place of epochs, and of supernet: seconds")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=100, help="of tune")
    parser.add_argument("--rate", type=float, help="of tune, in place of its own")
    parser.add_argument("--share", type=int, nargs=2, default=(0, 1), help="which of how many processes")
    parser.add_argument("--until-s", type=float, default=1e9, help="no training begins that may end later")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.backends.cudnn.benchmark = options.step == "base"  # worth it where shapes repeat for long
    device, until = torch.device(options.device), time.monotonic() + options.until_s
    jobs = [Bench(network, options.folder, options.data, device) for network in options.network]
    share = (options.share[0], options.share[1])
    if options.step == "tune":
        tune(
            jobs, options.budgets, options.methods, options.seeds, options.steps, RANDOM_MORE, share,
            until, options.rate,
        )  # fmt: skip
    for job in jobs:
        match options.step:
            case "data":
                job.keep_data()
            case "base":
                config = GPU_BASE if options.device == "cuda" else BASE
                base(job, config.replace(epochs=options.epochs or config.epochs), options.limit_s)
            case "supernet":
                supernet(job, options.limit_s or 60.0)
            case "profile":
                profile_device(
                    job.model, job.space, load_device(DEVICE), job.folder / "table.json",
                    budget_s=options.seconds,
                )  # fmt: skip
            case "choose":
                how = Search(evaluations=options.evaluations, importance=options.importance)
                choose(job, options.budgets, options.methods, how)
            case "measure":
                measure(job, options.rounds)
            case "collect":
                collect(job)
                show()


METHODS = (
    "found",
    "found-pruned",
    "found-supernet",
    "uniform",
    "uniform-wider",
    "torch-pruning-l2",
    "torch-pruning-taylor",
    "modelopt",
    "random-weights",
)

if __name__ == "__main__":
    main()
