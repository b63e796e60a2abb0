"""Segmentation and detection networks from end to end: width space, latency table, extraction, export, bench.

    python -m benchmarks.check_dense check [NAME ...]          # no timing: may share the machine
    python -m benchmarks.check_dense table NAME [--budget 90]  # timing: wants the machine alone
    python -m benchmarks.check_dense wide [--minutes M]        # every architecture of smp, resumable
    python -m benchmarks.check_dense page                      # docs/dense.md from the results

``check``: for random widths, left and right, the supernet's slice must equal the extracted network in float64
in every output; multiply-accumulates are those that torch's FlopCounterMode counts, parameters those of the
extracted network. ``wide`` does that, and nothing else, for every architecture of
segmentation_models_pytorch with three encoders, at 128 pixels, and keeps typed refusals. In ``check`` the
network cut to half of its widths is exported and compared with PyTorch on images of noise, as classifiers
are. ``table``: a table from nothing, then held-out networks of another seed, each in interleaved rounds (as
in ``bm_lut_accuracy``), and the exported half-width network against its prediction.
Networks have random weights; their speed does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import nn
from torch.utils import _pytree as pytree

import bcnet_deploy as bd
from bcnet_deploy import files
from bcnet_deploy.devices import load_device
from bcnet_deploy.profiler.fitting import validate
from bcnet_deploy.profiler.measure import measure_plain
from bcnet_deploy.profiler.narrow import NetworkMaker
from bcnet_deploy.profiler.profiling import make_runner_of, profile_device
from benchmarks.bm_lut_accuracy import measure_rounds
from benchmarks.check_timm import frozen_share, reasons
from tests import zoo

DOCS = Path(__file__).resolve().parent.parent / "docs"
RESULTS, WIDE_RESULTS = DOCS / "dense.json", DOCS / "dense_wide.json"
DEVICE = "cpu-1thread"
TOLERANCE, VECTORS, HELD_OUT, ROUNDS, RUNS = 1e-9, 3, 16, 4, 5


class DetectorHeads(nn.Module):
    """A detector of torchvision's up to the raw outputs of its heads: boxes and scores of every anchor."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """(N, 3, H, W) -> ``bbox_regression`` (N, anchors, 4), ``cls_logits`` (N, anchors, classes)."""
        outputs: dict[str, torch.Tensor] = self.head(list(self.backbone(x).values()))
        return outputs


def ssdlite() -> nn.Module:
    build = torchvision.models.detection.ssdlite320_mobilenet_v3_large
    return DetectorHeads(build(weights=None, weights_backbone=None))


def _yolo(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from ultralytics.nn.tasks import DetectionModel

        model: nn.Module = DetectionModel(f"{name}.yaml", nc=80, verbose=False)
        return model

    return build


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "DeepLabV3-MobileNetV3": (
        lambda: bd.build_model("torchvision:deeplabv3_mobilenet_v3_large", num_classes=21), 256,
    ),
    "LR-ASPP-MobileNetV3": (
        lambda: bd.build_model("torchvision:lraspp_mobilenet_v3_large", num_classes=21), 256,
    ),
    "Unet-ResNet18": (lambda: bd.build_model("smp:unet/resnet18", num_classes=21), 256),
    "MAnet-MobileNetV2": (lambda: bd.build_model("smp:manet/mobilenet_v2", num_classes=21), 128),
    "SSDlite320 up to its heads": (ssdlite, 320),
    **{name: (_yolo(name), 320) for name in ("yolov5n", "yolov8n", "yolov10n", "yolo11n")},
}  # fmt: skip
"""Builders and sides of the square input. The last need ultralytics, and are built from its YAML."""


ARCHITECTURES = (
    "unet", "unetplusplus", "manet", "linknet", "fpn", "pspnet", "deeplabv3", "deeplabv3plus", "pan",
    "upernet", "segformer",
)  # fmt: skip
ENCODERS = ("resnet18", "mobilenet_v2", "efficientnet-b0")
WIDE_SIDE = 128


def wide(architecture: str, encoder: str) -> dict[str, Any]:
    """Width space and exactness of one of smp's networks; ``status`` is right, wrong, refused or crashed."""
    torch.manual_seed(0)
    try:
        model = bd.build_model(f"smp:{architecture}/{encoder}", num_classes=21).eval()
        started = time.process_time()
        space = bd.WidthSpace.from_model(model, (3, WIDE_SIDE, WIDE_SIDE))
        row: dict[str, Any] = {
            "space_s": round(time.process_time() - started, 1), "variables": len(space.variables),
            "frozen_share": round(frozen_share(space), 4), "frozen": reasons(space)[:2],
            **exactness(model, space),
        }  # fmt: skip
    except bd.BCNetError as error:
        return {"status": "refused", "reason": str(error)[:300]}
    except Exception as error:  # one network's defect must not hide the others'
        return {"status": "crashed", "reason": f"{type(error).__name__}: {error}"[:300]}
    right = row["difference"] <= TOLERANCE and row["costs_exact"]
    return {"status": "right" if right else "wrong", **row}


def all_wide(out: Path, minutes: float) -> None:
    """:func:`wide` for every pair that ``out`` does not hold yet."""
    until = time.monotonic() + 60 * minutes
    data = json.loads(out.read_text()) if out.exists() else {}
    for encoder in ENCODERS:
        for architecture in ARCHITECTURES:
            name = f"{architecture}/{encoder}"
            if name not in data and time.monotonic() < until:
                data[name] = wide(architecture, encoder)
                files.write_json(out, data)
                print(name, json.dumps(data[name], default=float), flush=True)


def built(name: str) -> tuple[nn.Module, bd.WidthSpace, float]:
    """The network, its space and the seconds that the space took."""
    torch.manual_seed(0)
    make, side = NETWORKS[name]
    model = make().eval()
    started = time.process_time()
    space = bd.WidthSpace.from_model(model, (3, side, side))
    return model, space, round(time.process_time() - started, 1)


def check(name: str) -> dict[str, Any]:
    """Everything that needs no timing."""
    model, space, seconds = built(name)
    side = space.input_size[1]
    row: dict[str, Any] = {
        "input": side, "space_s": seconds, "variables": len(space.variables),
        "gmacs": round(int(space.macs(space.full)[0]) / 1e9, 3),
        "params_m": round(int(space.params(space.full)[0]) / 1e6, 3),
        "frozen_share": round(frozen_share(space), 4), **exactness(model, space),
    }  # fmt: skip
    half = space.uniform(0.5)
    with tempfile.TemporaryDirectory() as folder:
        result = bd.export(space.extract(model.float(), half), Path(folder) / "half.onnx", space.input_size)
    assert hasattr(result, "operators") and result.parity is not None
    parity = result.parity
    return {
        **row, "exporter": result.exporter, "outputs": len(pytree.tree_leaves(outputs_of(model, side))),
        "parity_error": parity.max_relative_error, "parity_top1": parity.top1_agreement,
        "parity_decisions": parity.decisions, "parity_passed": parity.passed,
    }  # fmt: skip


def outputs_of(model: nn.Module, side: int) -> Any:
    with torch.no_grad():
        return model(torch.zeros(1, 3, side, side, dtype=next(model.parameters()).dtype))


def exactness(model: nn.Module, space: bd.WidthSpace) -> dict[str, Any]:
    """Largest relative difference of slice and extraction; whether the costs are those counted."""
    model = model.double()
    supernet = bd.Supernet(model, space).eval()
    x = torch.randn(1, *space.input_size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    worst, costs = 0.0, True
    for widths in space.random(VECTORS, np.random.default_rng(0)):
        for side in ("left", "right"):
            supernet.set_active(widths, side)
            subnet = space.extract(model, widths, side).eval()
            with torch.no_grad():
                pairs = zip(pytree.tree_leaves(supernet(x)), pytree.tree_leaves(subnet(x)), strict=True)
                for ours, theirs in pairs:
                    assert ours.shape == theirs.shape
                    difference = float((ours - theirs).abs().max())
                    worst = max(worst, difference / max(float(theirs.abs().max()), 1e-30))
        costs &= zoo.counted_params(subnet) == space.params(widths)[0]
        costs &= zoo.counted_macs(subnet, space.input_size) == space.macs(widths)[0]
    return {"difference": worst, "costs_exact": bool(costs)}


def table(name: str, budget: float) -> dict[str, Any]:
    """A table and how far it is off; the half-width network against its prediction."""
    torch.set_num_threads(1)
    device = load_device(DEVICE)
    model, space, _ = built(name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.json"
        made = profile_device(model, space, device, path, budget_s=budget, seed=0, fresh=True)
        maker = NetworkMaker(model, space)
        rng = np.random.default_rng(20260)
        widths = space.random(HELD_OUT, rng)
        image = rng.standard_normal((1, *space.input_size)).astype(np.float32)
        reference = made.provenance["reference_widths"]
        rounds, references = measure_rounds(device, maker, widths, reference, image, ROUNDS, RUNS, rng)
        speed = float(np.median(references)) / float(made.provenance["reference_ms"])
        raw, even = validate(made.predict(widths), rounds), validate(made.predict(widths), rounds / speed)
        half = space.uniform(0.5)
        exported = bd.export(space.extract(model, half), Path(folder) / "half.onnx", space.input_size)
        network = (Path(folder) / "half.onnx").read_bytes()
        assert exported is not None
        times = [
            float(measure_plain(make_runner_of(device), network, image, runs=RUNS).min())
            for _ in range(ROUNDS)
        ]
    predicted = float(made.predict(half)[0])
    measured = float(np.median(times))
    return {
        "budget_s": budget, "networks": made.provenance.get("networks_measured"),
        "full_ms": round(float(made.predict(space.full)[0]), 3), "held_out": HELD_OUT,
        "error": raw.mape, "even_error": even.mape, "noise_floor": raw.noise_floor,
        "kendall": raw.kendall, "own_error": made.network.accuracy,
        "half_predicted_ms": round(predicted, 3), "half_measured_ms": round(measured, 3),
        "runtime": made.provenance.get("runtime_version"), "cpu": made.provenance.get("cpu_model"),
    }  # fmt: skip


INTRODUCTION = f"""
# Segmentation and detection networks

Random weights, no download; YOLO is built from its YAML by ultralytics. SSDlite is taken up to the raw
outputs of its heads, YOLO whole, anchors and the decoding of boxes included. Made by
`python -m benchmarks.check_dense`, whose head says how.

## Width space, extraction, export

Slice against extraction is the largest relative difference in float64 of all outputs, left and right, at
{VECTORS} random width vectors. Costs are exact if parameters and multiply-accumulates are those counted on
the extracted networks. Parity: the network at half of all widths, in ONNX Runtime against PyTorch, on 32
images of noise; agreement is by pixel.
"""

TABLES = f"""
Held-out networks: {HELD_OUT} random width vectors of a seed of their own, {ROUNDS} interleaved rounds. The
noise floor is the mean difference of two halves of the rounds. *Even speed*: with the drift of a reference
network between table and evaluation divided out. The bar is 3%, or 1.2 times the noise floor.
"""


def wide_lines(data: dict[str, Any]) -> list[str]:
    """The table of architectures and encoders."""
    lines = ["", "## Architectures of segmentation_models_pytorch", ""]
    lines.append(
        f"Random weights, {WIDE_SIDE} pixels. *right*: slice and extraction are equal and costs exact, as "
        "above; then width variables and frozen share of the multiply-accumulates."
    )
    lines += ["", "| | " + " | ".join(ENCODERS) + " |", "|" + "---|" * (1 + len(ENCODERS))]
    for architecture in ARCHITECTURES:
        cells = []
        for encoder in ENCODERS:
            row = data.get(f"{architecture}/{encoder}", {"status": "-"})
            found = f", {row['variables']}, {row['frozen_share']:.1%}" if "variables" in row else ""
            cells.append(row["status"] + found)
        lines.append(f"| {architecture} | " + " | ".join(cells) + " |")
    return lines


def page(data: dict[str, Any], wide: dict[str, Any]) -> str:
    """The results as Markdown."""
    rows = {name: row for name, row in data.items() if "check" in row}
    lines = [
        *INTRODUCTION.strip().splitlines(),
        "",
        "| network | input | variables | GMACs | parameters | frozen MACs | space, s | slice against "
        "extraction | costs exact | outputs | parity error | agreement | passed |",
        "|" + "---|" * 13,
    ]
    for name, row in rows.items():
        one = row["check"]
        agreed = f"{one['parity_top1']:.4%}" if one["parity_decisions"] != 0 else "-"
        lines.append(
            f"| {name} | {one['input']} | {one['variables']} | {one['gmacs']:.2f} | {one['params_m']:.2f}M | "
            f"{one['frozen_share']:.1%} | {one['space_s']} | {one['difference']:.0e} | "
            f"{'yes' if one['costs_exact'] else 'no'} | {one['outputs']} | {one['parity_error']:.1e} | "
            f"{agreed} | {'yes' if one['parity_passed'] else 'no'} |"
        )
    if wide:
        lines += wide_lines(wide)
    timed = {name: row["table"] for name, row in data.items() if "table" in row}
    if timed:
        some = next(iter(timed.values()))
        machine = (
            f"{some['cpu']}, a virtual machine, one thread, ONNX Runtime {some['runtime']}, FP32, batch 1."
        )
        lines += [
            "",
            "## Latency tables",
            "",
            machine,
            *TABLES.strip().splitlines(),
            "",
            "| network | budget, s | networks measured | full, ms | mean error | at even speed | noise "
            "floor | Kendall | half width: predicted, ms | measured, ms | bar |",
            "|" + "---|" * 11,
        ]
        for name, one in timed.items():
            bar = max(0.03, 1.2 * one["noise_floor"])
            met = (
                "met"
                if one["error"] <= bar
                else "met at even speed"
                if one["even_error"] <= bar
                else "missed"
            )
            lines.append(
                f"| {name} | {one['budget_s']:.0f} | {one['networks']} | {one['full_ms']:.1f} | "
                f"{one['error']:.2%} | {one['even_error']:.2%} | {one['noise_floor']:.2%} | "
                f"{one['kendall']:.3f} | {one['half_predicted_ms']:.2f} | {one['half_measured_ms']:.2f} | "
                f"{met} |"
            )
        for name, row in data.items():
            if "table_before" in row:
                before = row["table_before"]
                lines += [
                    "",
                    f"{name}, measured before with {before['budget_s']:.0f} s: mean error "
                    f"{before['error']:.2%}, noise floor {before['noise_floor']:.2%}, from "
                    f"{before['networks']} networks.",
                ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["check", "table", "wide", "page"])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--budget", type=float, default=90.0)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    if arguments.action == "wide":
        all_wide(WIDE_RESULTS if arguments.out == RESULTS else arguments.out, arguments.minutes)
        return
    for name in (arguments.names or list(NETWORKS)) if arguments.action != "page" else ():
        found = check(name) if arguments.action == "check" else table(name, arguments.budget)
        # Read again: the two actions may run side by side.
        data = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
        data.setdefault(name, {})[arguments.action] = found
        files.write_json(arguments.out, {key: data[key] for key in NETWORKS if key in data})
        print(name, json.dumps(found, default=float), flush=True)
    if arguments.action == "page":
        other = json.loads(WIDE_RESULTS.read_text()) if WIDE_RESULTS.exists() else {}
        text = page(json.loads(arguments.out.read_text()), other)
        files.write_text(arguments.out.with_suffix(".md"), text)
        print(text)


if __name__ == "__main__":
    main()
