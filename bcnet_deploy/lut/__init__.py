"""Latency tables: load, predict, uncertainty, save. NumPy only; PyTorch is never imported."""

from bcnet_deploy.lut.entries import Entries
from bcnet_deploy.lut.layers import Layer, layers_of
from bcnet_deploy.lut.network import Network
from bcnet_deploy.lut.table import Breakdown, LatencyTable

__all__ = ["Breakdown", "Entries", "LatencyTable", "Layer", "Network", "layers_of"]
