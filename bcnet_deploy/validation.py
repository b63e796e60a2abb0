"""One mechanism that checks what users and other programs write: settings, profiles, run files.

A setting's type is its rule. ``evaluations: Annotated[int, Ge(1)]`` refuses 0 and ``"7"``, whether it comes
from YAML, the command line or Python. pydantic checks; this module words its findings as ours.
"""

from __future__ import annotations

import dataclasses
import functools
import reprlib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar, get_args, get_origin

from bcnet_deploy import files
from bcnet_deploy.errors import BCNetError, ConfigError, nearest


class Checked:
    """Base of frozen, keyword-only dataclasses whose fields are checked by their annotations.

    Attributes:
        error: raised for a value that is not allowed.
        noun: what the whole is called in messages.
    """

    error: ClassVar[type[BCNetError]] = ConfigError
    noun: ClassVar[str] = "the settings"

    def __post_init__(self) -> None:
        values = {name: getattr(self, name) for name in _names(type(self))}
        for name, value in check(type(self), values, self.noun, self.error).items():
            object.__setattr__(self, name, value)
        self.check()

    def check(self) -> None:
        """What no single field's type says: contradictions between fields. Raises :attr:`error`."""

    @classmethod
    def from_dict(cls, data: Any, source: str | None = None) -> Self:
        """From keys and values of a file. Raises :attr:`error` that names ``source``, key and value."""
        where = source or cls.noun
        checked = check(cls, data, where, cls.error)
        try:
            return cls(**checked)
        except BCNetError as error:
            raise type(error)(f"{where}: {error}") from None

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, checked again."""
        return self.from_dict({**{name: getattr(self, name) for name in _names(type(self))}, **changes})

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: tuples as lists."""
        values: dict[str, Any] = plain({name: getattr(self, name) for name in _names(type(self))})
        return values


def check(cls: type, data: Any, source: str, error: type[BCNetError] = ConfigError) -> dict[str, Any]:
    """The checked values of ``data`` for the fields of a dataclass; fields that are not given are left out.

    Nothing is converted but lists to tuples and whole numbers to floats.

    Raises:
        ConfigError: (or ``error``) no mapping, an unknown key, a missing one, or a value that is not allowed.
    """
    import pydantic

    known = _names(cls)
    if not isinstance(data, Mapping):
        raise error(f"{source}: {reprlib.repr(data)} is {type(data).__name__}; needed: keys and values")
    for key in data:
        if key not in known:
            raise error(
                f"{source}: unknown key {reprlib.repr(key)}{nearest(str(key), known)}; "
                f"allowed: {', '.join(known)}"
            )
    try:
        model = _model(cls).model_validate(dict(data))
    except pydantic.ValidationError as cause:
        raise error(f"{source}: {_finding(cause.errors()[0], data)}") from None
    return {name: getattr(model, name) for name in known if name in data}


T = TypeVar("T")


def written_as(cls: type[T], data: Any, source: str | Path, error: type[BCNetError], remedy: str) -> T:
    """A plain dataclass from what was written of it: every field of its type, other keys passed over.

    Raises:
        BCNetError: (``error``) a field is missing or of another type, or a number beyond any figure.
    """
    import pydantic

    with files.malformed(source, error, remedy):
        files.check_figures(data)
        try:
            value: T = pydantic.TypeAdapter(cls).validate_python(data)
            return value
        except pydantic.ValidationError as cause:
            first = cause.errors()[0]
            raise ValueError(f"{'.'.join(map(str, first['loc']))!r}: {first['msg']}") from None


def _names(cls: type) -> list[str]:
    return [item.name for item in dataclasses.fields(cls)]


@functools.cache
def _model(cls: type) -> Any:
    """The pydantic model of a dataclass's fields: strict, no other keys, no infinite numbers."""
    import pydantic

    hints = typing.get_type_hints(cls, include_extras=True)
    fields: dict[str, Any] = {}
    for item in dataclasses.fields(cls):
        if item.default is not dataclasses.MISSING:
            default: Any = pydantic.Field(default=item.default)
        elif item.default_factory is not dataclasses.MISSING:
            default = pydantic.Field(default_factory=item.default_factory)
        else:
            default = ...
        fields[item.name] = (_lists_allowed(hints[item.name]), default)
    config = pydantic.ConfigDict(
        strict=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True,
        protected_namespaces=(),
    )  # fmt: skip
    return pydantic.create_model(cls.__name__, __config__=config, **fields)


def _lists_allowed(hint: Any) -> Any:
    """The annotation with every tuple accepting a list too: YAML and JSON have no tuples."""
    import pydantic

    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return Annotated[(_lists_allowed(arguments[0]), *arguments[1:])]
    if origin is tuple:
        return Annotated[hint, pydantic.Strict(False)]
    if origin in (typing.Union, types.UnionType):
        return typing.Union[tuple(_lists_allowed(argument) for argument in arguments)]  # noqa: UP007
    return hint


_KINDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "dict_type": "keys and values",
    "list_type": "a list",
    "tuple_type": "a list",
    "missing": "a value: the key is missing",
}
_BOUNDS = {
    "greater_than": ("gt", "above {}"),
    "greater_than_equal": ("ge", "from {} up"),
    "less_than": ("lt", "below {}"),
    "less_than_equal": ("le", "up to {}"),
    "string_pattern_mismatch": ("pattern", "text that matches {}"),
    "literal_error": ("expected", "{}"),
    "too_short": ("min_length", "at least {} of them"),
    "too_long": ("max_length", "at most {} of them"),
    "string_too_short": ("min_length", "text of {} characters or more"),
    "string_too_long": ("max_length", "text of at most {} characters"),
}  # fmt: skip


def _finding(found: Any, data: Mapping[str, Any]) -> str:
    """One finding of pydantic's in our words: key, value, what is allowed."""
    # A union reports its branches as further places: only keys and positions of the user's are named.
    places = [str(found["loc"][0])]
    value: Any = data.get(found["loc"][0])
    for place in found["loc"][1:]:
        inside = isinstance(value, Mapping) and place in value
        if inside or (isinstance(place, int) and isinstance(value, list | tuple) and place < len(value)):
            places.append(str(place))
            value = value[place]
    key = ".".join(places)
    if found["type"] == "missing":
        return f"key {key!r} is missing"
    if found["type"] in _BOUNDS:
        name, text = _BOUNDS[found["type"]]
        allowed = text.format(found["ctx"][name])
    else:
        allowed = _KINDS.get(found["type"], found["msg"])
    near = ""
    if found["type"] == "literal_error":
        near = nearest(
            str(value), str(found["ctx"]["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
        )
    return f"{key} is {reprlib.repr(value)}; allowed: {allowed}{near}"


def plain(value: Any) -> Any:
    """Text, numbers, lists and mappings as they are; dataclasses as mappings; of other objects their name."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    return str(value) if isinstance(value, Path) else getattr(value, "__qualname__", type(value).__qualname__)
