"""The third step: the best widths within hard budgets, by the run's supernet and tables.

Everything that can be wrong is found in the cheapest order: texts, table files, the kept width space, and
only then a trace of the model.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcnet_deploy import files
from bcnet_deploy.errors import ConfigError, EvaluationError, RunDirError, TableError
from bcnet_deploy.run.directory import RunConfig, RunDir
from bcnet_deploy.run.engine import Progress, Step, carry_out, silent
from bcnet_deploy.run.originals import pruned_evaluator, require_trained, tuned_evaluator
from bcnet_deploy.run.settings import SearchSettings, named_task
from bcnet_deploy.run.supernets import require_supernet_of, supernet_evaluator, supernet_info
from bcnet_deploy.validation import plain

if TYPE_CHECKING:
    from bcnet_deploy.lut import LatencyTable
    from bcnet_deploy.search import Constraints
    from bcnet_deploy.space import WidthSpace
    from bcnet_deploy.train import SupernetEvaluator
    from bcnet_deploy.train.tuned import TunedEvaluator

_log = logging.getLogger("bcnet_deploy")

_UNTRAINED_IMAGES = 2000
"""Held-out images of a score before training, which foretells what training brings less exactly than that."""
_AGREE, _TELLING = 0.35, 30  # Kendall's tau of left and right, and the networks that it can be told from
_TOGETHER = 32
"""Networks evaluated at once: those that begin alike share work, and a kill loses no more than these."""


@dataclass(frozen=True)
class SearchStepResult:
    """What the search found.

    Attributes:
        widths: by variable name.
        accuracy: score of the network found, in percent; it ranks, and is no final accuracy.
        costs: by cost; latencies are predicted.
        explained: all that ``widths.yaml`` says: also full and uniform, layers, provenance.
        front: widths, accuracy and costs of networks that no other evaluated one beats.
        evaluations: networks evaluated. stopped: why it ended.
        files: widths.yaml and search.json. ran: whether this call searched.
    """

    widths: dict[str, int]
    accuracy: float
    costs: dict[str, float]
    explained: dict[str, Any] = field(repr=False)
    front: list[dict[str, Any]] = field(repr=False)
    evaluations: int
    stopped: str
    files: tuple[Path, ...]
    ran: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            **self.explained, "front": self.front, "files": [str(path) for path in self.files],
            "ran": self.ran,
        }  # fmt: skip


def search(
    run: RunDir,
    settings: SearchSettings,
    progress: Progress = silent,
    *,
    fresh: bool = False,
    replace: bool = False,
) -> SearchStepResult:
    """Search, or go on where a search was interrupted.

    Args:
        run: a run with tables of the devices that have a budget, and a supernet.
        settings: budgets and effort.
        progress: told the share done.
        fresh: evaluate again what an interrupted or earlier search evaluated.
        replace: of no consequence here: accuracies that are known serve any budget.

    Raises:
        ConfigError: no budget is given.
        MissingStepError, TableError, InfeasibleError, CheckpointError, DataError: see :func:`prepare`.
        EvaluationError: see :func:`bcnet_deploy.search.search`.
    """
    prepared = prepare(run, settings, evaluating=True)
    config = run.load()
    tables = [run.latency_table(device) for device in {**prepared.tables, **prepared.told}]
    step = Step(
        name="search",
        identity={
            **run.identity(), "seed": _seed(config, settings),
            "latency": settings.latencies(config.device),
            "counted": {kind: str(value) for kind, value in settings.counted.items()},
            "confidence": settings.confidence, "pareto": settings.pareto,
            "strategy": plain(settings.strategy),
            "evaluations": settings.evaluations, "population_size": settings.population_size,
            "patience": settings.patience, "prior": settings.prior, "val_images": settings.val_images,
            "channel_steps": settings.channel_steps, **_scored_by(run, settings),
        },
        inputs=[*tables, *([run.weights] if scores_of(run, settings) == "supernet" else [])],
        outputs=[run.search / "search.json", run.widths_file],
        work=lambda anew, tell: _search(run, settings, prepared, anew and fresh, tell),
    )  # fmt: skip
    done = carry_out(run, step, progress, fresh=fresh, replace=replace)
    return _result(run, done.ran)


def scores_of(run: RunDir, settings: SearchSettings) -> str:
    """``supernet``, ``pruned`` or ``tuned``: what is asked for, or else what there is."""
    if settings.scores is not None:
        return settings.scores
    return "pruned" if run.load().model.trained and not run.supernet_file.exists() else "supernet"


def _scored_by(run: RunDir, settings: SearchSettings) -> dict[str, str]:
    scores = scores_of(run, settings)
    if scores == "supernet":
        return {"scores": scores}
    steps = {"tune_steps": str(settings.tune_steps)} if scores == "tuned" else {}
    task = named_task(run.load())  # a supernet is trained for its own, these are scored by what is named now
    return {"scores": scores, "importance": settings.importance, **steps, **({"task": task} if task else {})}


def _seed(config: RunConfig, settings: SearchSettings) -> int:
    return config.seed if settings.seed is None else settings.seed


def _result(run: RunDir, ran: bool) -> SearchStepResult:
    explained = files.read_yaml(run.widths_file, RunDirError, "search result")
    found = files.read_json(run.search / "search.json", RunDirError, "search result")
    with files.malformed(run.widths_file, RunDirError, "search again with --fresh"):
        # Accuracies of a posterior may lie a little beyond what scores can.
        low, high = found.get("accuracies") or (-files.LARGEST, files.LARGEST)
        more = 0.1 * (high - low)
        files.check_figures([explained, found], (low - more, high + more))
        return SearchStepResult(
            widths=dict(explained["widths"]), accuracy=float(found["accuracy"]),
            costs=dict(explained["costs"]),
            explained=dict(explained), front=list(found["front"]),
            evaluations=int(explained["search"]["evaluations"]), stopped=str(explained["search"]["stopped"]),
            files=(run.widths_file, run.search / "search.json"), ran=ran,
        )  # fmt: skip


# -- preparation -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prepared:
    """What a search is about, checked.

    Attributes:
        space: of the run's model, with the choices that are searched.
        tables: device -> table bound to the space, of the devices with a budget.
        told: the run's device and its table where it has one but no budget.
        constraints: the budgets, and the confidence with which each is held.
        records: loss records for the prior population, or None.
    """

    space: WidthSpace
    tables: dict[str, LatencyTable]
    told: dict[str, LatencyTable]
    constraints: Constraints
    records: Any = None


def prepare(run: RunDir, settings: SearchSettings, *, evaluating: bool) -> Prepared:
    """Read the tables, and refuse budgets that cannot be had, in seconds wherever that is possible.

    Args:
        run: the run.
        settings: budgets and effort.
        evaluating: whether the supernet will be needed.

    Raises:
        ConfigError: no budget is given, or the space is too large for the strategy.
        MissingStepError: no table of a device, or nothing was trained.
        TableError: a table of another device, model or resolution.
        InfeasibleError: no network keeps the budgets.
        CheckpointError: the supernet is of another model or other levels.
        DataError: the loss records are damaged.
    """
    if not settings.has_budget:
        raise ConfigError("no budget is given; give one, for example --latency 5ms, --macs 0.5x, or --pareto")
    from bcnet_deploy.search.api import check_settings
    from bcnet_deploy.search.baselines import require_enumerable
    from bcnet_deploy.search.constraints import build_constraints
    from bcnet_deploy.search.feasibility import with_attainable_confidence
    from bcnet_deploy.search.lattice import Lattice

    config = run.load()
    check_settings(
        settings.evaluations, _seed(config, settings), settings.strategy, settings.population_size,
        settings.patience, settings.on_error,
    )  # fmt: skip
    latencies = settings.latencies(config.device)
    for device in latencies:
        run.table(device)  # refused before a model is traced
    own_weights = scores_of(run, settings) != "supernet"
    if own_weights:
        require_trained(run)
    elif evaluating and run.supernet_file.exists():
        supernet_info(run)
    space = run.space()
    tables = {device: run.bound_table(device, space) for device in latencies}
    told = _told(run, config, latencies, space)
    if settings.channel_steps == "learned":
        space = _with_learned_steps(space, list({**tables, **told}.values()))
    budgets = _budgets(settings, tables, latencies, told)
    asked = build_constraints(space, budgets, settings.confidence)
    constraints = with_attainable_confidence(asked, _seed(config, settings))
    if constraints is not asked:
        loosened = [
            held.given
            for held, wanted in zip(constraints.budgets, asked.budgets, strict=True)
            if held.confidence != wanted.confidence
        ]
        _log.warning(
            "the latency table is too noisy for %s at confidence %g (see 'bcnet-deploy table show'): "
            "the budget is held by expected latency; profile again on a quieter machine",
            ", ".join(loosened), settings.confidence,
        )  # fmt: skip
    if settings.strategy == "exhaustive":
        require_enumerable(Lattice(space.variables), constraints, settings.evaluations)
    prepared = Prepared(space, tables, told, constraints)
    if not evaluating or own_weights:
        return prepared
    require_supernet_of(run, space)
    return replace(prepared, records=_records(run, settings, space))


def _told(
    run: RunDir, config: RunConfig, asked: Collection[str], space: WidthSpace
) -> dict[str, LatencyTable]:
    """The table of the run's own device, to tell latencies that have no budget; a bad one stops nothing."""
    if config.device in asked or not run.latency_table(config.device).exists():
        return {}
    try:
        return {config.device: run.bound_table(config.device, space)}
    except TableError as error:
        _log.warning("latency is left out of the result: %s", error)
        return {}


def _with_learned_steps(space: WidthSpace, tables: list[LatencyTable]) -> WidthSpace:
    from bcnet_deploy.lut.steps import learned_choices

    if not tables:
        raise ConfigError(
            "channel steps are learned from a latency table and there is none; run 'bcnet-deploy profile' "
            "first, or leave out --channel-steps"
        )
    return space.with_choices(learned_choices(space, tables))


def _budgets(
    settings: SearchSettings, tables: dict[str, LatencyTable], latencies: dict[str, str],
    told: dict[str, LatencyTable],
) -> dict[str, Any]:  # fmt: skip
    """Without any budget, which only Pareto mode allows, they are the full network's own latency and MACs
    where the run's device has a table: limits that leave nothing out, so that the front has both."""
    if not latencies and not settings.counted and told:
        ((device, table),) = told.items()
        return {"latency_ms": (table, _latency_of_full(table, settings.confidence)), "macs": "1x"}
    pairs = {device: (tables[device], text) for device, text in latencies.items()}
    if not pairs:
        return dict(settings.counted)
    return {**settings.counted, "latency_ms": next(iter(pairs.values())) if len(pairs) == 1 else pairs}


def _latency_of_full(table: LatencyTable, confidence: float) -> str:
    """A budget that the full network just keeps."""
    from bcnet_deploy.search.constraints import upper_bound
    from bcnet_deploy.search.feasibility import exactly, round_up

    if table.estimated:
        return "1x"
    full = [[variable.channels for variable in table.network.variables]]
    return exactly("latency_ms", round_up(float(upper_bound(table, full, confidence)[0]), 6))


def _records(run: RunDir, settings: SearchSettings, space: WidthSpace) -> Any:
    """The loss records for the prior population, where one is asked for and there are some."""
    if not (settings.prior and settings.strategy == "nsga2" and run.records.exists()):
        return None
    from bcnet_deploy.search.lattice import Lattice
    from bcnet_deploy.search.records import Records

    return Records.of(run.records, Lattice(space.variables))


# -- the search --------------------------------------------------------------------------------


def _search(
    run: RunDir, settings: SearchSettings, prepared: Prepared, fresh: bool, progress: Progress
) -> None:
    from bcnet_deploy.search.api import DEFAULT_EVALUATIONS
    from bcnet_deploy.search.api import search as search_space
    from bcnet_deploy.search.evaluation import NetworkFailedError
    from bcnet_deploy.search.explain import explain, uniform_to_compare
    from bcnet_deploy.search.near import TRAINED_EVALUATIONS
    from bcnet_deploy.tasks import Classification

    config = run.load()
    kind = scores_of(run, settings)
    limit_of_images = settings.val_images or (_UNTRAINED_IMAGES if kind == "pruned" else None)
    evaluator: SupernetEvaluator | TunedEvaluator
    if kind == "supernet":
        evaluator = supernet = supernet_evaluator(run, limit_of_images)
        scored = files.content_hash(run.weights)
    else:
        pruned = pruned_evaluator(run, limit_of_images, settings.importance)
        scored = " ".join(map(str, {**run.identity(), **_scored_by(run, settings)}.values()))
        if isinstance(pruned.task, Classification):
            _warn_of_chance(pruned, prepared.space, config.model.num_classes, run)
        evaluator = pruned
        if kind == "tuned":
            evaluator = tuned_evaluator(run, settings.tune_steps, limit_of_images, settings.importance)
    identity = hashlib.sha256(
        f"{scored} {evaluator.val_count} {prepared.space.choices_fingerprint}".encode()
    ).hexdigest()[:12]
    journal = run.search / f"journal-{identity}.jsonl"
    if fresh:
        journal.unlink(missing_ok=True)
    evaluations = settings.evaluations or (TRAINED_EVALUATIONS if kind == "tuned" else None)
    limit = evaluations or DEFAULT_EVALUATIONS
    note = {"text": ""}

    def generation(state: Any) -> None:
        best = f", best {state.best_accuracy:.2f}%" if math.isfinite(state.best_accuracy) else ""
        share = state.proposed_feasible
        kept = "" if share is None else f", {share:.0%} of proposals within the budgets before repair"
        note["text"] = f"{best}{kept}"

    try:
        result = search_space(
            prepared.space, evaluator, prepared.constraints, evaluations=evaluations,
            seed=_seed(config, settings), strategy=settings.strategy,
            population_size=settings.population_size, patience=settings.patience, pareto=settings.pareto,
            records=prepared.records, on_error=settings.on_error,
            checkpoint=journal, evaluator_id=identity, batch_size=1 if kind == "tuned" else _TOGETHER,
            progress=generation,
            answered=lambda count: progress(count / limit, f"{count} networks{note['text']}"),
        )  # fmt: skip
    except NetworkFailedError as error:
        remedy = "What was evaluated before is kept, and the same command goes on; add --on-error skip"
        raise NetworkFailedError(error.widths, error.reason, remedy) from error.__cause__
    if kind == "supernet" and result.belief is not None and (doubt := _disagreement(supernet)):
        result = replace(result, belief=replace(result.belief, notes=(*result.belief.notes, doubt)))
    between = getattr(evaluator, "bounds", None)
    uniform, _ = uniform_to_compare(result.constraints)
    compared = {"found": result.widths, "uniform": uniform, "full": prepared.space.full}
    scores = {
        name: _by_side(evaluator, name, widths, skip=settings.on_error == "skip")
        for name, widths in compared.items()
    }
    provenance = {
        "supernet": {
            "id": identity, "records_used_for_prior": result.prior_costs is not None,
            "scored": {
                "supernet": "slices of the supernet",
                "pruned": "slices of the trained network, nothing trained",
                "tuned": f"slices of the trained network, each fine-tuned for {settings.tune_steps} steps",
            }[kind],
            "scores": "on held-out training images, batch norm recalibrated: for ranking, an estimate of the "
            "trained network's"
            if kind != "tuned"
            else "on held-out training images after a short training: for ranking",
            "images": evaluator.val_count,
        }
    }  # fmt: skip
    explained = explain(
        result, model=config.model.to_dict(), scores=scores, provenance=provenance, tables=prepared.told
    )
    files.write_json(
        run.search / "search.json", {**result.to_dict(), "scores": scores, "accuracies": between}
    )
    # Last: it is what later steps look for.
    files.write_yaml(run.widths_file, explained)


def _by_side(
    evaluator: SupernetEvaluator | TunedEvaluator, name: str, widths: Any, *, skip: bool
) -> dict[str, float]:
    """The score of one network, and of each side; with ``skip``, nothing where it cannot be had."""
    from bcnet_deploy.search.evaluation import named

    try:
        sides = [float(value) for value in evaluator.sides(widths[None])[0]]
    except EvaluationError:
        raise
    except Exception as error:
        if not skip:
            raise
        _log.warning("the %s network has no score: %s", name, named(error))
        return {}
    return {"accuracy": sum(sides) / len(sides), **dict(zip(evaluator.side_names, sides, strict=True))}


def _disagreement(supernet: SupernetEvaluator) -> str | None:
    """What to say where the two sides rank networks too differently for either to be believed."""
    tau, count = supernet.agreement()
    if count < _TELLING or not tau < _AGREE:
        return None
    return (
        f"left and right slices rank the {count} networks scored now too differently (Kendall's tau "
        f"{tau:.2f}): what is found, and how probable it is said to be better, cannot be trusted. Supernets "
        "that ranked well had 0.4 and more, those that did not less than 0.3. Train it longer, with "
        "distillation, or score on more images (--val-images)"
    )


def _warn_of_chance(evaluator: SupernetEvaluator, space: WidthSpace, classes: int, run: RunDir) -> None:
    """Say where trained weights do no better than chance on the run's data: their images were others."""
    from bcnet_deploy.tasks import has_learned

    top1 = float(evaluator(space.full[None])[0])
    if has_learned(top1 / 100, 1 / classes):
        return
    splits = run.data()
    _log.warning(
        "the trained network reaches %.1f%% of the held-out images, about what chance gives: was it trained "
        "on such images? They are given to it with channel means %s and deviations %s, in the order %s",
        top1, [round(v, 3) for v in splits.mean], [round(v, 3) for v in splits.std],
        {1: "grey", 3: "RGB"}.get(splits.input_size[0], "of the data"),
    )  # fmt: skip


def dry_run(run: RunDir, settings: SearchSettings) -> dict[str, Any]:
    """What is known before anything is evaluated. Nothing is written.

    Costs are expected ones; a ``bound`` is what is held against the limit, for a latency the value that is
    kept with the confidence's probability.
    """
    import numpy as np

    from bcnet_deploy.search.explain import uniform_to_compare
    from bcnet_deploy.search.lattice import Lattice

    prepared = prepare(run, settings, evaluating=False)
    space, constraints = prepared.space, prepared.constraints
    lattice, rng = Lattice(space.variables), np.random.default_rng(_seed(run.load(), settings))
    draws = lattice.widths(lattice.random(2000, rng))
    uniform, margin = uniform_to_compare(constraints)
    ends = lattice.widths(np.stack([lattice.narrowest, lattice.top]))
    bounds = constraints.bounds(ends)
    expected = [np.asarray(b.cost(ends), dtype=np.float64) for b in constraints.budgets]
    return {
        "variables": lattice.length,
        "networks_log10": math.log10(space.size),
        "feasible_share_of_uniform_draws": float(constraints.feasible(draws).mean()),
        "budgets": [
            {
                "cost": b.key, "device": b.device, "limit": b.limit, "given": b.given,
                "confidence": b.confidence, "estimated": bool(getattr(b.table, "estimated", False)),
                "narrowest": float(expected[i][0]), "narrowest_bound": float(bounds[0, i]),
                "full": b.full, "full_bound": float(bounds[1, i]),
            }
            for i, b in enumerate(constraints.budgets)
        ],
        "uniform_macs": int(space.macs(uniform[None])[0]) if margin == "kept" else None,
        "evaluations": settings.evaluations,
    }  # fmt: skip


__all__ = ["Prepared", "SearchStepResult", "dry_run", "prepare", "search"]
