"""What users name in code of their own: ``package.module:function`` or ``file.py:function``.

And names of our own packages that are imported when first used.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from bcnet_deploy import files
from bcnet_deploy.errors import BCNetError, names_nothing, nearest


def is_reference(name: str) -> bool:
    """Whether ``name`` is meant as a reference: it has a colon."""
    return ":" in name


def find(
    reference: str, what: str, error: type[BCNetError], missing: type[BCNetError] | None = None
) -> Callable[..., Any]:
    """The function (or class) that ``reference`` names.

    A module must be importable from the current folder or installed. A file is run once, with its own folder
    importable while it runs.

    Args:
        reference: ``package.module:function`` or ``path/file.py:function``.
        what: it stands for, in messages: ``model``.
        error: raised when the module or file cannot be run.
        missing: raised when there is none, or no such function in it; default: ``error``.
    """
    missing = missing or error
    place, _, name = reference.rpartition(":")
    if not place or not all(part.isidentifier() for part in name.split(".")):
        raise names_nothing(
            missing(f"{reference!r} is not of the form 'package.module:function' or 'file.py:function'")
        )
    module = _module(place, f"the {what} {reference!r}", error, missing)
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise names_nothing(missing(f"module {place!r} has no function {name!r}{nearest(name, names)}"))
    return found


def call(function: Callable[..., Any], what: str, error: type[BCNetError], **arguments: Any) -> Any:
    """``function(**arguments)``; ``error`` naming ``what`` when the user's code fails."""
    try:
        return function(**arguments)
    except BCNetError:
        raise
    except (Exception, SystemExit) as cause:
        given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        raise error(f"{what}({given}) failed: {type(cause).__name__}: {cause}") from cause


def _module(place: str, purpose: str, error: type[BCNetError], missing: type[BCNetError]) -> ModuleType:
    try:
        if place.endswith(".py"):
            path = Path(place)
            with suppress(RuntimeError):  # ~ of nobody
                path = path.expanduser()
            if not files.is_file(path):
                raise names_nothing(missing(f"no file {place!r} for {purpose} (looked from {os.getcwd()})"))
            return _run(path.resolve())
        # A console script does not look into the current folder, where a user's own net.py usually is.
        with _importable(Path.cwd()):
            return importlib.import_module(place)
    except BCNetError:
        raise
    except ModuleNotFoundError as cause:
        if cause.name is not None and (place == cause.name or place.startswith(f"{cause.name}.")):
            raise names_nothing(
                missing(
                    f"no Python module {cause.name!r} for {purpose}; it must be importable "
                    f"from {os.getcwd()} or installed"
                )
            ) from cause
        raise error(f"importing {place!r} for {purpose} failed: {cause}") from cause
    except (Exception, SystemExit) as cause:
        raise error(f"importing {place!r} for {purpose} failed: {type(cause).__name__}: {cause}") from cause


def _run(path: Path) -> ModuleType:
    """The module of a file; run again when the file has changed since."""
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    stamp = path.stat().st_mtime_ns
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__bcnet_stamp__", None) == stamp:
        return known
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up
    try:
        with _importable(path.parent):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    module.__dict__["__bcnet_stamp__"] = stamp
    return module


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    added = str(folder) not in sys.path and not (folder == Path.cwd() and "" in sys.path)
    if added:
        sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if added and str(folder) in sys.path:
            sys.path.remove(str(folder))


def lazy(package: str, places: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package of ours whose names are loaded when first used.

    Args:
        package: whose ``__init__`` asks.
        places: name -> its module, within the package.
    """

    def get(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{places[name]}"), name)
        # `import bcnet_deploy.search` binds the subpackage under the function's name: the function wins.
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted(places)


def make_callable(package: str, reference: str) -> None:
    """Let a package of ours be called like the function that has its name: ``bcnet_deploy.search(...)``.

    Args:
        package: whose ``__init__`` asks.
        reference: ``module:function``, imported when first called.
    """

    class CallableModule(ModuleType):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            module, _, function = reference.partition(":")
            return getattr(importlib.import_module(module), function)(*args, **kwargs)

    sys.modules[package].__class__ = CallableModule
