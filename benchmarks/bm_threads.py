"""Two threads of ONNX Runtime: idle threads that spin or sleep, a second thread pinned or not.

    cd benchmarks
    taskset -c 0,1 chrt -f 10 python bm_threads.py --out results/runtimes/two_threads.json

Each of six networks is timed with every setting in interleaved rounds, a new session each time, the
fastest of its runs. A setting's noise floor is the mean difference of two halves of the rounds, as in
``bm_lut_accuracy.py``.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import onnxruntime as ort

import bcnet_deploy as bd
from bcnet_deploy import files
from bcnet_deploy.models import default_input_size
from bcnet_deploy.profiler.fitting import validate
from bcnet_deploy.profiler.measure import measure_plain
from bcnet_deploy.profiler.narrow import NetworkMaker
from bcnet_deploy.runtime.machine import describe_machine
from bcnet_deploy.runtime.ort import OrtRunner

_SLEEP = {"session.intra_op.allow_spinning": "0"}
_PIN = {"session.intra_op_thread_affinities": "2"}  # the second processor, counted from 1
SETTINGS: dict[str, dict[str, str]] = {
    "spinning": {}, "sleeping": _SLEEP, "spinning, pinned": _PIN, "sleeping, pinned": _SLEEP | _PIN,
}  # fmt: skip


class Set(OrtRunner):
    """ONNX Runtime with two threads and entries of its session's configuration."""

    def __init__(self, model: bytes, entries: dict[str, str]) -> None:
        super().__init__(model, threads=2)
        self.entries = entries

    def _activate(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = 2, 1
        for name, value in self.entries.items():
            options.add_session_config_entry(name, value)
        self._session = ort.InferenceSession(self.model, options, providers=["CPUExecutionProvider"])
        # The first thread is this process's own.
        os.sched_setaffinity(0, {0} if "session.intra_op_thread_affinities" in self.entries else {0, 1})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="mobilenet_v2")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    model = bd.build_model(options.model).eval()
    space = bd.WidthSpace.from_model(model, default_input_size(options.model))
    maker, rng = NetworkMaker(model, space), np.random.default_rng(5)
    networks = [maker(widths) for widths in (space.uniform(0.5), space.full, *space.random(4, rng))]
    image = rng.standard_normal((1, *space.input_size)).astype(np.float32)
    times = {name: np.empty((len(networks), options.rounds)) for name in SETTINGS}
    for index in range(options.rounds):
        for row in rng.permutation(len(networks)):
            for name in rng.permutation(list(SETTINGS)):
                os.sched_setaffinity(0, {0, 1})
                taken = measure_plain(
                    lambda network, _, entries=SETTINGS[name]: Set(network, entries),  # type: ignore[misc]
                    networks[row], image, runs=options.runs, warmup=3,
                )  # fmt: skip
                times[name][row, index] = taken.min()
    found = {}
    for name, rounds in times.items():
        medians = np.median(rounds, axis=1)
        found[name] = {
            "mean_ms": round(float(medians.mean()), 4),
            "noise_floor": round(validate(medians, rounds).noise_floor, 4),
        }
        print(name, found[name], flush=True)
    files.write_json(
        options.out,
        {"model": options.model, "networks": len(networks), "rounds": options.rounds, "runs": options.runs,
         "machine": describe_machine(), "settings": found},
    )  # fmt: skip


if __name__ == "__main__":
    main()
