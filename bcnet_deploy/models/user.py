"""The user's own models: ``package.module:function``."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from typing import Any

from torch import nn

from bcnet_deploy.errors import ModelError, UnknownModelError, nearest


def is_reference(name: str) -> bool:
    """Whether ``name`` has the form ``package.module:function``."""
    return ":" in name


def _module(name: str, reference: str) -> Any:
    # A console script does not look into the current folder, where a user's own net.py usually is.
    here = os.getcwd()
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise UnknownModelError(
                f"no Python module {error.name!r} for the model {reference!r}; it must be importable "
                f"from {here} or installed"
            ) from error
        raise ModelError(f"importing {name!r} for the model {reference!r} failed: {error}") from error
    except Exception as error:
        raise ModelError(
            f"importing {name!r} for the model {reference!r} failed: {type(error).__name__}: {error}"
        ) from error
    finally:
        if added:
            sys.path.remove(here)


def build(reference: str, num_classes: int | None) -> nn.Module:
    """Call the function that ``reference`` names, with ``num_classes`` if it takes such an argument.

    Raises:
        UnknownModelError: there is no such module or function.
        ModelError: importing or calling it fails, or it returns no ``nn.Module``.
    """
    function = _function(reference)
    arguments: dict[str, Any] = {}
    if num_classes is not None:
        parameters = inspect.signature(function).parameters.values()
        if any(p.name == "num_classes" or p.kind is p.VAR_KEYWORD for p in parameters):
            arguments["num_classes"] = num_classes
    try:
        model = function(**arguments)
    except Exception as error:
        raise ModelError(
            f"{reference}({_shown(arguments)}) failed: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{reference} returned {type(model).__name__}; a torch.nn.Module is needed")
    return model


def default_num_classes(reference: str) -> int:
    """The default of the function's argument ``num_classes``; without that argument, the outputs of its last
    linear layer; 1000 where neither says.

    Raises:
        UnknownModelError, ModelError: see :func:`build`.
    """
    parameters = inspect.signature(_function(reference)).parameters
    if "num_classes" in parameters:
        default = parameters["num_classes"].default
        return default if isinstance(default, int) and not isinstance(default, bool) else 1000
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return 1000
    linear = [module for module in build(reference, None).modules() if isinstance(module, nn.Linear)]
    return linear[-1].out_features if linear else 1000


def _function(reference: str) -> Any:
    """The function that ``reference`` names. Raises as :func:`build`."""
    module_name, _, function_name = reference.partition(":")
    if not module_name or not function_name.isidentifier():
        raise UnknownModelError(f"{reference!r} is not of the form 'package.module:function'")
    module = _module(module_name, reference)
    function = getattr(module, function_name, None)
    if not callable(function):
        names = [name for name, value in vars(module).items() if callable(value)]
        raise UnknownModelError(
            f"module {module_name!r} has no function {function_name!r}{nearest(function_name, names)}"
        )
    return function


def _shown(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())
