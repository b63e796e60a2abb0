"""Sliceable networks: the supernet, batch-norm recalibration, sub-networks on disk."""

from bcnet_deploy.nn.recalibration import recalibrate
from bcnet_deploy.nn.subnet import load_subnet, save_subnet
from bcnet_deploy.nn.supernet import Supernet

__all__ = ["Supernet", "load_subnet", "recalibrate", "save_subnet"]
