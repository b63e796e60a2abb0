"""Graph capture, channel grouping, width spaces, exact costs."""

from bcnet_deploy.space.extent import Extent
from bcnet_deploy.space.graph import FrozenPart, Op, TensorSpec
from bcnet_deploy.space.widths import WidthSpace, WidthVariable, level_choices

__all__ = ["Extent", "FrozenPart", "Op", "TensorSpec", "WidthSpace", "WidthVariable", "level_choices"]
