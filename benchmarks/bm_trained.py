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
networks of every method at every budget, a share of the full network's predicted latency: ``found`` searches
by scores of pruned networks; the others take the largest network of their kind that the table says keeps the
budget. ``measure`` times them interleaved. ``tune`` fine-tunes each, all alike, half the loss from the full
network. ``collect`` adds their rows to ``benchmarks/results/trained/summary.csv``. FOLDER is outside the
repository: weights are not committed.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from bcnet_deploy import files
from bcnet_deploy.bench import BenchSettings, bench
from bcnet_deploy.data import DataSplits, PlainBatches, load_data
from bcnet_deploy.data.plain import drawing_order
from bcnet_deploy.data.splits import MemoryImages
from bcnet_deploy.devices import load_device
from bcnet_deploy.errors import InfeasibleError
from bcnet_deploy.export import export_onnx
from bcnet_deploy.export.metadata import ModelMetadata
from bcnet_deploy.lut import LatencyTable
from bcnet_deploy.models import build_model, load_weights
from bcnet_deploy.models.ref import ModelRef
from bcnet_deploy.nn import Supernet
from bcnet_deploy.nn.subnet import own_tensors
from bcnet_deploy.profiler.profiling import profile_device
from bcnet_deploy.space import WidthSpace
from bcnet_deploy.space.slicing import stored_units
from bcnet_deploy.train import TrainConfig, evaluate_network, open_pruned_evaluator, retrain
from bcnet_deploy.train.distributed import Ranks
from bcnet_deploy.train.pruned import permuted_on
from bcnet_deploy.train.retrain import reinitialise, slice_of
from bcnet_deploy.train.samplers import WidthGrid, make_sampler
from bcnet_deploy.train.supernet import make_loader
from bcnet_deploy.train.trainer import Trainer

SIZE, LEVELS, CLASSES = (3, 16, 16), 16, 10
DEVICE = "cpu-1thread"
CPU = torch.device("cpu")
BUDGETS = (0.5, 0.33, 0.2)
SEEDS = (0, 1, 2)
GRANULE = 8
"""Channels to which the methods that round do so."""
RESULTS = Path(__file__).resolve().parent / "results" / "trained"
COLUMNS = ("network", "budget", "method", "seed", "measured_ms", "macs", "test_top1")

BASE = TrainConfig(
    epochs=7, batch_size=32, learning_rate=0.05, weight_decay=5e-4, warmup_epochs=0.2, augment="crop-flip",
    workers=0, checkpoint_every=200, log_every=50,
)  # fmt: skip
GPU_BASE = TrainConfig(
    epochs=30, batch_size=256, learning_rate=0.15, weight_decay=5e-4, warmup_epochs=1.5, augment="crop-flip",
    workers=0, checkpoint_every=10**9, log_every=100,
)  # fmt: skip
"""Small networks on a GPU cost a launch a layer, whatever the batch: it is larger there."""

GPU_SUPERNET = TrainConfig.load("short_supernet").replace(
    batch_size=128, learning_rate=0.02, workers=0, checkpoint_every=10**9, log_every=50
)

# Short, so that three seeds of every method fit an hour of one core. Without augmentation the teacher need
# say only once what it makes of an image.
TUNE_IMAGES = 12800
TUNE = TrainConfig(
    epochs=1, batch_size=32, learning_rate=0.02, weight_decay=1e-4, warmup_epochs=0.05, augment="none",
    workers=0, checkpoint_every=100, log_every=50,
)  # fmt: skip
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
        self.answers: dict[bytes, Tensor] = torch.load(path, weights_only=True) if path.exists() else {}

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.contiguous().numpy()
        keys = [hashlib.blake2b(image.tobytes(), digest_size=12).hexdigest() for image in pixels]
        new = [index for index, key in enumerate(keys) if key not in self.answers]
        if new:
            for index, answer in zip(new, self.network(images[new]), strict=True):
                self.answers[keys[index]] = answer.clone()
        return torch.stack([self.answers[key] for key in keys])

    def save(self) -> None:
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
        kept = load_file(self.decoded)
        train, val, test = (
            MemoryImages(kept[f"{part}.images"], kept[f"{part}.labels"]) for part in ("train", "val", "test")
        )
        mean, std = (tuple(kept[name].tolist()) for name in ("mean", "std"))
        names = tuple(str(label) for label in range(CLASSES))
        return DataSplits("cifar10", train, val, names, SIZE, mean, std, open_test=lambda: test)

    def keep_data(self) -> None:
        """Decode once for all the processes that train."""
        if self.decoded.exists():
            return
        splits = self.splits()
        kept = {}
        for name, images in (("train", splits.train), ("val", splits.val), ("test", splits.load_test())):
            if images.memory is None:
                raise MemoryError("the decoded images must fit in memory")
            kept |= {f"{name}.images": images.memory, f"{name}.labels": images.labels}
        kept |= {"mean": torch.tensor(splits.mean).double(), "std": torch.tensor(splits.std).double()}
        with files.replacing(self.decoded) as temporary:
            save_file(kept, temporary)

    def trained(self) -> nn.Module:
        load_weights(self.model, self.folder / "base" / "weights.safetensors")
        return self.model.eval()

    def table(self) -> LatencyTable:
        return LatencyTable.load(self.folder / "table.json").for_space(self.space)

    def within(self, limit_ms: float) -> Callable[[npt.NDArray[np.int64]], bool]:
        """Whether the table says that widths keep a latency."""
        table = self.table()
        return lambda row: float(table.predict(row[None])[0]) <= limit_ms

    def full_ms(self) -> float:
        return float(self.table().predict(self.space.full[None])[0])

    # -- networks as files ---------------------------------------------------------------------

    def path(self, budget: float, method: str) -> Path:
        return self.folder / "networks" / f"{budget}-{method}.safetensors"

    def keep(self, budget: float, method: str, start: nn.Module, seconds: float) -> None:
        """Save a pruned network and what is known of it."""
        units = np.array(stored_units(self.space.plan, start))
        row = units * np.array([variable.step for variable in self.space.variables])
        path = self.path(budget, method)
        path.parent.mkdir(exist_ok=True)
        save_file(own_tensors(start), str(path))
        about = {
            "widths": row.tolist(), "macs": int(self.space.macs(row)[0]), "seconds": round(seconds, 1),
            "predicted_ms": float(self.table().predict(row[None])[0]),
        }  # fmt: skip
        files.write_json(path.with_suffix(".json"), about)
        print(f"{self.network} {budget} {method}: {about}", flush=True)

    def about(self, budget: float, method: str) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.path(budget, method).with_suffix(".json").read_text())
        return found

    def widths(self, budget: float, method: str) -> npt.NDArray[np.int64]:
        return np.array(self.about(budget, method)["widths"], dtype=np.int64)

    def start(self, budget: float, method: str) -> nn.Module:
        network = self.space.extract(self.model, self.widths(budget, method))
        network.load_state_dict(load_file(self.path(budget, method)))
        return network


# -- methods: each gives the pruned network of a latency in milliseconds -----------------------


@dataclass
class Search:
    """Settings of the search for ``found``."""

    evaluations: int = 100
    images: int = 1000
    importance: str = "l2"


def found(job: Bench, splits: DataSplits, limit_ms: float, how: Search) -> nn.Module:
    """Our way: slices of the network in order of importance, ranked by their recalibrated scores."""
    from bcnet_deploy.search import search  # not before: where networks are only trained, pymoo may be absent

    permuted = permuted_on(job.trained(), job.space, splits, how.importance, device=CPU)
    evaluator = open_pruned_evaluator(
        permuted, job.space, splits, importance=None, limit=how.images, batch_size=32, device=CPU
    )
    result = search(
        job.space, evaluator, {"latency_ms": (job.table(), limit_ms)}, how.evaluations, population_size=20,
        confidence=0.5,
    )  # fmt: skip
    return slice_of(permuted, job.space, result.widths)


def largest(
    make: Callable[[float], nn.Module], job: Bench, fits: Callable[[npt.NDArray[np.int64]], bool]
) -> nn.Module:
    """The network with the most multiply-accumulates of a family by share kept that fits.

    All shares are tried: latency does not rise with every channel, so that a bisection would stop early.
    """
    steps = np.array([variable.step for variable in job.space.variables])
    best, most, edge = None, 0, 0.0
    for fine in (False, True):  # then finely around the largest share that fits
        shares = np.linspace(edge - 0.02, edge + 0.03, 26) if fine else np.linspace(0.1, 0.95, 86)
        for share in shares:
            network = make(float(share))
            row = np.array(stored_units(job.space.plan, network)) * steps
            macs = int(job.space.macs(row)[0])
            if macs > most and fits(row):
                best, most, edge = network, macs, float(share)
    if best is None:
        raise InfeasibleError("no network of this family keeps the budget; raise --budgets")
    return best


def uniform(job: Bench, splits: DataSplits, limit_ms: float) -> nn.Module:
    """Every width times the same share, to multiples of eight, the same order of channels as ``found``."""
    permuted = permuted_on(job.trained(), job.space, splits, "l2", device=CPU)

    def make(share: float) -> nn.Module:
        row = np.maximum(GRANULE, np.round(job.space.full * share / GRANULE) * GRANULE).astype(np.int64)
        return slice_of(permuted, job.space, row)

    return largest(make, job, job.within(limit_ms))


def torch_pruning(job: Bench, splits: DataSplits, limit_ms: float, *, taylor: bool) -> nn.Module:
    """Torch-Pruning's global pruner, as its README calls it, rounded to multiples of eight."""
    import copy

    import torch_pruning as tp

    trained = job.trained()
    if taylor:
        for images, labels in PlainBatches(splits.train, splits, 64, CPU, limit=1024):
            F.cross_entropy(trained(images), labels).backward()

    def make(share: float) -> nn.Module:
        model = copy.deepcopy(trained)
        for ours, theirs in zip(model.parameters(), trained.parameters(), strict=True):
            ours.grad = None if theirs.grad is None else theirs.grad.clone()
        importance = (
            tp.importance.GroupTaylorImportance() if taylor else tp.importance.GroupMagnitudeImportance(p=2)
        )
        pruner = tp.pruner.BasePruner(
            model, torch.randn(1, *SIZE), importance=importance, global_pruning=True,
            pruning_ratio=1 - share, round_to=GRANULE,
            ignored_layers=[m for m in model.modules() if isinstance(m, nn.Linear)],
        )  # fmt: skip
        pruner.step()
        model.zero_grad(set_to_none=True)
        return model

    return largest(make, job, job.within(limit_ms))


def modelopt(job: Bench, splits: DataSplits, macs: int) -> nn.Module:
    """NVIDIA Model-Optimizer's fastnas to the multiply-accumulates given: it knows no milliseconds.

    Its scores: as many held-out images, and statistics averaged over as many training images, as ours.
    """
    import copy

    import modelopt.torch.prune as mtp

    val = PlainBatches(splits.val, splits, 64, CPU, limit=Search.images)
    train = PlainBatches(splits.train, splits, 32, CPU, limit=20 * 32)
    rules = {"channels_ratio": tuple(0.1 * i for i in range(1, 11)), "channel_divisor": GRANULE}
    norms = {"features_ratio": rules["channels_ratio"], "feature_divisor": GRANULE}
    kinds = {
        "nn.Conv2d": {"*": {**rules, "kernel_size": ()}}, "nn.BatchNorm2d": {"*": norms},
        "nn.Linear": {"*": norms},
    }  # fmt: skip
    pruned, _ = mtp.prune(
        copy.deepcopy(job.trained()), mode=[("fastnas", kinds)], constraints={"flops": macs},
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
    splits = job.splits()
    ways: dict[str, Callable[[float], nn.Module]] = {
        "uniform": lambda ms: uniform(job, splits, ms),
        "torch-pruning-l2": lambda ms: torch_pruning(job, splits, ms, taylor=False),
        "torch-pruning-taylor": lambda ms: torch_pruning(job, splits, ms, taylor=True),
        "found": lambda ms: found(job, splits, ms, how),
    }
    for budget in budgets:
        if "modelopt" in methods and job.path(budget, "found").exists():
            macs = int(str(job.about(budget, "found")["macs"]))
            ways["modelopt"] = lambda _, macs=macs: modelopt(job, splits, macs)  # type: ignore[misc]
        for method in methods:
            if method in ways and not job.path(budget, method).with_suffix(".json").exists():
                started = time.process_time()
                network = ways[method](budget * job.full_ms())
                job.keep(budget, method, network, time.process_time() - started)


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


# -- figures -----------------------------------------------------------------------------------


def tune(job: Bench, budgets: list[float], methods: list[str], seeds: list[int]) -> None:
    splits = job.splits()
    chosen = drawing_order(len(splits.train))[:TUNE_IMAGES]
    splits = replace(splits, train=splits.train.subset(chosen))
    trained = job.trained()
    teacher = Remembered(trained, job.folder / "teacher.pt")
    for seed in seeds:
        for budget in budgets:
            for method in methods:
                random = method == "random-weights"
                if not job.path(budget, "found" if random else method).exists():
                    continue
                target = job.folder / "tuned" / f"{budget}-{method}-{seed}"
                if (target / "result.json").exists():
                    continue
                start = None if random else job.start(budget, method)
                row = job.widths(budget, "found" if random else method)
                config = TUNE.replace(learning_rate=RANDOM_RATE) if random else TUNE
                result = retrain(
                    trained, job.space, row, splits, config, target, model_ref=job.ref, initial=start,
                    teacher=teacher, seed=seed, device=CPU,
                )  # fmt: skip
                (target / "checkpoint.safetensors").unlink(missing_ok=True)
                teacher.save()
                print(f"{job.network} {budget} {method} {seed}: {result.test_top1}", flush=True)
                collect(job)


def measure(job: Bench, rounds: int) -> None:
    """Every network of every budget, interleaved."""
    chosen = sorted(path.stem for path in (job.folder / "networks").glob("*.safetensors"))
    rows = {"full": job.space.full}
    for name in chosen:
        budget, _, method = name.partition("-")
        rows[name] = job.widths(float(budget), method)
    paths = {}
    for name, row in rows.items():
        by_name = {v.name: int(width) for v, width in zip(job.space.variables, row, strict=True)}
        note = ModelMetadata(
            model=job.ref.to_dict(), which=name, widths=by_name, fingerprint=job.space.fingerprint
        )
        paths[name] = job.folder / "onnx" / f"{name}.onnx"
        paths[name].parent.mkdir(exist_ok=True)
        network = job.space.extract(job.model, row).eval()
        export_onnx(network, paths[name], SIZE, parity_inputs=None, metadata=note)
    settings = BenchSettings(rounds=rounds, runs=30, batches=(), layers=False)
    result = bench(paths, DEVICE, settings=settings, table=job.table(), space=job.space)
    result.save(job.folder / "bench.json")


def collect(job: Bench) -> None:
    """Put this network's rows in the place of its former ones."""
    path = RESULTS / "summary.csv"
    rows = []
    if path.exists():
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["network"] != job.network]
    measured: dict[str, float] = {}
    if (job.folder / "bench.json").exists():
        networks = json.loads((job.folder / "bench.json").read_text())["networks"]
        for name, entry in networks.items():
            measured[name] = entry["runtimes"]["onnxruntime-cpu"]["latency"]["low_ms"]

    def add(budget: float, method: str, seed: int, macs: object, top1: float, ms: float | None) -> None:
        shown = "" if ms is None else f"{ms:.4f}"
        values = (job.network, budget, method, seed, shown, macs, round(top1, 2))
        rows.append({key: str(value) for key, value in zip(COLUMNS, values, strict=True)})

    base = json.loads((job.folder / "base" / "result.json").read_text())
    add(1.0, "full", 0, base["macs"], base["test_top1"], measured.get("full"))
    for result in sorted((job.folder / "tuned").glob("*/result.json")):
        name, _, seed = result.parent.name.rpartition("-")
        budget, _, method = name.partition("-")
        data = json.loads(result.read_text())
        as_measured = name.replace("random-weights", "found")
        add(float(budget), method, int(seed), data["macs"], data["test_top1"], measured.get(as_measured))
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "step", choices=("data", "base", "supernet", "profile", "choose", "measure", "tune", "collect")
    )
    parser.add_argument("--network", choices=NETWORKS, required=True)
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
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.backends.cudnn.benchmark = True  # shapes repeat
    job = Bench(options.network, options.folder, options.data, torch.device(options.device))
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
        case "tune":
            tune(job, options.budgets, options.methods, options.seeds)
        case "collect":
            collect(job)


METHODS = ("found", "uniform", "torch-pruning-l2", "torch-pruning-taylor", "modelopt", "random-weights")

if __name__ == "__main__":
    main()
