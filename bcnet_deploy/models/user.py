"""The user's own models: ``package.module:function`` or ``file.py:function``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from bcnet_deploy import references
from bcnet_deploy.errors import ModelError, UnknownModelError


def build(reference: str, num_classes: int | None) -> nn.Module:
    """Call the function that ``reference`` names, with ``num_classes`` if it takes such an argument.

    Raises:
        UnknownModelError: there is no such module or function.
        ModelError: importing or calling it fails, or it returns no ``nn.Module``.
    """
    return called(references.find(reference, "model", ModelError, UnknownModelError), num_classes, reference)


def called(function: Callable[..., Any], num_classes: int | None, name: str = "") -> nn.Module:
    """What ``function`` returns, called with ``num_classes`` if it takes such an argument.

    Raises:
        ModelError: calling it fails, or it returns no ``nn.Module``.
    """
    name = name or getattr(function, "__name__", type(function).__name__)
    arguments: dict[str, Any] = {}
    if num_classes is not None:
        parameters = inspect.signature(function).parameters.values()
        if any(p.name == "num_classes" or p.kind is p.VAR_KEYWORD for p in parameters):
            arguments["num_classes"] = num_classes
    model = references.call(function, name, ModelError, **arguments)
    if not isinstance(model, nn.Module):
        raise ModelError(f"{name} returned {type(model).__name__}; a torch.nn.Module is needed")
    return model


def default_num_classes(reference: str) -> int:
    """The default of the function's argument ``num_classes``; without that argument, the outputs of its last
    linear layer; 1000 where neither says.

    Raises:
        UnknownModelError, ModelError: see :func:`build`.
    """
    parameters = inspect.signature(
        references.find(reference, "model", ModelError, UnknownModelError)
    ).parameters
    if "num_classes" in parameters:
        default = parameters["num_classes"].default
        return default if isinstance(default, int) and not isinstance(default, bool) else 1000
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return 1000
    linear = [module for module in build(reference, None).modules() if isinstance(module, nn.Linear)]
    return linear[-1].out_features if linear else 1000
