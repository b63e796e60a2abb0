"""Torch-Pruning over the networks of check_timm: does the pruned network run, how much of it was touched.

Each network is built with random weights at the input size of its own configuration and pruned as the README
and the timm example of Torch-Pruning do: BasePruner, group magnitude of L2, half of the channels, the
classifier left alone, fused attention off, numbers of heads given and widths of heads put right afterwards;
where that does not end in a network that runs, once more without heads. The network's code is not changed.

``status`` of a network:
- ``right``: it runs, its output is finite and has the shape it had, and it lost parameters;
- ``unchanged``: it runs and lost none;
- ``crashed``: the graph, the pruning or the forward pass after it raised (``stage`` says which), or the
  output has another shape or is not finite;
- ``over``: more than the limit of processor seconds or of memory.

``untouched_share`` is the share of the full network's multiply-accumulates in modules whose own did not
change (beside check_timm's frozen share), ``left_share`` what is left of all of them.

    python -m benchmarks.check_torch_pruning [NAME ...] [--out docs/torch_pruning.json] [--minutes M]

Each network has a process of its own. Results are kept per network, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import time
import warnings
from collections import Counter
from importlib.metadata import version
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ["TIMM_FUSED_ATTN"] = "0"

import timm
import torch
import torch_pruning as tp
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bcnet_deploy import files
from benchmarks.check_timm import ROOT, families
from tests import zoo

RATIO = 0.5
PEER_OF = ROOT / "docs" / "timm.json"
SECONDS = 60
"""Processor seconds a network, unless others are given."""
GIBIBYTES = 6
"""Memory a network."""


def check(name: str) -> dict[str, Any]:
    """All figures of one network: with numbers of heads, and without them where that does not run."""
    row = pruned(name, with_heads=True)
    if row["status"] != "right":
        plain = pruned(name, with_heads=False)
        if plain["status"] == "right":
            return plain
    return row


def pruned(name: str, *, with_heads: bool) -> dict[str, Any]:
    """Build a network, prune it and run it."""
    torch.manual_seed(0)
    started = time.process_time()
    model = timm.create_model(name, pretrained=False).eval()
    size = tuple(model.pretrained_cfg.get("input_size", (3, 224, 224)))
    x = torch.randn(1, *size)
    row: dict[str, Any] = {"input_size": list(size), "heads_given": with_heads}
    stage = "before"
    try:
        with torch.no_grad():
            shapes = [tuple(t.shape) for t in tensors(model(x))]
        params, before = zoo.counted_params(model), own_macs(model, x)
        stage = "graph"
        classes = getattr(model, "num_classes", 1000)
        last = [m for m in model.modules() if getattr(m, "out_features", None) == classes]
        last += [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.out_channels == classes]
        heads = attention_heads(model) if with_heads else {}
        pruner = tp.pruner.BasePruner(
            model, x, importance=tp.importance.GroupMagnitudeImportance(p=2), pruning_ratio=RATIO,
            ignored_layers=last, num_heads=heads,
        )  # fmt: skip
        stage = "pruning"
        pruner.step()
        put_heads_right(model, pruner.num_heads)
        row["params_left"] = round(zoo.counted_params(model) / params, 4)
        stage = "forward"
        with torch.no_grad():
            outputs = list(tensors(model(x)))
        assert [tuple(t.shape) for t in outputs] == shapes, "the output has another shape"
        assert all(bool(torch.isfinite(t).all()) for t in outputs), "the output is not finite"
        after = own_macs(model, x)
    except Exception as error:  # whatever the peer or the pruned network raises is the answer
        return {
            **row, "status": "crashed", "stage": stage, "reason": f"{type(error).__name__}: {error}"[:300],
            "seconds": round(time.process_time() - started, 1),
        }  # fmt: skip
    total = max(1, sum(before.values()))
    return {
        **row,
        "status": "right" if row["params_left"] < 1 else "unchanged",
        "untouched_share": round(sum(n for path, n in before.items() if after.get(path) == n) / total, 4),
        "left_share": round(sum(after.values()) / total, 4),
        "seconds": round(time.process_time() - started, 1),
    }


def tensors(output: Any) -> list[torch.Tensor]:
    """The tensors of a network's output."""
    return [t for t in torch.utils._pytree.tree_leaves(output) if isinstance(t, torch.Tensor)]


def attention_heads(model: nn.Module) -> dict[nn.Module, int]:
    """Layers that make queries, keys and values, with their number of heads, as its timm example does."""
    return {
        module.qkv: int(module.num_heads)
        for module in model.modules()
        if isinstance(getattr(module, "num_heads", None), int)
        and isinstance(getattr(module, "qkv", None), (nn.Linear, nn.Conv2d))
    }


def put_heads_right(model: nn.Module, heads: dict[nn.Module, int]) -> None:
    """Attributes of attention after pruning, as its timm example sets them, and one that timm has since."""
    for module in model.modules():
        qkv = getattr(module, "qkv", None)
        if qkv in heads:
            module.num_heads = heads[qkv]
            wide = qkv.out_features if isinstance(qkv, nn.Linear) else qkv.out_channels
            module.head_dim = wide // (3 * module.num_heads)
            if isinstance(getattr(module, "attn_dim", None), int):
                module.attn_dim = wide // 3


def own_macs(model: nn.Module, x: torch.Tensor) -> dict[str, int]:
    """Multiply-accumulates of each module without those of its parts, by torch's counter."""
    counter = FlopCounterMode(display=False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:  # the counter looks for gradients of views of them
        parameter.requires_grad_(False)
    with counter, torch.no_grad():
        model(x)
    for parameter in trained:
        parameter.requires_grad_(True)
    counts = counter.get_flop_counts()
    whole = {path: sum(of.values()) // 2 for path, of in counts.items() if path != "Global"}
    own = dict(whole)
    for path, macs in whole.items():
        parent = path.rpartition(".")[0]
        while parent and parent not in own:
            parent = parent.rpartition(".")[0]
        if parent:
            own[parent] -= macs
    return {path: macs for path, macs in own.items() if macs}


def _answer(name: str, seconds: int, pipe: Connection) -> None:
    warnings.filterwarnings("ignore")
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    pipe.send(check(name))


def limited(name: str, seconds: int) -> dict[str, Any]:
    """:func:`check` in a process of its own, ended at the limits."""
    context = get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(name, seconds, theirs))
    process.start()
    theirs.close()
    page, most = resource.getpagesize(), 0
    row: dict[str, Any] | None = None
    try:
        while row is None:
            if ours.poll(0.1):
                row = ours.recv()
            else:
                resident = Path(f"/proc/{process.pid}/statm").read_text().split()[1]
                most = max(most, int(resident) * page)
                if most > GIBIBYTES << 30:
                    row = {"status": "over", "reason": f"more than {GIBIBYTES} GiB of memory"}
    except (EOFError, OSError, IndexError):
        process.join()
        late = process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
        what = f"more than {seconds} s of processor time" if late else f"exit code {process.exitcode}"
        row = {"status": "over" if late else "crashed", "reason": what}
    process.kill()
    process.join()
    return row


def summary(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Counts over all networks."""
    right = [row for row in rows.values() if row["status"] == "right"]
    return {
        "networks": len(rows),
        **Counter(row["status"] for row in rows.values()),
        **Counter(f"crashed in {row['stage']}" for row in rows.values() if "stage" in row),
        "untouched_share_at_most_0.2": sum(row["untouched_share"] <= 0.2 for row in right),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="NAME", help="default: all, quickest first")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "torch_pruning.json")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="processor seconds a network")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no network after so many minutes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"models": {}}
    rows = data["models"]
    until = time.monotonic() + 60 * arguments.minutes
    ours = json.loads(PEER_OF.read_text())["models"]
    # What was interrupted before comes last, so that it does not stop the whole check again.
    quickest = sorted(families(), key=lambda name: (name in rows, ours.get(name, {}).get("seconds", 1e9)))
    for name in arguments.models or quickest:
        if time.monotonic() > until:
            break
        if rows.get(name, {}).get("status", "interrupted") != "interrupted":
            continue
        rows[name] = {"status": "interrupted"}
        files.write_json(arguments.out, data)
        rows[name] = limited(name, arguments.seconds)
        print(name, json.dumps(rows[name]), flush=True)
        data |= {
            "torch": torch.__version__, "timm": timm.__version__, "torch_pruning": version("torch-pruning"),
            "ratio": RATIO, "limit_s": max(arguments.seconds, data.get("limit_s", 0)),
            "limit_gib": GIBIBYTES, "summary": summary(rows),
        }  # fmt: skip
        files.write_json(arguments.out, data)
    print(json.dumps(data.get("summary", {})))


if __name__ == "__main__":
    main()
