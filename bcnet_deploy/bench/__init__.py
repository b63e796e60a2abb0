"""Measured latency of exported networks, beside what the table predicted.

from bcnet_deploy.bench import bench
result = bench({"full": "full.onnx", "found": "found.onnx"}, "cpu", table=table)
result.save("bench.json")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bcnet_deploy.references import lazy

if TYPE_CHECKING:
    from bcnet_deploy.bench.measure import bench as bench
    from bcnet_deploy.bench.result import BenchResult as BenchResult
    from bcnet_deploy.bench.settings import BenchSettings as BenchSettings

_PLACES = {"BenchResult": "result", "BenchSettings": "settings", "bench": "measure"}
__all__ = list(_PLACES)
__getattr__, __dir__ = lazy(__name__, _PLACES)
