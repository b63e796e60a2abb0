"""TensorRT-RTX engines for GPUs that are not here, from networks at random widths.

For MobileNetV2, ResNet-50 and EfficientNet-B0: a random width vector, extraction, export, and an engine
for each compute capability and precision; what of each engine is checked without its GPU; and what is
refused, with the reason. Results in ``docs/engines.json`` and ``docs/engines.md``. Goes on where it was
stopped.

    python benchmarks/bm_engines.py [--models mobilenet_v2,...] [--seed 0] [--fresh]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bcnet_deploy as bd
from bcnet_deploy import files
from bcnet_deploy.devices import load_device
from bcnet_deploy.errors import BCNetError
from bcnet_deploy.export import ModelMetadata, build_engine, export_onnx
from bcnet_deploy.nn import recalibrate
from bcnet_deploy.runtime.engine_file import read_engine
from bcnet_deploy.runtime.trt_build import find_flavour

DOCS = Path(__file__).resolve().parent.parent / "docs"
RESULTS = DOCS / "engines.json"
MODELS = ("mobilenet_v2", "resnet50", "efficientnet_b0")
TARGETS = (
    ("7.5", "t4", ("fp16", "int8", "fp32")),
    ("8.6", "a10", ("fp32", "fp16", "int8")),
    ("8.9", "rtx-4090", ("fp32", "fp16", "int8")),
    ("12.0", "", ("fp32", "fp16", "int8")),
)
SIZE = (3, 224, 224)
IMAGES = 8


def device(capability: str, name: str) -> Any:
    """The shipped profile; for a capability without one, the nearest with its capability replaced."""
    if name:
        return load_device(name)
    return dataclasses.replace(load_device("rtx-4090"), name="sm" + capability, compute_capability=capability)


def measure(name: str, seed: int, folder: Path) -> list[dict[str, Any]]:
    """Every target of one model."""
    torch.manual_seed(seed)
    model = bd.build_model(name, num_classes=10).eval()
    space = bd.WidthSpace.from_model(model, input_size=SIZE)
    widths = space.random(1, np.random.default_rng(seed))[0]
    net = space.extract(model, widths).eval()
    images = torch.randn((IMAGES, *SIZE), generator=torch.Generator().manual_seed(seed))
    recalibrate(net, [images])
    by_name = {variable.name: int(width) for variable, width in zip(space.variables, widths, strict=True)}
    metadata = ModelMetadata(model={"name": name}, widths=by_name, fingerprint=space.fingerprint)
    exported = {}
    for precision in ("fp32", "fp16", "int8"):
        path = folder / f"{precision}.onnx"
        result = export_onnx(
            net, path, SIZE, precision=precision, target="trt", metadata=metadata, parity_inputs=images,
            tolerance=1e30, minimum_top1=0.0,
        )  # fmt: skip
        exported[precision] = (path, result)
    rows = []
    for capability, profile, precisions in TARGETS:
        for precision in precisions:
            path, source = exported[precision]
            row: dict[str, Any] = {
                "model": name, "seed": seed, "capability": capability, "precision": precision,
                "macs": int(space.macs(widths)[0]), "full_macs": int(space.macs(space.full)[0]),
            }  # fmt: skip
            start = time.perf_counter()
            try:
                engine = build_engine(path, folder / "net.engine", device(capability, profile), precision)
                _, info = read_engine(folder / "net.engine")
                assert dict(info.network["widths"]) == by_name and info.onnx_sha256 == source.sha256
                row |= {
                    "built": True, "seconds": round(time.perf_counter() - start, 2),
                    "size_bytes": info.size_bytes, "checked": [*engine.checked, "sidecar: ONNX hash, widths"],
                    "deserialised": engine.deserialised,
                }  # fmt: skip
            except BCNetError as error:
                row |= {"built": False, "reason": str(error)}
            rows.append(row)
            print({key: row[key] for key in ("model", "capability", "precision", "built")}, flush=True)
    return rows


def page(results: dict[str, Any]) -> str:
    """The result page."""
    rows = results["rows"]
    built = [row for row in rows if row["built"]]
    refused = [row for row in rows if not row["built"]]
    loaded = [row for row in built if row["deserialised"]]
    lines = [
        "# Engines without a GPU", "",
        f"{results['flavour']} built {len(built)} engines from {len({r['model'] for r in rows})} networks at"
        f" random widths ({'x'.join(map(str, SIZE))}, batch 1); {len(loaded)} of them could be loaded on a"
        " GPU here, so of the others correctness and speed on their GPU are not shown. Made by"
        " `python benchmarks/bm_engines.py`.", "",
        "| model | MACs of full | compute capability | precision | size | built in |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in built:
        lines.append(
            f"| {row['model']} | {row['macs'] / row['full_macs']:.0%} | {row['capability']} "
            f"| {row['precision']} | {row['size_bytes'] / 2**20:.1f} MiB | {row['seconds']:.1f} s |"
        )
    if built:
        lines += [
            "", "Checked of each without its GPU: " + ", ".join(built[0]["checked"]) + ". Version,"
            " compute capability and size are read from the head of the plan, whose layout is not documented:"
            " it is as observed with this version.",
        ]  # fmt: skip
    lines += ["", "Refused, before any work, as the command line says it:", ""]
    for reason in dict.fromkeys(row["reason"] for row in refused):
        which = ", ".join(
            f"{row['model']} {row['capability']} {row['precision']}"
            for row in refused
            if row["reason"] == reason
        )
        lines.append(f"- {which}: {reason}")
    lines += ["", "INT8 keeps what is not quantised in FP16."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"rows": []}
    if RESULTS.exists() and not arguments.fresh:
        results = json.loads(RESULTS.read_text())
    results["flavour"] = str(find_flavour("tensorrt_rtx"))
    for name in arguments.models.split(","):
        if any(row["model"] == name for row in results["rows"]):
            continue
        with tempfile.TemporaryDirectory() as folder:
            results["rows"] += measure(name, arguments.seed, Path(folder))
        files.write_json(RESULTS, results)
        files.write_text(DOCS / "engines.md", page(results))


if __name__ == "__main__":
    main()
