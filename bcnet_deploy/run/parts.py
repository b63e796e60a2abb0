"""The parts of a run without its directory, for notebooks: a table, a supernet, an exported network."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from bcnet_deploy.devices import DeviceProfile
    from bcnet_deploy.export import EngineResult, ExportResult
    from bcnet_deploy.nn import Supernet
    from bcnet_deploy.train import SupernetResult


def train_supernet(
    supernet: Supernet, data: Any, *, folder: str | Path | None = None, seed: int = 0, **settings: Any
) -> SupernetResult:
    """Train a supernet in place, and return its figures.

    Args:
        supernet: with its initial weights.
        data: what :func:`bcnet_deploy.data.load_data` takes: a name, arrays, a data set.
        folder: where checkpoints, records and weights stay; None: nothing is kept.
        seed: of widths, order and crops.
        settings: ``recipe`` and settings of :class:`bcnet_deploy.train.TrainConfig`.

    Raises:
        ConfigError, DataError, TrainingError: see :func:`bcnet_deploy.train.train_supernet`.
    """
    from bcnet_deploy.data import load_data
    from bcnet_deploy.run.settings import step_settings
    from bcnet_deploy.train import train_supernet as train

    splits = load_data(data, supernet.space.input_size)
    config = step_settings("train", settings).config(data if isinstance(data, str) else None)
    if folder is not None:
        return train(supernet, splits, config, Path(folder), seed=seed)
    with tempfile.TemporaryDirectory() as kept:
        return train(supernet, splits, config, Path(kept), seed=seed)


def export(
    net: nn.Module,
    path: str | Path,
    input_size: tuple[int, int, int],
    *,
    images: Any = None,
    device: DeviceProfile | str | None = None,
    **settings: Any,
) -> ExportResult | EngineResult:
    """Write a network as an ONNX file, and as the engine of a device's runtime; checked against PyTorch.

    Args:
        net: takes (N, C, H, W) float32.
        path: of the ONNX file; an engine gets its runtime's suffix.
        input_size: (C, H, W).
        images: (N, C, H, W) preprocessed float32 images for the comparison; None: noise.
        device: profile, or its name, whose engine is built; None: an ONNX file alone.
        settings: see :func:`bcnet_deploy.export.export_onnx`.

    Raises:
        ExportError, EngineError, RunDirError: see :func:`bcnet_deploy.export.export_onnx` and
            :func:`bcnet_deploy.export.build_engine`.
    """
    from bcnet_deploy.devices import load_device
    from bcnet_deploy.export import build_engine, export_onnx
    from bcnet_deploy.run.export import noise

    inputs = noise(input_size) if images is None else images
    written = export_onnx(net, path, input_size, parity_inputs=inputs, **settings)
    if device is None:
        return written
    profile = load_device(device) if isinstance(device, str) else device
    engine = Path(path).with_suffix(profile.run_by().suffix)
    return build_engine(written.path, engine, profile, parity_inputs=inputs)


__all__ = ["export", "train_supernet"]
