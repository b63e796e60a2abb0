"""One timm network of each family through the width space: right, refused or wrong, and what stays frozen.

Each network is built with random weights at the input size of its own configuration. For a random width
vector, left and right, the supernet's slice must equal the extracted network in float64 (relative
difference of at most 1e-9), and the multiply-accumulates that torch's FlopCounterMode counts on the extracted
network must be those that the space says. The frozen share is that of the multiply-accumulates, at full
width, of convolutions and matrix products that no width variable changes.

    python -m benchmarks.check_timm [NAME ...] [--out docs/timm.json] [--redo] [--limit SECONDS] [--minutes M]
    python -m benchmarks.check_timm --page          # docs/timm.md from timm.json and torch_pruning.json

``timm_families.txt`` names of each module and family of timm the smallest of the first twelve. Results are
kept per network with the digest of the code that made them, so that an interrupted run goes on and what other
code made is checked again, the quickest first.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import signal
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import nn

import bcnet_deploy as bd
from bcnet_deploy import files
from tests import zoo

ROOT = Path(__file__).resolve().parent.parent
PEER = ROOT / "docs" / "torch_pruning.json"
TOLERANCE = 1e-9
VECTORS = 1


def families() -> list[str]:
    """The networks of timm_families.txt."""
    return (Path(__file__).parent / "timm_families.txt").read_text().split()


def code_digest() -> str:
    """Of the package that makes width spaces."""
    found = hashlib.sha256()
    for path in sorted((ROOT / "bcnet_deploy" / "space").glob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()[:12]


def check(name: str) -> dict[str, Any]:
    """All figures of one network; ``status`` is right, refused (typed error), wrong or crashed."""
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False).eval()
    size = tuple(model.pretrained_cfg.get("input_size", (3, 224, 224)))
    started = time.process_time()
    row: dict[str, Any] = {"input_size": list(size), "params": zoo.counted_params(model)}
    try:
        space = bd.WidthSpace.from_model(model, size)
    except bd.BCNetError as error:
        seconds = round(time.process_time() - started, 1)
        return {**row, "status": "refused", "space_s": seconds, "reason": str(error)[:400]}
    row |= {
        "space_s": round(time.process_time() - started, 1),
        "variables": len(space.variables),
        "macs": int(space.macs(space.full)[0]),
        "frozen_share": round(frozen_share(space), 4),
        "half_share": round(int(space.macs(space.uniform(0.5))[0]) / int(space.macs(space.full)[0]), 4),
        "frozen": reasons(space),
    }
    wrong = compared(model, space, size)
    return {
        **row, "status": "wrong" if wrong else "right", "reason": "; ".join(wrong)[:400],
        "seconds": round(time.process_time() - started, 1),
    }  # fmt: skip


def frozen_share(space: bd.WidthSpace) -> float:
    """Share of the multiply-accumulates that no variable changes."""
    full = space.full
    fixed = sum(
        int(op.macs(full)[0])
        for op in space.ops
        if op.mac_coefficient and all(factor.is_fixed for factor in op.mac_factors)
    )
    return fixed / max(1, int(space.macs(full)[0]))


def reasons(space: bd.WidthSpace) -> list[list[Any]]:
    """The reasons for frozen parts, the most frequent first: [reason, number of parts, first part]."""
    counts = Counter(part.reason for part in space.frozen)
    first = {part.reason: part.name for part in reversed(space.frozen)}
    return [[reason[:200], count, first[reason]] for reason, count in counts.most_common(5)]


def compared(model: nn.Module, space: bd.WidthSpace, size: tuple[int, ...]) -> list[str]:
    """What is wrong with slices, extracted networks and costs; empty if nothing is."""
    wrong = []
    rng = np.random.default_rng(0)
    model = model.double()
    supernet = bd.Supernet(model, space).eval()
    x = torch.randn(1, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for widths in space.random(VECTORS, rng):
        for side in ("left", "right"):
            supernet.set_active(widths, side)
            subnet = space.extract(model, widths, side).eval()
            with torch.no_grad():
                ours, theirs = _first(supernet(x)), _first(subnet(x))
            difference = float((ours - theirs).abs().max()) / max(float(theirs.abs().max()), 1e-30)
            if ours.shape != theirs.shape or not difference <= TOLERANCE:
                wrong.append(f"slice and extraction differ by {difference:.1e} ({side})")
        if zoo.counted_params(subnet) != space.params(widths)[0]:
            wrong.append("parameters")
        if any("are not counted" in note for note in space.notes):
            continue  # constants, such as position embeddings made by convolutions
        counted = zoo.counted_macs(subnet, size)  # type: ignore[arg-type]
        if counted != space.macs(widths)[0]:
            wrong.append(f"multiply-accumulates: {counted} counted, {space.macs(widths)[0]} said")
    return wrong


def _first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, (list, tuple)) else output


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise TimeoutError after so many seconds."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"took more than {seconds} s")

    former = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


def summary(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Counts and shares over all networks."""
    refused = [row for row in rows.values() if row["status"] == "refused"]
    right = [row for row in rows.values() if row["status"] == "right"]
    share = [row["frozen_share"] for row in right]
    return {
        "networks": len(rows),
        **Counter(row["status"] for row in rows.values()),
        "refused_for_attention": sum("attention" in row["reason"] for row in refused),
        "refused_without_convolution": sum("has no convolution;" in row["reason"] for row in refused),
        "frozen_share_at_most_0.2": sum(s <= 0.2 for s in share),
        "slowest_space_s": max((row.get("space_s", 0.0) for row in rows.values()), default=0.0),
        "states_of_the_code": len({row.get("code") for row in rows.values()}),
    }


INTRODUCTION = """
# timm, beside Torch-Pruning

One network of each module and family of timm, the smallest of the first twelve; random weights, the input
size of its own configuration, code unchanged.

- **This package** (`python -m benchmarks.check_timm`): *right* means that a slice of the supernet equals the
  extracted network in float64 (1e-9, left and right), and that its parameters and multiply-accumulates (MACs)
  are those that torch's counter finds. *refused* is a typed error before any work. *Frozen*: share of the
  MACs in layers that no width changes. *Half*: MACs left where every width is halved.
- **Torch-Pruning** (`python -m benchmarks.check_torch_pruning`): pruned as its README and its timm example
  say (and attention's `attn_dim`, newer than that example, is put right too), half of all channels by group
  magnitude, classifier kept. *right* means that the network runs afterwards, with finite outputs of the
  former shape and fewer parameters; there is no slice to compare with.
  *Untouched*: share of the MACs in modules whose own did not change. *Half*: MACs left.
"""


def page(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """Both results as Markdown, side by side."""
    names = [name for name in families() if name in ours["models"]]
    rows = [(name, ours["models"][name], theirs["models"].get(name, {})) for name in names]
    lines = [*INTRODUCTION.strip().splitlines(), ""]
    lines.append(
        f"timm {ours['timm']}, PyTorch {ours['torch']}, Torch-Pruning {theirs['torch_pruning']}, "
        f"at most {theirs['limit_s']} processor seconds and {theirs['limit_gib']} GiB a network for it"
        f"{_stopped_after(theirs)}."
    )
    former = sum("code" not in own for _, own, _ in rows)
    if former:
        lines[-1] += (
            f" {former} rows of this package are of earlier states of its code: those without *half*."
        )
    both = [(own, other) for _, own, other in rows if other]
    sides = [[own for own, _ in both], [other for _, other in both]]
    lines += ["", f"{len(rows)} networks, of which Torch-Pruning has been tried on {len(both)} so far:", ""]
    lines += ["| outcome | this package, all | on those | Torch-Pruning |", "|---|---|---|---|"]
    for status in ("right", "refused", "unchanged", "wrong", "crashed", "over"):
        counts = [sum(row["status"] == status for row in side) for side in ([r for _, r, _ in rows], *sides)]
        if any(counts):
            lines.append(f"| {_MEANINGS[status]} | {' | '.join(map(str, counts))} |")
    few = [
        sum(row["status"] == "right" and row[key] <= 0.2 for row in side)
        for key, side in (
            ("frozen_share", [row for _, row, _ in rows]), ("frozen_share", sides[0]),
            ("untouched_share", sides[1]),
        )
    ]  # fmt: skip
    lines += [f"| right, and at most a fifth of the MACs fixed | {' | '.join(map(str, few))} |", ""]
    lines += ["| network | input | GMACs | | frozen | half | inspect, s | Torch-Pruning | untouched | half |"]
    lines += ["|" + "---|" * 10]
    for name, own, other in rows:
        size = "x".join(map(str, own.get("input_size", ())))
        macs = f"{own['macs'] / 1e9:.2f}" if "macs" in own else "-"
        peer = other.get("status", "-") + (f" in {other['stage']}" if "stage" in other else "")
        lines.append(
            f"| {name} | {size} | {macs} | {own['status']} | {_percent(own, 'frozen_share')} | "
            f"{_percent(own, 'half_share')} | {own.get('space_s', '-')} | {peer} | "
            f"{_percent(other, 'untouched_share')} | {_percent(other, 'left_share')} |"
        )
    refused = [(name, row["reason"]) for name, row, _ in rows if row["status"] == "refused"]
    lines += ["", "## Refused, and why", "", *(f"- {name}: {_plain(reason)}" for name, reason in refused)]
    return "\n".join(lines) + "\n"


def _stopped_after(theirs: dict[str, Any]) -> str:
    """After how long those over the limit were stopped, where that was sooner."""
    over = Counter(
        row["reason"].split()[2] for row in theirs["models"].values()
        if row["status"] == "over" and row["reason"].endswith("s of processor time")
    )  # fmt: skip
    sooner = sorted((int(seconds), count) for seconds, count in over.items())
    if not sooner or sooner[0][0] >= theirs["limit_s"]:
        return ""
    return " (stopped: " + ", ".join(f"{count} after {seconds} s" for seconds, count in sooner) + ")"


_MEANINGS = {
    "right": "right", "refused": "refused by a typed error", "unchanged": "runs, and nothing was pruned",
    "wrong": "wrong", "crashed": "crashed", "over": "over the limit",
}  # fmt: skip


def _percent(row: dict[str, Any], key: str) -> str:
    return f"{row[key]:.1%}" if key in row else "-"


def _plain(reason: str) -> str:
    """A reason that Markdown leaves as it is."""
    short = reason[:200] + ("..." if len(reason) > 200 else "")
    return f"`{short.replace('`', '')}`"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="NAME", help="default: timm_families.txt")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "timm.json")
    parser.add_argument("--redo", action="store_true", help="check again what was checked before")
    parser.add_argument("--page", action="store_true", help="write the page, check nothing")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no network after so many minutes")
    parser.add_argument("--limit", type=int, default=240, help="seconds a network")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    if arguments.page:
        text = page(json.loads(arguments.out.read_text()), json.loads(PEER.read_text()))
        files.write_text(arguments.out.with_suffix(".md"), text)
        return
    data: dict[str, Any] = {"models": {}}
    if arguments.out.exists():
        data = json.loads(arguments.out.read_text())
    rows, code, until = data["models"], code_digest(), time.monotonic() + 60 * arguments.minutes
    # What was refused before is least known.
    quickest = sorted(families(), key=lambda name: rows.get(name, {}).get("seconds", 1e9))
    for name in arguments.models or quickest:
        if (rows.get(name, {}).get("code") == code and not arguments.redo) or time.monotonic() > until:
            continue
        try:
            with limited(arguments.limit):
                rows[name] = check(name)
        except Exception as error:  # one network's defect must not hide the others'
            rows[name] = {"status": "crashed", "reason": f"{type(error).__name__}: {error}"[:400]}
        rows[name]["code"] = code
        print(name, json.dumps(rows[name]), flush=True)
        data |= {"torch": torch.__version__, "timm": timm.__version__, "summary": summary(rows)}
        files.write_json(arguments.out, data)
    print(json.dumps(data.get("summary", {})))


if __name__ == "__main__":
    main()
