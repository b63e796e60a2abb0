"""Values that options take, for shell completion and for refusals; known without importing what uses them."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from bcnet_deploy.errors import UsageError, nearest


class OneOf(click.Choice[str]):
    """As :class:`click.Choice`; a wrong value is one line like every other error, with exit code 2.

    Args:
        what: names the value in the error.
        values: what is allowed.
    """

    def __init__(self, what: str, values: tuple[str, ...]) -> None:
        super().__init__(values)
        self.what = what
        self.values = values

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Raises :class:`UsageError`."""
        if value not in self.values:
            near = nearest(str(value), self.values)
            allowed = ", ".join(self.values)
            raise UsageError(f"unknown {self.what} {value!r}{near or ';'} allowed are {allowed}")
        return str(value)


class Engine(OneOf):
    """ONNX, or the engine of a registered runtime; those from outside are looked up when one is named."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Raises :class:`UsageError`."""
        if value not in self.values:
            from bcnet_deploy.run.export import engines

            return OneOf(self.what, tuple(engines())).convert(value, param, ctx)
        return str(value)


ENGINE = Engine("engine", ("onnx", "ort", "trt"))
PRECISION = OneOf("precision", ("fp32", "fp16", "bf16", "int8"))
NETWORK = OneOf("network", ("found", "uniform", "full"))


def models(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Models by name, functions of a file that is named already, and files."""
    file, colon, function = incomplete.rpartition(":")
    if colon and file.endswith(".py"):
        names = [f"{file}:{name}" for name in _functions(Path(file)) if name.startswith(function)]
        return [CompletionItem(name) for name in names]
    return _named_or_file(model_names(), incomplete)


def model_names() -> list[str]:
    """As :func:`bcnet_deploy.models.model_names`, read from the sources: PyTorch takes seconds to load."""
    names = set(_OWN_MODELS)
    found = importlib.util.find_spec("torchvision")
    folder = Path(found.origin).parent / "models" if found is not None and found.origin else None
    for path in folder.glob("*.py") if folder is not None else ():
        names.update(_functions(path, decorated="register_model"))
    return sorted(names)


_OWN_MODELS = (
    "demo", "demo_segmentation", "vgg19_cifar10", "mobilenet_v2_cifar10", "mobilenet_v2_1.5x",
    "channel_bench_macro_mobilenet", "channel_bench_macro_resnet",
)  # fmt: skip


def _functions(path: Path, decorated: str = "") -> list[str]:
    """Public functions of a source file, those with a decorator only if asked for; none of a damaged file."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    return [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and (not decorated or any(decorated in ast.unparse(mark) for mark in node.decorator_list))
    ]


def devices(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Shipped device profiles, the run's own, and files."""
    from bcnet_deploy.devices import known_devices

    run_dir = getattr(ctx.params.get("run_dir"), "path", Path("bcnet-run"))
    names = [*known_devices(), *sorted(path.stem for path in (run_dir / "devices").glob("*.yaml"))]
    return _named_or_file(names, incomplete)


def configurations(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Shipped configurations of ``run``, and files."""
    from bcnet_deploy.run.settings import config_names

    return _named_or_file(config_names(), incomplete)


def recipes(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Shipped training recipes, and files."""
    from bcnet_deploy.resources import recipe_names

    return _named_or_file(recipe_names(), incomplete)


def strategies(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Registered search strategies."""
    from bcnet_deploy.search import STRATEGIES

    return _named_or_file(STRATEGIES.names(), incomplete)


def importances(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Registered scores of channels."""
    from bcnet_deploy.importance import IMPORTANCES

    return _named_or_file(IMPORTANCES.names(), incomplete)


def datasets(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The embedded digits, folders and archives."""
    return _named_or_file(["digits"], incomplete)


def _named_or_file(names: list[str], incomplete: str) -> list[CompletionItem]:
    found = [CompletionItem(name) for name in names if name.startswith(incomplete)]
    return found or [CompletionItem(incomplete, type="file")]
