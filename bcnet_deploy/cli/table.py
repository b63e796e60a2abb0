"""``bcnet-deploy table``: show, merge and convert latency tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bcnet_deploy.cli.common import console, emit, json_option
from bcnet_deploy.errors import wrong_option

if TYPE_CHECKING:
    from bcnet_deploy.lut import LatencyTable


@click.group("table")
def command() -> None:
    """Show, convert and merge latency tables."""


@command.command("show")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--layers", is_flag=True, help="The share of each layer of the full network.")
@json_option
def show(path: Path, layers: bool, as_json: bool) -> None:
    """What the table at PATH is of, how accurate it is, and where the time goes."""
    table = _load(path)

    def text() -> None:
        from rich.markup import escape
        from rich.table import Table

        out = console()
        _summary(path, table)
        for key, value in table.provenance.items():
            out.print(escape(f"  {key}: {value}"))
        if layers:
            shares = Table(title=f"Full network{' (estimated)' if table.estimated else ''}")
            shares.add_column("layer", overflow="fold")
            shares.add_column("ms", justify="right")
            shares.add_column("share", justify="right")
            rows = _layers(table)
            total = sum(rows.values())
            for name, value in rows.items():
                shares.add_row(escape(name), f"{value:.4f}", f"{value / total:.1%}")
            out.print(shares)

    data: dict[str, Any] = {
        "path": str(path),
        "device": table.device,
        "source": table.source,
        "complete": table.complete,
        "precision": table.precision,
        "batch": table.batch,
        "fingerprint": table.fingerprint,
        "networks": [
            {"network": network.description, "fingerprint": network.fingerprint, "accuracy": network.accuracy}
            for network in table.networks
        ],
        "entries": {key: len(entries) for key, entries in table.entries.items()},
        "provenance": table.provenance,
        "differences": table.differences(),
    }
    if layers:
        data["layers_ms"] = _layers(table)
    emit(data, as_json=as_json, show=text)


@command.command("merge")
@click.argument("paths", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The merged table.")
@json_option
def merge(paths: tuple[Path, ...], out: Path, as_json: bool) -> None:
    """Merge tables of one device: entries and networks of all PATHS; the first's network comes first."""
    merged = _load(paths[0])
    for path in paths[1:]:
        merged = merged.merged(_load(path))
    merged.save(out)
    _emit(out, merged, as_json)


@command.command("to-csv")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The CSV file.")
@json_option
def to_csv(path: Path, out: Path, as_json: bool) -> None:
    """Write the entries of the table at PATH as CSV."""
    from bcnet_deploy import files
    from bcnet_deploy.lut.convert import to_csv as convert

    table = _load(path)
    files.write_text(out, convert(table))
    _emit(out, table, as_json)


@command.command("from-csv")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The table.")
@json_option
def from_csv(path: Path, out: Path, as_json: bool) -> None:
    """Make a table of the CSV at PATH."""
    from bcnet_deploy.lut.convert import from_csv as convert

    with wrong_option():
        table = convert(path)
    table.save(out)
    _emit(out, table, as_json)


@command.command("from-ofa")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--device", required=True, help="What the table is of.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The table.")
@json_option
def from_ofa(path: Path, device: str, out: Path, as_json: bool) -> None:
    """Make a table of a Once-for-All YAML at PATH. Its entries are whole blocks."""
    from bcnet_deploy.devices import check_name
    from bcnet_deploy.errors import UsageError
    from bcnet_deploy.lut.convert import from_ofa as convert

    with wrong_option():
        check_name("--device", device, UsageError)
        table = convert(path, device=device)
    table.save(out)
    _emit(out, table, as_json)


def _load(path: Path) -> LatencyTable:
    """The table at ``path``. Where there is none, that is wrong usage; a damaged one is not."""
    from bcnet_deploy.lut import LatencyTable

    with wrong_option():
        return LatencyTable.load(path)


def _emit(path: Path, table: LatencyTable, as_json: bool) -> None:
    """What was written, for programs or people."""
    data = {
        "path": str(path), "device": table.device, "source": table.source, "complete": table.complete,
        "networks": [network.fingerprint for network in table.networks],
        "entries": sum(map(len, table.entries.values())),
    }  # fmt: skip
    emit(data, as_json=as_json, show=lambda: _summary(path, table))


def _summary(path: Path, table: LatencyTable) -> None:
    from bcnet_deploy.cli.profile import show_summary

    if table.networks:
        show_summary(path, table)
    else:
        count = sum(map(len, table.entries.values()))
        kinds = len(table.entries)
        text = f"{path}: {count} entries of {table.device}, {kinds} kinds; no network"
        console().print(text, soft_wrap=True, markup=False)


def _layers(table: LatencyTable) -> dict[str, float]:
    full = [variable.channels for variable in table.network.variables]
    parts = table.breakdown(full)
    return {name: float(value) for name, value in zip(parts.names, parts.milliseconds[0], strict=True)}
