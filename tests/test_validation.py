"""Settings are checked by their types, from files and from Python alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Interval

from bcnet_deploy.errors import ConfigError
from bcnet_deploy.registry import Registry
from bcnet_deploy.validation import Checked


@dataclass(frozen=True, kw_only=True)
class Sample(Checked):
    name: str = "a"
    rounds: Annotated[int, Ge(1)] = 3
    share: Annotated[float, Interval(ge=0, lt=1)] = 0.5
    kind: Literal["left", "right"] = "left"
    batches: tuple[Annotated[int, Ge(1)], ...] = (1, 4)
    size: tuple[int, int, int] | None = None

    def check(self) -> None:
        if self.name == "right" and self.kind == "left":
            raise ConfigError("name 'right' contradicts kind 'left'")


def test_values_survive_a_file() -> None:
    sample = Sample.from_dict({"rounds": 7, "share": 0, "batches": [2], "size": [3, 8, 8]})
    assert sample == Sample(rounds=7, share=0.0, batches=(2,), size=(3, 8, 8))
    assert Sample.from_dict(sample.to_dict()) == sample
    assert sample.replace(rounds=9).rounds == 9


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"round": 3}, ["unknown key 'round'", "'rounds'"]),
        ({"rounds": 0}, ["rounds is 0", "from 1 up"]),
        ({"rounds": "7"}, ["rounds is '7'", "a whole number"]),
        ({"rounds": True}, ["rounds is True", "a whole number"]),
        ({"rounds": 1.5}, ["rounds is 1.5", "a whole number"]),
        ({"share": 1}, ["share is 1", "below 1"]),
        ({"share": float("nan")}, ["share is nan"]),
        ({"kind": "rigth"}, ["kind is 'rigth'", "did you mean 'right'"]),
        ({"batches": [1, 0]}, ["batches.1 is 0", "from 1 up"]),
        ({"batches": 4}, ["batches is 4", "a list"]),
        ({"size": [1, 2]}, ["size"]),
        ({"size": "abc"}, ["size is 'abc'", "a list"]),
        ({"name": None}, ["name is None", "text"]),
        ({"name": "right"}, ["contradicts"]),
        ([1], ["needed: keys and values"]),
    ],
)
def test_what_is_not_allowed_is_named(data: object, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Sample.from_dict(data, "file x.yaml")
    assert "file x.yaml" in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_python_is_checked_too() -> None:
    with pytest.raises(ConfigError, match="rounds is 0"):
        Sample(rounds=0)


def test_a_long_value_is_shown_short() -> None:
    with pytest.raises(ConfigError) as caught:
        Sample.from_dict({"rounds": "x" * 100_000})
    assert len(str(caught.value)) < 300


def test_registry() -> None:
    known: Registry[int] = Registry("number", "bcnet_deploy.test_numbers")
    known.register("one")(1)
    assert known.get("one") == 1 and known.names() == ["one"] and "two" not in known
    with pytest.raises(ConfigError, match="unknown number 'on'; did you mean 'one'"):
        known.get("on")
    with pytest.raises(ConfigError, match="already"):
        known.register("one")(2)
