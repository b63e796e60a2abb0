"""What the site has besides the pages of this folder, made when it is built (an mkdocs hook).

A page a command from its ``--help``, the API page from every ``__all__``, and the pages that stand beside
the README. Links from pages to files that are not in the site become plain names.
"""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from bcnet_deploy import errors
from bcnet_deploy.cli.main import COMMANDS, cli

ROOT = Path(__file__).resolve().parent.parent
BESIDE = {
    "architecture.md": "ARCHITECTURE.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
"""Pages of the site that are files of the checkout's top folder."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the navigation's section of commands."""
    for entry in config.nav or []:
        if "Commands" in entry:
            entry["Commands"] = [{name: f"commands/{name}.md"} for name in COMMANDS]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages made here."""
    made = {f"commands/{name}.md": command_page(name) for name in COMMANDS}
    made |= {page: (ROOT / source).read_text("utf-8") for page, source in BESIDE.items()}
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as they are in the checkout, turned into links of the site; and the API page's names."""
    if page.file.src_uri == "api.md":
        return f"{markdown}\n{api_names()}"
    beside = {source: name for name, source in BESIDE.items()}

    def link(found: re.Match[str]) -> str:
        text, target = found[1], found[2]
        path, _, anchor = target.partition("#")
        name = beside.get(path.removeprefix("../"), path.removeprefix("docs/"))
        if files.get_file_from_path(name) is None:
            return f"{text} (`{path.removeprefix('../')}`)" if path.strip("`") not in text else text
        return f"[{text}]({name}{'#' + anchor if anchor else ''})"

    top = page.file.src_uri in BESIDE
    pattern = r"\[([^\]]*)\]\((?!https?:)([^)#\s]+(?:#[^)\s]*)?)\)"
    return re.sub(pattern, link if top else lambda f: link(f) if f[2].startswith("../") else f[0], markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Sphinx roles of docstrings: their names alone."""
    role = r":(?:class|func|meth|mod|data|exc|attr):<code>~?(?:bcnet_deploy\.)?([^<]*)</code>"
    return re.sub(role, r"<code>\1</code>", html)


def command_page(name: str) -> str:
    """Markdown of one command: what it does, how it is called, its options."""
    with click.Context(cli, info_name="bcnet-deploy") as context:
        command = cli.get_command(context, name)
        assert command is not None
        return "\n".join([f"# {name}", "", *_described(command, context, name, 2)])


def _described(command: click.Command, parent: click.Context, name: str, level: int) -> list[str]:
    context = click.Context(command, info_name=name, parent=parent)
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    lines = ["```console", f"$ {usage}", "```", "", *_paragraphs(command.help or ""), ""]
    rows = [record for p in command.get_params(context) if (record := p.get_help_record(context)) is not None]
    if rows:
        lines += ["| option | what it does |", "|---|---|"]
        lines += [f"| `{_cell(option)}` | {_cell(text, html=True)} |" for option, text in rows]
        lines.append("")
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            found = command.get_command(context, inner)
            if found is not None:
                lines += [f"{'#' * level} {name} {inner}", "", *_described(found, context, inner, level + 1)]
    return lines


def _paragraphs(text: str) -> list[str]:
    """Click's help as Markdown: paragraphs marked as verbatim stay as they are written."""
    lines = []
    for paragraph in text.strip().split("\n\n"):
        if paragraph.startswith("\b"):
            lines += ["```text", *paragraph.removeprefix("\b").strip("\n").splitlines(), "```", ""]
        else:
            lines += [_cell(paragraph, html=True), ""]
    return lines


def _cell(text: str, html: bool = False) -> str:
    """Text for a table cell: in code it stays as it is."""
    line = " ".join(text.split())
    return re.sub(r"[*_`|\[]", r"\\\g<0>", line.replace("<", "&lt;")) if html else line


def api_names() -> str:
    """Markdown: a heading for each package, a directive for each of its public names."""
    packages = {name: public_names(name) for name in public_packages()}
    where = {name: package for package, names in packages.items() for name in names}
    top = [name for name in public_names("bcnet_deploy") if name != "__version__"]
    lines = ["## bcnet_deploy", "", "`import bcnet_deploy as bd` has these names, and every error:", ""]
    lines += [
        f"- [`{name}`][{where.get(name, 'bcnet_deploy')}.{name}]" for name in top if name not in _errors()
    ]
    lines += ["", *(f"::: bcnet_deploy.{name}\n" for name in top if name not in where)]
    for package, names in packages.items():
        lines += [f"## {package}", "", _summary(package), ""]
        lines += [f"::: {package}.{name}\n" for name in names]
    return "\n".join(lines)


def public_packages() -> list[str]:
    """The subpackages with a list of public names, and the errors."""
    inner = sorted(path.parent.name for path in (ROOT / "bcnet_deploy").glob("*/__init__.py"))
    named = [f"bcnet_deploy.{name}" for name in inner if name != "cli"]
    return [*(package for package in named if public_names(package)), "bcnet_deploy.errors"]


def public_names(package: str) -> list[str]:
    """``__all__`` of a package. It is imported only where the list is not written out."""
    if package == "bcnet_deploy.errors":
        return _errors()
    for node in _tree(package).body:
        if isinstance(node, ast.Assign) and any(getattr(t, "id", "") == "__all__" for t in node.targets):
            try:
                return sorted(ast.literal_eval(node.value))
            except ValueError:
                return sorted(importlib.import_module(package).__all__)
    return []


def _errors() -> list[str]:
    return [
        name for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.BCNetError)
    ]  # fmt: skip


def _tree(package: str) -> ast.Module:
    path = ROOT.joinpath(*package.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text("utf-8"))


def _summary(package: str) -> str:
    """The first paragraph of a package's docstring."""
    return (ast.get_docstring(_tree(package)) or "").split("\n\n")[0]
