"""What a report says, apart from where it was read (``load``) and how it is drawn (``page``)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from bcnet_deploy import files


@dataclass(frozen=True)
class SummaryRow:
    """One line of the summary: ``full``, ``uniform`` or ``found``.

    None: that step has not run. Latencies are in milliseconds at the profile's batch size.

    Attributes:
        test_metric: on the test images, in the metric's own unit.
        measured_ms: the undisturbed time (the fastest run of each round, median of the rounds), which is what
            tables predict.
        began: what its training began with, such as ``trained weights``; empty where it has not run.
    """

    name: str
    test_metric: float | None = None
    predicted_ms: float | None = None
    predicted_low_ms: float | None = None
    predicted_high_ms: float | None = None
    measured_ms: float | None = None
    measured_median_ms: float | None = None
    measured_p90_ms: float | None = None
    macs: int | None = None
    params: int | None = None
    began: str = ""


@dataclass(frozen=True)
class LayerWidth:
    """One width variable: channels in the full, the found and the uniformly scaled network."""

    name: str
    full: int
    found: int
    uniform: int | None = None


@dataclass(frozen=True)
class Pair:
    """A predicted and a measured latency of one network, milliseconds."""

    name: str
    group: str
    predicted_ms: float
    measured_ms: float
    low_ms: float | None = None
    high_ms: float | None = None


@dataclass(frozen=True)
class LayerLatency:
    """Milliseconds of one layer in one network."""

    layer: str
    milliseconds: float


@dataclass(frozen=True)
class Staircase:
    """What one width costs on several devices.

    Attributes:
        name: of the width variable.
        around: which network has all other widths: ``found`` or ``full``.
        chosen: its width there.
        widths: channels, ascending, the last of them all that there are.
        shares: by device, the predicted latency at each of ``widths`` over that at the last.
    """

    name: str
    around: str
    chosen: int
    widths: tuple[int, ...]
    shares: dict[str, tuple[float, ...]]

    @property
    def apart(self) -> tuple[float, int]:
        """The largest difference of two devices' shares, and the width where it is."""
        columns = zip(*self.shares.values(), strict=True)
        return max((max(column) - min(column), w) for column, w in zip(columns, self.widths, strict=True))


@dataclass(frozen=True)
class Candidate:
    """A width vector the search scored; its accuracy is in the metric's own unit."""

    accuracy: float
    cost: float
    macs: int | None = None


@dataclass(frozen=True)
class FrontPlot:
    """Accuracy against cost: all that was scored, the front, the chosen point."""

    cost_name: str
    cost_unit: str
    evaluated: tuple[Candidate, ...]
    front: tuple[Candidate, ...]
    chosen: Candidate | None = None
    budget: float | None = None


@dataclass(frozen=True)
class Curve:
    """Values of one training run against its steps or epochs."""

    run: str
    quantity: str
    unit: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class GenerationPoint:
    """The search's state after one generation; accuracies in the metric's own unit."""

    number: int
    best: float | None
    mean: float | None
    feasible: float | None


@dataclass
class Content:
    """Everything on the page; an empty field becomes a line naming the command that fills it.

    Attributes:
        metric, unit: what the accuracies are, such as ``top-1`` in ``%``. More is better.
        scored: what the search's accuracies are of.
        beats_uniform: by these accuracies, the probability that found is better than uniform.
        budget_ms: the latency budget; ``budget_share`` is the same as given, where that was a share of the
            full network's latency (0.5x).
        measured_on: runtime, threads and machine of the measurements.
        measured_departs: how these are not the device's and its table's; then they check neither prediction
            nor budget.
        by_device: where several devices have tables, the predicted milliseconds by device and network.
        staircases: of the widths, those first on which the devices differ most.
        warnings: what a reader must know before the figures, such as results left out because they are of
            another network.
    """

    title: str
    model: str
    data: str
    device: str
    metric: str = "top-1"
    unit: str = "%"
    estimated: bool = False
    scored: str = "slices of the supernet"
    beats_uniform: float | None = None
    budget: str = ""
    budget_ms: float | None = None
    budget_share: float | None = None
    noise_floor: float | None = None
    measured_on: str = ""
    measured_departs: str = ""
    warnings: list[str] = field(default_factory=list)
    networks: list[SummaryRow] = field(default_factory=list)
    widths: list[LayerWidth] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    layers: dict[str, list[LayerLatency]] = field(default_factory=dict)
    by_device: dict[str, dict[str, float]] = field(default_factory=dict)
    staircases: list[Staircase] = field(default_factory=list)
    front: FrontPlot | None = None
    curves: list[Curve] = field(default_factory=list)
    generations: list[GenerationPoint] = field(default_factory=list)
    provenance: list[tuple[str, str]] = field(default_factory=list)

    def checked(self) -> Content:
        """The same, every value of its annotated type. Raises ValueError for one that is not or cannot be."""
        import pydantic

        content = pydantic.TypeAdapter(Content).validate_python(asdict(self))
        files.check_figures(asdict(content))
        return content

    @property
    def accuracy(self) -> str:
        """Metric and unit: ``top-1, %``."""
        return self.metric + (f", {self.unit}" if self.unit else "")

    def score(self, value: float | None) -> str:
        """An accuracy for people: ``98.67%``, ``0.412``, or a dash."""
        if value is None:
            return "–"
        return f"{value:.2f}%" if self.unit == "%" else f"{value:.4g} {self.unit}".rstrip()

    def gap(self, value: float, other: float) -> tuple[str, str]:
        """By how much an accuracy is above another, with its sign, and the unit in words."""
        if self.unit == "%":
            return f"{value - other:+.2f}", "percentage points"
        return f"{value - other:+.4g}", f"{self.unit} {self.metric}".lstrip()

    def rows(self) -> list[dict[str, Any]]:
        """The summary, JSON-able. Of a classification also ``test_top1``, between 0 and 1."""
        found = [{**asdict(row), "metric": self.metric, "unit": self.unit} for row in self.networks]
        if self.metric == "top-1" and self.unit == "%":
            for row in found:
                row["test_top1"] = None if row["test_metric"] is None else row["test_metric"] / 100
        return found

    @property
    def measured_share(self) -> float | None:
        """Measured latency of the network found over the full network's; None where not on the device."""
        if self.measured_departs:
            return None
        found, full = self.network("found"), self.network("full")
        if found is None or full is None or not found.measured_ms or not full.measured_ms:
            return None
        return found.measured_ms / full.measured_ms

    def network(self, name: str) -> SummaryRow | None:
        """The summary line called ``name``, or None."""
        return next((network for network in self.networks if network.name == name), None)
