"""One part of ``benchmarks/gpu_day.sh``: what a GPU does, added to one JSON file.

    python benchmarks/gpu_day.py {training,evaluation,engines,table} [--dry] [--out gpu_day.json]

Times are of synchronised runs after warm-up, medians of the repeats. ``--dry`` takes the CPU and the demo
network, so that every line has run before a GPU is at hand; its figures say nothing.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import bcnet_deploy as bd
from bcnet_deploy import files
from bcnet_deploy.devices import DeviceProfile, known_devices, load_device
from bcnet_deploy.errors import BCNetError
from bcnet_deploy.export import build_engine, export_onnx
from bcnet_deploy.models import default_input_size
from bcnet_deploy.profiler.profiling import profile
from bcnet_deploy.runtime.machine import describe_machine
from bcnet_deploy.runtime.trt_build import gpu
from bcnet_deploy.tasks import load_task
from bcnet_deploy.train.config import TrainConfig
from bcnet_deploy.train.graphs import GraphedPaths
from bcnet_deploy.train.paths import PathRunner
from bcnet_deploy.train.samplers import Slice


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts: dict[str, Callable[[bool], Any]] = {
        "training": training, "evaluation": evaluation, "engines": engines, "table": table,
    }  # fmt: skip
    parser.add_argument("part", choices=parts)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("gpu_day.json"))
    arguments = parser.parse_args()
    if not arguments.dry and not torch.cuda.is_available():
        raise SystemExit("no CUDA GPU here; --dry rehearses on the CPU")
    found = parts[arguments.part](arguments.dry)
    kept = files.read_json(arguments.out, BCNetError, "GPU day") if arguments.out.exists() else {}
    about = {"dry": arguments.dry, "gpu": gpu(), "torch": torch.__version__, "machine": describe_machine()}
    files.write_json(arguments.out, {**kept, **about, arguments.part: found})
    print(found, flush=True)


def network(dry: bool) -> tuple[str, nn.Module, bd.WidthSpace, tuple[int, int, int], torch.device, int]:
    """Name, model, space, input size, device and batch."""
    name = "demo" if dry else "mobilenet_v2"
    size = default_input_size(name)
    model = bd.build_model(name)
    space = bd.WidthSpace.from_model(model, size)
    return name, model, space, size, torch.device("cpu" if dry else "cuda"), 16 if dry else 128


def median_s(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Seconds of one run, the device waited for."""
    times = []
    for index in range(repeats + 2):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if index >= 2:
            times.append(time.perf_counter() - start)
    return float(np.median(times))


def training(dry: bool) -> dict[str, Any]:
    """A pass of the supernet's slice against plain networks: full, and extracted at the same widths."""
    name, model, space, size, device, batch = network(dry)
    rng = np.random.default_rng(0)
    x = torch.randn(batch, *size, device=device)
    labels = torch.randint(0, 10, (batch,), device=device)
    half = space.uniform(0.5)
    supernet = bd.Supernet(model, space).train().to(device)
    extracted = space.extract(model.cpu() if dry else bd.build_model(name), half).train().to(device)
    full = bd.build_model(name).train().to(device)

    def one(net: nn.Module) -> Callable[[], None]:
        def run() -> None:
            net.zero_grad(set_to_none=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=not dry):
                loss = nn.functional.cross_entropy(net(x), labels)
            loss.backward()

        return run

    def sliced() -> None:
        supernet.set_active(space.random(1, rng)[0], side="left")
        one(supernet)()

    repeats = 3 if dry else 30
    plain_s = median_s(one(full), device, repeats)
    extracted_s = median_s(one(extracted), device, repeats)
    supernet.set_active(half, side="left")
    half_s = median_s(one(supernet), device, repeats)
    random_s = median_s(sliced, device, repeats)
    graphs = [
        graphed_s(bd.Supernet(bd.build_model(name), space), x, labels, repeats, dry, on)
        for on in (False, True)
    ]
    return {
        "model": name, "batch": batch, "plain_images_per_s": batch / plain_s,
        "random_slice_images_per_s": batch / random_s, "half_slice_over_extracted": half_s / extracted_s,
        "random_step_images_per_s": batch / graphs[0], "random_graphed_step_images_per_s": batch / graphs[1],
    }  # fmt: skip


def graphed_s(
    supernet: bd.Supernet, x: torch.Tensor, labels: torch.Tensor, repeats: int, dry: bool, graphs: bool
) -> float:
    """Seconds of forward and backward of a random slice as training runs it, by a CUDA graph or not."""
    config = TrainConfig(amp="off" if dry else "bf16")
    supernet.train().to(x.device)
    scaler = torch.amp.GradScaler(x.device.type, enabled=False)
    runner = GraphedPaths if graphs and not dry else PathRunner
    paths = runner(supernet, supernet, config, x.device, scaler, load_task("classification"))
    rng = np.random.default_rng(1)

    def run() -> None:
        supernet.zero_grad(set_to_none=False)
        paths((Slice(supernet.space.random(1, rng)[0], "left"),), x, labels)

    return median_s(run, x.device, repeats)


def evaluation(dry: bool) -> dict[str, Any]:
    """Networks a second, forward alone, switching widths each time."""
    name, model, space, size, device, batch = network(dry)
    supernet = bd.Supernet(model, space).eval().to(device)
    x = torch.randn(batch, *size, device=device)
    rng = np.random.default_rng(0)

    def run() -> None:
        supernet.set_active(space.random(1, rng)[0], side="left")
        with torch.inference_mode():
            supernet(x)

    seconds = median_s(run, device, 5 if dry else 50)
    return {"model": name, "batch": batch, "networks_per_s": 1 / seconds, "images_per_s": batch / seconds}


def this_device(dry: bool) -> DeviceProfile:
    """The shipped profile of this GPU, else one made of what the driver says."""
    present = gpu()
    if dry or present is None:
        return load_device("cpu-1thread")
    for known in map(load_device, known_devices()):
        if known.kind == "gpu" and known.matches(present[0]):
            return known
    return DeviceProfile(
        name="this-gpu", kind="gpu", runtime="tensorrt", precision="fp16", compute_capability=present[1],
        device_names=(present[0],),
    )  # fmt: skip


def engines(dry: bool) -> dict[str, Any]:
    """Engines in every precision: built, compared with ONNX Runtime on the CPU, timed."""
    _, model, _, size, _, _ = network(dry)
    device, found = this_device(dry), {}
    runtime = device.run_by()
    images = np.random.default_rng(0).standard_normal((16, *size)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        for precision in ("fp32", "int8") if dry else ("fp32", "fp16", "int8"):
            try:
                onnx = Path(folder) / f"{precision}.onnx"
                export_onnx(
                    model.eval().cpu(), onnx, size, parity_inputs=None, precision=precision,  # type: ignore[arg-type]
                    calibration_inputs=images, target=runtime.quantised_for,
                )  # fmt: skip
                path = onnx.with_suffix(runtime.suffix)
                # INT8 files for TensorRT are not run by ONNX Runtime's fusions: parity of the others alone.
                compared = None if precision == "int8" else images
                built = build_engine(onnx, path, device, precision, parity_inputs=compared)
                with runtime.engine_runner(path, device) as runner:
                    times = runner.latencies(
                        runner.random_feeds(np.random.default_rng(0)), runs=50, warmup=20
                    )
                found[precision] = {
                    **built.to_dict(), "median_ms": float(np.median(times)), "min_ms": float(times.min()),
                }  # fmt: skip
            except BCNetError as error:
                found[precision] = {"error": str(error)}
    return {"device": device.name, **found}


def table(dry: bool) -> dict[str, Any]:
    """A measured latency table and its error on held-out networks."""
    name, model, space, _, _, _ = network(dry)
    device = this_device(dry)
    try:
        made = profile(model.eval().cpu(), space, device, budget_s=6 if dry else 80)
    except BCNetError as error:
        return {"device": device.name, "model": name, "error": str(error)}
    return {
        "device": device.name, "model": name, "accuracy": made.network.accuracy,
        "networks_measured": made.provenance["networks_measured"],
        "full_ms": float(made.predict(space.full)[0]),
    }  # fmt: skip


if __name__ == "__main__":
    main()
