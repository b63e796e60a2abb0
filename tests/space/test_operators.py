"""Slices mean what they should: a sub-network equals the full network with the dropped channels silenced."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import bcnet_deploy as bd
from bcnet_deploy.space.slicing import kept_ranges
from tests import zoo
from tests.space import cases

SIZE = (3, 8, 8)


def network(case: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return randomised(cases.Net(case())).double().eval()


def randomised(model: nn.Module) -> nn.Module:
    """No neutral values: a batch norm that does nothing would hide a wrong slice of it."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
        if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model


def silence_dropped_inputs(
    model: nn.Module, space: bd.WidthSpace, widths: np.ndarray, side: str
) -> nn.Module:
    """Zero the weights through which dropped channels act: input columns of dense weights only."""
    units = space.units(widths)[0].tolist()
    stored = [v.units for v in space.variables]
    dense = {op.weight: 0 if op.kind == "conv_transpose" else 1 for op in space.ops if op.kind in
             ("conv", "conv_transpose", "linear") and (op.groups is None or op.groups.max == 1)}  # fmt: skip
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in dense:
                axis = dense[name]
                keep = torch.zeros(parameter.shape[axis], dtype=torch.bool)
                for start, length in kept_ranges(space.slices[name][axis], units, stored, side):
                    keep[start : start + length] = True
                parameter[(slice(None),) * axis + (~keep,)] = 0
    return model


FROZEN = {"ChannelPad": ["body.a.0"]}
"""Layers that the constructions of ``cases.IDENTITY`` rightly hold at full width."""


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", sorted(cases.IDENTITY))
def test_sub_network_equals_full_network_without_the_dropped_channels(name: str, side: str) -> None:
    model = network(cases.IDENTITY[name])
    space = bd.WidthSpace.from_model(model, SIZE, levels=6)
    assert space.variables and not space.notes
    assert [part.name for part in space.frozen] == FROZEN.get(name, [])
    x = torch.randn(2, *SIZE, dtype=torch.float64)
    rng = np.random.default_rng(1)
    for widths in space.random(4, rng):
        subnet = space.extract(model, widths, side)
        silenced = silence_dropped_inputs(network(cases.IDENTITY[name]), space, widths, side)
        torch.testing.assert_close(subnet(x), silenced(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", [*sorted(cases.IDENTITY), "Shuffled"])
def test_costs_equal_independent_counts(name: str) -> None:
    case = {**cases.IDENTITY, "Shuffled": cases.Shuffled}[name]
    model = network(case)
    space = bd.WidthSpace.from_model(model, SIZE, levels=6)
    for widths in space.random(3, np.random.default_rng(2)):
        subnet = space.extract(model, widths)
        with FlopCounterMode(display=False) as counter:
            subnet(torch.randn(1, *SIZE, dtype=torch.float64))
        assert 2 * space.macs(widths)[0] == counter.get_total_flops()
        assert space.params(widths)[0] == sum(p.numel() for p in subnet.parameters())


EXPECTED = {
    "Residual": {"stem.0": 12, "body.a.0": 20},
    "SqueezeExcitation": {"stem.0": 12, "body.down": 6},
    "Dense": {"stem.0": 12, "body.a.0": 6, "body.b.0": 10, "body.join": 12},
    "ConcatPlusConv": {"stem.0": 12, "body.a.0": 5, "body.b.0": 7},
    "Gated": {"stem.0": 12, "body.wide.0[0]": 16, "body.out.0": 12},
    "Grouped": {"stem.0": 12, "body.pre.0": 24, "body.post.0": 12},
    "Norms": {"stem.0": 12, "body.a": 24, "body.b": 12},
    "InstanceNorms": {"stem.0": 12, "body.a": 20, "body.b": 12},
    "Transposed": {"stem.0": 12, "body.up": 18, "body.down.0": 12},
    "PixelShuffle": {"stem.0": 12, "body.wide": 40, "body.out.0": 12},
    "CalledTwice": {"stem.0": 12},
    "Functional": {"stem.0": 12, "body.w1": 20, "body.w2": 12},
    "ChannelsLast": {"stem.0": 12, "body.a": 30},
}


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_variables_in_order_of_first_appearance(name: str) -> None:
    space = bd.WidthSpace.from_model(network(cases.IDENTITY[name]), SIZE)
    assert {v.name: v.channels for v in space.variables} == EXPECTED[name]
    assert [v.name for v in space.variables] == list(EXPECTED[name])


def test_steps_of_grouped_layers() -> None:
    space = bd.WidthSpace.from_model(network(cases.Grouped), SIZE)
    grouped = space.variables[1]
    assert (grouped.step, grouped.units) == (4, 6)
    assert all(width % 4 == 0 for width in grouped.choices)
    with pytest.raises(bd.WidthError, match=r"5 of variable 1 \(body.pre.0\).*4\.\.24 in steps of 4"):
        space.macs([12, 5, 12])


def test_flatten_and_stacked_linear_layers() -> None:
    model = cases.Flattened().double().eval()
    space = bd.WidthSpace.from_model(model, SIZE)
    assert [v.channels for v in space.variables] == [8, 10, 24]
    subnet = space.extract(model, [3, 4, 7])
    assert subnet.classifier[0].weight.shape == (7, 4 * 16)  # type: ignore[union-attr,index]
    # Channel 3 of the second convolution feeds columns 3 * 16 .. 4 * 16 of the flattened input.
    expected = model.classifier[0].weight[:7, 3 * 16 : 4 * 16]
    torch.testing.assert_close(subnet.classifier[0].weight[:, 48:], expected)  # type: ignore[union-attr,index]


def test_shuffled_halves_run_at_odd_widths() -> None:
    model = network(cases.Shuffled)
    space = bd.WidthSpace.from_model(model, SIZE, levels=9)
    halves = space.variables[1]
    assert (halves.name, halves.channels) == ("body.first.0", 9)
    subnet = space.extract(model, [5, 3, 7])
    assert subnet(torch.randn(2, *SIZE, dtype=torch.float64)).shape == (2, 5)
    assert not space.frozen


def test_a_size_fixed_in_the_code_freezes_what_reaches_it_and_nothing_else() -> None:
    space = bd.WidthSpace.from_model(cases.FixedView().eval(), SIZE)
    assert [v.name for v in space.variables] == ["a.0"]
    (part,) = space.frozen
    assert part.name == "b.0" and "view(-1, 640)" in part.reason


def test_control_flow_on_values_names_the_line() -> None:
    with pytest.raises(bd.UnsupportedModelError, match=r"cases\.py:\d+ 'if y.sum\(\) > 0:'"):
        bd.WidthSpace.from_model(cases.DataDependent(), SIZE)


def test_leaving_torch_for_numpy_names_the_line() -> None:
    with pytest.raises(bd.UnsupportedModelError, match=r"cases\.py:\d+ 'largest = .*numpy"):
        bd.WidthSpace.from_model(cases.Detour(), SIZE)


def test_a_second_input_is_refused_by_its_name() -> None:
    class Two(cases.DataDependent):
        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.head((self.a(x) * mask).mean((2, 3)))

    with pytest.raises(bd.UnsupportedModelError, match=r"one image tensor.*'mask'\); .*SeveralInputs"):
        bd.WidthSpace.from_model(Two(), SIZE)


def test_weights_that_depend_on_the_image() -> None:
    """The channels of all images are beside one another, in a group each."""
    model = network(cases.Mixture)
    space = bd.WidthSpace.from_model(model, SIZE)
    assert [v.name for v in space.variables] == ["stem.0", "body.gate", "body[0]", "body.a.0"]
    assert not space.frozen
    for widths in space.random(3, np.random.default_rng(0)):
        subnet = space.extract(model, widths)
        assert space.macs(widths)[0] == zoo.counted_macs(subnet, SIZE)


def test_products_that_are_not_counted_are_noted() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = cases.conv(3, 12), cases.conv(12, 8)
            self.lstm, self.head = nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.lstm(self.b(self.a(x)).mean(2).transpose(1, 2))[0][:, -1])

    space = bd.WidthSpace.from_model(Recurrent().eval(), SIZE)
    assert [v.name for v in space.variables] == ["a.0"]
    assert [part.name for part in space.frozen] == ["b.0"] and "rnn" in space.frozen[0].reason
    assert len(space.notes) == 1 and "in lstm are not counted" in space.notes[0]


def test_attention_of_one_head_is_counted() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = cases.conv(3, 12), cases.conv(12, 8)
            self.qkv, self.head = nn.Linear(8, 24), nn.Linear(8, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = self.qkv(self.b(self.a(x)).flatten(2).transpose(1, 2)).chunk(3, -1)
            return self.head(nn.functional.scaled_dot_product_attention(q, k, v).mean(1))

    model = Attention().eval()
    space = bd.WidthSpace.from_model(model, SIZE)
    # Queries, keys and values are parts of one layer and equally wide.
    assert [(v.name, v.channels) for v in space.variables] == [("a.0", 12), ("b.0", 8), ("qkv[0]", 8)]
    assert not space.frozen and not space.notes
    assert space.macs([5, 3, 4])[0] == zoo.counted_macs(space.extract(model, [5, 3, 4]), SIZE)


def test_models_without_shapes_or_code_are_refused() -> None:
    lazy = nn.Sequential(nn.LazyConv2d(8, 3), nn.Flatten(), nn.Linear(288, 5))
    with pytest.raises(bd.UnsupportedModelError, match="weight of Sequential has no shape yet"):
        bd.WidthSpace.from_model(lazy, SIZE)
    with pytest.raises(bd.UnsupportedModelError, match="TorchScript"):
        bd.WidthSpace.from_model(torch.jit.script(cases.Residual()), SIZE)  # type: ignore[arg-type]


@pytest.mark.parametrize("levels", [0, 2.5, "20"])
def test_bad_levels_are_refused(levels: object) -> None:
    with pytest.raises(bd.WidthError, match="levels must be an integer"):
        bd.WidthSpace.from_model(network(cases.Residual), SIZE, levels=levels)  # type: ignore[arg-type]


def test_weight_norm_runs_over_the_kept_part() -> None:
    model = network(cases.WeightNorms)
    space = bd.WidthSpace.from_model(model, SIZE)
    assert [v.channels for v in space.variables] == [12, 20, 12] and not space.frozen
    subnet = space.extract(model, [5, 7, 12], side="right")
    kept = model.body.a.parametrizations.weight.original1[-7:, -5:]  # type: ignore[union-attr]
    magnitude = model.body.a.parametrizations.weight.original0[-7:]  # type: ignore[union-attr]
    expected = magnitude * kept / kept.square().sum((1, 2, 3), keepdim=True).sqrt()
    torch.testing.assert_close(subnet.body.a.weight, expected, rtol=0, atol=1e-12)  # type: ignore[union-attr]
    assert subnet(torch.randn(2, *SIZE, dtype=torch.float64)).shape == (2, 5)


def test_what_a_forward_pass_leaves_on_modules_is_undone_and_does_not_hinder_extraction() -> None:
    model = network(cases.Remembering)
    space = bd.WidthSpace.from_model(model, SIZE)
    assert model.body.features is None and model.body.calls == 0
    x = torch.randn(2, *SIZE, dtype=torch.float64)
    model(x).sum().backward()
    assert model.body.features.grad_fn is not None  # type: ignore[union-attr]
    assert space.extract(model, [7, 5])(x).shape == (2, 5)
    assert model.body.features.grad_fn is not None  # type: ignore[union-attr]


def test_widths_at_which_the_code_fails_are_left_out() -> None:
    class Squeezing(cases.DataDependent):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(nn.functional.adaptive_avg_pool2d(self.a(x), 1).squeeze())

    model = Squeezing()
    space = bd.WidthSpace.from_model(model, SIZE, levels=8)
    assert [v.channels for v in space.variables] == [8] and not space.frozen and not space.notes
    assert space.variables[0].choices == (2, 3, 4, 5, 6, 7, 8) and space.narrowest.tolist() == [2]
    with pytest.raises(bd.WidthError, match=r"allowed: 2\.\.8"):
        space.extract(model, [1])
    with pytest.raises(bd.WidthError, match=r"within 2\.\.8"):
        space.with_choices({0: [1, 4]})
    assert space.extract(model, [2])(torch.randn(2, *SIZE)).shape == (2, 5)
    assert bd.WidthSpace.from_dict(space.to_dict()) == space


def test_not_a_cnn() -> None:
    with pytest.raises(bd.UnsupportedModelError, match="no convolution"):
        bd.WidthSpace.from_model(nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.Linear(8, 5)), SIZE)
    with pytest.raises(bd.UnsupportedModelError, match="torch.nn.Module"):
        bd.WidthSpace.from_model(lambda x: x, SIZE)  # type: ignore[arg-type]


def test_wrong_input_size_names_it() -> None:
    with pytest.raises(bd.InputSizeError, match="4x8x8"):
        bd.WidthSpace.from_model(network(cases.Residual), (4, 8, 8))
    with pytest.raises(bd.InputSizeError, match="positive"):
        bd.WidthSpace.from_model(network(cases.Residual), (3, 0, 8))


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ([12], r"has 2 widths; given: shape \(1,\)"),
        ([12, 21], r"21 of variable 1 \(body.a.0\).*1\.\.20"),
        ([0, 20], r"0 of variable 0 \(stem.0\).*1\.\.12"),
        ([1e30, 20], r"1e\+30 of variable 0 \(stem.0\)"),
        ([1.5, 20], "whole numbers"),
    ],
)
def test_bad_width_vectors_name_variable_and_range(widths: list[float], message: str) -> None:
    space = bd.WidthSpace.from_model(network(cases.Residual), SIZE)
    for use in (space.macs, space.params, space.peak_activation_bytes):
        with pytest.raises(bd.WidthError, match=message):
            use(widths)


def test_capture_leaves_the_model_as_it_was() -> None:
    model = network(cases.Dense).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    identities = [id(p) for p in model.parameters()]
    bd.WidthSpace.from_model(model, SIZE)
    assert model.training and [id(p) for p in model.parameters()] == identities
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_non_finite_weights_are_named() -> None:
    model = network(cases.Residual)
    space = bd.WidthSpace.from_model(model, SIZE)
    with torch.no_grad():
        model.body.a[0].weight[3, 2, 1, 1] = float("nan")  # type: ignore[union-attr,index]
    with pytest.raises(bd.NonFiniteWeightError, match=r"body\.a\.0\.weight"):
        space.extract(model, space.narrowest)


def test_extraction_from_another_model_names_the_tensor() -> None:
    space = bd.WidthSpace.from_model(network(cases.Residual), SIZE)
    with pytest.raises(bd.CheckpointError, match="body"):
        space.extract(network(cases.Gated), space.full)


def test_description_survives_json() -> None:
    space = bd.WidthSpace.from_model(network(cases.Dense), SIZE, levels=7, min_level=2)
    again = bd.WidthSpace.from_dict(json.loads(json.dumps(space.to_dict())))
    assert again == space and again.fingerprint == space.fingerprint
    widths = space.random(5, np.random.default_rng(0))
    np.testing.assert_array_equal(again.macs(widths), space.macs(widths))
    with pytest.raises(bd.CheckpointError, match="format"):
        bd.WidthSpace.from_dict({**space.to_dict(), "format": 99})
    with pytest.raises(bd.CheckpointError, match="damaged"):
        bd.WidthSpace.from_dict({"format": 1})
    for spoilt in ([], [["", "groups", []]], [["", "groups"]], 3):
        with pytest.raises(bd.CheckpointError, match="damaged"):
            bd.WidthSpace.from_dict({**space.to_dict(), "attributes": spoilt or [[]]})


def test_choices_of_ones_own_survive_as_data() -> None:
    space = bd.WidthSpace.from_model(network(cases.Grouped), SIZE, levels=6)
    own = space.with_choices({"body.pre.0": [8, 16], 0: [3, 7, 12]})
    assert [v.choices for v in own.variables] == [(3, 7, 12), (8, 16, 24), space.variables[2].choices]
    assert own.narrowest.tolist() == [3, 8, space.narrowest[2]]
    assert set(own.random(50, np.random.default_rng(0))[:, 1]) == {8, 16, 24}
    again = bd.WidthSpace.from_dict(json.loads(json.dumps(own.to_dict())))
    assert again == own and again.variables == own.variables
    # The network is the same, what a search may take of it is not.
    assert own.fingerprint == space.fingerprint == again.fingerprint
    assert own.choices_fingerprint == again.choices_fingerprint != space.choices_fingerprint
    assert space.with_choices({}).choices_fingerprint == space.choices_fingerprint
    assert [v.choices for v in space.variables] != [v.choices for v in own.variables]


def test_descriptions_of_the_former_format_have_the_choices_of_their_levels() -> None:
    space = bd.WidthSpace.from_model(network(cases.Grouped), SIZE, levels=6)
    former = space.to_dict()
    former["format"] = 1
    for variable in former["variables"]:
        del variable["choices"]
    assert bd.WidthSpace.from_dict(former) == space


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"body.pre": [8]}, r"no width variable 'body.pre'; did you mean 'body.pre.0'"),
        ({3: [8]}, "no width variable 3; allowed: .* 3 variables"),
        ({-1: [8]}, "no width variable -1"),
        (
            {"body.pre.0": [4, 10]},
            r"4\.\.24 in steps of 4; given for variable 1 \(body.pre.0\): \[4, 10\]",
        ),
        ({0: [0, 4]}, r"within 1\.\.12"),
        ({0: [4, 13]}, r"within 1\.\.12"),
        ({0: [8, 4]}, "ascend"),
        ({0: [4, 4]}, "none comes twice"),
        ({0: []}, "one or more"),
        ({0: [4.5]}, "whole numbers"),
    ],
)
def test_bad_choices_are_refused(choices: dict[str | int, list[int]], message: str) -> None:
    space = bd.WidthSpace.from_model(network(cases.Grouped), SIZE)
    with pytest.raises(bd.WidthError, match=message):
        space.with_choices(choices)


def test_peak_activation_memory_of_a_chain_and_a_shortcut() -> None:
    """By hand, float32: the residual body holds its input while both convolutions run."""
    space = bd.WidthSpace.from_model(network(cases.Residual), SIZE)
    pixels = 64
    # Largest moment: batch norm of a.0, input and output of 20 channels beside the shortcut's 12.
    assert space.peak_activation_bytes([12, 20])[0] == 4 * pixels * (12 + 20 + 20)
    # Where the body is narrow, the final sum is larger: two inputs and the result of 12 channels.
    assert space.peak_activation_bytes([12, 1])[0] == 4 * pixels * (12 + 12 + 12)
