"""The demo over seeds: found against uniform scaling, measured against the budget.

    python -m benchmarks.bm_demo run --folder FOLDER --seeds 0 1 2 3 4
    python -m benchmarks.bm_demo wider --folder FOLDER
    python -m benchmarks.bm_demo page --folder FOLDER --out docs
    python -m benchmarks.bm_demo run --config segmentation_demo --folder FOLDER --seeds 0 1 2

``run`` calls ``bcnet-deploy run`` once a seed (run directories that are done cost nothing), ``page`` writes
``demo.json`` and ``demo.md``, or those of the configuration's name, from what the runs left. Every seed has
its own latency table, supernet, search and trainings; ``uniform`` and ``found`` are trained alike.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bcnet_deploy.report.load import gather
from bcnet_deploy.run.directory import RunDir

NETWORKS = ("full", "uniform", "found")


_INTRODUCTION = """`bcnet-deploy run{config} --seed N`, each seed with its own latency table, supernet, search
and trainings. {data} Latencies: the fastest run of each of 10 rounds of 30, median of the rounds, one thread.
Made by `python -m benchmarks.bm_demo run{config}`, then `page`."""
_DATA = {
    "demo": "450 test images: one is 0.22 points.",
    "segmentation_demo": "Mean IoU of 11 classes (background and ten digits) on 400 test canvases.",
}
_TITLES = {"demo": "The demo over seeds", "segmentation_demo": "The segmentation demo over seeds"}


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def run(folder: Path, seeds: list[int], config: str) -> None:
    for seed in seeds:
        command = [sys.executable, "-m", "bcnet_deploy", "run", "--config", config, "--seed", str(seed)]
        subprocess.run([*command, "--run-dir", str(folder / f"s{seed}")], check=True)


def wider(folder: Path, seeds: list[int], level: int) -> None:
    """Train the uniform network of ``level`` of the levels too, which the table's margin may exclude."""
    from bcnet_deploy.run.settings import step_settings
    from bcnet_deploy.train import retrain

    found: dict[str, Any] = {"level": level, "test_top1": {}}
    shares = []
    for seed in seeds:
        run = RunDir(folder / f"s{seed}")
        config = run.load()
        settings = step_settings("retrain", config.steps.get("retrain", {})).config(config.data)
        model, space = run.build(seed)
        row = space.uniform(level / config.model.levels)
        result = retrain(
            model, space, row, run.data(), settings, folder / f"wider-{seed}", model_ref=config.model,
            seed=seed,
        )  # fmt: skip
        found["levels"] = config.model.levels
        found["test_top1"][str(seed)] = result.test_top1
        narrow, full = run.bound_table(config.device, space).predict(np.array([row, space.full]))
        shares.append(narrow / full)
    found["share"] = float(np.mean(shares))
    (folder / "wider.json").write_text(json.dumps(found) + "\n")


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """One row a finished run, by seed."""
    rows = []
    for path in sorted(folder.glob("s*")):
        if not (path / "bench" / "bench.json").exists():
            continue
        content = gather(RunDir(path))
        measured = json.loads((path / "bench" / "bench.json").read_text())["networks"]
        explained = yaml.safe_load((path / "search" / "widths.yaml").read_text())
        row: dict[str, Any] = {
            "seed": int(path.name[1:]), "budget_ms": content.budget_ms,
            "measured_share": content.measured_share,
            "uniform_budget": explained["compared_with"]["uniform"].get("budget", "kept"),
            "seconds": sum(
                json.loads(stamp.read_text())["seconds"] for stamp in (path / "steps").glob("*.json")
            ),
        }  # fmt: skip
        for name in NETWORKS:
            network = content.network(name)
            assert network is not None
            latency = measured[name]["runtimes"]["onnxruntime-cpu"]["latency"]
            row[name] = {
                "test_top1": network.test_metric / 100, "predicted_ms": network.predicted_ms,
                "measured_ms": network.measured_ms, "macs": network.macs,
                "median_ms": latency["median_ms"], "noise_floor": latency["noise_floor"],
            }  # fmt: skip
        rows.append(row)
    return rows


def page(rows: list[dict[str, Any]], wide: dict[str, Any] | None, machine: str, config: str) -> str:
    """The page's text."""
    named = "" if config == "demo" else f" --config {config}"
    gaps = np.array([row["found"]["test_top1"] - row["uniform"]["test_top1"] for row in rows]) * 100
    share = np.array([row["measured_share"] for row in rows])
    over = np.array([row["found"]["measured_ms"] / row["budget_ms"] - 1 for row in rows])
    everything = [row[name] for row in rows for name in NETWORKS]
    errors = np.array([one["measured_ms"] / one["predicted_ms"] - 1 for one in everything])
    head = [
        "seed",
        *NETWORKS,
        "gap",
        "measured full",
        "uniform",
        "found",
        "found / full",
        "over budget",
    ]
    lines = [
        f"# {_TITLES[config]}",
        "",
        f"{_INTRODUCTION.format(config=named, data=_DATA[config])} Machine: {machine}.",
        "",
        _row(head),
        _row(["---"] * len(head)),
    ]
    for row, gap, part, excess in zip(rows, gaps, share, over, strict=True):
        accuracy = [f"{row[n]['test_top1']:.2%}" for n in NETWORKS]
        times = [f"{row[n]['measured_ms'] * 1e3:.1f} µs" for n in NETWORKS]
        lines.append(
            _row(
                [
                    str(row["seed"]),
                    *accuracy,
                    f"{gap:+.2f}",
                    *times,
                    f"{part:.3f}",
                    f"{excess:+.1%}",
                ]
            )
        )
    bars = np.array([max(0.05, 1.2 * one["noise_floor"]) for one in everything])
    by_name = ", ".join(
        f"{name} {np.mean([row[name]['measured_ms'] / row[name]['predicted_ms'] - 1 for row in rows]):+.1%}"
        for name in NETWORKS
    )
    looser = [str(row["seed"]) for row in rows if row["uniform_budget"] != "kept"]
    spread = gaps.std(ddof=1) if len(gaps) > 1 else 0.0
    higher, kept = int((gaps > 0).sum()), int((share <= 0.525).sum())
    lines += [
        "",
        f"- Found against uniform: {gaps.mean():+.2f} points on average, standard deviation {spread:.2f}, "
        f"higher in {higher} of {len(gaps)} seeds.",
        f"- Budget 0.5x of the full network, kept within 5% (measured share at most 0.525): "
        f"{kept} of {len(rows)}.",
        "- Within 5% of the budget in milliseconds, which is half of the *predicted* full latency: "
        f"{int((over <= 0.05).sum())} of {len(rows)}.",
        f"- Measured against predicted, all {len(errors)} networks: mean absolute error "
        f"{np.abs(errors).mean():.1%} (mean {by_name}), largest {np.abs(errors).max():.1%}; within 5% "
        f"(or 1.2 x noise floor): {int((np.abs(errors) <= bars).sum())} of {len(errors)}. Noise floors: "
        f"{min(one['noise_floor'] for one in everything):.1%} to "
        f"{max(one['noise_floor'] for one in everything):.1%}.",
        f"- Time of all steps: {min(row['seconds'] for row in rows):.0f} to "
        f"{max(row['seconds'] for row in rows):.0f} s.",
    ]
    if looser:
        lines += [
            f"- Seeds {', '.join(looser)}: no uniformly scaled network keeps the budget by the table's 95% "
            "margin; the widest whose expected latency keeps it (or the fastest) was compared with.",
        ]
    if wide is not None:
        both = [
            (100 * row["found"]["test_top1"], wide["test_top1"][str(row["seed"])])
            for row in rows if str(row["seed"]) in wide["test_top1"]
        ]  # fmt: skip
        mine, theirs = np.array(both).T
        lines += [
            f"- A wider uniform network, {wide['level']}/{wide['levels']} of every layer, which exceeds the "
            f"budget (predicted {wide['share']:.3f}x of the full network): {theirs.mean():.2f}% on the same "
            f"seeds, found {mine.mean():.2f}%.",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["run", "wider", "page"])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--config", choices=sorted(_DATA), default="demo", help="of run and page")
    parser.add_argument("--level", type=int, default=5, help="of the wider uniform network")
    parser.add_argument("--machine", default="not stated", help="of the runs, for the page")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args()
    if options.action == "run":
        run(options.folder, options.seeds, options.config)
        return
    if options.action == "wider":
        wider(options.folder, options.seeds, options.level)
        return
    rows = rows_of(options.folder)
    extra = options.folder / "wider.json"
    text = page(
        rows, json.loads(extra.read_text()) if extra.exists() else None, options.machine, options.config
    )
    (options.out / f"{options.config}.json").write_text(json.dumps(rows, indent=1) + "\n")
    (options.out / f"{options.config}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
