"""Data sets by reference: ``digits``, a folder or tar archive of images, ``module:function``."""

from bcnet_deploy.data.augment import Augmentation
from bcnet_deploy.data.load import load_data
from bcnet_deploy.data.loader import BatchLoader
from bcnet_deploy.data.plain import PlainBatches
from bcnet_deploy.data.splits import DataSplits, ImageSet, MemoryImages

__all__ = [
    "Augmentation",
    "BatchLoader",
    "DataSplits",
    "ImageSet",
    "MemoryImages",
    "PlainBatches",
    "load_data",
]
