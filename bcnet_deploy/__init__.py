"""bcnet-deploy: the channel widths of a CNN that are best for a device and a budget.

Names are loaded when first used, so that importing the package costs no PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bcnet_deploy import errors as _errors
from bcnet_deploy.references import lazy

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

_PLACES = {
    "build_model": "models",
    "WidthSpace": "space",
    "Supernet": "nn",
    "LatencyTable": "lut",
    "search": "search",
    "profile": "profiler.profiling",
    "train_supernet": "run.parts",
    "export": "run.parts",
    "Run": "run.pipeline",
    "RunDir": "run.directory",
}
_ERRORS = {
    name: "errors" for name, value in vars(_errors).items()
    if isinstance(value, type) and issubclass(value, Exception)
}  # fmt: skip
__all__ = ["__version__", *_PLACES, *_ERRORS]
__getattr__, __dir__ = lazy(__name__, _PLACES | _ERRORS)
