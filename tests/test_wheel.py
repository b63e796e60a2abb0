"""The wheel holds the shipped folders, and they are found once it is installed."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from bcnet_deploy.resources import shipped

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("luts", "profiles", "configs")


@pytest.mark.parametrize("folder", FOLDERS)
def test_found_in_this_installation(folder: str) -> None:
    assert shipped(folder).is_dir()


def test_a_missing_folder_is_an_error() -> None:
    with pytest.raises(FileNotFoundError, match="no_such_folder"):
        shipped("no_such_folder")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real wheel of this checkout, built by pip."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and "hatchling" in done.stderr:
        pytest.skip(f"the build backend cannot be installed here: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("bcnet_deploy-*.whl")
    return path


def test_every_shipped_file_is_in_the_wheel(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(
        ["git", "ls-files", *FOLDERS], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    files = tracked or [
        str(p.relative_to(ROOT)) for f in FOLDERS for p in (ROOT / f).rglob("*") if p.is_file()
    ]
    assert files
    assert {f"bcnet_deploy/_data/{file}" for file in files if (ROOT / file).exists()} <= names
    inside = subprocess.run(
        ["git", "ls-files", "bcnet_deploy"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    assert {file for file in inside if (ROOT / file).exists()} <= names, "page, style sheet and script too"
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "docs/", "examples/"))]


def test_an_installed_wheel_finds_them(wheel: Path, tmp_path: Path) -> None:
    """Installed alone into an empty folder, away from the checkout, and run by a fresh interpreter."""
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    code = (
        "import bcnet_deploy, sys\n"
        "from bcnet_deploy.resources import shipped\n"
        f"assert bcnet_deploy.__file__.startswith({str(target)!r}), bcnet_deploy.__file__\n"
        f"for name in {FOLDERS!r}: print(shipped(name), sorted(p.name for p in shipped(name).iterdir()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(target)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert len(lines) == len(FOLDERS)
    assert all(str(target) in line for line in lines)
    assert "t4.yaml" in done.stdout


def test_the_wheel_states_its_licence_and_its_types(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (info,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = archive.read(info).decode()
    assert "License-Expression: Apache-2.0\n" in metadata and "License-File: LICENSE\n" in metadata
    assert "Classifier: Typing :: Typed\n" in metadata
    licence = archive.read(info.replace("METADATA", "licenses/LICENSE")).decode()
    assert licence == (ROOT / "LICENSE").read_text("utf-8") and "END OF TERMS AND CONDITIONS" in licence
    assert "bcnet_deploy/py.typed" in archive.namelist()
