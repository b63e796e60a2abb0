"""How far latency tables are off: predicted against measured latency of held-out networks.

    cd benchmarks
    python bm_lut_accuracy.py build --model mobilenet_v2 --device cpu-1thread --budget 120 --out t120.json
    python bm_lut_accuracy.py evaluate --model mobilenet_v2 --device cpu-1thread --out result.json t120.json
    python bm_lut_accuracy.py add --result result.json t30.json t60.json
    python bm_lut_accuracy.py join --out result.json t120.json --pieces rounds1.json rounds2.json
    python bm_lut_accuracy.py report ../docs/lut_accuracy.md results/lut/*.json

``build`` makes a table from nothing and reports the wall time of everything: model, width space, export,
measurements, fits. ``evaluate`` draws networks with a seed of its own, measures each in interleaved rounds
(new session each time, fastest of the runs, median of the rounds), and compares; two halves of the rounds
give the noise floor, and a reference network, timed between the runs, how fast the machine is now and was
when the table was made.
``add`` judges more tables by the same measurements. ``join`` judges tables by the rounds of several
evaluations of the same networks together: a long one in pieces.
For some of the networks every layer is timed as a model of its own, too: the naive
sum. Timing wants the machine alone: nothing else running, and where allowed a real-time priority
(``chrt -f 10``).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import bcnet_deploy as bd
from bcnet_deploy import files
from bcnet_deploy.devices import DeviceProfile, load_device
from bcnet_deploy.profiler.fitting import validate
from bcnet_deploy.profiler.layer_map import LayerMap
from bcnet_deploy.profiler.narrow import NetworkMaker
from bcnet_deploy.profiler.profiling import make_runner_of, profile_device
from bcnet_deploy.runtime.machine import describe_machine

SEED = 20260
CHUNKS = 12  # of a network's runs in a round, with the reference network's between them
_SPELL = 1.3  # times a network's fastest round: slower ones had something beside them
_JUDGED = 0.05  # noise floors above say more of the machine than of a table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    build = commands.add_parser("build")
    evaluate = commands.add_parser("evaluate")
    for command in (build, evaluate):
        command.add_argument("--model", default="mobilenet_v2")
        command.add_argument("--device", default="cpu-1thread")
        command.add_argument("--out", type=Path, required=True)
    build.add_argument("--budget", type=float, default=120.0)
    build.add_argument("--seed", type=int, default=0)
    build.add_argument("--rebase", type=Path, help="a table of another machine, runtime or version")
    build.set_defaults(run=run_build)
    evaluate.add_argument("tables", type=Path, nargs="+")
    evaluate.add_argument("--networks", type=int, default=160)
    evaluate.add_argument("--rounds", type=int, default=8)
    evaluate.add_argument("--runs", type=int, default=4, help="timed runs of each of 12 chunks of a round")
    evaluate.add_argument("--naive", type=int, default=12, help="networks whose layers are timed alone")
    evaluate.add_argument("--seed", type=int, default=SEED, help="of the held-out networks")
    evaluate.set_defaults(run=run_evaluate)
    add = commands.add_parser("add")
    add.add_argument("tables", type=Path, nargs="+")
    add.add_argument("--result", type=Path, required=True, help="of evaluate; the tables are added to it")
    add.set_defaults(run=run_add)
    join = commands.add_parser("join")
    join.add_argument("tables", type=Path, nargs="+")
    join.add_argument("--out", type=Path, required=True)
    join.add_argument("--pieces", type=Path, nargs="+", required=True, help="of evaluate, same networks")
    join.set_defaults(run=run_join)
    report = commands.add_parser("report")
    report.add_argument("document", type=Path)
    report.add_argument("--conditions", default="", help="what else the machine did, written into the head")
    report.add_argument("--notes", default="", help="what was not measured, and why; the last paragraph")
    report.add_argument("results", type=Path, nargs="+")
    report.set_defaults(run=run_report)
    arguments = parser.parse_args()
    arguments.run(arguments)


def _network(name: str) -> tuple[Any, bd.WidthSpace]:
    import torch

    from bcnet_deploy.models import default_input_size

    torch.set_num_threads(1)
    model = bd.build_model(name).eval()
    return model, bd.WidthSpace.from_model(model, default_input_size(name))


def run_build(arguments: argparse.Namespace) -> None:
    start = time.perf_counter()
    device = load_device(arguments.device)
    model, space = _network(arguments.model)
    ready = time.perf_counter() - start
    table = profile_device(
        model,
        space,
        device,
        arguments.out,
        budget_s=arguments.budget - ready,
        seed=arguments.seed,
        fresh=True,
        rebase=bd.LatencyTable.load(arguments.rebase) if arguments.rebase else None,
    )
    wall = time.perf_counter() - start
    own = {"wall_s": round(wall, 2), "budget_s": arguments.budget, "before_profile_s": round(ready, 2)}
    if arguments.rebase:
        own["rebased_from"] = table.provenance["rebased_from"]["runtime_version"]
    files.write_json(arguments.out.with_suffix(".build.json"), own)
    print(json.dumps({**own, **table.network.accuracy}, indent=1))


def run_evaluate(arguments: argparse.Namespace) -> None:
    device = load_device(arguments.device)
    model, space = _network(arguments.model)
    tables = [bd.LatencyTable.load(path).for_space(space) for path in arguments.tables]
    runtime = device.run_by()
    maker = NetworkMaker(model, space, prepare=lambda net: runtime.prepared(net, device.precision))
    rng = np.random.default_rng(arguments.seed)
    widths = np.unique(space.random(arguments.networks, rng), axis=0)
    rng.shuffle(widths)
    image = rng.standard_normal((1, *space.input_size)).astype(np.float32)
    start = time.perf_counter()
    reference = tables[0].provenance["reference_widths"]
    began, used = time.perf_counter(), time.process_time()
    own, theirs = measure_rounds(
        device, maker, widths, reference, image, arguments.rounds, arguments.runs, rng
    )
    had_core = (time.process_time() - used) / (time.perf_counter() - began)
    np.savez(arguments.out.with_suffix(".npz"), own=own, theirs=theirs)
    rounds, beside = own.min(axis=2), paired(own, theirs)
    result: dict[str, Any] = {
        "model": arguments.model,
        "device": device.name,
        "threads": device.threads,
        "networks": len(widths),
        "rounds": arguments.rounds,
        "runs": arguments.runs,
        "seed": arguments.seed,
        "measure_s": round(time.perf_counter() - start, 1),
        # Below 1 at one thread: others ran on the core.
        "had_core": round(had_core, 4),
        "machine": describe_machine(runtime),
        "latency_ms": latencies(rounds),
        "tables": [],
    }
    result["reference_ms"] = round(float(np.median(theirs)), 5)
    result["widths"] = widths.tolist()
    result["rounds_ms"] = np.round(rounds, 5).tolist()
    result["paired_ms"] = np.round(beside, 5).tolist()
    result["tables"] = [
        judge(path, table, widths, rounds, result["reference_ms"], beside)
        for path, table in zip(arguments.tables, tables, strict=True)
    ]
    result["predict_per_s"] = predict_rate(tables[0], space)
    if arguments.naive and device.precision != "int8":  # Q/DQ nodes belong to no layer alone
        result["naive"] = naive(
            device, maker, space, widths[: arguments.naive], image, rounds[: arguments.naive]
        )
        print("naive isolated sum:", result["naive"])
    write(arguments.out, result)


def run_add(arguments: argparse.Namespace) -> None:
    result = files.read_json(arguments.result, bd.TableError, "benchmark result")
    _, space = _network(result["model"])
    widths, rounds = np.array(result["widths"]), np.array(result["rounds_ms"])
    for path in arguments.tables:
        table = bd.LatencyTable.load(path).for_space(space)
        beside = np.array(result["paired_ms"]) if "paired_ms" in result else None
        result["tables"].append(judge(path, table, widths, rounds, result["reference_ms"], beside))
    result["tables"].sort(key=lambda judged: judged["budget_s"])
    write(arguments.result, result)


def run_join(arguments: argparse.Namespace) -> None:
    pieces = [files.read_json(path, bd.TableError, "benchmark result") for path in arguments.pieces]
    result = joined(pieces)
    _, space = _network(result["model"])
    widths, rounds, beside = (np.array(result[key]) for key in ("widths", "rounds_ms", "paired_ms"))
    result["tables"] = [
        judge(
            path, bd.LatencyTable.load(path).for_space(space), widths, rounds, result["reference_ms"], beside
        )
        for path in arguments.tables
    ]
    write(arguments.out, result)


def joined(pieces: list[dict[str, Any]]) -> dict[str, Any]:
    """One result of several of the same networks: all their rounds, no tables."""
    first = pieces[0]
    if any(piece["widths"] != first["widths"] for piece in pieces):
        raise SystemExit("the pieces are of different networks; give evaluations with the same --seed")
    rounds = np.concatenate([piece["rounds_ms"] for piece in pieces], axis=1)
    reference_ms = round(float(np.median([piece["reference_ms"] for piece in pieces])), 5)
    # Each piece's are in milliseconds of its own reference.
    beside = [np.array(piece["paired_ms"]) * reference_ms / piece["reference_ms"] for piece in pieces]
    return {
        **first,
        "rounds": rounds.shape[1],
        "pieces": len(pieces),
        "measure_s": round(sum(piece["measure_s"] for piece in pieces), 1),
        "had_core": min(piece["had_core"] for piece in pieces),
        "latency_ms": latencies(rounds),
        "reference_ms": reference_ms,
        "rounds_ms": rounds.tolist(),
        "paired_ms": np.round(np.concatenate(beside, axis=1), 5).tolist(),
        "tables": [],
    }


def latencies(rounds: npt.NDArray[np.float64]) -> dict[str, float]:
    """Between what (N, R) measurements lie."""
    return {
        "min": float(rounds.min()),
        "mean": float(np.median(rounds, axis=1).mean()),
        "max": float(rounds.min(axis=1).max()),
    }


def write(path: Path, result: dict[str, Any]) -> None:
    files.write_json(path, json.loads(json.dumps(result, default=float)), indent=None)


def judge(
    path: Path,
    table: bd.LatencyTable,
    widths: npt.NDArray[np.int64],
    rounds: npt.NDArray[np.float64],
    reference_ms: float,
    beside: npt.NDArray[np.float64] | None = None,
) -> dict[str, Any]:
    """The figures of one table on (N, R) measurements, as measured and with the machine's drift taken out;
    and on those by the reference network ``beside`` them, where there are any."""
    predicted = table.predict(widths)
    # The same network, timed while the table was made and now: how much faster the machine was then.
    speed = reference_ms / float(table.provenance["reference_ms"])
    raw, even = validate(predicted, rounds), validate(predicted, rounds / speed)
    fastest = validate(predicted, rounds, fastest_round=True)
    print(f"{path}\n  as measured: {raw.summary()}, bias {raw.bias:+.2%}")
    print(f"  machine's speed now / then {speed:.3f}")
    print(f"  at even speed: {even.summary()}, bias {even.bias:+.2%}")
    print(f"  fastest round: {fastest.summary()}, bias {fastest.bias:+.2%}", flush=True)
    # How fast the machine was when the table was made is known from all networks best.
    pair = (
        None
        if beside is None
        else validate(predicted, beside * np.median(predicted / np.median(beside, axis=1)))
    )
    if pair is not None:
        print(f"  paired: {pair.summary()}, bias {pair.bias:+.2%}", flush=True)
    kept, share = undisturbed(rounds)
    several = np.isfinite(kept).sum(axis=1) >= 2
    quiet = None
    if share < 1 and several.sum() >= 3:
        kept, found = kept[several], predicted[several]
        quiet = validate(found, kept * np.median(found / np.nanmedian(kept, axis=1)))
        print(f"  undisturbed, {share:.1%} of rounds: {quiet.summary()}, bias {quiet.bias:+.2%}", flush=True)
    return {
        **files.read_json(path.with_suffix(".build.json"), bd.TableError, "build record"),
        **raw.to_dict(),
        **({} if pair is None else {"paired": pair.to_dict()}),
        **({} if quiet is None else {"undisturbed": {**quiet.to_dict(), "share": round(share, 4)}}),
        "speed": round(speed, 4),
        "even_speed": even.to_dict(),
        "fastest_round": fastest.to_dict(),
        "entries": sum(map(len, table.entries.values())),
        "measurements": table.provenance.get("measurements"),
        "bytes": path.stat().st_size,
    }


def measure_rounds(
    device: DeviceProfile,
    maker: NetworkMaker,
    widths: npt.NDArray[np.int64],
    reference: list[int],
    image: npt.NDArray[np.float32],
    rounds: int,
    runs: int,
    rng: np.random.Generator,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(N, rounds, chunks) milliseconds of the networks, a new session and order each round, and of the
    reference network, which stays loaded and is timed after every chunk: the fastest run of each.

    With more threads than one the reference is timed once, when the network's session is gone: threads of a
    loaded session spin, and were seen to slow down another's by 4.7 times.
    """
    make_runner = make_runner_of(device)
    own = np.empty((len(widths), rounds, CHUNKS))
    theirs = np.empty_like(own)
    between = device.threads == 1
    with make_runner_of(device, threads_sleep=True)(maker(reference), False) as other:
        feeds = {other.inputs[0].name: image}

        def beside() -> float:
            # The first run after the other network finds its weights gone from the cache.
            return float(other.latencies(feeds, runs=(runs + 1) // 2, warmup=1).min())

        for index in range(rounds):
            for row in rng.permutation(len(widths)):
                with make_runner(maker(widths[row]), False) as runner:
                    given = {runner.inputs[0].name: image}
                    runner.latencies(given, runs=1, warmup=1)
                    for chunk in range(CHUNKS):
                        own[row, index, chunk] = runner.latencies(given, runs=runs, warmup=1).min()
                        if between:
                            theirs[row, index, chunk] = beside()
                if not between:
                    theirs[row, index] = np.median([beside() for _ in range(CHUNKS)])
    return own, theirs


def paired(own: npt.NDArray[np.float64], theirs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(N, rounds) milliseconds by the reference network beside each: what slows down both goes."""
    return np.asarray(np.median(own / theirs, axis=2) * np.median(theirs))


def undisturbed(
    rounds: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.float64], float]:
    """(N, R) rounds without those slower than 1.3 times their network's fastest, NaN at the end of a row in
    their place; and what share is left."""
    slow = rounds > _SPELL * rounds.min(axis=1, keepdims=True)
    kept = np.where(slow, np.nan, rounds)
    order = np.argsort(slow, axis=1, kind="stable")  # in both halves of the rounds as many, nearly
    return np.take_along_axis(kept, order, axis=1), float(1 - slow.mean())


def kendall_bound(halves: float) -> float:
    """The rank correlation that a table without any error would have, by that of two halves of the rounds.

    An estimate: it takes latencies and noise for normal. Two halves correlate by their reliability, all
    rounds are as reliable as Spearman and Brown say, and what has no noise correlates by the root of that.
    """
    half = max(0.0, math.sin(math.pi / 2 * halves))
    return 2 / math.pi * math.asin(math.sqrt(2 * half / (1 + half)))


def predict_rate(table: bd.LatencyTable, space: bd.WidthSpace, count: int = 1_000_000) -> float:
    """Width vectors a second, the best of five calls with a million each."""
    widths = space.random(count, np.random.default_rng(1))
    table.predict(widths[:1000])
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        table.predict(widths)
        seconds.append(time.perf_counter() - start)
    return round(count / min(seconds))


def naive(
    device: DeviceProfile,
    maker: NetworkMaker,
    space: bd.WidthSpace,
    widths: npt.NDArray[np.int64],
    image: npt.NDArray[np.float32],
    rounds: npt.NDArray[np.float64],
) -> dict[str, float]:
    """Sums over layers that were each timed as a model of their own, against the whole networks."""
    from bcnet_deploy.lut import layers_of

    layer_map = LayerMap(maker.exported, space, layers_of(space))
    make_runner = make_runner_of(device)
    sums = np.zeros(len(widths))
    for row, vector in enumerate(widths):
        for model, feeds in isolated_layers(maker(vector), layer_map):
            with make_runner(model, False) as runner:
                sums[row] += runner.latencies(feeds, runs=10, warmup=2).min()
    error = sums / np.median(rounds, axis=1) - 1
    return {
        "networks": len(widths),
        "bias": round(float(error.mean()), 4),
        "mape": round(float(np.abs(error).mean()), 4),
        "least": round(float(error.min()), 4),
        "most": round(float(error.max()), 4),
    }


def isolated_layers(
    network: bytes, layer_map: LayerMap
) -> list[tuple[bytes, dict[str, npt.NDArray[np.float32]]]]:
    """Each layer of a network, with what is fused behind it, as a model of its own, and its inputs."""
    import onnx
    from onnx import helper

    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(network))
    graph = model.graph
    infos = {info.name: info for info in [*graph.value_info, *graph.input, *graph.output]}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    groups: dict[int, list[onnx.NodeProto]] = {}
    for node in graph.node:
        groups.setdefault(layer_map.names[node.name], []).append(node)
    rng = np.random.default_rng(0)
    result = []
    for nodes in groups.values():
        made = {name for node in nodes for name in node.output}
        read = [name for node in nodes for name in node.input if name]
        inputs = [infos[name] for name in dict.fromkeys(read) if name not in made and name not in weights]
        others = {name for node in graph.node if node not in nodes for name in node.input} | {
            output.name for output in graph.output
        }
        outputs = [infos[name] for name in made if name in others]
        part = helper.make_graph(
            nodes, "layer", inputs, outputs, [weights[n] for n in dict.fromkeys(read) if n in weights]
        )
        single = helper.make_model(part, opset_imports=model.opset_import, ir_version=model.ir_version)
        feeds = {
            info.name: rng.standard_normal([d.dim_value for d in info.type.tensor_type.shape.dim]).astype(
                np.float32
            )
            for info in inputs
        }
        result.append((single.SerializeToString(), feeds))
    return result


def run_report(arguments: argparse.Namespace) -> None:
    results = [files.read_json(path, bd.TableError, "benchmark result") for path in sorted(arguments.results)]
    files.write_text(arguments.document, document(results, arguments.conditions, arguments.notes))


def rows(result: dict[str, Any]) -> list[str]:
    """A line for each table of a result and way to compare."""
    machine, found = result["machine"], []
    runtime = f"{result['device']}, {machine['runtime']} {machine['runtime_version']}"
    for table in result["tables"]:
        origin = f", rebased from {table['rebased_from']}" if "rebased_from" in table else ""
        judged = {"as measured": table, "even speed": table["even_speed"]}
        judged |= {
            name.replace("_", " "): table[name]
            for name in ("fastest_round", "paired", "undisturbed")
            if name in table
        }
        for label, figures in judged.items():
            shares = (figures[key] for key in ("mape", "noise_floor", "bias", "within_5", "within_10"))
            cells = [
                result["model"],
                runtime + origin,
                result["threads"],
                f"{table['budget_s']:g}" + ("\\*" if table["noise_floor"] > _JUDGED else ""),
                f"{table['wall_s']:.1f}",
                f"{figures['networks']} x {figures['rounds']}",
                label,
                *(f"{share:.2%}" for share in shares),
                f"{figures['kendall']:.3f}",
                f"{figures['kendall_floor']:.3f}",
                f"{kendall_bound(figures['kendall_floor']):.3f}",
            ]
            found.append(f"| {' | '.join(map(str, cells))} |")
    return found


def document(results: list[dict[str, Any]], conditions: str = "", notes: str = "") -> str:
    """The results as Markdown."""
    header = (
        "network", "device", "threads", "budget, s", "built in, s", "networks x rounds", "", "mean error",
        "noise floor", "bias", "within 5%", "within 10%", "Kendall", "Kendall floor", "bound",
    )  # fmt: skip
    lines = [
        "# How accurate latency tables are",
        "",
        f"Virtual machines, batch 1. {conditions}".rstrip(),
        "",
        "Held-out networks have widths drawn at random with a seed of their own. Each is measured in",
        "interleaved rounds, in a new session each time; its latency is the median over the rounds of the",
        "fastest run. The noise floor is the mean difference of two halves of the rounds, the Kendall floor",
        "their rank correlation. *Bound* is the Kendall that a table without any error would reach on such",
        "measurements: an estimate from the Kendall floor, as if latencies and noise were normal.",
        "The machine's speed drifts by several percent between minutes: *even speed*",
        "divides that out, by a reference network that was timed all through both the making of the table",
        "and the evaluation; *as measured* does not. *Fastest round* takes the fastest round of each network",
        "in place of the median: the undisturbed time, where other jobs slow a machine down all the while.",
        "*Paired* is even speed of single measurements: the reference network stays loaded, runs between the",
        "network's own runs (5 or 12 times in a round), and the median of the quotients is taken. One",
        "factor for all networks is divided out: it says how right a table is about one against another.",
        "*Undisturbed* leaves out the rounds that took more than 1.3 times their network's fastest, and",
        "divides out one factor as well: where something else ran for seconds at a time.",
        "Made by `benchmarks/bm_lut_accuracy.py`, whose head says how.",
        "",
        f"**A noise floor above {_JUDGED:.0%}, marked \\*, means that the machine did not repeat its own "
        "measurements**: such a row holds the disturbance while the table was made and while it was judged, "
        "beside the table's own error. It meets no bar and is to be measured again.",
    ]
    machines: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        machine = result["machine"]
        name = f"{machine['cpu_model']} ({', '.join(machine['cpu_features'])})"
        machines.setdefault(name, []).append(result)
    for name, made_there in machines.items():
        lines += ["", f"## {name}", "", f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
        for result in made_there:
            lines += rows(result)
    lines += ["", "Timing each layer as a model of its own and adding up, on some of the same networks:", ""]
    lines += ["| network | threads | networks | mean | least | most |", "|---|---|---|---|---|---|"]
    for result in results:
        if result.get("naive"):
            value = result["naive"]
            lines.append(
                f"| {result['model']} | {result['threads']} | {value['networks']} | {value['bias']:+.1%} "
                f"| {value['least']:+.1%} | {value['most']:+.1%} |"
            )
    lines += ["", "`LatencyTable.predict`, a million width vectors a call:", ""]
    lines += [
        f"- {result['model']}, {result['device']}: {result['predict_per_s'] / 1e6:.2f} million a second"
        for result in results
    ]
    if notes:
        lines += ["", notes]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
