"""Models by name: torchvision's classifiers, published width spaces, the demo's network, the user's own."""

from bcnet_deploy.models.checkpoints import check_finite, load_weights
from bcnet_deploy.models.registry import build_model, default_input_size, default_num_classes, model_names

__all__ = [
    "build_model",
    "check_finite",
    "default_input_size",
    "default_num_classes",
    "load_weights",
    "model_names",
]
