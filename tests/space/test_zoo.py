"""Models of every family: extraction runs, costs equal independent counters, slices equal extracted networks.

``pytest -m slow`` and benchmarks/check_zoo.py check the whole zoo; its results are in docs/zoo.md.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import bcnet_deploy as bd
from bcnet_deploy.models import model_names
from tests import zoo

# Chosen for what they are made of, at 64x64 so that this stays quick.
FAMILIES = {
    "demo": "residual, depthwise, squeeze-excitation",
    "mobilenet_v3_small": "squeeze-excitation, hard swish, linear layers in a row",
    "shufflenet_v2_x0_5": "chunk, concatenation, channel shuffle",
    "squeezenet1_1": "concatenation, convolution as classifier",
    "googlenet": "concatenation of four branches",
    "resnext_like": "grouped convolution",
    "channel_bench_macro_resnet": "basic blocks",
}


def build(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if name == "resnext_like":
        from torchvision.models.resnet import Bottleneck, ResNet

        return ResNet(Bottleneck, [1, 1, 1, 1], groups=8, width_per_group=4)
    return bd.build_model(name)


@pytest.mark.parametrize("name", FAMILIES)
def test_family(name: str) -> None:
    model, size = build(name), zoo.small_input(name)
    space = bd.WidthSpace.from_model(model, size)
    assert not space.frozen
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    widths = zoo.any_widths(space, 5, np.random.default_rng(0))
    macs, params = space.macs(widths), space.params(widths)
    for i, vector in enumerate(widths):
        net = space.extract(model, vector)
        assert type(net) is type(model)
        assert zoo.counted_params(net) == params[i]
        with torch.no_grad():
            assert net.eval()(torch.zeros(2, *size)).isfinite().all()
        assert zoo.counted_macs(net, size) == macs[i]
    assert zoo.counted_params(model) == space.params(space.full)[0]
    after = model.state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    equality = zoo.check_equality(model, space, widths[0], size, batch=2)
    assert equality.ok, equality


def test_the_comparison_itself_sees_a_wrong_slice() -> None:
    """The oracle is no tautology: the right slice is not the left one, nor is another width."""
    model = bd.build_model("channel_bench_macro_mobilenet").double()
    space = bd.WidthSpace.from_model(model, (3, 32, 32))
    widths = space.uniform(0.5)
    left = zoo.kept_positions(model, space, widths, "left")
    right = zoo.kept_positions(model, space, widths, "right")
    # The stem's 128 channels at half width: filters 0..63 and 64..127 of 27 weights each.
    assert left["stem.0.weight"].flatten().tolist() == list(range(64 * 27))
    assert right["stem.0.weight"].flatten().tolist() == list(range(64 * 27, 128 * 27))
    zoo.randomize(model)
    supernet = bd.Supernet(model, space).eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        supernet.set_active(widths, side="right")
        ours, theirs = supernet(x), space.extract(model, widths, side="left").eval()(x)
    assert float((ours - theirs).abs().max()) > 1e-3 * float(theirs.abs().max())


@pytest.mark.parametrize("name", ["vit_b_16"])
def test_transformers_are_refused(name: str) -> None:
    model = bd.build_model(name)
    with pytest.raises(bd.UnsupportedModelError, match="attention|transformer"):
        bd.WidthSpace.from_model(model)


@pytest.mark.slow
@pytest.mark.parametrize("name", model_names())
def test_whole_zoo(name: str) -> None:
    from benchmarks.check_zoo import check

    row = check(name)
    assert row["status"] == ("refused" if name.startswith(("vit_", "swin_")) else "ok"), row
