"""From a PyTorch module to an ONNX file or an engine, checked on the way.

from bcnet_deploy.export import export_onnx, build_engine
result = export_onnx(net, "net.onnx", (3, 224, 224), parity_inputs=images)
print(result.parity.summary())
engine = build_engine("net.onnx", "net.engine", "t4", "fp16")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bcnet_deploy.references import lazy, make_callable

if TYPE_CHECKING:
    from bcnet_deploy.export.engine import EngineResult as EngineResult
    from bcnet_deploy.export.engine import build_engine as build_engine
    from bcnet_deploy.export.metadata import ModelMetadata as ModelMetadata
    from bcnet_deploy.export.onnx import ExportResult as ExportResult
    from bcnet_deploy.export.onnx import export_onnx as export_onnx
    from bcnet_deploy.export.parity import Parity as Parity

_PLACES = {
    "EngineResult": "engine",
    "ExportResult": "onnx",
    "ModelMetadata": "metadata",
    "Parity": "parity",
    "build_engine": "engine",
    "export_onnx": "onnx",
}
__all__ = list(_PLACES)
__getattr__, __dir__ = lazy(__name__, _PLACES)


# bd.export is this module, as every subpackage is bound to its parent: it has to be callable.
make_callable(__name__, "bcnet_deploy.run.parts:export")
