"""From the names a runtime gives its fused nodes back to ONNX nodes and to our modules.

TensorRT joins names: ``a + b`` (fused one after the other), ``a || b`` (side by side),
``PWN(PWN(a), b)`` (pointwise chains), ``{ForeignNode[a...b]}`` (everything from a to b, one compiled
kernel) and ``Reformatting CopyNode for Input Tensor 0 to a`` (a change of layout that no layer owns).
Kernels compiled by its graph compiler (``__myl_...``) say where they come from in the engine
inspector's metadata only: ``[ONNX Layer: a]`` joined by record separators. Those win when present.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bcnet_deploy.runtime.base import NodeTime

Kind = Literal["layer", "reformat", "unknown"]

_SEPARATORS = re.compile(r"\s\+\s|\s\|\|\s|[\s\[\](){},\x1e\x1f]+")
_ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_FOREIGN = re.compile(r"ForeignNode\[(.+?)\.\.\.(.+?)\]")
_SUFFIX = re.compile(r"(?:_output_\d+|/WithoutBiases|_(?:nchwc|fused|token_\d+|quant)|:\d+|_clone_\d+)$")
_REFORMAT = re.compile(r"^(?:Reformatting CopyNode|Reformat)\b|^__mye?l?_?Reformat|^Reorder(?:In|Out)put")


@dataclass(frozen=True)
class Origin:
    """Where a runtime's node comes from.

    Attributes:
        kind: ``layer``; ``reformat``: a change of layout; ``unknown``: no ONNX node could be found.
        nodes: ONNX node names, in the order of the graph.
        modules: module paths of those nodes, each once, in order.
    """

    kind: Kind
    nodes: tuple[str, ...]
    modules: tuple[str, ...]


def module_of(node_name: str) -> str:
    """Module path of an ONNX node that PyTorch's exporter named by scope.

    ``/features/features.1/conv/conv.0/conv.0.0/Conv`` is module ``features.1.conv.0.0``: a scope that
    extends its parent's name (items of a Sequential) replaces it, any other is appended. A node of no
    scope belongs to the model itself: the empty path.
    """
    parts: list[str] = []
    for scope in node_name.strip("/").split("/")[:-1]:
        if parts and scope.startswith(parts[-1] + "."):
            parts[-1] = scope
        else:
            parts.append(scope)
    return ".".join(parts)


def named_nodes(metadata: str) -> tuple[str, ...]:
    """The ONNX nodes that TensorRT's engine inspector names in the metadata of a kernel."""
    return tuple(_ONNX_LAYER.findall(metadata))


def origin(name: str, graph: Sequence[str], origins: Sequence[str] = ()) -> Origin:
    """Where the node ``name`` of a runtime comes from.

    Args:
        name: the runtime's name of it, fused names included.
        graph: ONNX node names in the order of the graph.
        origins: what the runtime itself says, see :class:`NodeTime`.
    """
    order = {node: index for index, node in enumerate(graph)}
    found: set[str] = {node for name in origins if (node := _known(name, order)) is not None}
    if not found:
        for first, last in _FOREIGN.findall(name):
            ends = [order[node] for node in (_known(first, order), _known(last, order)) if node is not None]
            if len(ends) == 2 and ends[0] <= ends[1]:
                found.update(graph[ends[0] : ends[1] + 1])
        found.update(node for token in _SEPARATORS.split(name) if (node := _known(token, order)) is not None)
    nodes = tuple(sorted(found, key=order.__getitem__))
    kind: Kind = "reformat" if _REFORMAT.match(name) else "layer" if nodes else "unknown"
    return Origin(kind, nodes, tuple(dict.fromkeys(module_of(node) for node in nodes)))


def _known(token: str, order: Mapping[str, int]) -> str | None:
    """The ONNX node that ``token`` names, suffixes that runtimes append taken off."""
    while token not in order:
        shorter = _SUFFIX.sub("", token)
        if shorter == token:
            return None
        token = shorter
    return token


def _started(node: NodeTime, source: Origin, graph: Sequence[str]) -> Origin:
    """``source`` with the node that a fused chain begins with.

    ONNX Runtime names a convolution with a fused activation after the activation's output alone.
    """
    if len(source.nodes) != 1 or _operator(source.nodes[0]) == node.op:
        return source
    for name in reversed(graph[: graph.index(source.nodes[0])]):
        if _operator(name) == node.op:
            return Origin(source.kind, (name, *source.nodes), (module_of(name), *source.modules))
    return source


def _operator(node_name: str) -> str:
    """The operator in the name of an ONNX node: the last scope, without a counter."""
    return re.sub(r"_\d+$", "", node_name.rsplit("/", 1)[-1])


def module_times(times: Iterable[NodeTime], graph: Sequence[str]) -> dict[str, float]:
    """Median milliseconds by module path, in execution order.

    A fused node counts once, under the modules it joins (``a + b``); layout changes that no layer owns
    are together under ``(reformat)``, what has no known origin under ``(other)``.
    """
    from statistics import median

    totals: dict[str, float] = {}
    for node in times:
        source = _started(node, origin(node.name, graph, node.origins), graph)
        if source.kind == "reformat":
            key = "(reformat)"
        elif source.kind == "unknown":
            key = "(other)"
        else:
            key = " + ".join(module or "(model)" for module in source.modules)
        totals[key] = totals.get(key, 0.0) + median(node.durations_us) / 1e3
    return totals
