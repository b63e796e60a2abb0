"""Which results of a run directory are of the widths that its latest search found; others are left out."""

from __future__ import annotations

from typing import Any

from bcnet_deploy.rundir import RunDir
from bcnet_deploy.stale import difference, given_widths, trained_widths

NETWORKS = ("full", "uniform", "found")


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
        if (given := given_widths(run, name)) is not None:
            widths[name] = given
            notes.append(f"{name}: widths given to 'retrain --widths', not the search's")
        wanted = widths.get(name)
        if wanted is None:
            continue
        result = results[name]
        if result is not None:
            trained = trained_widths(run, name) or dict(zip(wanted, result["widths"], strict=False))
            if other := difference(trained, wanted):
                results[name] = None
                notes.append(
                    f"{name}: its training is left out, since it was at other widths than the latest search "
                    f"found ({other}); run 'bcnet-deploy retrain --network {name}'"
                )
        measured = bench["networks"].get(name) if bench is not None else None
        if measured and measured["widths"] and (other := difference(measured["widths"], wanted)):
            del bench["networks"][name]
            notes.append(
                f"{name}: its measurement is left out, since it was at other widths than the latest search "
                f"found ({other}); run 'bcnet-deploy export --which {name} --force' and 'bcnet-deploy bench'"
            )
    return notes
