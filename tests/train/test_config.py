"""Recipes: those of the papers, and what a settings file may hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from bcnet_deploy.errors import ConfigError
from bcnet_deploy.train import TrainConfig, recipe_names

TABLE: dict[str, dict[str, object]] = {
    "mobilenet_v2_imagenet": {
        "batch_size": 512, "epochs": 300, "learning_rate": 0.1, "schedule": "cosine", "warmup_epochs": 5,
        "weight_decay": 5e-5, "nesterov": True, "label_smoothing": 0.1, "augment": "resized-crop-flip",
        "ema_decay": 0.9998,
    },
    "resnet50_imagenet": {
        "batch_size": 256, "epochs": 150, "learning_rate": 0.1, "schedule": "cosine", "weight_decay": 1e-4,
    },
    "mobilenet_v2_cifar10": {
        "batch_size": 128, "epochs": 500, "schedule": "step", "milestones": (160.0, 240.0, 300.0),
        "weight_decay": 5e-5, "augment": "crop-flip",
    },
    "vgg19_cifar10": {
        "batch_size": 128, "milestones": (160.0, 240.0, 400.0, 500.0), "weight_decay": 1e-4,
    },
    "efficientnet_imagenet": {
        "batch_size": 512, "epochs": 450, "optimizer": "rmsprop", "learning_rate": 0.064,
        "schedule": "exponential", "gamma": 0.963, "step_epochs": 3, "warmup_epochs": 5,
        "weight_decay": 1e-5, "ema_decay": 0.9998, "decay_norm_and_bias": False,
    },
    "channel_bench_macro": {
        "batch_size": 256, "epochs": 60, "learning_rate": 0.1, "schedule": "cosine", "weight_decay": 5e-4,
        "optimizer": "sgd",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_recipes_say_what_was_published(name: str) -> None:
    config = TrainConfig.load(name)
    assert {key: getattr(config, key) for key in TABLE[name]} == TABLE[name]


def test_every_shipped_recipe_loads_and_trains_fairly() -> None:
    assert {*TABLE, "digits", "cifar10_cpu"} <= set(recipe_names())
    for name in recipe_names():
        config = TrainConfig.load(name)
        # Left slices alone are the pruned networks that the short supernet starts from.
        assert name == "short_supernet" or (config.rule == "bilateral" and config.complementary)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 0.1", "unknown key 'learning_rat'; did you mean 'learning_rate'"),
        ("batch_size: large", "batch_size is 'large'; allowed: a whole number"),
        ("batch_size: 0", "batch_size is 0; allowed: from 1 up"),
        ("momentum: 1.5", "momentum is 1.5; allowed: below 1"),
        ("epochs: .nan", "the number nan is not finite"),
        (
            "rule: bilaterl",
            "unknown training rule 'bilaterl'; did you mean 'bilateral'",
        ),
        ("schedule: step", "needs milestones"),
        ("milestones: 3", "milestones is 3; allowed: a list"),
        ("nesterov: 1", "nesterov is 1; allowed: true or false"),
        ("batch_size: true", "batch_size is True; allowed: a whole number"),
        ("momentum: 0", "nesterov needs a momentum"),
        ("- a", "is list; needed: keys and values"),
        ("a: [", "is not valid YAML at line"),
    ],
)
def test_wrong_settings_are_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        TrainConfig.load(path)


def test_numbers_that_yaml_reads_as_text_are_numbers() -> None:
    assert TrainConfig.from_dict({"weight_decay": "5e-5"}).weight_decay == 5e-5
    assert TrainConfig.from_dict({"milestones": [1, 2.5]}).milestones == (1.0, 2.5)


def test_settings_survive_a_round_trip() -> None:
    config = TrainConfig.load("mobilenet_v2_cifar10")
    assert TrainConfig.from_dict(config.to_dict()) == config


def test_an_unknown_recipe_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="no recipe 'digit'; did you mean 'digits'"):
        TrainConfig.load("digit")
