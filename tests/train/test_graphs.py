"""What a graph holds, run without one: the paths of a step as masked networks, against slices."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bcnet_deploy.nn.masks import WidthMasks
from bcnet_deploy.tasks import load_task
from bcnet_deploy.train import WidthGrid, make_sampler
from bcnet_deploy.train.graphs import GraphedPaths
from bcnet_deploy.train.paths import PathRunner
from tests.train.helpers import CLASSES, SIZE, make_supernet, settings

CPU = torch.device("cpu")


@pytest.mark.parametrize("rule", ["bilateral", "unilateral", "sandwich"])
@pytest.mark.parametrize("distillation", [False, True])
def test_masked_paths_leave_the_losses_and_gradients_of_slices(rule: str, distillation: bool) -> None:
    supernet, config = make_supernet(), settings(rule=rule, distillation=distillation)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    runners = [
        kind(supernet, supernet, config, CPU, scaler, load_task("classification"))
        for kind in (PathRunner, GraphedPaths)
    ]
    sliced, masked = runners
    assert isinstance(masked, GraphedPaths)
    masks = masked._masks = WidthMasks(supernet)
    sampler = make_sampler(config.rule, WidthGrid.of(supernet), np.random.default_rng(1), config)
    torch.manual_seed(0)
    images, labels = torch.randn(6, *SIZE), torch.randint(0, CLASSES, (6,))
    before = {key: value.clone() for key, value in supernet.state_dict().items()}
    for _ in range(4):
        step = sampler.next_step()
        units = torch.tensor([masks.space.one(path.widths) for path in step])
        right = torch.tensor([path.side == "right" for path in step])
        found = []
        for run in (
            lambda: sliced(step, images, labels),  # noqa: B023
            lambda: masked._masked(step, units, right, images, labels),  # noqa: B023
        ):
            supernet.load_state_dict(before)
            supernet.zero_grad(set_to_none=True)
            losses = run()
            gradients = [parameter.grad for parameter in supernet.parameters()]
            found.append((losses, gradients, [buffer.clone() for buffer in supernet.buffers()]))
        torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
