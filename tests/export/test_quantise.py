"""INT8: what is lost is measured, the layer that loses it is found, and kept in FP32 it loses nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import bcnet_deploy.export.quantise as quantising
from bcnet_deploy.errors import ExportError
from bcnet_deploy.export import export_onnx
from bcnet_deploy.export.onnx import trace
from bcnet_deploy.export.quantise import accuracy_on, layer_errors, quantise
from bcnet_deploy.runtime import precision
from bcnet_deploy.runtime.precision import to_int8
from bcnet_deploy.tasks import has_learned
from tests.export.nets import pictures, small

SIZE = (3, 12, 12)


class Uneven(nn.Module):
    """Between two layers one channel is a thousand times as large as the others; the layer behind undoes it.

    In exact arithmetic that changes nothing. Eight bits for all channels together leave none for the others.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.large = nn.Conv2d(8, 8, 1)
        self.undone = nn.Conv2d(8, 8, 1)
        self.last = nn.Linear(8, 4)
        with torch.no_grad():
            self.large.weight[0] *= 1000
            self.large.bias[0] *= 1000  # type: ignore[index]
            self.undone.weight[:, 0] /= 1000

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(self.undone(torch.relu(self.large(x))))
        return self.last(x.mean((2, 3)))


@pytest.fixture(scope="module")
def uneven() -> onnx.ModelProto:
    return trace(Uneven().eval(), SIZE, batch=1)[0]


@pytest.fixture(scope="module")
def labelled(uneven: onnx.ModelProto) -> tuple[np.ndarray, np.ndarray]:
    """Images with the class that the FP32 network itself gives them."""
    images = pictures(64)
    with torch.inference_mode():
        return images, Uneven().eval()(torch.from_numpy(images)).argmax(1).numpy()


def test_the_layer_behind_the_uneven_channels_loses_most(uneven: onnx.ModelProto) -> None:
    images = pictures(16)
    errors = layer_errors(uneven, to_int8(uneven, images), images)
    assert set(errors) == {"first", "large", "undone", "last"}
    assert max(errors, key=errors.__getitem__) == "undone"
    others = [value for name, value in errors.items() if name != "undone"]
    assert errors["undone"] > 5 * max(others)
    assert all(0 < value < 0.05 for value in others)  # about 1/256 of the range


def test_errors_of_single_layers_are_those_of_quantising_them_alone(uneven: onnx.ModelProto) -> None:
    """Against ONNX Runtime's own quantisation of one layer: all other nodes excluded."""
    from bcnet_deploy.export.parity import run_onnx

    images = pictures(16)
    errors = layer_errors(uneven, to_int8(uneven, images), images)
    exact = run_onnx(uneven.SerializeToString(), images)
    for layer in ("undone", "first"):
        others = [node.name for node in uneven.graph.node if layer not in node.name]
        alone = run_onnx(to_int8(uneven, images, keep_fp32=others).SerializeToString(), images)
        error = np.sqrt(np.mean((alone - exact) ** 2) / np.mean(exact**2))
        assert errors[layer] == pytest.approx(error, rel=0.35, abs=0.008)  # its output is quantised, too


def test_the_layer_that_loses_is_kept_until_the_loss_is_small(
    uneven: onnx.ModelProto, labelled: tuple[np.ndarray, np.ndarray]
) -> None:
    score = accuracy_on(*labelled)
    lossy = quantise(uneven, labelled[0], score)
    assert lossy.fp32_score == 1.0
    assert lossy.loss > 0.1
    assert lossy.weakest[0][0] == "undone"
    held = quantise(uneven, labelled[0], score, max_loss=0.05)
    assert held.kept_fp32 == ("undone",)
    assert held.loss <= 0.05
    assert held.score == score(held.model.SerializeToString())
    by_hand = quantise(uneven, labelled[0], score, keep_fp32=("undone",))
    assert by_hand.score == held.score
    assert "undone" not in dict(by_hand.weakest)


def test_a_loss_that_cannot_be_held_names_the_layers(
    uneven: onnx.ModelProto, labelled: tuple[np.ndarray, np.ndarray]
) -> None:
    with pytest.raises(ExportError, match=r"INT8 loses .*allowed is -100.00%.*lose most: undone"):
        quantise(uneven, labelled[0], accuracy_on(*labelled), max_loss=-1.0)


def test_a_quarter_of_the_layers_is_tried_before_a_refusal(
    uneven: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of fourteen layers three may stay in FP32: one, two, and then three, not four."""
    names = [f"layer{i}" for i in range(14)]
    kept: list[int] = []

    def once(model: onnx.ModelProto, *arguments: object) -> tuple[onnx.ModelProto, float]:
        kept.append(len(arguments[-1]))  # type: ignore[arg-type]
        return model, 0.9 if kept[-1] == 3 else 0.5

    monkeypatch.setattr(quantising, "_layers", lambda model: names)
    monkeypatch.setattr(quantising, "layer_errors", lambda *_: dict.fromkeys(names, 1.0))
    monkeypatch.setattr(quantising, "_once", once)
    monkeypatch.setattr(quantising, "to_int8", lambda *_, **__: uneven)
    held = quantise(uneven, pictures(4), lambda model: 1.0, max_loss=0.2)
    assert kept == [0, 1, 2, 3] and held.loss == pytest.approx(0.1)


def test_a_quantised_network_that_guesses_is_refused(
    uneven: onnx.ModelProto, labelled: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    def score(network: bytes) -> float:
        return 0.26 if b"QuantizeLinear" in network else 0.9

    with pytest.raises(
        ExportError, match=r"leaves an accuracy of 26.00%, .*chance gives \(25.00%\); FP32 has 90.00%.*undone"
    ):
        export_onnx(
            Uneven(), tmp_path / "net.onnx", SIZE, parity_inputs=labelled[0], precision="int8", score=score,
            chance=0.25,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []
    assert quantise(uneven, labelled[0], score).score == 0.26  # nothing is known of chance
    untrained = quantise(uneven, labelled[0], lambda network: 0.26, chance=0.25)
    assert untrained.loss == 0  # guesses before, too: the caller says so


def test_unknown_layers_and_labels_are_refused(uneven: onnx.ModelProto) -> None:
    with pytest.raises(ExportError, match="no layer 'undon'; did you mean 'undone'"):
        quantise(uneven, pictures(4), lambda network: 1.0, keep_fp32=("undon",))
    with pytest.raises(ExportError, match="one label an image; given 4 and 3"):
        accuracy_on(pictures(4), np.zeros(3, np.int64))


def test_the_best_of_several_calibrations_is_taken(uneven: onnx.ModelProto) -> None:
    seen = []

    def score(network: bytes) -> float:
        seen.append(network)
        return {2: 0.5, 3: 0.75}.get(len(seen), 0.9)

    assert quantise(uneven, pictures(8), score, methods=("minmax", "percentile")).method == "percentile"


def test_as_many_images_are_taken_as_help(uneven: onnx.ModelProto) -> None:
    seen = []

    def score(network: bytes) -> float:
        seen.append(network)
        return [0.9, 0.8, 0.85, 0.8995, 0.7][len(seen) - 1]

    found = quantise(uneven, pictures(16), score, methods=("minmax", "percentile"), counts=(4, 16))
    assert (found.method, found.images, found.score) == ("percentile", 4, 0.8995)
    assert len(seen) == 4, "one that loses next to nothing ends the trials"
    assert found.to_dict()["calibration_images"] == 4
    assert len(set(seen)) == 4


def test_histograms_take_no_more_images_than_memory_holds(
    uneven: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Eight images' worth of four tensors of 8 x 12 x 12: less than the uneven network's activations."""
    images = pictures(32)
    monkeypatch.setattr(precision, "_HISTOGRAM_BYTES", 8 * 4 * 4 * 8 * 12 * 12)
    few = to_int8(uneven, images, method="percentile").SerializeToString()
    monkeypatch.setattr(precision, "_HISTOGRAM_BYTES", 2**30)
    assert few != to_int8(uneven, images, method="percentile").SerializeToString()
    fewer = {to_int8(uneven, images[:n], method="percentile").SerializeToString() for n in range(1, 9)}
    assert few in fewer
    assert capfd.readouterr().out == "", "standard output is for --json"


@pytest.mark.parametrize("target", ["ort", "trt"])
def test_the_export_says_what_int8_loses(tmp_path: Path, target: str) -> None:
    net, images = small(), pictures(32)
    with torch.inference_mode():
        labels = net(torch.from_numpy(images)).argmax(1).numpy()
    result = export_onnx(
        net, tmp_path / "net.onnx", SIZE, parity_inputs=images, precision="int8", target=target,  # type: ignore[arg-type]
        minimum_top1=0.5, score=accuracy_on(images, labels, target=target),  # type: ignore[arg-type]
    )  # fmt: skip
    assert result.quantised is not None
    assert result.quantised.fp32_score == 1.0
    assert result.parity is not None
    # Labels are the network's own classes: accuracy is agreement.
    assert result.quantised.score == pytest.approx(result.parity.top1_agreement)
    assert result.to_dict()["quantised"]["weakest"]


def test_of_several_outputs_the_logits_are_scored(labelled: tuple[np.ndarray, np.ndarray]) -> None:
    """As training does it, wherever among the outputs they stand."""

    class Features(Uneven):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:  # type: ignore[override]
            logits = super().forward(x)
            return {"features": -logits, "logits": logits}

    network = trace(Features().eval(), SIZE, batch=1)[0]
    assert accuracy_on(*labelled)(network.SerializeToString()) == 1.0


class Functional(nn.Module):
    """All convolutions are the network's own: to INT8 it is one layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Parameter(torch.randn(8, 3, 3, 3)), nn.Parameter(torch.randn(4, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(torch.conv2d(x, self.first)).mean((2, 3)) @ self.last.T


def test_a_file_of_int8_has_some_int8() -> None:
    model = trace(Functional().eval(), SIZE, batch=1)[0]
    scores = iter([0.9, 0.5, 0.9])
    with pytest.raises(ExportError, match="allowed is 1.00%"):
        quantise(model, pictures(8), lambda network: next(scores), max_loss=0.01)


def test_no_calibration_is_made_twice_and_images_are_those_seen(
    uneven: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def counted(model: onnx.ModelProto, calibration: np.ndarray, **more: object) -> onnx.ModelProto:
        made.append(len(calibration))
        return to_int8(model, calibration, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(quantising, "to_int8", counted)
    monkeypatch.setattr(precision, "_HISTOGRAM_BYTES", 5 * precision._activation_bytes(uneven))
    scores = iter([0.9, *[0.8] * 9])
    result = quantise(
        uneven, pictures(20), lambda network: next(scores), methods=("minmax", "percentile"),
        counts=(128, 512),
    )  # fmt: skip
    assert made == [20, 5] and result.images == 20
    scores = iter([0.9, *[0.8] * 9])
    alone = quantise(uneven, pictures(20), lambda network: next(scores), methods=("percentile",))
    assert alone.images == 5


@pytest.mark.parametrize(
    ("score", "classes", "learned"),
    [(0.74, 2, True), (0.55, 2, False), (0.16, 10, True), (0.14, 10, False), (1.0, 1, False)],
)
def test_what_is_clearly_better_than_guessing(score: float, classes: int, learned: bool) -> None:
    assert has_learned(score, 1 / classes) is learned


def test_two_classes_that_int8_guesses_are_refused(uneven: onnx.ModelProto) -> None:
    scores = iter([0.74, 0.5])
    with pytest.raises(ExportError, match="about what chance gives"):
        quantise(uneven, pictures(8), lambda network: next(scores), chance=0.5)
