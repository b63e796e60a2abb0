"""The runner of a device profile, for any network: what the profiler measures with."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from bcnet_deploy.devices import DeviceProfile, known_devices
from bcnet_deploy.errors import DeviceError
from bcnet_deploy.lut.machine import gpu_name
from bcnet_deploy.profiler.measure import MakeRunner
from bcnet_deploy.runtime.base import Array, Floats, NodeTime, Runner, TensorInfo
from bcnet_deploy.runtime.ort import OrtRunner


def make_runner_of(device: DeviceProfile, *, image_seed: int = 0, threads_sleep: bool = False) -> MakeRunner:
    """How networks are run on ``device``, which must be this machine's.

    Args:
        image_seed: of the images that INT8 engines are calibrated with.
        threads_sleep: for a network that stays loaded while others are measured: its idle threads must not
            spin on the cores of those.

    Raises:
        DeviceError: the device is not here; both ways on are named.
    """
    if device.kind == "gpu":
        check_gpu(device)
    if device.runtime == "onnxruntime":
        provider = "cpu" if device.kind == "cpu" else "cuda"
        return partial(_ort, threads=device.threads or 1, provider=provider, threads_sleep=threads_sleep)
    return partial(_tensorrt, device=device, image_seed=image_seed)


def check_gpu(device: DeviceProfile, model: str | None = None, *, whole: bool = False) -> None:
    """Raises :class:`DeviceError`, with the commands that help, unless the GPU of this machine is ``device``.

    Args:
        device: a GPU.
        model: named in the commands if given.
        whole: for ``bcnet-deploy run``, whose own options help, instead of ``profile``.
    """
    found = gpu_name()
    if found is not None and device.matches_gpu(found):
        return
    here = "no GPU" if found is None else f"the GPU of this machine is {found}"
    given = device.name if known_devices().get(device.name) == device.path else str(device.path)
    command = f"bcnet-deploy profile --device {given}" + (f" --model {model}" if model else "")
    if whole:
        raise DeviceError(
            f"{device.description} is not here ({here}); either run 'bcnet-deploy run --device {given} "
            f"--table FILE' with a latency table that '{command}' wrote on its host, or 'bcnet-deploy run "
            f"--device {given} --estimate' for one from data sheets"
        )
    raise DeviceError(
        f"{device.description} is not here ({here}); either run '{command}' on its host and copy "
        f"latency/{device.name}.json back into the run directory, or estimate it from data sheets with "
        f"'{command} --estimate'"
    )


def _ort(network: bytes, profiling: bool, *, threads: int, provider: str, threads_sleep: bool) -> Runner:
    return OrtRunner(
        network, threads=threads, provider=provider, profiling=profiling, threads_sleep=threads_sleep
    )


def _tensorrt(network: bytes, profiling: bool, *, device: DeviceProfile, image_seed: int) -> Runner:
    return _BuiltEngine(network, device, image_seed)


class _BuiltEngine(Runner):
    """An ONNX network as an engine of this machine's GPU, built when activated, gone when deactivated."""

    def __init__(self, network: bytes, device: DeviceProfile, image_seed: int) -> None:
        super().__init__(f"TensorRT ({device.name})")
        self.network = network
        self.device = device
        self.image_seed = image_seed
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._runner: Runner | None = None

    def _activate(self) -> None:
        from bcnet_deploy.runtime.trt import TrtRunner

        self._folder = tempfile.TemporaryDirectory(prefix="bcnet-trt-")
        try:
            path = Path(self._folder.name) / "network.engine"
            self._build(path)
            self._runner = TrtRunner(path)
            self._runner.activate()
        except BaseException:
            self._deactivate()
            raise

    def _build(self, path: Path) -> None:
        import onnx

        from bcnet_deploy.export.precision import to_fp16, to_int8
        from bcnet_deploy.runtime.engine_file import EngineInfo, write_engine
        from bcnet_deploy.runtime.trt_build import build_plan, find_flavour

        model = onnx.load_from_string(self.network)
        size = tuple(dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim)
        nodes = tuple(node.name for node in model.graph.node)
        if self.device.precision == "fp16":
            model = to_fp16(model)
        elif self.device.precision == "int8":
            # Ranges do not change how long a kernel takes, so that random images will do.
            images = np.random.default_rng(self.image_seed).standard_normal(size).astype(np.float32)
            model = to_int8(model, images, target="trt")
        data = model.SerializeToString()
        flavour, capability = find_flavour(), str(self.device.compute_capability)
        plan = build_plan(data, flavour, capability)
        info = EngineInfo(
            flavour=flavour.name, version=flavour.version, capability=capability,
            precision=self.device.precision, batch=(size[0],) * 3,
            input_name=model.graph.input[0].name, input_size=(size[1], size[2], size[3]),
            onnx_sha256=hashlib.sha256(data).hexdigest(), engine_sha256=hashlib.sha256(plan).hexdigest(),
            size_bytes=len(plan), nodes=nodes, network={}, device=self.device.name, built_on="",
        )  # fmt: skip
        write_engine(path, plan, info)

    def _deactivate(self) -> None:
        if self._runner is not None:
            self._runner.deactivate()
            self._runner = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _inner(self) -> Runner:
        assert self._runner is not None
        return self._runner

    def _inputs(self) -> tuple[TensorInfo, ...]:
        return self._inner().inputs

    def _outputs(self) -> tuple[TensorInfo, ...]:
        return self._inner().outputs

    def _infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return self._inner().infer(feeds)

    def _latencies(self, feeds: Mapping[str, Array], runs: int, warmup: int) -> Floats:
        return self._inner().latencies(feeds, runs=runs, warmup=warmup)

    def _node_times(self, feeds: Mapping[str, Array], runs: int, warmup: int) -> list[NodeTime]:
        return self._inner().node_times(feeds, runs=runs, warmup=warmup)
