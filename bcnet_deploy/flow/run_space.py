"""The width space of a run directory, without PyTorch where it has been captured before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from bcnet_deploy import files
from bcnet_deploy.errors import BCNetError
from bcnet_deploy.rundir import RunDir
from bcnet_deploy.space import WidthSpace

if TYPE_CHECKING:
    from bcnet_deploy.rundir import ModelRef

FILE = "space.json"


def space_of_run(run: RunDir) -> WidthSpace:
    """The space of the run's model; captured once and kept in ``search/space.json``, by whichever command
    traces the model first: later ones then refuse a budget without PyTorch.

    Raises:
        MissingStepError: there is no run yet.
        ModelError: the model cannot become a width space.
    """
    ref = run.load().model
    known = cached_space(run, ref)
    if known is not None:
        return known
    from bcnet_deploy.models import build_model

    model = build_model(ref.name, num_classes=ref.num_classes)
    space = WidthSpace.from_model(model, ref.input_size, ref.levels, ref.min_level)
    keep_space(run, ref, space)
    return space


def keep_space(run: RunDir, ref: ModelRef, space: WidthSpace) -> None:
    """Keep a captured space for commands that then need no PyTorch. Raises :class:`RunDirError`."""
    files.write_json(_path(run), {"model": ref.to_dict(), "space": space.to_dict()}, indent=None)


def cached_space(run: RunDir, ref: ModelRef) -> WidthSpace | None:
    """The kept space if it is of this model; a damaged or other one counts as none."""
    # A model of the user's own can change under the same name: it is always captured anew.
    return None if ":" in ref.name else last_space(run, ref)


def last_space(run: RunDir, ref: ModelRef) -> WidthSpace | None:
    """The space as it was last captured, also of a model that may have changed since."""
    path = _path(run)
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return WidthSpace.from_dict(data["space"]) if data["model"] == ref.to_dict() else None
    except (OSError, ValueError, KeyError, TypeError, BCNetError):
        return None


def _path(run: RunDir) -> Path:
    return run.search / FILE
