"""Models by name, the user's own, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

import bcnet_deploy as bd
from bcnet_deploy.models import (
    build_model,
    default_input_size,
    default_num_classes,
    input_config,
    model_names,
)
from tests.zoo import counted_macs, counted_params

OWN = [
    "demo",
    "vgg19_cifar10",
    "mobilenet_v2_cifar10",
    "channel_bench_macro_mobilenet",
    "channel_bench_macro_resnet",
]


def test_every_torchvision_classifier_has_its_name() -> None:
    classifiers = torchvision.models.list_models(module=torchvision.models)
    assert {"resnet50", "convnext_tiny", "shufflenet_v2_x1_0", "vgg19_bn"} <= set(classifiers)
    assert set(classifiers) | set(OWN) <= set(model_names())


@pytest.mark.parametrize("name", OWN)
def test_own_networks_run_at_their_default_size(name: str) -> None:
    model = build_model(name).eval()
    with torch.no_grad():
        assert model(torch.zeros(2, *default_input_size(name))).shape == (2, default_num_classes(name))


@pytest.mark.parametrize(
    ("name", "side"), [("inception_v3", 299), ("resnet50", 224), ("efficientnet_b1", 240)]
)
def test_default_sizes_are_the_published_ones(name: str, side: int) -> None:
    assert default_input_size(name) == (3, side, side)
    assert default_num_classes(name) == 1000


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_are_left_out(name: str) -> None:
    """One tensor in both modes; the published sizes without the heads' (Szegedy et al. 2014, 2015)."""
    model = build_model(name, num_classes=7)
    output = model.train()(torch.zeros(2, 3, 96, 96) if name == "googlenet" else torch.zeros(2, 3, 139, 139))
    assert output.shape == (2, 7)


def test_number_of_classes() -> None:
    assert build_model("mobilenet_v2", num_classes=5)(torch.zeros(2, 3, 32, 32)).shape == (2, 5)
    assert build_model("vgg19_cifar10", num_classes=100).classifier.out_features == 100
    for bad in (0, -1, True):
        with pytest.raises(bd.ModelError, match="num_classes"):
            build_model("mobilenet_v2", num_classes=bad)


def test_width_multipliers() -> None:
    """Parameters of MobileNetV2 0.5x and 1.4x as published (1.95M and 6.06M)."""
    assert counted_params(build_model("mobilenet_v2_0.5x")) == pytest.approx(1.95e6, rel=0.02)
    assert counted_params(build_model("mobilenet_v2_1.4x")) == pytest.approx(6.06e6, rel=0.02)
    with pytest.raises(bd.UnknownModelError, match="multiplier"):
        build_model("mobilenet_v2_99x")


def test_the_demo_network_is_small_and_of_all_usual_parts() -> None:
    model = build_model("demo")
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert any(m.groups == m.in_channels > 1 for m in convolutions)
    assert 4e6 < counted_macs(model, (1, 16, 16)) < 7e6


@pytest.mark.parametrize(
    ("name", "suggested"),
    [("mobilnet_v2", "mobilenet_v2"), ("ResNet50", "resnet50"), ("efficientnet-b0", "efficientnet_b0")],
)
def test_an_unknown_name_offers_the_nearest(name: str, suggested: str) -> None:
    with pytest.raises(bd.UnknownModelError, match=f"'{name}'.*'{suggested}'"):
        build_model(name)
    with pytest.raises(bd.UnknownModelError):
        default_input_size(name)


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of a user in the current folder."""
    (tmp_path / "bcnet_user_nets.py").write_text(
        "import math\n"
        "from torch import nn\n"
        "def make(num_classes=4):\n"
        "    pool = nn.AdaptiveAvgPool2d(1)\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3), pool, nn.Flatten(), nn.Linear(8, num_classes))\n"
        "def fixed():\n    return nn.Conv2d(3, 6, 1)\n"
        "def broken():\n    raise RuntimeError('no weights here')\n"
        "def nothing():\n    return 'a string'\n"
        "def sick():\n"
        "    net = nn.Conv2d(3, 6, 1)\n"
        "    net.weight.data[0, 0] = math.nan\n"
        "    return net\n"
    )
    (tmp_path / "bcnet_user_broken.py").write_text("import bcnet_no_such_module\n")
    monkeypatch.chdir(tmp_path)
    yield "bcnet_user_nets"
    for name in ("bcnet_user_nets", "bcnet_user_broken"):
        sys.modules.pop(name, None)


def test_a_users_function_in_the_current_folder(user_module: str) -> None:
    path = list(sys.path)
    assert build_model(f"{user_module}:make")[-1].out_features == 4
    assert build_model(f"{user_module}:make", num_classes=9)[-1].out_features == 9
    assert build_model(f"{user_module}:fixed", num_classes=9).out_channels == 6
    assert sys.path == path
    assert default_input_size(f"{user_module}:make") == (3, 224, 224)


@pytest.mark.parametrize(
    ("reference", "error", "message"),
    [
        ("bcnet_user_nets:mak", bd.UnknownModelError, "no function 'mak'.*'make'"),
        ("bcnet_no_such_module:make", bd.UnknownModelError, "bcnet_no_such_module"),
        ("bcnet_user_nets.inner:make", bd.ModelError, "bcnet_user_nets"),
        ("bcnet_user_nets:", bd.UnknownModelError, "package.module:function"),
        (":make", bd.UnknownModelError, "package.module:function"),
        ("bcnet_user_nets:broken", bd.ModelError, "no weights here"),
        ("bcnet_user_nets:nothing", bd.ModelError, "returned str"),
        ("bcnet_user_broken:make", bd.ModelError, "bcnet_no_such_module"),
        ("bcnet_user_nets:sick", bd.NonFiniteWeightError, "'weight'.* 1 NaN"),
    ],
)
def test_what_can_go_wrong_with_a_users_function(
    user_module: str, reference: str, error: type[bd.BCNetError], message: str
) -> None:
    with pytest.raises(error, match=message):
        build_model(reference)


# -- models of installed libraries, and objects ------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "classes"),
    [
        ("timm:mobilenetv3_small_050", (3, 224, 224), 1000),
        ("timm:test_resnet.r160_in1k", (3, 160, 160), 1000),
        ("torchvision:resnet18", (3, 224, 224), 1000),
        ("torchvision:lraspp_mobilenet_v3_large", (3, 520, 520), 21),
        ("smp:unet/resnet18", (3, 224, 224), 1),
        ("smp:Unet/resnet18", (3, 224, 224), 1),
    ],
)
def test_models_of_libraries(name: str, size: tuple[int, int, int], classes: int) -> None:
    assert (default_input_size(name), default_num_classes(name)) == (size, classes)
    model = build_model(name, num_classes=7).eval()
    with torch.no_grad():
        output = model(torch.zeros(1, 3, 64, 64))
    assert (output["out"] if isinstance(output, dict) else output).shape[1] == 7
    assert bd.WidthSpace.from_model(model, (3, 64, 64)).variables


def test_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was made")

    monkeypatch.setattr("socket.socket.connect", refuse)
    for name in ("timm:test_resnet.r160_in1k", "torchvision:lraspp_mobilenet_v3_large", "smp:fpn/resnet18"):
        build_model(name, num_classes=2)
        input_config(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:mobilnetv3_small_050", "timm has no model .*'mobilenetv3_small_050'"),
        ("torchvision:resnet19", "torchvision has no .*'resnet1[85]"),
        ("smp:unet", "names no encoder; write smp:unet/"),
        ("smp:unett/resnet18", "'unet'"),
        ("smp:unet/resnet19", "'resnet18'"),
        ("timm:", "timm has no model"),
    ],
)
def test_unknown_models_of_libraries_offer_the_nearest(name: str, message: str) -> None:
    with pytest.raises(bd.UnknownModelError, match=message):
        build_model(name)


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(bd.UnknownModelError, match="need timm.*pip install timm"):
        build_model("timm:test_resnet")


def test_the_input_that_published_weights_were_made_for() -> None:
    """Against the two libraries' own pages: torchvision's recipe of resnet50 (V2), timm's of test_resnet."""
    resnet = input_config("resnet50")
    assert resnet is not None and resnet == input_config("torchvision:resnet50")
    assert resnet.input_size == (3, 224, 224) and resnet.crop == pytest.approx(224 / 232)
    assert resnet.mean == (0.485, 0.456, 0.406) and resnet.std == (0.229, 0.224, 0.225)
    assert resnet.interpolation == "bilinear"
    tiny = input_config("timm:test_resnet.r160_in1k")
    assert tiny is not None and (tiny.input_size, tiny.crop) == ((3, 160, 160), 0.95)
    convnext = input_config("timm:convnext_atto.d2_in1k")
    assert convnext is not None and (convnext.interpolation, convnext.crop) == ("bicubic", 0.875)
    for name in ("demo", "vgg19_cifar10", "smp:unet/resnet18"):
        assert input_config(name) is None
    with pytest.raises(bd.UnknownModelError):
        input_config("no_such_model")


def test_a_function_or_a_module_instead_of_a_name() -> None:
    def make(num_classes: int = 4) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, num_classes))

    assert build_model(make)[-1].out_features == 4
    assert build_model(make, num_classes=9)[-1].out_features == 9
    module = make()
    assert build_model(module) is module
    with pytest.raises(bd.ModelError, match="<lambda> returned int"):
        build_model(lambda: 3)  # type: ignore[arg-type,return-value]
    with pytest.raises(bd.ModelError, match="a name, a function .* given: int"):
        build_model(3)  # type: ignore[arg-type]
