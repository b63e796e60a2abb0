"""CSV both ways, and Once-for-All's YAML."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bcnet_deploy.errors import TableError
from bcnet_deploy.lut.convert import from_csv, from_ofa, to_csv
from bcnet_deploy.lut.estimate import estimate_table
from tests.lut.fakes import make_table, tiny_space

OFA = """\
Conv-input:224x224x3-output:112x112x32: {count: 5, mean: 2.5}
expanded_conv-input:112x112x32-output:112x112x16-expand:1-kernel:3-stride:1-idskip:0: {count: 4, mean: 3.25}
expanded_conv-input:112x112x16-output:56x56x24-expand:3-kernel:5-stride:2-idskip:0: {count: 1, mean: 1.5}
expanded_conv-input:112x112x16-output:56x56x32-expand:3-kernel:5-stride:2-idskip:0: {count: 1, mean: 2.0}
Logits-input:7x7x1280-output:1000: {count: 2, mean: 0.5}
"""


def test_csv_round_trip(tmp_path: Path) -> None:
    space = tiny_space()
    table = make_table(space)
    path = tmp_path / "table.csv"
    path.write_text(to_csv(table))
    again = from_csv(path)
    assert set(again.entries) == set(table.entries)
    for key, entries in table.entries.items():
        np.testing.assert_array_equal(again.entries[key].dims, entries.dims)
        np.testing.assert_array_equal(again.entries[key].count, entries.count)
        np.testing.assert_allclose(again.entries[key].median_us, entries.median_us, atol=0.006)
    with pytest.raises(TableError, match="bound to no network"):
        again.predict(space.full)
    widths = space.random(50, np.random.default_rng(0))
    # The overhead of a network is not in a CSV.
    np.testing.assert_allclose(
        again.for_space(space).predict(widths), table.predict(widths) - 0.025, rtol=0.02
    )
    assert to_csv(again) == path.read_text()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda lines: lines[1:], "line 1: a CSV table begins with"),
        (lambda lines: ["# bcnet-deploy latency table: {", *lines[1:]], "first line of .* is not valid JSON"),
        (lambda lines: [lines[0], "a,b", *lines[2:]], "line 2: the columns must be"),
        (lambda lines: [*lines[:2], "key,16x16,1,fast,0", *lines[3:]], "line 3: could not convert"),
        (lambda lines: [*lines[:2], "key,16x16,1,-4,0", *lines[3:]], "line 3: channels and count"),
        (lambda lines: [*lines[:2], "key,16x16,1,nan,0", *lines[3:]], "line 3: channels and count"),
        (lambda lines: [*lines[:2], "key,0x16,1,4,0", *lines[3:]], "line 3: channels and count"),
        (lambda lines: [*lines[:3], "key,16", *lines[3:]], "line 4"),
        (lambda lines: [*lines, f"key,{10**30}x16,1,4,0"], "dims must hold whole numbers"),
        (lambda lines: [*lines, f"key,16x16,{10**30},4,0"], "count must hold whole numbers"),
        (lambda lines: [*lines, "key,16x16,1,1e300,0"], "median_us holds 1e.300; allowed: up to 1e.10"),
        (
            lambda lines: [lines[0].replace("[16, 4]", "5"), *lines[1:]],
            "line 1: the head is damaged",
        ),
        (lambda lines: [lines[0].replace('"device": "', '"device": "../'), *lines[1:]], "device"),
        (lambda lines: [*lines, lines[-1]], "the same channels stand in two rows"),
        (lambda lines: [*lines, "key,1x2,1,1,0", "key,3,1,1,0"], "different numbers of channels"),
    ],
)
def test_damaged_csv_names_the_line(tmp_path: Path, edit, message: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text("\n".join(edit(to_csv(make_table(tiny_space())).splitlines())))
    with pytest.raises(TableError, match=message) as caught:
        from_csv(path)
    assert str(path) in str(caught.value)


def test_an_estimate_has_no_csv() -> None:
    from bcnet_deploy.devices import load_device

    with pytest.raises(TableError, match="no measured entries"):
        to_csv(estimate_table(tiny_space(), load_device("t4")))


def test_once_for_all(tmp_path: Path) -> None:
    path = tmp_path / "ofa.yaml"
    path.write_text(OFA)
    table = from_ofa(path, device="note10")
    assert table.device == "note10"
    assert sum(map(len, table.entries.values())) == 5
    key = "ofa expanded_conv expand:3 idskip:0 kernel:5 stride:2 112x112>56x56"
    np.testing.assert_allclose(table.time_us(key, [(16, 24), (16, 32)]), [1500, 2000], rtol=0.02)
    assert 1500 < table.time_us(key, (16, 28))[0] < 2000
    assert table.entries["ofa Conv 224x224>112x112"].count.tolist() == [5]
    assert table.entries["ofa Logits 7x7>1"].dims.tolist() == [[1280, 1000]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Conv-output:1x1x3: {mean: 1.0}", "no input of the form"),
        ("Conv-input:1x1x3: {mean: 1.0}", "no output of the form"),
        ("Conv-input:1x1x3-output:ax1: {mean: 1.0}", "no output of the form"),
        ("Conv-input:1x1x3-output:1x1x4: {mean: -1.0}", "'mean' must be milliseconds"),
        ("Conv-input:1x1x3-output:1x1x4: {mean: .nan}", "number nan is not finite"),
        ("Conv-input:1x1x3-output:1x1x4: {count: 3}", "'mean' must be milliseconds"),
        ("Conv-input:1x1x3-output:1x1x4: {mean: 1.0, count: 0}", "'count' 1 or more"),
        (f"Conv-input:1x1x{'9' * 900}-output:1x1x4: {{mean: 1.0}}", "no input of the form"),
        (f"Conv-input:1x1x3-output:1x1x4: {{mean: 1.0, count: {10**30}}}", "count must hold whole numbers"),
        ("- a list", "no mapping"),
        ("a: [", "not valid YAML"),
    ],
)
def test_damaged_once_for_all(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "ofa.yaml"
    path.write_text(line)
    with pytest.raises(TableError, match=message):
        from_ofa(path, device="note10")


HEAD = (
    '# bcnet-deploy latency table: {"device": "cpu-1thread", "source": "measured", "precision": "fp32", '
    '"batch": 1, "granularity": [16, 4], "provenance": {}}\nkey,channels,count,median_us,spread_us\n'
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + '"k,16,1,5.0,0\n' + "k,16,1,5.0,0\n" * 12_000, "quote not closed"),
        (HEAD.replace("[16, 4]", "[0, 0]") + "k,16,1,5.0,0\nk,32,1,6.0,0\n", "granularity"),
    ],
)
def test_what_a_csv_reader_cannot_read_is_said(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(TableError, match=message):
        from_csv(path)
