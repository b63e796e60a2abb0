"""References to code of the user's own: found, run once, and every failure one line that names it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bcnet_deploy import references
from bcnet_deploy.errors import DataError, ModelError, UnknownModelError

CODE = """
import dataclasses
import bcnet_beside
runs = bcnet_beside.runs
runs.append(1)

@dataclasses.dataclass
class Net:
    width: int = VALUE

def make(width=1):
    return Net(width)

class Group:
    @staticmethod
    def small():
        return "small"

def leaves():
    raise SystemExit(3)

number = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with code of the user's, which is not the current one."""
    folder = tmp_path / "a folder: mine"
    folder.mkdir()
    (folder / "bcnet_beside.py").write_text("runs = []\n")
    (folder / "my net.py").write_text(CODE.replace("VALUE", "1"))
    (folder / "stops.py").write_text("import sys\nsys.exit('no such option')\n")
    (folder / "bad.py").write_text("def f(:\n")
    (folder / "needs.py").write_text("import bcnet_no_such_package\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "bcnet_beside", raising=False)
    return folder


def test_a_file_is_run_once_and_again_when_it_has_changed(own: Path) -> None:
    path = own / "my net.py"
    before = list(sys.path)
    make = references.find(f"{path}:make", "model", ModelError)
    assert make(5).width == 5
    assert references.find(f"{path}:Group.small", "model", ModelError)() == "small"
    assert references.find(f"{path.relative_to(Path.cwd())}:Net", "model", ModelError)().width == 1
    assert len(sys.modules["bcnet_beside"].runs) == 1
    path.write_text(CODE.replace("VALUE", "22"))
    assert references.find(f"{path}:Net", "model", ModelError)().width == 22
    assert sys.path == before


@pytest.mark.parametrize(
    ("reference", "error", "message"),
    [
        ("my net.py:mak", UnknownModelError, "has no function 'mak'; did you mean 'make'"),
        ("my net.py:number", UnknownModelError, "has no function 'number'"),
        ("absent.py:make", UnknownModelError, "no file .*absent.py.* for the model"),
        ("stops.py:make", ModelError, "SystemExit: no such option"),
        ("bad.py:f", ModelError, "SyntaxError"),
        ("needs.py:f", ModelError, "bcnet_no_such_package"),
        ("my net.py:", UnknownModelError, "package.module:function"),
        ("my net.py:a b", UnknownModelError, "package.module:function"),
    ],
)
def test_what_cannot_be_found_or_run_is_one_line(
    own: Path, reference: str, error: type[ModelError], message: str
) -> None:
    for _ in range(2):  # a module that failed is not half there the second time
        with pytest.raises(error, match=message) as caught:
            references.find(f"{own}/{reference}", "model", ModelError, UnknownModelError)
        assert type(caught.value) is error and str(caught.value).isprintable()


def test_a_function_that_fails_is_named(own: Path) -> None:
    leaves = references.find(f"{own / 'my net.py'}:leaves", "data", DataError)
    with pytest.raises(DataError, match=r"mine\(\) failed: SystemExit: 3"):
        references.call(leaves, "mine", DataError)

    def sick(width: int) -> None:
        raise DataError("a typed error stays as it is")

    with pytest.raises(DataError, match="^a typed error stays"):
        references.call(sick, "mine", ModelError, width=3)
    with pytest.raises(ModelError, match=r"mine\(wide=3\) failed: TypeError"):
        references.call(sick, "mine", ModelError, wide=3)
