"""Graph clean-ups keep the values: onnx's reference evaluator says so."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn

from bcnet_deploy.errors import ExportError
from bcnet_deploy.export.graph import with_batch
from bcnet_deploy.export.onnx import trace
from bcnet_deploy.runtime.precision import sort_nodes
from tests.export.nets import pictures, small


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_batch_norms_fold_into_their_layer(kind: str, bias: bool) -> None:
    torch.manual_seed(0)
    if kind == "linear":
        net: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(12, 6, bias=bias), nn.BatchNorm1d(6))
    else:
        net = nn.Sequential(nn.Conv2d(3, 6, 2, bias=bias), nn.BatchNorm2d(6), nn.Flatten())
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    for _ in range(5):
        net(torch.randn(16, 3, 2, 2) * 3 + 1)
    net.eval()
    model, _ = trace(net, (3, 2, 2))
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    image = torch.randn(1, 3, 2, 2)
    (outputs,) = ReferenceEvaluator(model).run(None, {"input": image.numpy()})
    with torch.inference_mode():
        np.testing.assert_allclose(outputs, net(image).numpy(), rtol=1e-4, atol=1e-5)


def test_a_shared_layer_is_not_folded() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.layer(x.flatten(1))
            return self.norm(y) + self.layer(y)

    net = Shared()
    for _ in range(5):
        net(torch.randn(8, 1, 2, 2))
    net.eval()
    model, _ = trace(net, (1, 2, 2))
    image = torch.randn(1, 1, 2, 2)
    (outputs,) = ReferenceEvaluator(model).run(None, {"input": image.numpy()})
    with torch.inference_mode():
        np.testing.assert_allclose(outputs, net(image).numpy(), rtol=1e-4, atol=1e-5)


def test_a_shared_batch_norm_is_folded_into_both_layers() -> None:
    """Layers without a bias took over the norm's own beta, which the other one reads."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.flatten(1)
            return self.norm(self.one(x)) + self.norm(self.other(x))

    torch.manual_seed(0)
    net = Shared()
    nn.init.normal_(net.norm.bias)
    for _ in range(5):
        net(torch.randn(8, 1, 2, 2) + 1)
    net.eval()
    model, _ = trace(net, (1, 2, 2))
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    image = torch.randn(1, 1, 2, 2)
    (outputs,) = ReferenceEvaluator(model).run(None, {"input": image.numpy()})
    with torch.inference_mode():
        np.testing.assert_allclose(outputs, net(image).numpy(), rtol=1e-4, atol=1e-5)


def test_nodes_are_put_in_order() -> None:
    model, _ = trace(small(), (3, 12, 12))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(model)
    sort_nodes(model)
    onnx.checker.check_model(model)
    assert {node.name for node in model.graph.node} == {node.name for node in nodes}


@pytest.mark.parametrize("batch", [1, 4])
def test_another_batch_size_computes_the_same(batch: int) -> None:
    net = small()
    model, _ = trace(net, (3, 12, 12))
    images = pictures(batch)
    changed = with_batch(model.SerializeToString(), batch)
    (outputs,) = ReferenceEvaluator(changed).run(None, {"input": images})
    with torch.inference_mode():
        np.testing.assert_allclose(outputs, net(torch.from_numpy(images)).numpy(), rtol=1e-4, atol=1e-4)


def test_a_network_that_mixes_its_batch_cannot_take_another() -> None:
    class Mixing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(12, 1).sum(dim=0, keepdim=True)

    model, _ = trace(Mixing(), (3, 2, 2))
    with pytest.raises(ExportError, match="batch of 4"):
        with_batch(model.SerializeToString(), 4)
