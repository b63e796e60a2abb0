"""Our grouping of channels against a second library: Torch-Pruning's dependency graph.

For each model both libraries say which convolutions and linear layers must have the same output channels.
Sets are compared by module name; the classifier, which never changes, is left out.

    python -m benchmarks.check_grouping [MODEL ...] [--out grouping.json]
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import torch
import torch_pruning as tp
from torch import nn

import bcnet_deploy as bd
from bcnet_deploy import files
from bcnet_deploy.models import model_names
from tests import zoo

Groups = set[frozenset[str]]
LAYERS = (nn.Conv2d, nn.Linear)


def ours(space: bd.WidthSpace) -> Groups:
    """Layers whose output channels follow one variable, for each variable."""
    return {frozenset(variable.layers) for variable in space.variables}


def theirs(model: nn.Module, x: torch.Tensor) -> Groups:
    """The same sets from Torch-Pruning, without the group of the classifier.

    Raises:
        Exception: whatever Torch-Pruning raises for a model that it cannot handle.
    """
    names = {module: name for name, module in model.named_modules()}
    graph = tp.DependencyGraph().build_dependency(model.eval(), example_inputs=x)
    groups: Groups = set()
    for name, module in model.named_modules():
        if not isinstance(module, LAYERS) or any(name in group for group in groups):
            continue
        prune = graph.get_pruner_of_module(module).prune_out_channels
        group = graph.get_pruning_group(module, prune, idxs=list(range(graph.get_out_channels(module))))
        members = {
            names[item.dep.target.module]
            for item in group
            if isinstance(item.dep.target.module, LAYERS)
            and graph.is_out_channel_pruning_fn(item.dep.handler)
        }
        groups.add(frozenset(members | {name}))
    classifier = [name for name, module in model.named_modules() if isinstance(module, LAYERS)][-1]
    return {group for group in groups if classifier not in group}


def compare(name: str) -> dict[str, object]:
    """The two groupings of a model, as lists of what only one of them has."""
    torch.manual_seed(0)
    model = bd.build_model(name)
    size = zoo.small_input(name)
    try:
        own = ours(bd.WidthSpace.from_model(model, size))
    except bd.UnsupportedModelError as error:
        return {"status": "refused by us", "reason": str(error)}
    try:
        other = theirs(model, torch.randn(2, *size))
    except Exception as error:
        return {"status": "fails in Torch-Pruning", "reason": f"{type(error).__name__}: {error}"}
    return {
        "status": "same" if own == other else "different",
        "groups": len(own),
        "only_ours": sorted(sorted(group) for group in own - other),
        "only_theirs": sorted(sorted(group) for group in other - own),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: all")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    results = {}
    for name in arguments.models or model_names():
        results[name] = compare(name)
        print(name, json.dumps(results[name])[:600], flush=True)
        if arguments.out:
            files.write_json(arguments.out, results)


if __name__ == "__main__":
    main()
