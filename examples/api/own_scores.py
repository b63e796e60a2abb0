"""The search alone: accuracies from code of one's own, budgets on two devices. No run directory."""

import numpy as np

import bcnet_deploy as bd

model = bd.build_model("demo", num_classes=10)
space = bd.WidthSpace.from_model(model, input_size=(1, 16, 16))
# Launches take most of the time of so small a network on a GPU: narrow layers save little there.
latencies = {
    name: (bd.profile(model, space, name, estimate=True), budget)
    for name, budget in {"t4": "0.97x", "cpu-1thread": "0.6x"}.items()
}


def accuracy(widths: np.ndarray) -> np.ndarray:
    """(N, L) widths -> (N,). Yours trains, or asks a table; here wide layers help, later ones more."""
    shares = widths / space.full
    return np.asarray(np.sqrt(shares) @ np.linspace(1, 2, len(space.variables)))


budgets = {"macs": "0.5x", "latency_ms": latencies}
# Estimates are too unsure to promise 95%, the usual confidence.
result = bd.search(space, accuracy, budgets, evaluations=200, seed=0, confidence=0.5)
network = space.extract(model, result.widths)  # a plain nn.Module
print("widths:", result.widths.tolist())
print("parameters:", sum(p.numel() for p in network.parameters()), "=", int(space.params(result.widths)[0]))
print("costs:", {name: float(value) for name, value in result.costs.items()})
