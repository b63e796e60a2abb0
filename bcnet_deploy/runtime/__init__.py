"""What runs networks: one life cycle over ONNX Runtime, TensorRT and runtimes of one's own."""

from bcnet_deploy.runtime.base import EngineBuild, NodeTime, Runner, Runtime, TensorInfo
from bcnet_deploy.runtime.registry import RUNTIMES, find_runtime

__all__ = ["RUNTIMES", "EngineBuild", "NodeTime", "Runner", "Runtime", "TensorInfo", "find_runtime"]
