"""Fused names back to ONNX nodes and modules, on the forms that TensorRT and ONNX Runtime write."""

from __future__ import annotations

import pytest

from bcnet_deploy.runtime.base import NodeTime
from bcnet_deploy.runtime.layer_names import module_of, module_times, named_nodes, origin

A = "/features/features.0/features.0.0/Conv"
B = "/features/features.0/features.0.2/Clip"
C = "/features/features.1/conv/conv.0/conv.0.0/Conv"
D = "/features/features.1/Add"
E = "/classifier/classifier.1/Gemm"
GRAPH = (A, B, C, D, E)


@pytest.mark.parametrize(
    ("node", "module"),
    [
        (A, "features.0.0"),
        (C, "features.1.conv.0.0"),
        ("/layer1/layer1.0/conv1/Conv", "layer1.0.conv1"),
        ("/layer1/layer1.0/downsample/downsample.0/Conv", "layer1.0.downsample.0"),
        ("/avgpool/GlobalAveragePool", "avgpool"),
        ("/Flatten", ""),
        ("graph_input_cast0", ""),
    ],
)
def test_module_paths(node: str, module: str) -> None:
    assert module_of(node) == module


def test_module_paths_are_those_of_the_module() -> None:
    """The rule holds for what PyTorch's exporter writes now: each weighted node's path is a module."""
    from bcnet_deploy.export.onnx import trace
    from bcnet_deploy.models import build_model

    model = build_model("demo")
    graph, _ = trace(model, (1, 16, 16))
    modules = dict(model.named_modules())
    weighted = [node for node in graph.graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(weighted) > 10
    for node in weighted:
        assert type(modules[module_of(node.name)]).__name__ in ("Conv2d", "Linear")


@pytest.mark.parametrize(
    ("name", "kind", "nodes"),
    [
        (A, "layer", (A,)),
        (f"{A} + {B}", "layer", (A, B)),
        (f"{C} || {A}", "layer", (A, C)),
        (f"PWN(PWN({B}), {D})", "layer", (B, D)),
        (f"{C} + PWN({D})", "layer", (C, D)),
        (f"{{ForeignNode[{B}...{E}]}}", "layer", (B, C, D, E)),
        (f"Reformatting CopyNode for Input Tensor 0 to {A} + {B}", "reformat", (A, B)),
        (f"Reformatting CopyNode for Output Tensor 0 to {{ForeignNode[{C}...{E}]}}", "reformat", (C, D, E)),
        ("ReorderInput_token_3", "reformat", ()),
        (f"{A}_nchwc", "layer", (A,)),
        ("__myl_CastMulAdd_myl0_7", "unknown", ()),
        (f"{{ForeignNode[{E}...{B}]}}", "unknown", ()),
        ("", "unknown", ()),
    ],
)
def test_fused_names(name: str, kind: str, nodes: tuple[str, ...]) -> None:
    found = origin(name, GRAPH)
    assert (found.kind, found.nodes) == (kind, nodes)


def test_a_name_within_another_is_not_taken_for_it() -> None:
    graph = ("/conv1/Conv", "/conv1/Conv_1")
    assert origin("/conv1/Conv_1", graph).nodes == ("/conv1/Conv_1",)


def test_inspector_metadata_win_over_the_name() -> None:
    metadata = f"[ONNX Layer: {C}]\x1e[ONNX Layer: {D}]\x1e[ONNX Layer: unknown]"
    found = origin("__myl_ConvAdd_myl0_7", GRAPH, named_nodes(metadata))
    assert found.kind == "layer"
    assert found.nodes == (C, D)
    assert found.modules == ("features.1.conv.0.0", "features.1")


def test_a_convolution_named_after_its_fused_activation_is_both() -> None:
    times = [NodeTime(f"{B}_output_0_nchwc", "Conv", (), (), (1000.0,))]
    assert module_times(times, GRAPH) == {"features.0.0 + features.0.2": 1.0}


def test_module_times_lose_nothing() -> None:
    names = [f"{A} + {B}", "Reformatting CopyNode for Input Tensor 0 to " + C, C, D, "__myl_x", E]
    times = [
        NodeTime(name, "", (), (), (1000.0 * index, 1000.0 * index, 9e9))
        for index, name in enumerate(names, 1)
    ]
    result = module_times(times, GRAPH)
    assert result == {
        "features.0.0 + features.0.2": 1.0,
        "(reformat)": 2.0,
        "features.1.conv.0.0": 3.0,
        "features.1": 4.0,
        "(other)": 5.0,
        "classifier.1": 6.0,
    }
    assert list(result)[0] == "features.0.0 + features.0.2"
