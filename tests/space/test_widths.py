"""What is no width vector is refused as such, whatever it is made of."""

from __future__ import annotations

from typing import Any

import pytest

from bcnet_deploy.errors import WidthError
from tests.lut.fakes import tiny_space

NO_WIDTHS: list[Any] = [
    [], {}, [[]], [1, -1, 16], 10**30, 2**63, None, "a", float("inf"), float("nan"), 1e300, -0.0, {"a": 1},
]  # fmt: skip


@pytest.mark.parametrize("value", NO_WIDTHS, ids=repr)
def test_what_is_no_width_is_refused_on_one_line(value: Any) -> None:
    space = tiny_space()
    full = [variable.channels for variable in space.variables]
    for given in ([value] * len(full), [value, *full[1:]], [full, [value]], [[value]] * len(full)):
        with pytest.raises(WidthError) as caught:
            space.check(given)
        assert "\n" not in str(caught.value)
    with pytest.raises(WidthError):
        space.variables[0].checked_choices([8, value])
