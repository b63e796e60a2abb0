"""The site builds without a warning, asks for nothing from elsewhere, and has everything public on it."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import click
import pytest

import bcnet_deploy
from bcnet_deploy.cli.main import COMMANDS, cli

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocstrings", reason="the site's builder is not installed: pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


class Loads(HTMLParser):
    """What a browser fetches of its own for a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        wanted = given.get("href") if tag == "link" else given.get("src")
        if wanted and given.get("rel") not in ("canonical", "next", "prev"):
            self.found.append(wanted)


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        for target in Loads(page.read_text("utf-8")).found:
            assert not re.match(r"(https?:)?//", target), f"{page.name}: {target}"
            assert page.name == "404.html" or (page.parent / target.split("?")[0]).exists(), target
    for style in site.rglob("*.css"):
        assert not re.search(r"""(?:url\(|@import)\s*["']?(?:https?:)?//""", style.read_text("utf-8")), style


def test_each_command_has_a_page_with_its_options(site: Path) -> None:
    with click.Context(cli) as context:
        for name in COMMANDS:
            text = unescape((site / "commands" / f"{name}.html").read_text("utf-8"))
            command = cli.get_command(context, name)
            assert command is not None
            inner = command.commands.values() if isinstance(command, click.Group) else [command]
            for option in (o for c in inner for p in c.params for o in p.opts if isinstance(p, click.Option)):
                assert option in text, f"{name}: {option}"


def test_the_notebook_page_runs(tmp_path: Path) -> None:
    """Every Python block of the page, one after the other, in an empty folder and in at most 20 lines."""
    page = (ROOT / "docs" / "python.md").read_text("utf-8")
    first, *more = re.findall(r"```python\n(.*?)```", page, re.S)
    assert sum(bool(line.strip()) for line in first.splitlines()) <= 20 and "open(" not in first
    code = first + "".join(more).replace('"bcnet-run"', '"my-run"')
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=400,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "my-run/report.html" in done.stdout and "2 width variables" in done.stdout
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"my-run"}, "nothing is written beside the run directory"
    text = (tmp_path / "my-run" / "report.html").read_text("utf-8")
    summary = text.split('<section id="summary">')[1].split("</section>")[0]
    assert "No network has been trained" not in summary and "Nothing has been measured" not in summary


def test_everything_public_is_on_the_api_page(site: Path) -> None:
    text = (site / "api.html").read_text("utf-8")
    for package in (module.name for module in pkgutil.iter_modules(bcnet_deploy.__path__) if module.ispkg):
        full = f"bcnet_deploy.{package}"
        for name in getattr(importlib.import_module(full), "__all__", []) if package != "cli" else []:
            assert f'id="{full}.{name}"' in text, f"{full}.{name}"
    for name in set(bcnet_deploy.__all__) - {"__version__"}:
        assert re.search(rf'id="bcnet_deploy\.([a-z_]+\.)?{name}"', text), name
