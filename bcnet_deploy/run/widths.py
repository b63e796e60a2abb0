"""Widths by variable name, as files have them, and as the space orders them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcnet_deploy import files
from bcnet_deploy.errors import BCNetError, ConfigError, RunDirError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from bcnet_deploy.space import WidthSpace

    Widths = npt.NDArray[np.int64]


def read_widths(path: str | Path, space: WidthSpace) -> Widths:
    """(L,): widths of the user's own from a YAML file: by variable name, or a list in the variables' order.

    Either may be under a key ``widths``.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
        WidthError: the widths are none of the space.
    """
    data = files.read_yaml(path, ConfigError, "widths")
    value = data.get("widths", data) if isinstance(data, Mapping) else data
    if isinstance(value, list):
        return space.check(value)[0]
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"{path} holds {type(value).__name__}; allowed: widths by variable name, or a list of them"
        )
    return ordered(value, space, str(path))


def ordered(by_name: Mapping[str, int], space: WidthSpace, source: str) -> Widths:
    """(L,): named widths in the order of the space's variables.

    Raises:
        RunDirError: the names are not the space's; names ``source``.
        WidthError: a width is out of range.
    """
    names = [variable.name for variable in space.variables]
    odd = [name for name in names if name not in by_name] or sorted(set(by_name) - set(names))
    if odd:
        raise RunDirError(
            f"{source} is of another model: it does not name the {len(names)} width variables of "
            f"{space.model_name} ({odd[0]!r} does not match); see 'bcnet-deploy inspect', or search again"
        )
    return space.check([by_name[name] for name in names])[0]


def named(widths: Any, space: WidthSpace) -> dict[str, int]:
    """(L,) widths by variable name."""
    return {variable.name: int(width) for variable, width in zip(space.variables, widths, strict=True)}


def by_name_of(data: Any, path: Path, error: type[BCNetError], command: str) -> dict[str, int]:
    """Widths by variable name of what a step left under ``widths``.

    Raises:
        BCNetError: (``error``) they are none; names ``path`` and the command that makes it again.
    """
    widths = data.get("widths") if isinstance(data, Mapping) else None
    if not isinstance(widths, Mapping) or not all(type(width) is int for width in widths.values()):
        raise error(f"{path} names no width for each variable under 'widths'; make it again with '{command}'")
    return {str(name): width for name, width in widths.items()}


def difference(then: Mapping[str, int], now: Mapping[str, int]) -> str:
    """The first variables in which two widths differ, for people; empty where they do not."""
    if dict(then) == dict(now):
        return ""
    odd = [name for name in now if then.get(name) != now[name]] or sorted(set(then) - set(now))
    shown = ", ".join(f"{name!r} {then.get(name, '-')} then, {now.get(name, '-')} now" for name in odd[:2])
    return shown + (f" and {len(odd) - 2} more" if len(odd) > 2 else "")
