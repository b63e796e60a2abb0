"""bcnet-deploy: the channel widths of a CNN that are best for a device and a budget.

Names are loaded when first used, so that importing the package costs no PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bcnet_deploy import errors as _errors

if TYPE_CHECKING:
    from bcnet_deploy.errors import *  # noqa: F403
    from bcnet_deploy.lut import LatencyTable as LatencyTable
    from bcnet_deploy.models import build_model as build_model
    from bcnet_deploy.nn import Supernet as Supernet
    from bcnet_deploy.profiler.profiling import profile as profile
    from bcnet_deploy.run.directory import RunDir as RunDir
    from bcnet_deploy.run.parts import export as export
    from bcnet_deploy.run.parts import train_supernet as train_supernet
    from bcnet_deploy.run.pipeline import Run as Run
    from bcnet_deploy.search import search as search
    from bcnet_deploy.space import WidthSpace as WidthSpace

__version__ = "0.1.0"

_LAZY = {
    "build_model": "bcnet_deploy.models",
    "WidthSpace": "bcnet_deploy.space",
    "Supernet": "bcnet_deploy.nn",
    "LatencyTable": "bcnet_deploy.lut",
    "search": "bcnet_deploy.search",
    "profile": "bcnet_deploy.profiler.profiling",
    "train_supernet": "bcnet_deploy.run.parts",
    "export": "bcnet_deploy.run.parts",
    "Run": "bcnet_deploy.run.pipeline",
    "RunDir": "bcnet_deploy.run.directory",
}
_ERRORS = tuple(
    name for name, value in vars(_errors).items() if isinstance(value, type) and issubclass(value, Exception)
)
__all__ = ["__version__", *_LAZY, *_ERRORS]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
        # `import bcnet_deploy.search` binds the subpackage under the same name: the function wins.
        globals()[name] = value
        return value
    if name in _ERRORS:
        return getattr(_errors, name)
    raise AttributeError(f"module 'bcnet_deploy' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
