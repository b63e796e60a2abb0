"""Every torchvision classifier before and after a permutation of its channels: float64 outputs.

    python -m benchmarks.check_permutation [MODEL ...] [--out docs/permutation.json]

Each model has random weights under which every channel matters. ``by_importance`` orders the channels by
group L2, ``random`` draws an order for each variable that may be permuted. Both give the largest difference
of outputs, relative to the outputs' spread over images. The bar is 1e-10, or ten times ``rounding`` where
that is more: what a change in the last digit of the images does. Where random weights amplify it a million
times, batch norms are given the statistics of random images first (``recalibrated``). ``kept`` names the
variables that no permutation leaves alone. Results are kept per model, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import bcnet_deploy as bd
from bcnet_deploy import files
from bcnet_deploy.importance import importance_scores, order_of, permutable, permute
from bcnet_deploy.models import default_input_size, model_names
from bcnet_deploy.nn import recalibrate
from tests import zoo

ROOT = Path(__file__).resolve().parent.parent


def check(name: str) -> dict[str, Any]:
    """All figures of one model; ``status`` is ok, refused (typed error) or failed."""
    torch.manual_seed(0)
    started = time.process_time()
    model = bd.build_model(name)
    size = zoo.small_input(name)
    try:
        # Widths do not depend on the size of the image where the classifier follows a pooling.
        space = bd.WidthSpace.from_model(model, size)
    except bd.InputSizeError:
        size = default_input_size(name)
        space = bd.WidthSpace.from_model(model, size)
    except bd.UnsupportedModelError as error:
        return {"status": "refused", "reason": str(error)}
    zoo.randomize(model)
    model = model.double().eval()
    free = permutable(model, space)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, *size, generator=generator, dtype=torch.float64)
    identity = [torch.arange(variable.units) for variable in space.variables]
    scores = importance_scores(model, space, "l2")
    kinds = {
        "by_importance": [order_of(score) for score in scores],
        "random": [torch.randperm(len(order), generator=generator) for order in identity],
    }
    rounding = _rounding(model, images)
    steep = rounding > 1e-10
    if steep:
        recalibrate(model, [torch.randn(8, *size, generator=generator, dtype=torch.float64)])
        rounding = _rounding(model.eval(), images)
    with torch.no_grad():
        expected = _output(model, images)
        spread = float((expected - expected.mean(dim=0)).abs().max())
        figures = {}
        for kind, orders in kinds.items():
            chosen = [
                order if may else former for order, former, may in zip(orders, identity, free, strict=True)
            ]
            found = _output(permute(model, space, chosen).eval(), images)
            figures[kind] = float((found - expected).abs().max()) / spread
    return {
        "status": "ok" if max(figures.values()) <= max(1e-10, 10 * rounding) else "failed",
        **figures,
        "rounding": rounding,
        "recalibrated": steep,
        "variables": len(free),
        "kept": [v.name for v, may in zip(space.variables, free, strict=True) if not may],
        "input_size": list(size),
        "seconds": round(time.process_time() - started, 1),
    }


@torch.no_grad()
def _rounding(model: nn.Module, images: torch.Tensor) -> float:
    """What a change in the last digit of the images does to the outputs, relative to their spread."""
    generator = torch.Generator().manual_seed(2)
    last_digit = 1 + 2.0**-52 * torch.randint(-1, 2, images.shape, generator=generator).double()
    expected = _output(model, images)
    spread = float((expected - expected.mean(dim=0)).abs().max())
    return float((_output(model, images * last_digit) - expected).abs().max()) / spread


def _output(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(model(images))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("models", nargs="*")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "permutation.json")
    options = parser.parse_args()
    data = json.loads(options.out.read_text()) if options.out.exists() else {"models": {}}
    for name in options.models or [n for n in model_names() if n not in data["models"]]:
        try:
            row = check(name)
        except Exception as error:  # one model's failure is a row, the others go on
            row = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
        print(name, row, flush=True)
        data["models"][name] = row
        data["torch"] = torch.__version__
        files.write_json(options.out, data)


if __name__ == "__main__":
    main()
