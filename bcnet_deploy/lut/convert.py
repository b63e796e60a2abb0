"""Tables from and to other forms: CSV for spreadsheets, the YAML tables of Once-for-All for reading.

CSV has one row an entry: ``key, channels, count, median_us, spread_us``, channels joined by ``x``
(``16x96`` is 16 in and 96 out). A leading comment line holds what belongs to the whole table, as JSON.
Networks are not in a CSV: a table read from one is bound with ``table.for_space(space)``.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path
from typing import Any

from bcnet_deploy import files
from bcnet_deploy.errors import TableError
from bcnet_deploy.lut.entries import Entries
from bcnet_deploy.lut.fit import Granularity, fit
from bcnet_deploy.lut.table import LatencyTable

COLUMNS = ("key", "channels", "count", "median_us", "spread_us")
_MARK = "# bcnet-deploy latency table: "


def to_csv(table: LatencyTable) -> str:
    """The entries of ``table`` as CSV.

    Raises:
        TableError: the table is an estimate, which has no entries.
    """
    if not table.entries:
        raise TableError(
            f"the {table.source} table of {table.device} has no measured entries to write as CSV"
        )
    head = {
        "device": table.device,
        "source": table.source,
        "precision": table.precision,
        "batch": table.batch,
        "granularity": [table.granularity.block, table.granularity.align],
        "provenance": table.provenance,
    }
    text = io.StringIO()
    text.write(_MARK + json.dumps(head) + "\n")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for key, entries in sorted(table.entries.items()):
        for row in range(len(entries)):
            channels = "x".join(str(int(value)) for value in entries.dims[row])
            numbers = (f"{value:.2f}" for value in (entries.median_us[row], entries.spread_us[row]))
            writer.writerow([key, channels, int(entries.count[row]), *numbers])
    return text.getvalue()


def from_csv(path: str | Path) -> LatencyTable:
    """Read :func:`to_csv`'s form.

    Raises:
        TableError: the file is absent or a line is damaged; file and line are named.
    """
    lines = files.read_text(path, TableError, "latency table").splitlines()
    if not lines or not lines[0].startswith(_MARK):
        raise TableError(f"{path}, line 1: a CSV table begins with '{_MARK}' and its device as JSON")
    with files.malformed(f"{path}, line 1: the head", TableError, files.AGAIN):
        head = files.parse_json(lines[0][len(_MARK) :], TableError, f"the first line of {path}")
        block, align = (int(value) for value in head["granularity"])
        if min(block, align) < 1:
            raise ValueError(f"granularity {[block, align]}, allowed are whole numbers from 1")
        granularity = Granularity(block, align)
        device, source = str(head["device"]), str(head["source"])
        precision, batch, provenance = str(head["precision"]), int(head["batch"]), dict(head["provenance"])
    if source != "measured":
        raise TableError(f"{path}, line 1: a CSV table holds measurements; its source is {source!r}")
    rows: dict[str, list[tuple[tuple[int, ...], int, float, float]]] = {}
    reader = csv.reader(lines[1:])
    try:
        if tuple(next(reader, ())) != COLUMNS:
            raise TableError(f"{path}, line 2: the columns must be {', '.join(COLUMNS)}")
        read = list(reader)
    except csv.Error as error:
        raise TableError(f"{path}, line {1 + reader.line_num}: {error}; is a quote not closed?") from error
    for number, row in enumerate(read, 3):
        try:
            key, channels, count, median, spread = row
            values = tuple(int(value) for value in channels.split("x"))
            entry = (values, int(count), float(median), float(spread))
        except ValueError as error:
            raise TableError(f"{path}, line {number}: {error}") from error
        if min(*values, entry[1]) < 1 or not (0 <= entry[2] < math.inf and 0 <= entry[3] < math.inf):
            raise TableError(
                f"{path}, line {number}: channels and count are 1 or more, times finite and not negative"
            )
        rows.setdefault(key, []).append(entry)
    return _table(path, rows, granularity, device, precision, batch, provenance)


def from_ofa(path: str | Path, *, device: str) -> LatencyTable:
    """Read a YAML table of Once-for-All / ProxylessNAS.

    Its lines are ``name-input:HxWxC-output:HxWxC-field:value-...: {mean: milliseconds, count: n}``. An
    entry is a whole block there. Its key here is its name, its other fields and the resolutions; its
    channels are those of input and output. ``table.time_us(key, channels)`` looks one up.

    Raises:
        TableError: the file is absent or an entry is damaged; file and entry are named.
    """
    data = files.read_yaml(path, TableError, "latency table")
    if not isinstance(data, dict) or not data:
        raise TableError(f"{path} holds no mapping of entries; an OFA table has one line a block")
    rows: dict[str, list[tuple[tuple[int, ...], int, float, float]]] = {}
    for name, value in data.items():
        key, channels = _ofa_key(str(name), path)
        if isinstance(value, dict):
            mean, count = value.get("mean"), value.get("count", 1)
        else:
            mean, count = value, 1
        good = isinstance(mean, (int, float)) and not isinstance(mean, bool) and 0 <= mean < math.inf
        if not good or not isinstance(count, int) or count < 1:
            raise TableError(
                f"{path}, entry {name!r}: 'mean' must be milliseconds and 'count' 1 or more; given {value!r}"
            )
        assert isinstance(mean, (int, float))
        rows.setdefault(key, []).append((channels, count, 1e3 * float(mean), 0.0))
    provenance = {"imported_from": Path(path).name, "form": "Once-for-All YAML"}
    return _table(path, rows, Granularity(1, 1), device, "fp32", 1, provenance)


def _ofa_key(name: str, path: str | Path) -> tuple[str, tuple[int, int]]:
    fields = dict(part.split(":", 1) for part in name.split("-") if ":" in part)
    kind = name.split("-", 1)[0]
    sizes = []
    for side in ("input", "output"):
        text = fields.pop(side, "")
        if not re.fullmatch(r"\d{1,9}(x\d{1,9})*", text):
            raise TableError(f"{path}, entry {name!r}: no {side} of the form HxWxC")
        sizes.append([int(size) for size in text.split("x")])
    resolution = [("x".join(str(size) for size in shape[:-1]) or "1") for shape in sizes]
    others = " ".join(f"{key}:{value}" for key, value in sorted(fields.items()))
    channels = (max(sizes[0][-1], 1), max(sizes[1][-1], 1))
    return " ".join(filter(None, ["ofa", kind, others, f"{resolution[0]}>{resolution[1]}"])), channels


def _table(
    path: str | Path,
    rows: dict[str, list[tuple[tuple[int, ...], int, float, float]]],
    granularity: Granularity,
    device: str,
    precision: str,
    batch: int,
    provenance: dict[str, Any],
) -> LatencyTable:
    entries = {}
    for key, values in rows.items():
        if len({len(channels) for channels, *_ in values}) != 1:
            raise TableError(f"{path}, key {key!r}: its rows have different numbers of channels")
        if len({channels for channels, *_ in values}) != len(values):
            raise TableError(f"{path}, key {key!r}: the same channels stand in two rows")
        dims, count, median, spread = (list(column) for column in zip(*sorted(values), strict=True))
        data = {"dims": dims, "count": count, "median_us": median, "spread_us": spread}
        entries[key] = Entries.from_dict(data, f"{path}, key {key!r}")
    models = {
        key: fit(value.dims, value.median_us, value.count, granularity) for key, value in entries.items()
    }
    table = LatencyTable(
        device=device, source="measured", precision=precision, batch=batch, granularity=granularity,
        provenance=provenance, entries=entries, models=dict(models), networks=(),
    )  # fmt: skip
    return LatencyTable.from_dict(table.to_dict(), str(path))  # what is written must be readable
