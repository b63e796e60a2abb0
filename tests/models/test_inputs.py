"""Networks of several inputs: what they compute is what they compute without the wrapper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import bcnet_deploy as bd
from bcnet_deploy.data import Augmentation, load_data
from bcnet_deploy.models import SeveralInputs
from bcnet_deploy.models.ref import ModelRef
from bcnet_deploy.run.parts import export
from bcnet_deploy.train import TrainConfig, retrain, train_supernet
from tests import zoo

SHAPES = {"rgb": (3, 16, 24), "depth": (1, 8, 8), "facts": (4,)}


class Fused(nn.Module):
    """A picture, a small map and numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.rgb = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.depth = nn.Sequential(nn.Conv2d(1, 6, 3, 1, 1), nn.ReLU())
        self.facts = nn.Sequential(nn.Linear(4, 10), nn.ReLU())
        self.head = nn.Linear(24, 3)

    def forward(self, rgb: torch.Tensor, depth: torch.Tensor, facts: torch.Tensor) -> torch.Tensor:
        maps = [self.rgb(rgb).mean((2, 3)), self.depth(depth).mean((2, 3))]
        return self.head(torch.cat([*maps, self.facts(facts)], 1))


def examples(count: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(count, *shape, generator=generator) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("by_name", [True, False])
def test_packed_inputs_come_out_as_they_were(by_name: bool) -> None:
    net = Fused().eval()
    wrapped = SeveralInputs(net, SHAPES if by_name else list(SHAPES.values()))
    assert wrapped.input_size == (8, 16, 24)
    given: Any = examples(5) if by_name else list(examples(5).values())
    packed = wrapped.pack(given)
    assert torch.equal(wrapped(packed), net(**examples(5)))
    assert torch.equal(
        wrapped.pack({n: x.numpy() for n, x in examples(5).items()}) if by_name else packed, packed
    )


def test_pictures_of_bytes_stay_bytes_and_join_numbers_as_shares() -> None:
    pictures = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4)
    both = SeveralInputs(nn.Identity(), [(3, 4, 4), (3, 4, 4)])
    assert both.pack([pictures, pictures]).dtype == torch.uint8
    mixed = SeveralInputs(nn.Identity(), [(3, 4, 4), (2,)]).pack([pictures, np.full((2, 2), 0.25)])
    torch.testing.assert_close(mixed[:, :3], torch.from_numpy(pictures).float() / 255)
    assert (mixed[:, 3:] == 0.25).all()


@pytest.mark.parametrize("kind", ["crop-flip", "resized-crop-flip"])
def test_augmentation_moves_pictures_and_leaves_numbers(kind: str) -> None:
    class Kept(nn.Module):
        def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            return inputs

    wrapped, given = SeveralInputs(Kept(), SHAPES), examples(16)
    augmentation = Augmentation(kind, (0.0,) * 8, (1.0,) * 8)
    moved = wrapped(augmentation(wrapped.pack(given), torch.Generator().manual_seed(0)))
    torch.testing.assert_close(moved["facts"], given["facts"])
    alone = Augmentation(kind, (0.0,) * 3, (1.0,) * 3)(given["rgb"], torch.Generator().manual_seed(0))
    torch.testing.assert_close(moved["rgb"], alone)
    depth = given["depth"].repeat_interleave(2, 2).repeat_interleave(3, 3)
    depth = Augmentation(kind, (0.0,), (1.0,))(depth, torch.Generator().manual_seed(0))
    torch.testing.assert_close(moved["depth"], depth[:, :, 1::2, 1::3])


def test_slices_costs_and_extraction() -> None:
    torch.manual_seed(0)
    net = SeveralInputs(Fused(), SHAPES).double().eval()
    space = bd.WidthSpace.from_model(net, net.input_size)
    assert {v.name: v.channels for v in space.variables} == {
        "model.rgb.0": 8, "model.depth.0": 6, "model.facts.0": 10,
    }  # fmt: skip
    assert not space.frozen
    supernet = bd.Supernet(net, space).eval()
    packed = net.pack(examples(3)).double()
    for widths in space.random(3, np.random.default_rng(0)):
        supernet.set_active(widths)
        cut = space.extract(net, widths)
        torch.testing.assert_close(supernet(packed), cut(packed), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(cut(packed), cut.model(**{k: v.double() for k, v in examples(3).items()}))
        assert zoo.counted_macs(cut, net.input_size) == space.macs(widths)[0]


def test_trained_extracted_and_exported(tmp_path: Path) -> None:
    given = examples(432)
    given["depth"] = given["depth"][:, :, :1, :1].expand(-1, -1, 8, 8)
    labels = (given["depth"][:, 0, 0, 0] > 0.5).long() + (given["facts"][:, 0] > 0.5)
    net = SeveralInputs(Fused(), SHAPES)
    parts = (net.pack({k: v[:400] for k, v in given.items()}), labels[:400])
    test = (net.pack({k: v[400:] for k, v in given.items()}), labels[400:])
    data = load_data({"train": parts, "test": test}, net.input_size)
    space = bd.WidthSpace.from_model(net, net.input_size, levels=4)
    config = TrainConfig(batch_size=32, epochs=20, learning_rate=0.1, augment="crop-flip", workers=0)
    train_supernet(bd.Supernet(net, space), data, config.replace(epochs=1), tmp_path / "train")
    ref = ModelRef("object", num_classes=3, input_size=net.input_size)
    result = retrain(net, space, space.full, data, config, tmp_path / "full", model_ref=ref)
    assert result.test_metric is not None and result.test_metric > 70  # the larger class: about 50
    half = space.extract(net, space.uniform(0.5))
    written = export(half, tmp_path / "half.onnx", net.input_size)
    assert written.parity is not None and written.parity.passed  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ([(3, 16, 16), (1, 5, 5)], "input 1 is 5x5, which does not divide 16x16"),
        ([(4,), (5,)], "at least one image"),
        ([(3, 16)], r"needed: \(C, H, W\)"),
        ([(0, 4, 4)], "needed"),
    ],
)
def test_shapes_that_do_not_go_into_one_image(shapes: Any, words: str) -> None:
    with pytest.raises(bd.ModelError, match=words):
        SeveralInputs(nn.Identity(), shapes)


def test_inputs_that_do_not_fit_are_named() -> None:
    net, given = SeveralInputs(Fused(), SHAPES), examples(4)
    for changed, words in (
        ({"rgb": given["rgb"]}, r"are \['rgb'\]; needed: \['rgb', 'depth', 'facts'\]"),
        (given | {"facts": given["facts"][:, :3]}, r"input 'facts' is torch.float32 of the shape \(4, 3\)"),
        (given | {"facts": given["facts"].long()}, "'facts' is torch.int64"),
        (given | {"facts": given["facts"][:2]}, r"hold \[2, 4\] examples"),
    ):
        with pytest.raises(bd.DataError, match=words):
            net.pack(changed)
    with pytest.raises(bd.InputSizeError, match="its inputs make 8x16x24 together"):
        bd.WidthSpace.from_model(net, (3, 16, 16))
    with pytest.raises(bd.UnsupportedModelError, match="SeveralInputs makes one image of several inputs"):
        bd.WidthSpace.from_model(Fused(), (3, 16, 16))
