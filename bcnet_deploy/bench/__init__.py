"""Measured latency of exported networks, beside what the table predicted.

from bcnet_deploy.bench import bench
result = bench({"full": "full.onnx", "found": "found.onnx"}, "cpu", table=table)
result.save("bench.json")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bcnet_deploy.bench.measure import BenchSettings as BenchSettings
    from bcnet_deploy.bench.measure import bench as bench
    from bcnet_deploy.bench.result import BenchResult as BenchResult

_LAZY = {"BenchResult": "result", "BenchSettings": "measure", "bench": "measure"}
__all__ = list(_LAZY)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"bcnet_deploy.bench.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'bcnet_deploy.bench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
