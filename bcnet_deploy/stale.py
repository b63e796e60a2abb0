"""Whether a run's retrained networks are still of the widths that its latest search found.

A search can be run again after ``retrain``: what was trained then is of other widths. The export refuses it,
the report leaves its figures out. Only files are read, without PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bcnet_deploy import files
from bcnet_deploy.errors import CheckpointError
from bcnet_deploy.rundir import RunDir
from bcnet_deploy.searched import searched_widths

GIVEN = "given.yaml"
"""Beside a retrained network whose widths are the user's own (``retrain --widths``), not the search's."""


def trained_widths(run: RunDir, which: str) -> dict[str, int] | None:
    """By variable name, of the retrained network; None where there is none.

    Raises:
        CheckpointError: its description is damaged.
    """
    path = run.retrained(which) / "subnet.yaml"
    return _widths(files.read_yaml(path, CheckpointError, "sub-network")) if path.exists() else None


def given_widths(run: RunDir, which: str) -> dict[str, int] | None:
    """By variable name: what the user gave to the retraining of ``which``, if that is what is there."""
    path = run.retrained(which) / GIVEN
    if not path.exists():
        return None
    given = _widths(files.read_yaml(path, CheckpointError, "given widths"))
    # A later training at the search's widths leaves the file behind: it is of another network then.
    return given if given is not None and given == trained_widths(run, which) else None


def other_widths(run: RunDir, which: str) -> str:
    """How the retrained network differs from the latest search's, such as ``'stem.0' 12 then, 20 now``.

    Empty where it does not, where one of both is missing, and where the user gave the widths.
    """
    trained, found = trained_widths(run, which), searched_widths(run, which)
    if trained is None or found is None or trained == found or given_widths(run, which) is not None:
        return ""
    return difference(trained, found)


def difference(then: Mapping[str, int], found: Mapping[str, int]) -> str:
    """The first variables in which two widths differ, for people; empty where they do not."""
    if dict(then) == dict(found):
        return ""
    odd = [name for name in found if then.get(name) != found[name]] or sorted(set(then) - set(found))
    shown = ", ".join(f"{name!r} {then.get(name, '-')} then, {found.get(name, '-')} now" for name in odd[:2])
    return shown + (f" and {len(odd) - 2} more" if len(odd) > 2 else "")


def _widths(data: Any) -> dict[str, int] | None:
    widths = data.get("widths") if isinstance(data, Mapping) else None
    if not isinstance(widths, Mapping):
        return None
    return {str(name): width for name, width in widths.items() if isinstance(width, int)}
