"""Every runtime there is: those of this package, those of installed packages, and one's own."""

from __future__ import annotations

from typing import Any

from bcnet_deploy import references
from bcnet_deploy.errors import BCNetError, DeviceError
from bcnet_deploy.registry import Registry
from bcnet_deploy.runtime.base import Runtime
from bcnet_deploy.runtime.openvino import OpenVino
from bcnet_deploy.runtime.ort import OnnxRuntime
from bcnet_deploy.runtime.trt import TensorRT

RUNTIMES: Registry[Runtime] = Registry("runtime", "bcnet_deploy.runtimes")
for _runtime in (OnnxRuntime(), TensorRT(), OpenVino()):
    RUNTIMES.register(_runtime.name)(_runtime)


def find_runtime(name: str, error: type[BCNetError] = DeviceError) -> Runtime:
    """The runtime called ``name``: registered, or a class of one's own as ``my_module:MyRuntime`` or
    ``my_file.py:MyRuntime``.

    Raises:
        DeviceError: (or ``error``) there is none of this name, or it is no :class:`Runtime`.
    """
    found: Any
    if references.is_reference(name):
        made = references.find(name, "runtime", error)
        found = references.call(made, name, error)
    else:
        found = RUNTIMES.get(name, error)
        if isinstance(found, type):
            found = found()
    if not isinstance(found, Runtime):
        raise error(f"runtime {name!r} is {type(found).__name__}; needed is a subclass of Runtime")
    return found


def runtime_of_engine(word: str) -> Runtime | None:
    """The runtime whose files ``export --engine`` calls ``word``; None: there is none."""
    return next((r for r in map(find_runtime, RUNTIMES.names()) if r.engine == word), None)
