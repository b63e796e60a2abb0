"""Models by name: of torchvision, timm and smp, published width spaces, the demo's, the user's own.

Names are loaded when first used, so that a model can be named without PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bcnet_deploy.references import lazy

if TYPE_CHECKING:
    from bcnet_deploy.models.checkpoints import check_finite as check_finite
    from bcnet_deploy.models.checkpoints import load_weights as load_weights
    from bcnet_deploy.models.inputs import SeveralInputs as SeveralInputs
    from bcnet_deploy.models.libraries import InputConfig as InputConfig
    from bcnet_deploy.models.ref import ModelRef as ModelRef
    from bcnet_deploy.models.ref import build as build
    from bcnet_deploy.models.registry import build_model as build_model
    from bcnet_deploy.models.registry import default_input_size as default_input_size
    from bcnet_deploy.models.registry import default_num_classes as default_num_classes
    from bcnet_deploy.models.registry import input_config as input_config
    from bcnet_deploy.models.registry import model_names as model_names

_PLACES = {
    "InputConfig": "libraries", "ModelRef": "ref", "SeveralInputs": "inputs", "build": "ref",
    "build_model": "registry", "check_finite": "checkpoints", "default_input_size": "registry",
    "default_num_classes": "registry", "input_config": "registry", "load_weights": "checkpoints",
    "model_names": "registry",
}  # fmt: skip
__all__ = list(_PLACES)
__getattr__, __dir__ = lazy(__name__, _PLACES)
