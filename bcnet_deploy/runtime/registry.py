"""Every runtime there is: those of this package, those of installed packages, and one's own."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from bcnet_deploy.errors import BCNetError, DeviceError
from bcnet_deploy.registry import Registry
from bcnet_deploy.runtime.base import Runtime
from bcnet_deploy.runtime.ort import OnnxRuntime
from bcnet_deploy.runtime.trt import TensorRT

RUNTIMES: Registry[Runtime] = Registry("runtime", "bcnet_deploy.runtimes")
for _runtime in (OnnxRuntime(), TensorRT()):
    RUNTIMES.register(_runtime.name)(_runtime)


def find_runtime(name: str, error: type[BCNetError] = DeviceError) -> Runtime:
    """The runtime called ``name``: registered, or an object of one's own as ``my_module:RUNTIME``.

    Modules are looked for in the current folder too.

    Raises:
        DeviceError: (or ``error``) there is none of this name, or it is no :class:`Runtime`.
    """
    found: Any = _own(name, error) if ":" in name else RUNTIMES.get(name, error)
    if isinstance(found, type) and issubclass(found, Runtime):
        found = found()
    if not isinstance(found, Runtime):
        raise error(f"runtime {name!r} is {type(found).__name__}; needed is an object of a Runtime subclass")
    return found


def runtime_of_package(package: str) -> Runtime | None:
    """The runtime that a latency table was measured with, by the package that it names; None: not here."""
    for name in RUNTIMES.names():
        runtime = find_runtime(name)
        if package == name or package in runtime.packages:
            return runtime
    return None


def runtime_of_engine(word: str) -> Runtime | None:
    """The runtime whose files ``export --engine`` calls ``word``; None: there is none."""
    return next((r for r in map(find_runtime, RUNTIMES.names()) if r.engine == word), None)


def _own(reference: str, error: type[BCNetError]) -> Any:
    module, _, attribute = reference.partition(":")
    here = os.getcwd()
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as cause:
        raise error(
            f"runtime {reference!r} cannot be imported ({type(cause).__name__}: {cause}); "
            f"the module must be importable from {here} or installed"
        ) from cause
    finally:
        if added:
            sys.path.remove(here)
