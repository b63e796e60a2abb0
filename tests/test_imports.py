"""Imports go one way, and help costs no PyTorch."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import bcnet_deploy as bd

PACKAGE = Path(bd.__file__).parent

BASE = {"errors", "units", "files", "resources", "registry", "validation", "references", ""}
SPACE = BASE | {"space", "lut", "devices", "runtime"}
NN = SPACE | {"nn", "models"}
# What each part may import besides itself. "" is the package's own __init__, which is lazy.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "units": BASE,
    "files": BASE,
    "resources": BASE,
    "registry": BASE,
    "references": BASE,
    "validation": BASE,
    "space": BASE,
    "devices": BASE | {"runtime"},
    "lut": BASE | {"space", "devices", "runtime"},
    "models": BASE | {"space"},
    "nn": NN,
    "data": BASE | {"models"},
    "importance": BASE | {"space"},
    "tasks": BASE,
    "train": NN | {"data", "importance", "tasks"},
    "export": NN | {"data", "tasks", "train", "runtime"},
    "runtime": BASE,
    "profiler": NN | {"runtime", "export"},
    "search": SPACE,
    "bench": NN | {"data", "runtime", "profiler", "export"},
    "testing": SPACE,
    # It reads the run directory; what the run package knows beyond that, it does not see.
    "report": SPACE | {"run"},
}
# Parts that sit above the others: the command line and what it puts together.
TOP = {"cli", "run", "testing", "", "__main__"}
# Parts that must not import torch when they are imported (inside functions they may).
WITHOUT_TORCH = {
    "errors",
    "units",
    "files",
    "registry",
    "references",
    "validation",
    "resources",
    "space",
    "lut",
    "devices",
    "runtime",
    "search",
    "cli",
}


def part_of(path: Path) -> str:
    """The part of the package a file belongs to."""
    first = path.relative_to(PACKAGE).parts[0]
    name = first.removesuffix(".py")
    return "" if name == "__init__" else name


def imported(node: ast.AST, path: Path) -> list[str]:
    """Full module names that an import statement names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{path}: relative import at line {node.lineno}"
        if node.module == "bcnet_deploy":
            return [f"bcnet_deploy.{alias.name}" for alias in node.names]
        return [node.module or ""]
    return []


def own_parts(module: str) -> set[str]:
    """The part that a module of ours belongs to, as a set; empty for other packages and public names."""
    names = module.split(".")
    if names[0] != "bcnet_deploy":
        return set()
    part = names[1] if len(names) > 1 else ""
    return {part} if (PACKAGE / part).is_dir() or (PACKAGE / f"{part}.py").exists() else {""}


FILES = sorted(PACKAGE.rglob("*.py"))


def typing_only(tree: ast.Module) -> set[ast.AST]:
    """Nodes under ``if TYPE_CHECKING``."""
    found: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            found.update(sub for child in node.body for sub in ast.walk(child))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    part = part_of(path)
    if part in TOP:
        return
    assert part in ALLOWED, f"new part {part!r}: say here what it may import"
    tree = ast.parse(path.read_text())
    skipped = typing_only(tree)
    for node in ast.walk(tree):
        if node in skipped:
            continue
        for module in imported(node, path):
            wrong = own_parts(module) - ALLOWED[part] - {part}
            assert not wrong, f"{part} may not import {module} (line {node.lineno})"  # type: ignore[attr-defined]


def test_modules_of_the_space_import_each_other_one_way() -> None:
    """No circle, also not through functions or type hints."""
    package = "bcnet_deploy.space"
    imports = {
        f"{package}.{path.stem}": {
            name for node in ast.walk(ast.parse(path.read_text())) for name in imported(node, path)
        }
        for path in (PACKAGE / "space").glob("*.py")
        if path.stem != "__init__"
    }
    left = dict(imports)
    while left:
        free = {name for name, needed in left.items() if not needed & left.keys()}
        assert free, f"a circle among {sorted(left)}"
        left = {name: needed for name, needed in left.items() if name not in free}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_search_never_imports_torch(path: Path) -> None:
    if part_of(path) != "search":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        assert not any(name.split(".")[0] == "torch" for name in imported(node, path))


def modules_after(statement: str) -> set[str]:
    """Names of the modules loaded by a fresh interpreter that runs ``statement``."""
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split("\n"))


def test_parts_without_torch_load_without_it() -> None:
    names = [
        ".".join(("bcnet_deploy", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        for path in FILES
        if part_of(path) in WITHOUT_TORCH - {"space"}
    ]
    loaded = modules_after("\n".join(f"import {name}" for name in [*names, "bcnet_deploy.space"]))
    assert "bcnet_deploy.cli.main" in loaded
    assert "torch" not in loaded


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = modules_after("import bcnet_deploy as bd; bd.UnsupportedModelError")
    assert not loaded & {"torch", "numpy", "click", "rich", "onnxruntime"}


def test_help_is_quick_and_loads_no_torch() -> None:
    loaded = modules_after(
        "from bcnet_deploy.cli.main import cli\n"
        "cli(['--help'], prog_name='bcnet-deploy', standalone_mode=False)"
    )
    assert not loaded & {"torch", "numpy", "rich", "onnxruntime"}
    times = []
    for _ in range(5):
        # Processor time: on a busy machine the wall clock says how long the process had to wait.
        before = os.times()
        subprocess.run([sys.executable, "-m", "bcnet_deploy", "--help"], check=True, capture_output=True)
        after = os.times()
        times.append(sum(after[2:4]) - sum(before[2:4]))
    # 0.4 s is the bar on a quiet machine (benchmarks hold it); a shared CI machine gets room.
    assert min(times) < 1.0


def test_public_names_are_complete() -> None:
    for name in ("build_model", "WidthSpace", "Supernet", "LatencyTable", "search"):
        assert name in dir(bd)
        assert callable(getattr(bd, name)), name
    for name in ("BCNetError", "UnsupportedModelError", "InfeasibleError", "MissingEntryError"):
        assert issubclass(getattr(bd, name), bd.BCNetError)
    with pytest.raises(AttributeError, match="no_such_name"):
        bd.no_such_name  # noqa: B018
