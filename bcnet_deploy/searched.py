"""The widths that a run's latest search chose, as ``search/widths.yaml`` names them. Needs no PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from bcnet_deploy import files
from bcnet_deploy.errors import RunDirError
from bcnet_deploy.rundir import RunDir

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from bcnet_deploy.space import WidthSpace


def searched_widths(run: RunDir, which: str) -> dict[str, int] | None:
    """By variable name, of ``found`` or ``uniform``.

    None for ``full``, before any search, and where no uniform network kept the search's budgets.

    Raises:
        RunDirError: the file is damaged.
    """
    if which == "full" or not run.widths.exists():
        return None
    data = files.read_yaml(run.widths, RunDirError, "widths")
    if which == "uniform":
        compared = data.get("compared_with") if isinstance(data, Mapping) else None
        data = compared.get("uniform") if isinstance(compared, Mapping) else None
        if data is None:
            return None
    widths = data.get("widths") if isinstance(data, Mapping) else None
    if not isinstance(widths, Mapping) or not all(isinstance(width, int) for width in widths.values()):
        raise RunDirError(
            f"{run.widths} names no width for each variable under 'widths'; run the search again"
        )
    return {str(name): width for name, width in widths.items()}


def searched_row(run: RunDir, space: WidthSpace, which: str) -> npt.NDArray[np.int64] | None:
    """(L,): the same in the order of ``space``'s variables; its full widths for ``full``.

    Raises:
        RunDirError: the file is damaged, or of another model.
        WidthError: its widths are none of the space.
    """
    if which == "full":
        return space.full
    by_name = searched_widths(run, which)
    if by_name is None:
        return None
    names = [variable.name for variable in space.variables]
    odd = [name for name in names if name not in by_name] or sorted(set(by_name) - set(names))
    if odd:
        raise RunDirError(
            f"{run.widths} is of another model: variable {odd[0]!r} does not match; run the search again"
        )
    return space.check([by_name[name] for name in names])[0]
