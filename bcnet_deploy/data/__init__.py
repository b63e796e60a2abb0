"""Data sets: ``digits``, a folder or tar archive of images, ``module:function``, or objects."""

from bcnet_deploy.data.augment import Augmentation
from bcnet_deploy.data.load import classes_of, load_data
from bcnet_deploy.data.loader import BatchLoader
from bcnet_deploy.data.pictures import Preprocessing, View
from bcnet_deploy.data.plain import PlainBatches
from bcnet_deploy.data.splits import DataSplits, ImageSet, MemoryImages

__all__ = [
    "Augmentation",
    "BatchLoader",
    "DataSplits",
    "ImageSet",
    "MemoryImages",
    "PlainBatches",
    "Preprocessing",
    "View",
    "classes_of",
    "load_data",
]
