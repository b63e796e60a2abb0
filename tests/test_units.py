"""Quantities as people write them."""

from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import bcnet_deploy as bd
from bcnet_deploy import units


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (units.parse_latency, "5ms", 5.0),
        (units.parse_latency, "800us", 0.8),
        (units.parse_latency, " 0.1 s ", 100.0),
        (units.parse_latency, "1.5e3ns", 1.5e-3),
        (units.parse_count, "300M", 3e8),
        (units.parse_count, "1.2G", 1.2e9),
        (units.parse_count, "50000", 5e4),
        (units.parse_count, "4k", 4e3),
        (units.parse_bytes, "64MiB", 64 * 2**20),
        (units.parse_bytes, "10MB", 1e7),
        (units.parse_bytes, "123", 123.0),
    ],
)
def test_absolute_quantities(parse: object, text: str, value: float) -> None:
    quantity = parse(text)  # type: ignore[operator]
    assert not quantity.relative
    assert quantity.value == pytest.approx(value, rel=1e-12)
    assert quantity.resolve(1e6) == quantity.value


@pytest.mark.parametrize("parse", [units.parse_latency, units.parse_count, units.parse_bytes])
@pytest.mark.parametrize(("text", "share"), [("0.5x", 0.5), ("50%", 0.5), ("1x", 1.0), (" .25x ", 0.25)])
def test_relative_quantities(parse: object, text: str, share: float) -> None:
    quantity = parse(text)  # type: ignore[operator]
    assert quantity.relative
    assert quantity.resolve(300.0) == pytest.approx(300 * share)


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (units.parse_latency, "5"),  # milliseconds or seconds? ask
        (units.parse_latency, "5m"),
        (units.parse_latency, "five ms"),
        (units.parse_latency, "-5ms"),
        (units.parse_latency, "0ms"),
        (units.parse_latency, ""),
        (units.parse_latency, "nan ms"),
        (units.parse_count, "inf"),
        (units.parse_count, "300ms"),
        (units.parse_count, "1e400"),
        (units.parse_count, "0x"),
        (units.parse_count, "-3%"),
        (units.parse_bytes, "64 cows"),
        (units.parse_latency, "=5ms"),
        (units.parse_latency, "1e308x"),
        (units.parse_latency, "1e-9x"),
        (units.parse_latency, "2e9s"),
        (units.parse_latency, "1e-9us"),
        (units.parse_count, "1e30G"),
        (units.parse_count, "0.5"),
        (units.parse_count, "9" * 5000),
        (units.parse_count, "٣M"),
        (units.parse_bytes, "1e9GB"),
        (units.parse_duration, "5"),
        (units.parse_duration, "1e-9s"),
        (units.parse_duration, "2000h"),
        (units.parse_size, "99999999999"),
        (units.parse_size, "9" * 5000),
        (units.parse_size, "1x1000000x1000000"),
        (units.parse_size, "1024x16384x16384"),
        (units.parse_size, "²"),
        (units.parse_size, "٣x8x8"),
        (units.parse_duration, "2d"),
        (units.parse_duration, "-1s"),
        (units.parse_size, "3x224"),
        (units.parse_size, "0"),
        (units.parse_size, "3x224x-1"),
        (units.parse_size, "axbxc"),
        (units.parse_size, ""),
        (units.parse_size, "3x224x224x1"),
    ],
)
def test_what_cannot_be_read_is_named_with_accepted_forms(parse: object, text: str) -> None:
    with pytest.raises(bd.UnitError) as caught:
        parse(text)  # type: ignore[operator]
    assert repr(text) in str(caught.value) or len(text) > 30
    assert len(str(caught.value)) < 300 and caught.value.exit_code == 2
    assert "accepted forms" in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("120s", 120), ("2m", 120), ("2min", 120), ("1h", 3600), ("90s", 90), ("500ms", 0.5)],
)
def test_durations_in_seconds(text: str, seconds: float) -> None:
    assert units.parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "size"),
    [("224", (3, 224, 224)), ("3x32x64", (3, 32, 64)), ("1X8X8", (1, 8, 8)), ("3×96×96", (3, 96, 96))],
)
def test_input_sizes(text: str, size: tuple[int, int, int]) -> None:
    assert units.parse_size(text) == size


@given(st.floats(1, 1e9), st.sampled_from(["", "k", "M", "G"]))
def test_counts_scale_with_their_unit(number: float, unit: str) -> None:
    factor = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[unit]
    assert units.parse_count(f"{number!r}{unit}").value == pytest.approx(number * factor, rel=1e-12)


NUMBERS = st.one_of(
    st.integers(-(10**40), 10**40).map(str),
    st.floats().map(repr),
    st.sampled_from(["", "=", "1e308", "1e-308", ".", "+5", "0x10", "1_000", "9" * 5000, "٣", "²"]),
)
UNITS = st.sampled_from(
    ["", "x", "%", "ms", "s", "m", "h", "ns", "us", "µs", "k", "M", "G", "T", "B", "MiB", "xx"]
)


@given(st.text(max_size=12) | st.tuples(NUMBERS, UNITS).map("".join))
@example("1x1x1")
@example("3 x 8 x 8")
def test_any_text_is_a_quantity_in_its_range_or_a_typed_error(text: str) -> None:
    ranges = ((units.parse_latency, 1e-6, 3.6e6), (units.parse_count, 1, 1e18), (units.parse_bytes, 1, 1e15))
    for parse, least, largest in ranges:
        try:
            quantity = parse(text)
        except bd.UnitError as error:
            assert str(error).isprintable() and len(str(error)) < 400
        else:
            assert (
                (1e-6 <= quantity.value <= 1e3) if quantity.relative else least <= quantity.value <= largest
            )
    with contextlib.suppress(bd.UnitError):
        assert 1e-3 <= units.parse_duration(text) <= 3.6e6
    with contextlib.suppress(bd.UnitError):
        size = units.parse_size(text)
        assert all(n > 0 for n in size) and math.prod(size) <= 2**28


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=4))
def test_any_size_is_read_or_refused(numbers: list[int]) -> None:
    text = "x".join(map(str, numbers))
    expected = (3, numbers[0], numbers[0]) if len(numbers) == 1 else tuple(numbers)
    fits = len(expected) == 3 and all(1 <= n <= 2**15 for n in expected) and math.prod(expected) <= 2**28
    if fits:
        assert units.parse_size(text) == expected
    else:
        with pytest.raises(bd.UnitError):
            units.parse_size(text)


@given(st.floats(1, 1e14))
def test_formatted_counts_read_back(value: float) -> None:
    assert units.parse_count(units.format_count(value)).value == pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize(
    ("given_text", "expected"),
    [
        (units.format_count(300_774_272), "300.8M"),
        (units.format_count(4_089_184_256), "4.089G"),
        (units.format_count(0), "0"),
        (units.format_milliseconds(5.123), "5.12 ms"),
        (units.format_milliseconds(0.8121), "812 µs"),
        (units.format_milliseconds(1200), "1.20 s"),
        (units.format_bytes(13.4 * 2**20), "13.4 MiB"),
        (units.format_bytes(5), "5 B"),
        # Where rounding leads into the next unit.
        (units.format_count(999_960), "1M"),
        (units.format_count(999_940), "999.9k"),
        (units.format_count(999.96), "1k"),
        (units.format_milliseconds(0.9996), "1 ms"),
        (units.format_milliseconds(0.9994), "999 µs"),
        (units.format_milliseconds(999.7), "1.00 s"),
        (units.format_bytes(1_030_000), "0.982 MiB"),
        (units.format_bytes(1023), "1023 B"),
        (units.format_bytes(1023.9), "1 KiB"),
    ],
)
def test_figures_for_people(given_text: str, expected: str) -> None:
    assert given_text == expected


def test_what_is_refused_while_an_option_is_read_exits_as_wrong_usage() -> None:
    with pytest.raises(bd.ConfigError) as caught, bd.errors.wrong_option("a value"):
        raise bd.ConfigError("none of those allowed")
    assert caught.value.exit_code == 2 and bd.ConfigError("another").exit_code == 1
    with pytest.raises(bd.TableError) as caught_2, bd.errors.wrong_option():
        raise bd.errors.names_nothing(bd.TableError("no table"))
    assert caught_2.value.exit_code == 2
    with pytest.raises(bd.TableError) as caught_3, bd.errors.wrong_option():
        raise bd.TableError("a damaged table")  # the option is right, the file is not
    assert caught_3.value.exit_code == 1
    with pytest.raises(bd.ConfigError) as caught_4, bd.errors.wrong_option(None, None):
        raise bd.ConfigError("what the run file says")  # nothing was given
    assert caught_4.value.exit_code == 1
