"""Supernet training, evaluation of width vectors, and training of the chosen network."""

from bcnet_deploy.resources import recipe_names
from bcnet_deploy.train.config import TrainConfig
from bcnet_deploy.train.evaluate import SupernetEvaluator, evaluate_network
from bcnet_deploy.train.pruned import open_pruned_evaluator
from bcnet_deploy.train.retrain import RetrainResult, load_result, retrain
from bcnet_deploy.train.samplers import SAMPLERS, Slice, WidthGrid, WidthSampler, make_sampler
from bcnet_deploy.train.supernet import SupernetResult, train_supernet
from bcnet_deploy.train.trainer import Trainer
from bcnet_deploy.train.tuned import TunedEvaluator

__all__ = [
    "RetrainResult",
    "SAMPLERS",
    "Slice",
    "SupernetEvaluator",
    "SupernetResult",
    "TrainConfig",
    "Trainer",
    "TunedEvaluator",
    "WidthGrid",
    "WidthSampler",
    "evaluate_network",
    "load_result",
    "make_sampler",
    "open_pruned_evaluator",
    "recipe_names",
    "retrain",
    "train_supernet",
]
