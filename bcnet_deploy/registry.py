"""Named implementations of one interface: built in, from an installed package, or given as an object.

A package of the user's adds one through an entry point, without a change here::

    [project.entry-points."bcnet_deploy.strategies"]
    annealing = "my_package.annealing:anneal"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from bcnet_deploy.errors import BCNetError, ConfigError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """Implementations by name; entry points are imported when their name is first asked for.

    Args:
        kind: what is registered, for messages, such as ``strategy``.
        group: the entry-point group in which other packages name theirs.
        built_in: name -> ``module:attribute`` of our own that are imported when first asked for.
    """

    def __init__(self, kind: str, group: str, built_in: Mapping[str, str] | None = None) -> None:
        self.kind = kind
        self.group = group
        self._built_in = tuple(EntryPoint(name, path, group) for name, path in (built_in or {}).items())
        self._known: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that registers an implementation. Raises :class:`ConfigError` for a name in use."""

        def add(implementation: T) -> T:
            if name in self._known or any(point.name == name for point in self._built_in):
                raise ConfigError(f"there is a {self.kind} {name!r} already; choose another name")
            self._known[name] = implementation
            return implementation

        return add

    def names(self) -> list[str]:
        """All names, those built in first."""
        outside = sorted(point.name for point in entry_points(group=self.group))
        return list(dict.fromkeys([*(point.name for point in self._built_in), *self._known, *outside]))

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def get(self, name: str, error: type[BCNetError] = ConfigError) -> T:
        """The implementation called ``name``.

        Raises:
            ConfigError: (or ``error``) no such name, or the package that registers it cannot be imported.
        """
        if name in self._known:
            return self._known[name]
        for point in (*self._built_in, *entry_points(group=self.group)):
            if point.name == name:
                self._known[name] = self._load(point, error)
                return self._known[name]
        known = self.names()
        raise error(f"unknown {self.kind} {name!r}{nearest(str(name), known)}; allowed: {', '.join(known)}")

    def _load(self, point: EntryPoint, error: type[BCNetError]) -> Any:
        try:
            return point.load()
        except Exception as cause:
            raise error(
                f"the {self.kind} {point.name!r} of {point.value!r} cannot be imported "
                f"({type(cause).__name__}: {cause}); repair or uninstall the package that registers it"
            ) from cause
