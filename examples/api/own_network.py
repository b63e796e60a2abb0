"""From a network and arrays of one's own to a measured network and a report."""

import numpy as np
from torch import nn

import bcnet_deploy as bd

rng = np.random.default_rng(0)
labels = rng.integers(0, 2, 600)
noise = rng.normal(90, 30, (600, 1, 16, 16))
images = (noise + 60 * labels[:, None, None, None]).clip(0, 255).astype(np.uint8)
model = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU(),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2),
)  # fmt: skip
data = {"train": (images[:400], labels[:400]), "test": (images[400:], labels[400:])}

run = bd.Run("my-run", model=model, data=data, device="cpu-1thread")
run.profile(budget="10s")
run.train(epochs=2)
found = run.search(latency="0.7x", evaluations=40)
run.retrain(epochs=2)
run.export(engine="ort")
measured = run.bench(rounds=2, runs=5).measured.networks["found"]
print("widths:", found.widths)
print("predicted:", found.costs["latency_ms"], "ms; table:", run.profile().path)
print("measured:", measured.runtimes["onnxruntime-cpu"].latency.median_ms, "ms; page:", run.report().path)
