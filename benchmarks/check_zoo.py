"""Every torchvision classifier and network of ours through the width space, against independent counters.

For each model: 5 random width vectors (any width, not only the choices) are extracted; each extracted
network runs forward, its parameters are counted by summing tensors and its multiply-accumulates by torch's
FlopCounterMode at the model's usual input size. For the first vector, the supernet's left and right
slices must equal the extracted networks in float64: outputs in eval and train mode, batch-norm statistics,
gradients.

    python -m benchmarks.check_zoo [MODEL ...] [--out docs/zoo.json] [--redo | --retime]

Results are kept per model in the JSON file, so that an interrupted run goes on; docs/zoo.md is made from it.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

import bcnet_deploy as bd
from bcnet_deploy import files
from bcnet_deploy.models import default_input_size, model_names
from tests import zoo

ROOT = Path(__file__).resolve().parent.parent
VECTORS = 5


def check(name: str) -> dict[str, Any]:
    """All figures of one model; ``status`` is ok, refused (typed error) or failed."""
    torch.manual_seed(0)
    model = bd.build_model(name)
    input_size, small = default_input_size(name), zoo.small_input(name)
    # Processor time: this check usually runs beside other work, and is paused for it.
    started = time.process_time()
    row: dict[str, Any] = {"input_size": list(input_size), "params_full": zoo.counted_params(model)}
    try:
        space = bd.WidthSpace.from_model(model, input_size)
    except bd.UnsupportedModelError as error:
        return {**row, "status": "refused", "reason": str(error)}
    row |= {
        "space_s": round(time.process_time() - started, 1),
        "variables": len(space.variables),
        "frozen": [[part.name, part.reason] for part in space.frozen],
        "macs_full": int(space.macs(space.full)[0]),
    }
    rng = np.random.default_rng(0)
    widths = np.concatenate([zoo.any_widths(space, VECTORS - 1, rng), space.random(1, rng)])
    macs, params = space.macs(widths), space.params(widths)
    x = torch.randn(2, *small, generator=torch.Generator().manual_seed(0))
    wrong: list[str] = []
    if row["params_full"] != int(space.params(space.full)[0]):
        wrong.append("parameters at full width")
    for i, vector in enumerate(widths):
        net = space.extract(model, vector)
        if zoo.counted_params(net) != params[i]:
            wrong.append(f"parameters of vector {i}: {zoo.counted_params(net)} counted, {params[i]} said")
        with torch.no_grad():
            if not net.eval()(x).isfinite().all():
                wrong.append(f"output of vector {i} is not finite")
        counted = zoo.counted_macs(net, input_size)
        if counted != macs[i]:
            wrong.append(f"MACs of vector {i}: {counted} counted, {macs[i]} said")
    equality = zoo.check_equality(model, space, widths[0], small)
    if not equality.ok:
        wrong.append(f"slice against extraction: {equality}")
    return {
        **row, "status": "failed" if wrong else "ok", "wrong": wrong,
        "eval": equality.eval_mode, "train": equality.train_mode,
        "statistics": equality.statistics, "gradients": equality.gradients,
        "seconds": round(time.process_time() - started, 1),
    }  # fmt: skip


def markdown(data: dict[str, Any]) -> str:
    """The page of docs/ for the results."""
    rows = data["models"]
    count = {
        status: sum(row["status"] == status for row in rows.values())
        for status in ("ok", "refused", "failed")
    }
    lines = [
        "# Models checked",
        "",
        f"Made by `python -m benchmarks.check_zoo` (torch {data['torch']}, torchvision "
        f"{data['torchvision']}): {count['ok']} models pass, {count['refused']} are refused with the typed "
        f"error, {count['failed']} fail.",
        "",
        f"Each passing model: {VECTORS} random width vectors extracted and run; parameters equal to the",
        "summed tensors, multiply-accumulates equal to torch's FlopCounterMode at the input size given,",
        "exactly. The last columns are the largest relative differences between the supernet's slice (left",
        "and right) and the extracted network in float64: output in eval mode, output in train mode,",
        "batch-norm statistics, gradients (of each tensor, by its largest); the bar is 1e-10. Gradients and",
        "statistics outside the slice are exactly untouched. 'space' is the processor time of",
        "`WidthSpace.from_model` on one core, empty where it was not measured (`--retime` does).",
        "",
        "| model | input | variables | MACs | parameters | frozen | space (s) "
        "| eval | train | statistics | gradients |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in sorted(rows):
        row = rows[name]
        if row["status"] == "ok":
            cells = [
                name, "x".join(map(str, row["input_size"])), str(row["variables"]), f"{row['macs_full']:,}",
                f"{row['params_full']:,}", str(len(row["frozen"])), str(row.get("space_s", "")),
                *(f"{row[key]:.0e}" for key in ("eval", "train", "statistics", "gradients")),
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    for status in ("refused", "failed"):
        lines += ["", f"## {status.capitalize()}", ""]
        lines += [
            f"- {name}: {row.get('reason') or '; '.join(row['wrong'])}"
            for name, row in sorted(rows.items())
            if row["status"] == status
        ] or ["None."]
    lines += ["", "## Not checked yet", "", ", ".join(n for n in data["known"] if n not in rows) or "None."]
    lines += [
        "",
        "## Frozen parts",
        "",
        "All names and reasons are in zoo.json; the first of each model:",
        "",
    ]
    lines += [
        f"- {name}, {len(row['frozen'])} parts: `{row['frozen'][0][0]}`: {row['frozen'][0][1]}"
        for name, row in sorted(rows.items())
        if row.get("frozen")
    ] or ["None."]
    return "\n".join(lines) + "\n"


def save(data: dict[str, Any], out: Path) -> None:
    """Results and the page made of them."""
    files.write_json(out, data)
    files.write_text(out.with_suffix(".md"), markdown(data))


def time_space(name: str) -> float:
    """Processor seconds of ``WidthSpace.from_model``."""
    model = bd.build_model(name)
    started = time.process_time()
    bd.WidthSpace.from_model(model, default_input_size(name))
    return round(time.process_time() - started, 1)


def smallest_first(name: str) -> int:
    """Sort key: parameters of the published network; our own networks are small."""
    if name not in torchvision.models.list_models(module=torchvision.models):
        return 0
    return int(torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: all")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "zoo.json")
    parser.add_argument("--redo", action="store_true", help="check again what already passed")
    parser.add_argument("--retime", action="store_true", help="only time the space of what already passed")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    data: dict[str, Any] = {"models": {}}
    if arguments.out.exists():
        data = json.loads(arguments.out.read_text())
    data |= {"torch": torch.__version__, "torchvision": torchvision.__version__, "known": model_names()}
    for name in arguments.models or sorted(model_names(), key=smallest_first):
        if arguments.retime:
            if data["models"].get(name, {}).get("status") == "ok":
                data["models"][name]["space_s"] = time_space(name)
                print(name, data["models"][name]["space_s"], flush=True)
                save(data, arguments.out)
            continue
        if not arguments.redo and data["models"].get(name, {}).get("status") in ("ok", "refused"):
            continue
        try:
            row = check(name)
        except Exception as error:  # one model's defect must not hide the others'
            row = {"status": "failed", "wrong": [f"{type(error).__name__}: {error}"[:500]]}
        data["models"][name] = row
        save(data, arguments.out)
        print(name, json.dumps({k: v for k, v in row.items() if k != "frozen"}), flush=True)


if __name__ == "__main__":
    main()
