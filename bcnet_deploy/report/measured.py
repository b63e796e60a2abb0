"""What of a run directory's results may stand beside the prediction.

Results of other widths than the latest search's are left out; measurements that were not made on the device,
or not under its table's conditions, are named as such.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bcnet_deploy.run.directory import NETWORKS, RunDir, difference


def drop_former(
    run: RunDir, widths: dict[str, dict[str, int]], results: dict[str, Any], bench: Any
) -> list[str]:
    """Take out, in place, what is of other widths than the latest search's, and say what was taken out.

    Args:
        run: the run directory.
        widths: by network and variable; what the user gave to ``retrain --widths`` replaces the search's.
        results: of the retrainings by network; those taken out become None.
        bench: the benchmark's JSON, or None.
    """
    notes = []
    for name in NETWORKS:
        if (given := run.given_widths(name)) is not None:
            widths[name] = given
            notes.append(f"{name}: widths given to 'retrain --widths', not the search's")
        wanted = widths.get(name)
        if wanted is None:
            continue
        result = results[name]
        if result is not None:
            trained = run.trained(name) or dict(zip(wanted, result["widths"], strict=False))
            if other := difference(trained, wanted):
                results[name] = None
                notes.append(
                    f"{name}: its training is left out, since it was at other widths than the latest search "
                    f"found ({other}); run 'bcnet-deploy retrain --network {name} --fresh'"
                )
        measured = bench["networks"].get(name) if bench is not None else None
        if measured and measured["widths"] and (other := difference(measured["widths"], wanted)):
            del bench["networks"][name]
            notes.append(
                f"{name}: its measurement is left out, since it was at other widths than the latest search "
                f"found ({other}); run 'bcnet-deploy export --which {name} --force' and 'bcnet-deploy bench'"
            )
    return notes


def measured_latency(bench: Any, name: str) -> dict[str, float]:
    """Latency statistics on the runtime that the prediction speaks of (else the first)."""
    chosen = _runtime(bench, name)
    return {} if chosen is None else dict(chosen[1]["latency"])


def measured_on(bench: Any) -> tuple[str, str]:
    """Runtime, threads and machine of the measurements shown, and how they depart from the device's."""
    for name in reversed(NETWORKS):
        chosen = _runtime(bench, name)
        if chosen is not None:
            runtime, entry = chosen
            machine = bench["machine"]
            # A benchmark of an earlier version does not name the kind.
            on_cpu = entry.get("kind", runtime.rpartition("-")[2]) == "cpu"
            threads = f", {bench['settings']['threads']} thread(s)" if on_cpu else ""
            where = machine.get("cpu_model") if on_cpu else machine.get("gpu")
            return f"{runtime}{threads}, {where}", _departs(bench["networks"][name], entry)
    return "", ""


def _runtime(bench: Any, name: str) -> tuple[str, Mapping[str, Any]] | None:
    if bench is None or name not in bench["networks"]:
        return None
    network = bench["networks"][name]
    entries = list(network["runtimes"].items())
    return next((pair for pair in entries if not _departs(network, pair[1])), entries[0] if entries else None)


def _departs(network: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    if "departs" in entry:
        return str(entry["departs"])
    # An earlier benchmark says only that it was not compared.
    compared = network["prediction"] is None or entry["prediction_error"] is not None
    return "" if compared else "other conditions than the table's; run 'bcnet-deploy bench' again"
