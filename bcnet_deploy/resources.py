"""Where the files shipped with the package are: latency tables, device profiles, recipes.

In a checkout (also an editable install) they are the top-level folders of the repository; in a
wheel they are copied into the package as ``_data``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

_PACKAGE = Path(__file__).resolve().parent

Shipped = Literal["luts", "profiles", "configs"]


def shipped(folder: Shipped) -> Path:
    """The folder of shipped files called ``folder``.

    Raises:
        FileNotFoundError: the installation is incomplete (a defect of the package, not of the user's input).
    """
    for candidate in (_PACKAGE / "_data" / folder, _PACKAGE.parent / folder):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(
        f"the installed bcnet_deploy has no {folder!r} folder (looked beside and inside {_PACKAGE})"
    )


def recipe_names() -> list[str]:
    """Names of the shipped training recipes."""
    return sorted(file.stem for file in shipped("configs").glob("*.yaml"))
