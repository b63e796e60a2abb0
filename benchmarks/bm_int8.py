"""What INT8 loses of trained networks, by ONNX Runtime and by OpenVINO.

    python -m benchmarks.bm_int8 --data DATA --out results/int8/resnet20.json NAME=FOLDER [NAME=FOLDER ...]
    python -m benchmarks.bm_int8 --decoded FOLDER --out ... NAME=FOLDER   # images of bm_trained.py's ``data``

Each FOLDER holds a retrained network (``weights.safetensors``, ``subnet.yaml``): a run's ``retrain/found``,
or ``base`` and ``tuned/...`` of ``bm_trained.py``. Every network is exported in INT8 as ``bcnet-deploy
export --precision int8`` does it: ranges from training images, whatever is chosen by held-out images.
Then its accuracy on all test images is measured: ONNX Runtime in FP32 and INT8, OpenVINO in INT8 and,
where the CPU can, in BF16. Where INT8 loses more than half a point, it is exported again with
``max_loss=0.005``. The standard error of a loss is that of paired images: it counts those that only one of
the two networks has right.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bcnet_deploy import files
from bcnet_deploy.data import DataSplits, ImageSet, PlainBatches, load_data
from bcnet_deploy.devices import load_device
from bcnet_deploy.errors import BCNetError
from bcnet_deploy.export import export_onnx
from bcnet_deploy.export.parity import run_onnx
from bcnet_deploy.export.quantise import accuracy_on
from bcnet_deploy.nn import load_subnet
from bcnet_deploy.run.export import ACCURACY_IMAGES, CALIBRATION_IMAGES, CALIBRATION_METHODS, images
from bcnet_deploy.runtime.machine import describe_machine
from bcnet_deploy.runtime.registry import find_runtime
from benchmarks.bm_trained import Bench

Floats = npt.NDArray[np.float32]
BAR = 0.005


def labelled(splits: DataSplits, chosen: ImageSet, limit: int | None) -> tuple[Floats, npt.NDArray[np.int64]]:
    batches = list(PlainBatches(chosen, splits, 64, torch.device("cpu"), limit=limit, channels_last=False))
    return (
        np.concatenate([part.numpy() for part, _ in batches]),
        np.concatenate([np.asarray(labels) for _, labels in batches]),
    )


def by_openvino(network: bytes, device: str, given: Floats) -> Floats:
    profile = load_device(device)
    with find_runtime("openvino").runner(network, profile) as runner:
        name = runner.inputs[0].name
        parts = [
            next(iter(runner.infer({name: given[at : at + 100]}).values()))
            for at in range(0, len(given), 100)
        ]
    return np.concatenate(parts).astype(np.float32)


def judge(name: str, folder: Path, splits: DataSplits, limit: int | None) -> dict[str, Any]:
    """The accuracies of one network, on ``limit`` test images."""
    module, about = load_subnet(folder)
    module.eval()
    size = splits.input_size
    calibration = images(splits, splits.train, CALIBRATION_IMAGES[-1])
    score = accuracy_on(*labelled(splits, splits.val, ACCURACY_IMAGES))
    test = splits.open_test()
    assert test is not None
    given, labels = labelled(splits, test, limit)
    right: dict[str, npt.NDArray[np.bool_]] = {}

    def row(kind: str, extra: dict[str, Any]) -> dict[str, Any]:
        gained = right[kind].astype(int) - right["fp32"].astype(int)
        return {
            "network": name, "macs": about["macs"], "kind": kind, "test_accuracy": float(right[kind].mean()),
            "loss": float(-gained.mean()),
            "standard_error": float(gained.std() / len(gained) ** 0.5), **extra,
        }  # fmt: skip

    with tempfile.TemporaryDirectory() as kept:
        path = Path(kept) / "net.onnx"
        export_onnx(module, path, size, parity_inputs=None, batch=None)
        plain = path.read_bytes()
        right["fp32"] = run_onnx(plain, given, batch=100).argmax(1) == labels
        rows = [row("fp32", {})]
        for max_loss in (None, BAR):
            if max_loss is not None and rows[-1]["loss"] <= BAR and rows[-2]["loss"] <= BAR:
                break
            suffix = "" if max_loss is None else f", max_loss {max_loss:g}"
            try:
                result = export_onnx(
                    module, path, size, parity_inputs=None, precision="int8", batch=None,
                    calibration_inputs=calibration, score=score, max_loss=max_loss,
                    methods=CALIBRATION_METHODS, counts=CALIBRATION_IMAGES,
                    chance=1 / splits.num_classes,
                )  # fmt: skip
            except BCNetError as error:
                rows.append({"network": name, "kind": f"int8{suffix}", "error": str(error)})
                break
            assert result.quantised is not None
            network = path.read_bytes()
            for kind, outputs in (
                ("int8 onnxruntime", run_onnx(network, given, batch=100)),
                ("int8 openvino", by_openvino(network, "cpu-openvino-int8", given)),
            ):
                right[kind + suffix] = outputs.argmax(1) == labels
                rows.append(row(kind + suffix, {"held_out": result.quantised.to_dict()}))
        if not find_runtime("openvino").lacking("cpu", "bf16"):
            outputs = by_openvino(plain, "cpu-openvino-bf16", given)
            right["bf16 openvino"] = outputs.argmax(1) == labels
            rows.append(row("bf16 openvino", {}))
    for entry in rows:
        print({key: value for key, value in entry.items() if key != "held_out"}, flush=True)
    return {"test_images": len(given), "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", help="as for the commands")
    parser.add_argument("--decoded", type=Path, help="a folder of bm_trained.py with decoded images")
    parser.add_argument("--images", type=int, help="of the test images; default: all")
    parser.add_argument("--size", type=int, nargs=3, default=(3, 16, 16))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("networks", nargs="+", metavar="NAME=FOLDER")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.decoded is not None:
        splits = Bench("mobilenet", options.decoded, "").splits()
    else:
        splits = load_data(options.data, tuple(options.size))
    result: dict[str, Any] = {
        "data": splits.name, "input_size": list(splits.input_size),
        "machine": {
            **describe_machine(find_runtime("onnxruntime")),
            "openvino": (find_runtime("openvino").installed() or ("", ""))[1],
        },
        "networks": {},
    }  # fmt: skip
    for given in options.networks:
        name, _, folder = given.partition("=")
        result["networks"][name] = judge(name, Path(folder), splits, options.images)
        files.write_json(options.out, result)


if __name__ == "__main__":
    main()
