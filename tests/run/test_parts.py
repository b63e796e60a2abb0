"""The parts of a run without its directory, and what the commands take of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import bcnet_deploy as bd


def test_a_notebook_without_a_run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = bd.build_model("demo")
    space = bd.WidthSpace.from_model(model, (1, 16, 16), 4)
    table = bd.profile(model, space, "t4", estimate=True)
    supernet = bd.Supernet(model, space)
    trained = bd.train_supernet(supernet, "digits", epochs=0.2, augment="none")
    assert trained.steps > 0 and set(trained.val_metric) == {"full", "half", "narrowest"}
    result = bd.search(
        space, lambda widths: space.params(widths).astype(float),
        {"latency_ms": (table, "1x"), "macs": "0.6x"}, evaluations=20,
    )  # fmt: skip
    net = space.extract(model, result.widths).eval()
    written = bd.export(net, tmp_path / "net.onnx", (1, 16, 16))
    images = np.random.default_rng(0).standard_normal((1, 1, 16, 16)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(written.path))
    (out,) = session.run(None, {session.get_inputs()[0].name: images})
    with torch.no_grad():
        assert np.allclose(out, net(torch.from_numpy(images)).numpy(), atol=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"], "nothing else is left behind"
