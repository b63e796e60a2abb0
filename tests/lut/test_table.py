"""Latency tables: predictions against a device in closed form, files, and all that can be wrong with them."""

from __future__ import annotations

import copy
import json
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bcnet_deploy.errors import MissingEntryError, RunDirError, TableError, WidthError
from bcnet_deploy.lut import LatencyTable
from bcnet_deploy.space import WidthSpace
from tests.lut.fakes import TinyNet, make_table, tiny_space, true_ms


@pytest.fixture(scope="module")
def space() -> WidthSpace:
    return tiny_space()


@pytest.fixture(scope="module")
def table(space: WidthSpace) -> LatencyTable:
    return make_table(space)


def test_predicts_the_device(space: WidthSpace, table: LatencyTable) -> None:
    widths = space.random(300, np.random.default_rng(9))
    np.testing.assert_allclose(table.predict(widths), true_ms(space, widths), rtol=0.03)


def test_predicts_widths_that_are_no_choice(space: WidthSpace, table: LatencyTable) -> None:
    rng = np.random.default_rng(10)
    widths = np.stack([rng.integers(1, v.channels + 1, 200) for v in space.variables], axis=1)
    error = table.predict(widths) / true_ms(space, widths) - 1
    assert np.abs(error).mean() < 0.05


def test_one_vector_and_none(space: WidthSpace, table: LatencyTable) -> None:
    assert table.predict(space.full).shape == (1,)
    assert table.predict(np.zeros((0, len(space.variables)), dtype=np.int64)).shape == (0,)


def test_breakdown_adds_up(space: WidthSpace, table: LatencyTable) -> None:
    widths = space.random(20, np.random.default_rng(11))
    parts = table.breakdown(widths)
    assert parts.names[-1] == "overhead"
    assert parts.milliseconds.shape == (20, len(parts.names))
    np.testing.assert_allclose(parts.milliseconds.sum(axis=1), table.predict(widths), rtol=1e-5)
    np.testing.assert_allclose(parts.milliseconds[:, -1], 0.025)


def test_uncertainty_is_a_share_of_the_prediction(space: WidthSpace, table: LatencyTable) -> None:
    widths = space.random(20, np.random.default_rng(12))
    np.testing.assert_allclose(table.uncertainty(widths), 0.03 * table.predict(widths))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda full: full[:-1], "has .* widths"),
        (
            lambda full: np.where(np.arange(len(full)) == 1, 0, full),
            r"variable 1 .* out of range; allowed: 1\.\.",
        ),
        (lambda full: full + 1, "out of range"),
        (lambda full: full * 0.3, "whole numbers"),
        (lambda full: full * np.nan, "whole numbers"),
    ],
)
def test_wrong_widths(
    space: WidthSpace, table: LatencyTable, change: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    with pytest.raises(WidthError, match=message):
        table.predict(change(space.full))


def test_outside_of_measurements_is_a_named_error(space: WidthSpace, table: LatencyTable) -> None:
    data = table.to_dict()
    key = next(key for key in data["entries"] if key.startswith("conv dense k3x3 s1x1"))
    entry = data["entries"][key]
    rows = [index for index, dims in enumerate(entry["dims"]) if dims[1] <= 24]
    for name in entry:
        entry[name] = [entry[name][index] for index in rows]
    narrow = LatencyTable.from_dict(data)
    with pytest.raises(MissingEntryError, match=r"layer left at in=\d+, out=48.*measured are channels"):
        narrow.predict(space.full)
    small = np.ones((1, len(space.variables)), dtype=np.int64)
    assert narrow.predict(small) > 0  # what is inside is still predicted
    with pytest.raises(MissingEntryError, match="covers"):
        narrow.time_us(key, (16, 40))
    assert narrow.time_us(key, (16, 16)) > 0
    with pytest.raises(MissingEntryError, match="did you mean"):
        narrow.time_us(key + "x", (16, 16))


# -- binding ------------------------------------------------------------------------------------


def test_other_levels_bind(table: LatencyTable) -> None:
    other = tiny_space(levels=4)
    bound = table.for_space(other)
    assert [v.choices for v in bound.network.variables] == [v.choices for v in other.variables]
    np.testing.assert_allclose(bound.predict(other.full), table.predict(other.full))


def test_another_resolution_does_not_bind(table: LatencyTable) -> None:
    with pytest.raises(
        TableError, match=r"made for TinyNet at 3x16x16.*stem\.0.*3x32x32.*bcnet-deploy profile"
    ):
        table.for_space(tiny_space(size=32))


# -- files --------------------------------------------------------------------------------------


def test_round_trip(space: WidthSpace, table: LatencyTable, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    table.save(path)
    again = LatencyTable.load(path)
    widths = space.random(100, np.random.default_rng(13))
    np.testing.assert_allclose(again.predict(widths), table.predict(widths), rtol=1e-4)
    assert again.source == "measured"
    again.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()
    assert LatencyTable.load(tmp_path / "again.json").fingerprint == again.fingerprint


def test_needs_no_torch(space: WidthSpace, table: LatencyTable, tmp_path: Path) -> None:
    import subprocess
    import sys

    path = tmp_path / "table.json"
    table.save(path)
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from bcnet_deploy.lut import LatencyTable\n"
        f"print(LatencyTable.load({str(path)!r}).predict({space.full.tolist()})[0])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert float(result.stdout) == pytest.approx(float(table.predict(space.full)[0]), rel=1e-4)


def test_a_table_of_another_machine_says_so(
    table: LatencyTable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from dataclasses import replace

    path = tmp_path / "table.json"
    replace(table, provenance={**table.provenance, "cpu_model": "Z80", "runtime_version": "0.1"}).save(path)
    with caplog.at_level(logging.WARNING, "bcnet_deploy"):
        LatencyTable.load(path)
    assert "CPU Z80 there" in caplog.text
    assert "runtime version 0.1 there" in caplog.text


def test_here_means_no_warning(table: LatencyTable, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from dataclasses import replace

    from bcnet_deploy.runtime.machine import describe_machine
    from bcnet_deploy.runtime.registry import find_runtime

    path = tmp_path / "table.json"
    replace(table, provenance=describe_machine(find_runtime("onnxruntime"))).save(path)
    with caplog.at_level(logging.WARNING, "bcnet_deploy"):
        LatencyTable.load(path)
    assert caplog.text == ""


def change(path: tuple[Any, ...], value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(data: dict[str, Any]) -> None:
        target = data
        for key in path[:-1]:
            target = target[key if key != "*" else next(iter(target))]
        key = path[-1] if path[-1] != "*" else next(iter(target))
        if value is KeyError:
            del target[key]
        else:
            target[key] = value

    return apply


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (change(("format",), 2), "format 2, this version reads 1"),
        (change(("format",), KeyError), "lacks the key 'format'"),
        (change(("kind",), "shopping list"), "no latency table"),
        (change(("source",), "guessed"), "source must be 'measured' or 'estimated'"),
        (change(("device",), KeyError), "lacks the key 'device'"),
        (change(("batch",), 0), "batch must be a whole number"),
        (change(("batch",), True), "batch must be a whole number"),
        (change(("granularity", "block"), -16), "granularity.block"),
        (change(("entries", "*"), KeyError), "lacks the entry of layer"),
        (change(("entries", "*", "median_us"), KeyError), "lacks the key 'median_us'"),
        (change(("entries", "*", "median_us", 0), -1.0), "must not be negative"),
        (change(("entries", "*", "median_us", 0), float("nan")), "NaN is out of range"),
        (change(("entries", "*", "median_us", 0), "fast"), "finite"),
        (change(("entries", "*", "median_us", 0), 1e300), "holds 1e\\+300; allowed: up to 1e\\+10"),
        (change(("entries", "*", "dims"), [[1, 1], [1, 1]]), "one row each|a row twice"),
        (change(("device",), "../../out/package"), "device is '../../out/package'; allowed: up to 64"),
        (change(("entries", "*", "median_us"), [1.0]), "one row each"),
        (change(("entries", "*", "count", 0), 0), "whole numbers of 1"),
        (change(("entries", "*", "dims", 0), [1, 2, 3, 4]), "different lengths"),
        (change(("entries", "*", "dims", 0, 0), 2.5), "whole numbers of 1"),
        (change(("entries",), []), "must be a mapping"),
        (change(("models", "*"), KeyError), "lacks the entry of layer"),
        (change(("models", "*", "form"), "oracle"), "form must be 'fit' or 'roofline'"),
        (change(("models", "*", "weights"), KeyError), "is damaged"),
        (change(("models", "*", "weights"), [0.5]), "one row each"),
        (change(("models", "*", "weights", 0), float("inf")), "Infinity is out of range"),
        (change(("models", "*", "cells"), [[1]]), "one row each"),
        (change(("models", "*", "bases", ""), KeyError), "lacks the key ''"),
        (change(("models", "*", "bases", ""), [1.0]), "coefficients"),
        (change(("models", "*", "bases", "0x"), [1.0]), "flags"),
        (change(("models", "*", "bases"), []), "is damaged"),
        (change(("models", "*", "amplitude"), float("nan")), "NaN is out of range"),
        (change(("models", "*", "amplitude"), -1.0), "amplitude must be a positive number"),
        (change(("models", "*", "length"), 0), "length must be a positive number"),
        (change(("models", "*", "noise"), None), "is damaged"),
        (change(("complete",), "yes"), "complete must be true or false"),
        (change(("networks",), {}), "networks must be a list"),
        (change(("networks", 0, "accuracy"), {"mape": 0.01}), "lacks the key 'networks'"),
        (change(("networks", 0, "accuracy"), [1]), "must be a mapping"),
        (change(("networks", 0, "layers", 0, "dims"), []), "channel counts"),
        (change(("networks", 0, "scales"), [1.0]), "one number for each"),
        (change(("networks", 0, "overhead_us"), float("inf")), "Infinity is out of range"),
        (change(("networks", 0, "relative_error"), -0.1), "must not be negative"),
        (change(("networks", 0, "layers", 0, "key"), "unheard of"), "lacks the entry of layer"),
        (change(("networks", 0, "layers", 0, "name"), KeyError), "is damaged"),
        (change(("networks", 0, "variables"), []), "depends on variable"),
        (change(("networks", 0, "input_size"), [3]), "is damaged"),
        (change(("networks", 0, "variables", 0, 1), 10**30), "channels in steps of"),
        (change(("networks", 0, "variables", 0, 3, 0), -(10**18)), "choices from -1000000000000000000 to"),
        (change(("networks", 0, "variables", 0, 3), []), "choices from None to None"),
    ],
)
def test_edited_files_name_the_key(
    table: LatencyTable, tmp_path: Path, edit: Callable[[dict[str, Any]], None], message: str
) -> None:
    data = copy.deepcopy(table.to_dict())
    edit(data)
    path = tmp_path / "edited.json"
    path.write_text(json.dumps(data))
    with pytest.raises(TableError, match=message) as caught:
        LatencyTable.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b'"text"', b"\xff\xfe", b"{", b'{"format": 1}'])
def test_files_that_are_no_table(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(TableError, match=r"broken\.json"):
        LatencyTable.load(path)


def test_truncated_anywhere(table: LatencyTable, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    table.save(path)
    content = path.read_bytes()
    for length in np.random.default_rng(0).integers(0, len(content) - 3, 25):
        path.write_bytes(content[:length])
        with pytest.raises(TableError):
            LatencyTable.load(path)


def test_absent_file(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="no latency table at"):
        LatencyTable.load(tmp_path / "absent.json")


def test_a_failed_save_leaves_the_former_table(
    table: LatencyTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "table.json"
    table.save(path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunDirError, match="No space left"):
        make_table(tiny_space(), overhead_us=99.0).save(path)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["table.json"]


def test_unwritable_folder(table: LatencyTable, tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(RunDirError, match="cannot write"):
        table.save(blocker / "table.json")


# -- merging ------------------------------------------------------------------------------------


def test_merging_joins_networks_and_entries(space: WidthSpace, table: LatencyTable) -> None:
    other_space = tiny_space(size=32)
    merged = table.merged(make_table(other_space))
    widths = space.random(30, np.random.default_rng(14))
    np.testing.assert_allclose(merged.predict(widths), table.predict(widths), rtol=1e-2)
    bound = merged.for_space(other_space)
    np.testing.assert_allclose(bound.predict(widths), true_ms(other_space, widths), rtol=0.05)
    again = merged.merged(table)
    assert len(again.networks) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "other"}, "different device"),
        ({"precision": "fp16"}, "different precision"),
        ({"source": "estimated"}, "different source"),
        ({"provenance": {"runtime": "onnxruntime", "threads": 2}}, "different threads"),
    ],
)
def test_unlike_tables_do_not_merge(table: LatencyTable, changes: dict[str, Any], message: str) -> None:
    from dataclasses import replace

    with pytest.raises(TableError, match=message):
        table.merged(replace(table, **changes))


class Shallow(TinyNet):
    """Without the residual block: another network of the same layers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.cat([self.left(x), self.right(x)], 1)
        return self.fc(torch.relu(x).mean((2, 3)))


class Twice(TinyNet):
    """With the residual block twice."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for _ in range(2):
            x = x + self.project(self.depthwise(self.expand(x)))
        x = torch.cat([self.left(x), self.right(x)], 1)
        return self.fc(torch.relu(x).mean((2, 3)))


def validated(table: LatencyTable, relative_error: float, overhead_us: float = 40.0) -> LatencyTable:
    network = replace(
        table.network, relative_error=relative_error, overhead_us=overhead_us, accuracy={"networks": 30}
    )
    return replace(table, networks=(network, *table.networks[1:]))


def test_the_error_of_a_network_never_timed_does_not_depend_on_others(table: LatencyTable) -> None:
    measured = validated(table, 0.03)
    shallow, twice = (WidthSpace.from_model(n().eval(), (3, 16, 16), 8) for n in (Shallow, Twice))
    assert measured.for_space(twice).network.relative_error == pytest.approx(0.06)
    assert measured.for_space(shallow).for_space(twice).network.relative_error == pytest.approx(0.06)


def test_a_validated_network_replaces_a_guess_on_merging(table: LatencyTable) -> None:
    shallow = WidthSpace.from_model(Shallow().eval(), (3, 16, 16), 8)
    guess = validated(table, 0.03).for_space(shallow)
    own = validated(guess, 0.01, 90.0)
    for merged in (guess.merged(own), own.merged(guess)):
        assert (merged.network.relative_error, merged.network.overhead_us) == (0.01, 90.0)
        assert len(merged.networks) == 2


def test_measured_layers_alone_are_not_certain(space: WidthSpace, table: LatencyTable) -> None:
    """As a CSV has them: no network was validated."""
    bound = replace(table, networks=()).for_space(space)
    np.testing.assert_allclose(bound.uncertainty(space.full), 0.1 * bound.predict(space.full))


@pytest.mark.parametrize(("mine", "theirs", "merges"), [(None, "T4", True), ("T4", "A10", False)])
def test_a_cpus_tables_merge_with_and_without_a_gpu(
    table: LatencyTable, mine: str | None, theirs: str, merges: bool
) -> None:
    tables = [replace(table, provenance={**table.provenance, "gpu": gpu}) for gpu in (mine, theirs)]
    if merges:
        assert tables[0].merged(tables[1]).entries.keys() == table.entries.keys()
        return
    with pytest.raises(TableError, match="different gpu"):
        tables[0].merged(tables[1])


def test_entries_of_other_numbers_of_channels_do_not_merge(table: LatencyTable) -> None:
    key = next(key for key, entries in table.entries.items() if entries.dims.shape[1] == 2)
    narrow = table.entries[key]
    other = replace(table, entries={key: replace(narrow, dims=narrow.dims[:, :1])}, networks=())
    with pytest.raises(TableError, match="2 and 1 channel counts"):
        table.merged(other)
