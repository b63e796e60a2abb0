"""Graph capture, channel grouping, width spaces, exact costs."""

from bcnet_deploy.space.extent import Extent
from bcnet_deploy.space.ops import FrozenPart, Op, TensorSpec, WidthVariable
from bcnet_deploy.space.widths import WidthSpace

__all__ = ["Extent", "FrozenPart", "Op", "TensorSpec", "WidthSpace", "WidthVariable"]
