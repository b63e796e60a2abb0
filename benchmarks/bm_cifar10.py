"""Found against uniform scaling on CIFAR-10, after ``bcnet-deploy run --config cifar10_quick``.

    python -m benchmarks.bm_cifar10 train --run RUN --folder FOLDER [--seeds 0 1 2] [--at-most N]
    python -m benchmarks.bm_cifar10 bench --run RUN --folder FOLDER
    python -m benchmarks.bm_cifar10 page  --run RUN --folder FOLDER --machine TEXT

``train`` trains the networks found and uniform of the run, and ``wider``, the next wider uniform network
(which exceeds the budget), with every seed, all alike; what is done is skipped, what was killed goes on.
``bench`` measures them and the full network interleaved, at batch 1. ``page`` writes ``docs/cifar10.json``
and ``docs/cifar10.md``.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bcnet_deploy.bench import BenchSettings, bench
from bcnet_deploy.data import load_data
from bcnet_deploy.export import export_onnx
from bcnet_deploy.export.metadata import ModelMetadata
from bcnet_deploy.flow.config import FlowConfig, load
from bcnet_deploy.flow.searching import widths_of
from bcnet_deploy.flow.steps import build, train_settings
from bcnet_deploy.lut import LatencyTable
from bcnet_deploy.rundir import RunDir
from bcnet_deploy.space import WidthSpace
from bcnet_deploy.train import retrain

CONFIG = "cifar10_quick"
DOCS = Path(__file__).resolve().parent.parent / "docs"
TRAINED = ("found", "uniform", "wider")


def widths(run: RunDir, space: WidthSpace, name: str, levels: int) -> npt.NDArray[np.int64]:
    """(L,) widths of a network of this comparison."""
    if name != "wider":
        return widths_of(run, space, name)
    uniform = widths_of(run, space, "uniform")
    ladder = [space.uniform(level / levels) for level in range(1, levels + 1)]
    return next(row for row in ladder if (row > uniform).any())


def train(run: RunDir, folder: Path, seeds: list[int], at_most: int) -> None:
    config, info = load(CONFIG), run.load()
    settings = train_settings(config.retrain, info.data)
    splits = load_data(info.data, info.model.input_size, num_classes=info.model.num_classes)
    done = 0
    order = [(name, seed) for seed in seeds for name in ("found", "uniform")]
    for name, seed in order + [("wider", seed) for seed in seeds]:
        target = folder / f"{name}-{seed}"
        if (target / "result.json").exists():
            continue
        made = run.retrained(name)
        if seed == info.seed and (made / "result.json").exists():
            shutil.copytree(made, target)  # the run's own: same settings, same seed
            continue
        if done == at_most:
            return
        model, space = build(info.model, seed)
        row = widths(run, space, name, config.levels)
        result = retrain(
            model, space, row, splits, settings, target, model_ref=info.model, seed=seed
        )  # fmt: skip
        done += 1
        print(f"{name} seed {seed}: test {result.test_top1:.2f}%, {result.seconds:.0f} s", flush=True)


def measure(run: RunDir, folder: Path, rounds: int) -> None:
    """All networks, interleaved, with weights as drawn: they do not change the time."""
    info = run.load()
    model, space = build(info.model, 0)
    paths = {}
    for name in ("full", *TRAINED):
        row = widths(run, space, name, load(CONFIG).levels)
        module = space.extract(model, row)
        by_name = {variable.name: int(width) for variable, width in zip(space.variables, row, strict=True)}
        note = ModelMetadata(
            model=info.model.to_dict(), which=name, widths=by_name, fingerprint=space.fingerprint
        )
        paths[name] = folder / f"{name}.onnx"
        export_onnx(module.eval(), paths[name], info.model.input_size, parity_inputs=None, metadata=note)
    table = LatencyTable.load(run.latency_table(info.device))
    settings = BenchSettings(rounds=rounds, runs=30, batches=(), layers=False)
    result = bench(paths, info.device, settings=settings, table=table, space=space)
    result.save(folder / "bench.json")


def collect(run: RunDir, folder: Path, machine: str) -> dict[str, Any]:
    """Everything of the page, as data."""
    info = run.load()
    _, space = build(info.model, 0)
    measured = json.loads((folder / "bench.json").read_text())
    networks: dict[str, Any] = {}
    for name in ("full", *TRAINED):
        entry = measured["networks"][name]
        latency = entry["runtimes"]["onnxruntime-cpu"]["latency"]
        row = [entry["widths"][variable.name] for variable in space.variables]
        top1 = {}
        for path in sorted(folder.glob(f"{name}-*/result.json")):
            top1[path.parent.name.split("-")[1]] = json.loads(path.read_text())["test_top1"]
        networks[name] = {
            "widths": row, "macs": int(space.macs(row)[0]), "test_top1": top1,
            "predicted_ms": entry["prediction"]["milliseconds"],
            "uncertainty_ms": entry["prediction"]["uncertainty_ms"],
            "measured_ms": latency["low_ms"], "median_ms": latency["median_ms"],
            "noise_floor": latency["noise_floor"],
        }  # fmt: skip
    seconds = {
        path.stem: json.loads(path.read_text()).get("seconds")
        for path in sorted((run / "flow").glob("*.json"))
    }
    config: FlowConfig = load(CONFIG)
    return {
        "machine": machine, "config": config.to_dict() | {"data": Path(info.data).name},
        "retrain": asdict(train_settings(config.retrain, info.data)), "step_seconds": seconds,
        "settings": measured["settings"], "networks": networks,
    }  # fmt: skip


def _mean(values: dict[str, float]) -> str:
    numbers = np.array(list(values.values()))
    return f"{numbers.mean():.2f} ± {numbers.std(ddof=1):.2f}" if len(numbers) > 1 else f"{numbers[0]:.2f}"


def page(data: dict[str, Any]) -> str:
    """The text of cifar10.md."""
    networks, search = data["networks"], data["config"]["search"]
    full = networks["full"]
    lines = [
        "# CIFAR-10 on a CPU", "",
        "Found against uniform scaling under 0.5x of the full network's latency, final networks trained"
        f" alike. Machine: {data['machine']}.", "",
        "```console",
        f"$ bcnet-deploy run --config {CONFIG} --data cifar10-imagefolder.tar.xz --run-dir RUN",
        "$ python -m benchmarks.bm_cifar10 train --run RUN --folder FOLDER",
        "$ python -m benchmarks.bm_cifar10 bench --run RUN --folder FOLDER",
        "```", "",
        f"Channel-Bench-Macro's MobileNet, images reduced to 16x16. Supernet:"
        f" {data['config']['train']['epochs']} epochs; search: {search['evaluations']} evaluations on"
        f" {search['val_images']} held-out images; final trainings: {data['config']['retrain']['epochs']}"
        " epochs of the 45,000 training images (5,000 are held out), batch 32, learning rate 0.05, no"
        " augmentation. These are"
        " trainings of minutes: accuracies are far below those of 60 epochs, and what is compared is"
        " networks learning for the same number of steps. `cifar10_cpu` is the recipe of an hour on two"
        " cores; it was not run to the end here.", "",
        "| network | widths | MACs | test top-1, %, by seed | mean ± s.d. | predicted | measured"
        " | noise floor |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, one in networks.items():
        top1 = one["test_top1"]
        cells = [
            name, " ".join(map(str, one["widths"])), f"{one['macs'] / 1e6:.1f}M",
            ", ".join(f"{value:.2f}" for value in top1.values()) or "-", _mean(top1) if top1 else "-",
            f"{one['predicted_ms'] * 1e3:.0f} µs", f"{one['measured_ms'] * 1e3:.0f} µs",
            f"{one['noise_floor']:.1%}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    found, share = networks["found"], networks["found"]["measured_ms"] / full["measured_ms"]
    lines += ["", f"- Found measures {share:.3f}x of the full network (budget 0.5x)."]
    for name in ("uniform", "wider"):
        other = networks[name]
        seeds = sorted(found["test_top1"].keys() & other["test_top1"].keys())
        if not seeds:
            continue
        gaps = np.array([found["test_top1"][seed] - other["test_top1"][seed] for seed in seeds])
        spread = f", standard deviation {gaps.std(ddof=1):.2f}" if len(gaps) > 1 else ""
        lines.append(
            f"- Found against {name}: {gaps.mean():+.2f} points on average over {len(gaps)} seeds{spread},"
            f" higher in {int((gaps > 0).sum())}; found's measured latency is"
            f" {found['measured_ms'] / other['measured_ms'] - 1:+.1%} of {name}'s."
        )
    if all(networks[name]["test_top1"] for name in TRAINED):
        times = [networks[name]["measured_ms"] for name in ("uniform", "wider")]
        means = [np.mean(list(networks[name]["test_top1"].values())) for name in ("uniform", "wider")]
        between = float(np.interp(found["measured_ms"], times, means))
        own = float(np.mean(list(found["test_top1"].values())))
        lines.append(
            "- At equal measured latency, a straight line between uniform and wider gives"
            f" {between:.2f}%: found is {own - between:+.2f} points from it."
        )
    errors = {name: one["measured_ms"] / one["predicted_ms"] - 1 for name, one in networks.items()}
    bars = {name: max(0.05, 1.2 * networks[name]["noise_floor"]) for name in networks}
    inside = sum(abs(errors[name]) <= bars[name] for name in networks)
    lines += [
        "- Measured against predicted: "
        + ", ".join(f"{name} {error:+.1%}" for name, error in errors.items())
        + f"; within 5% (or 1.2 x noise floor): {inside} of {len(networks)}.",
        "- `wider` is the next rung of uniform scaling, above the budget. Measured: the median of the fastest"
        f" runs of {data['settings']['rounds']} rounds of {data['settings']['runs']}, all networks"
        " interleaved, one thread.",
        "- Seconds by step of the run: "
        + ", ".join(f"{name} {value:.0f}" for name, value in data["step_seconds"].items() if value)
        + " (of the last start only where a step was interrupted).",
        "", "Data: [cifar10.json](cifar10.json).",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["train", "bench", "page"])
    parser.add_argument("--run", type=Path, required=True, help="run directory of the configuration")
    parser.add_argument("--folder", type=Path, required=True, help="for the trainings")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--at-most", type=int, default=10**6, help="trainings in this call")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--machine", default="unknown", help="for the page")
    options = parser.parse_args()
    run = RunDir(options.run)
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.action == "train":
        train(run, options.folder, options.seeds, options.at_most)
    elif options.action == "bench":
        measure(run, options.folder, options.rounds)
    else:
        data = collect(run, options.folder, options.machine)
        (DOCS / "cifar10.json").write_text(json.dumps(data, indent=1) + "\n")
        (DOCS / "cifar10.md").write_text(page(data))


if __name__ == "__main__":
    main()
