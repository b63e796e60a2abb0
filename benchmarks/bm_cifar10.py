"""Found against uniform scaling on CIFAR-10, after ``bcnet-deploy run --config CONFIG``.

    python -m benchmarks.bm_cifar10 train   --config CONFIG --run RUN --folder FOLDER [--wider]
    python -m benchmarks.bm_cifar10 bench   --config CONFIG --run RUN --folder FOLDER
    python -m benchmarks.bm_cifar10 collect --config CONFIG --run RUN --folder FOLDER --machine TEXT
    python -m benchmarks.bm_cifar10 page

``train`` trains the networks found and uniform of the run (with ``--wider`` also the next wider uniform
network, which exceeds the budget), with every seed, all alike; what is done is skipped, what was killed goes
on. ``bench`` measures them and the full network interleaved, at batch 1. ``collect`` writes
``docs/cifar10/CONFIG.json``, and ``page`` ``docs/cifar10.md`` from all of these.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bcnet_deploy.bench import BenchSettings, bench
from bcnet_deploy.export import export_onnx
from bcnet_deploy.export.metadata import ModelMetadata
from bcnet_deploy.lut import LatencyTable
from bcnet_deploy.models.ref import build
from bcnet_deploy.run.directory import RunDir
from bcnet_deploy.run.settings import PipelineSettings, load_config
from bcnet_deploy.run.widths import named
from bcnet_deploy.space import WidthSpace
from bcnet_deploy.train import retrain

DOCS = Path(__file__).resolve().parent.parent / "docs"
TRAINED = ("found", "uniform", "wider")


def widths(run: RunDir, space: WidthSpace, name: str, levels: int) -> npt.NDArray[np.int64]:
    """(L,) widths of a network of this comparison."""
    if name != "wider":
        return run.widths(name, space)
    uniform = run.widths("uniform", space)
    ladder = [space.uniform(level / levels) for level in range(1, levels + 1)]
    return next(row for row in ladder if (row > uniform).any())


def train(
    run: RunDir, config: PipelineSettings, folder: Path, seeds: list[int], wider: bool, at_most: int
) -> None:
    info = run.load()
    settings, splits = config.step("retrain").config(info.data), run.data()
    done = 0
    order = [(name, seed) for seed in seeds for name in ("found", "uniform")]
    for name, seed in order + [("wider", seed) for seed in seeds if wider]:
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


def measure(run: RunDir, config: PipelineSettings, folder: Path, rounds: int) -> None:
    """All networks, interleaved, with weights as drawn: they do not change the time."""
    info = run.load()
    model, space = build(info.model, 0)
    paths = {}
    for name in ("full", *TRAINED):
        row = widths(run, space, name, config.levels)
        module = space.extract(model, row)
        note = ModelMetadata(
            model=info.model.to_dict(), which=name, widths=named(row, space), fingerprint=space.fingerprint
        )
        paths[name] = folder / f"{name}.onnx"
        export_onnx(module.eval(), paths[name], info.model.input_size, parity_inputs=None, metadata=note)
    table = LatencyTable.load(run.latency_table(info.device))
    settings = BenchSettings(rounds=rounds, runs=30, batches=(), layers=False)
    result = bench(paths, info.device, settings=settings, table=table, space=space)
    result.save(folder / "bench.json")


def collect(run: RunDir, config: PipelineSettings, folder: Path, machine: str) -> dict[str, Any]:
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
        for path in sorted((run / "steps").glob("*.json"))
    }
    search = json.loads((run.search / "search.json").read_text())
    return {
        "machine": machine, "config": config.to_dict() | {"data": Path(str(info.data)).name},
        "latency": search["budgets"][0]["given"],
        "supernet_scores": {name: score["accuracy"] for name, score in search["scores"].items()},
        "retrain": config.step("retrain").config(info.data).to_dict(), "step_seconds": seconds,
        "settings": measured["settings"], "networks": networks,
    }  # fmt: skip


def _mean(values: dict[str, float]) -> str:
    numbers = np.array(list(values.values()))
    return f"{numbers.mean():.2f} ± {numbers.std(ddof=1):.2f}" if len(numbers) > 1 else f"{numbers[0]:.2f}"


INTRODUCTION = """\
# CIFAR-10 on a CPU

Found against uniform scaling at nearly equal measured latency, final networks trained alike from scratch.
Written by `python -m benchmarks.bm_cifar10`, whose docstring has the commands. Channel-Bench-Macro's
MobileNet, images reduced to 16x16; 45,000 training images, 5,000 held out for the search; test top-1 of the
untouched 10,000. These are trainings of minutes: accuracies are far below those of 60 epochs, and what is
compared is networks that learn for the same number of steps. The budget of `cifar10_cpu`, 0.55x, was set
from the latency table alone, before any accuracy: a uniformly scaled network (0.51x) lies just within it.
"""


def page(runs: list[tuple[str, dict[str, Any]]]) -> str:
    """The text of cifar10.md, a section a configuration."""
    return INTRODUCTION + "".join(section(name, data) for name, data in runs)


def section(config: str, data: dict[str, Any]) -> str:
    """One configuration: setting, table of networks, what follows from it."""
    networks, search, scores = data["networks"], data["config"]["search"], data["supernet_scores"]
    full, train_config = networks["full"], data["config"]["train"]
    length = (
        f"cost {train_config['cost']:,} (images through the full width)"
        if "cost" in train_config
        else f"{train_config['epochs']} epochs"
    )
    lines = [
        "", f"## `bcnet-deploy run --config {config} --latency {data['latency']}`", "",
        f"Machine: {data['machine']}. Supernet: {length},"
        f" {'with' if train_config.get('distillation', True) else 'without'} distillation;"
        f" search: {search['evaluations']} evaluations on"
        f" {search['val_images']} held-out images; final trainings: {data['config']['retrain']['epochs']}"
        f" epochs, batch {data['retrain']['batch_size']}, learning rate {data['retrain']['learning_rate']},"
        " no augmentation.",
        "",
        "| network | widths | MACs | supernet's score, % | test top-1, %, by seed | mean ± s.d. | predicted"
        " | measured | noise floor |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, one in networks.items():
        top1 = one["test_top1"]
        cells = [
            name, " ".join(map(str, one["widths"])), f"{one['macs'] / 1e6:.1f}M",
            f"{scores[name]:.2f}" if name in scores else "-",
            ", ".join(f"{value:.2f}" for value in top1.values()) or "-", _mean(top1) if top1 else "-",
            f"{one['predicted_ms'] * 1e3:.0f} µs", f"{one['measured_ms'] * 1e3:.0f} µs",
            f"{one['noise_floor']:.1%}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    found, share = networks["found"], networks["found"]["measured_ms"] / full["measured_ms"]
    lines += ["", f"- Found measures {share:.3f}x of the full network (budget {data['latency']})."]
    for name in ("uniform", "wider"):
        other = networks.get(name, {"test_top1": {}})
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
        if len(gaps) > 1 and abs(gaps.mean()) < 2 * gaps.std(ddof=1) / len(gaps) ** 0.5:
            lines.append("- That is within two standard errors: **neither is shown to be more accurate.**")
    if all(networks.get(name, {}).get("test_top1") for name in TRAINED):
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
        "- Measured: the median of the fastest"
        f" runs of {data['settings']['rounds']} rounds of {data['settings']['runs']}, all networks"
        " interleaved, one thread.",
        "- Seconds by step of the run: "
        + ", ".join(f"{name} {value:.0f}" for name, value in data["step_seconds"].items() if value)
        + " (of the last start only where a step was interrupted).",
        f"- Data: [{config}.json](cifar10/{config}.json).",
    ]  # fmt: skip
    if "wider" in networks:
        lines.append("- `wider` is the next rung of uniform scaling, above the budget.")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["train", "bench", "collect", "page"])
    parser.add_argument("--config", default="cifar10_cpu", help="the run's configuration")
    parser.add_argument("--run", type=Path, help="run directory of the configuration")
    parser.add_argument("--folder", type=Path, help="for the trainings")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--wider", action="store_true", help="also the next rung of uniform scaling")
    parser.add_argument("--at-most", type=int, default=10**6, help="trainings in this call")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--machine", default="unknown", help="for the page")
    options = parser.parse_args()
    if options.action == "page":
        found = sorted((DOCS / "cifar10").glob("*.json"))
        text = page([(path.stem, json.loads(path.read_text())) for path in found])
        (DOCS / "cifar10.md").write_text(text)
        return
    if options.run is None or options.folder is None:
        parser.error(f"{options.action} needs --run and --folder")
    run = RunDir(options.run)
    config = PipelineSettings.read(load_config(options.config), options.config)
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.action == "train":
        train(run, config, options.folder, options.seeds, options.wider, options.at_most)
    elif options.action == "bench":
        measure(run, config, options.folder, options.rounds)
    else:
        data = collect(run, config, options.folder, options.machine)
        target = DOCS / "cifar10" / f"{options.config}.json"
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
