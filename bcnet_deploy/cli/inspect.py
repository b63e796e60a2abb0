"""``bcnet-deploy inspect``: what a model becomes as a width space."""

from __future__ import annotations

import gc
import math
from typing import TYPE_CHECKING, Any

import click

from bcnet_deploy.cli.choices import models
from bcnet_deploy.cli.common import console, emit, json_option
from bcnet_deploy.errors import wrong_option
from bcnet_deploy.units import format_bytes, format_count, parse_size

if TYPE_CHECKING:
    from torch import nn

    from bcnet_deploy.space import WidthSpace
    from bcnet_deploy.space.graph import Op


def _layers(space: WidthSpace, model: nn.Module) -> list[dict[str, Any]]:
    """Convolutions and matrix products in execution order, at full width."""
    modules = dict(model.named_modules())
    variables = [variable.name for variable in space.variables]
    rows = []
    for op in space.ops:
        macs = int(op.macs(space.full)[0])
        if not macs:
            continue
        own = modules[op.module].parameters(recurse=False) if op.weight and op.module in modules else ()
        rows.append(
            {
                "name": op.name,
                "kind": op.kind,
                "in_channels": op.in_channels.max if op.in_channels else None,
                "out_channels": op.out_channels.max if op.out_channels else None,
                "groups": op.groups.max if op.groups else None,
                "kernel": _attribute(op, "kernel"),
                "stride": _attribute(op, "stride"),
                "in_variables": [variables[i] for i in op.in_channels.variables] if op.in_channels else [],
                "out_variables": [variables[i] for i in op.out_channels.variables] if op.out_channels else [],
                "macs": macs,
                "params": sum(parameter.numel() for parameter in own),
            }
        )
    return rows


def _attribute(op: Op, key: str) -> list[int] | None:
    value = op.attrs.get(key)
    return [int(n) for n in value] if value is not None else None


def describe(name: str, space: WidthSpace, model: nn.Module) -> dict[str, Any]:
    """Everything that ``inspect`` shows, ready for JSON. Costs are of one image at full width."""
    full, narrowest = space.full, space.narrowest
    return {
        "model": name,
        "class": type(model).__name__,
        "input_size": list(space.input_size),
        "levels": space.levels,
        "min_level": space.min_level,
        "fingerprint": space.fingerprint,
        "networks_log10": math.log10(space.size),
        "macs": int(space.macs(full)[0]),
        "params": int(space.params(full)[0]),
        "peak_activation_bytes": int(space.peak_activation_bytes(full)[0]),
        "narrowest": {"macs": int(space.macs(narrowest)[0]), "params": int(space.params(narrowest)[0])},
        "variables": [
            {
                "index": variable.index, "name": variable.name, "channels": variable.channels,
                "step": variable.step, "choices": list(variable.choices), "layers": list(variable.layers),
            }
            for variable in space.variables
        ],
        "layers": _layers(space, model),
        "frozen": [{"name": part.name, "reason": part.reason} for part in space.frozen],
        "notes": list(space.notes),
        **_outputs(space, model),
    }  # fmt: skip


def _outputs(space: WidthSpace, model: nn.Module) -> dict[str, Any]:
    """What the network returns for two images, and which built-in task could be trained on that."""
    from bcnet_deploy.tasks import built_in_for, described
    from bcnet_deploy.train.trial import outputs_on_zeros

    outputs = outputs_on_zeros(model, space.input_size)
    return {"outputs": described(outputs), "task": built_in_for(outputs)}


def _show(data: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    out = console()
    size = "x".join(map(str, data["input_size"]))
    title = f"{data['model']} at {size}: {len(data['variables'])} width variables"
    variables = Table(title=escape(title))
    for header in ("#", "channels", "step", "choices"):
        variables.add_column(header, justify="right")
    variables.add_column("first layer", overflow="fold")
    variables.add_column("also follow it", overflow="fold")
    for row in data["variables"]:
        also = [layer for layer in row["layers"] if layer != row["name"]]
        variables.add_row(
            str(row["index"]), str(row["channels"]), str(row["step"]), str(len(row["choices"])),
            escape(row["name"]), escape(", ".join(also)),
        )  # fmt: skip
    out.print(variables)

    layers = Table(title=f"{len(data['layers'])} layers with multiply-accumulates, at full width")
    layers.add_column("layer", overflow="fold")
    layers.add_column("kind")
    for header in ("in", "out", "groups", "kernel", "stride", "MACs", "parameters"):
        layers.add_column(header, justify="right")
    for row in data["layers"]:
        layers.add_row(
            escape(row["name"]), row["kind"],
            *("" if row[key] is None else str(row[key]) for key in ("in_channels", "out_channels", "groups")),
            *("x".join(map(str, row[key] or ())) for key in ("kernel", "stride")),
            f"{row['macs']:,}", f"{row['params']:,}",
        )  # fmt: skip
    out.print(layers)

    if data["frozen"]:
        frozen = Table(title=f"{len(data['frozen'])} parts frozen at full width")
        frozen.add_column("part", overflow="fold")
        frozen.add_column("reason", overflow="fold")
        for row in data["frozen"]:
            frozen.add_row(escape(row["name"]), escape(row["reason"]))
        out.print(frozen)
    else:
        out.print("Nothing is frozen: every layer but the input and the classifier's outputs can change.")
    for note in data["notes"]:
        out.print(f"Note: {escape(note)}")
    if data["task"] is None:
        out.print(
            f"Outputs for two images: {escape(data['outputs'])}. No built-in task can train that: name your "
            "own, 'profile --task module:function' or 'train --set task=module:function'."
        )
    else:
        out.print(f"Outputs for two images: {escape(data['outputs'])} ({data['task']}).")
    narrowest = data["narrowest"]
    out.print(
        f"Full: {data['macs']:,} MACs ({format_count(data['macs'])}), {data['params']:,} parameters, "
        f"{format_bytes(data['peak_activation_bytes'])} of activations at most. "
        f"Narrowest: {format_count(narrowest['macs'])} MACs, {format_count(narrowest['params'])} parameters. "
        f"{data['levels']} levels: 10^{data['networks_log10']:.1f} networks."
    )


@click.command("inspect")
@click.argument("model", shell_complete=models)
@click.option("--input-size", help="3x224x224, or 224; default: what the model is usually run at.")
@click.option("--weights", help="Trained weights: a file, or 'pretrained'; refused where they do not fit.")
@click.option("--new-head", is_flag=True, help="The weights are of other classes: draw the classifier anew.")
@click.option("--num-classes", type=click.IntRange(min=1), help="Default: the model's usual number.")
@click.option(
    "--levels", type=click.IntRange(1, 1024), default=20, show_default=True, help="Widths a variable."
)
@click.option(
    "--min-level", type=click.IntRange(0, 1024), default=0, show_default=True, help="Smallest level."
)
@json_option
def command(
    model: str,
    input_size: str | None,
    weights: str | None,
    new_head: bool,
    num_classes: int | None,
    levels: int,
    min_level: int,
    as_json: bool,
) -> None:
    """Show MODEL's width variables, layers and costs, and what is frozen and why.

    MODEL is a name such as mobilenet_v2, or your own 'package.module:function'.
    """
    size = None if input_size is None else parse_size(input_size)
    # PyTorch's import and the capture make a million objects that stay: collections in between find nothing
    # and cost a tenth of the command's time.
    gc.disable()
    try:
        data = _inspect(model, size, num_classes, levels, min_level, weights, new_head)
    finally:
        gc.enable()
    emit(data, as_json=as_json, show=lambda: _show(data))


def _inspect(
    model: str,
    size: tuple[int, int, int] | None,
    num_classes: int | None,
    levels: int,
    min_level: int,
    weights: str | None,
    new_head: bool,
) -> dict[str, Any]:
    from bcnet_deploy.models import build_model, default_input_size
    from bcnet_deploy.space import WidthSpace

    with wrong_option():
        network = build_model(model, num_classes=num_classes, weights=weights, new_head=new_head)
        space = WidthSpace.from_model(network, size or default_input_size(model), levels, min_level)
    return describe(model, space, network)
