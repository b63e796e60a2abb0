"""The page: structure and numbers here; drawn marks and console in headless Chromium."""

from __future__ import annotations

import html
import json
import math
import re
import shutil
import subprocess
from dataclasses import fields, is_dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bcnet_deploy.report.charts import Axis, Point, Series, nice_ticks, xy_chart
from bcnet_deploy.report.content import (
    Candidate,
    Content,
    Curve,
    FrontPlot,
    GenerationPoint,
    LayerLatency,
    LayerWidth,
    Pair,
    Staircase,
    SummaryRow,
)  # fmt: skip
from bcnet_deploy.report.page import SECTIONS, render

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH: apt-get install chromium")
PLOTS = {"plot-widths", "plot-pairs", "plot-layers", "plot-front", "plot-curve-loss", "plot-progress"}


def content(*, estimated: bool = False) -> Content:
    layers = [LayerLatency("stem.0", 0.21), LayerLatency("a<b.conv", 0.4), LayerLatency("overhead", 0.05)]
    candidates = (
        Candidate(81.0, 0.52, 900_000),
        Candidate(90.0, 0.6, 1_200_000),
        Candidate(85.0, 0.7, 1_500_000),
    )
    return Content(
        title="bcnet-deploy: demo", model="demo", data="digits", device="cpu", estimated=estimated,
        budget="latency <= 0.6 ms", noise_floor=0.012,
        networks=[
            SummaryRow("full", 99.12, 1.25, 1.2, 1.3, 1.26, 1.3, 1.4, 25_000_000, 1_000_000),
            SummaryRow("uniform", 97.01, 0.61, 0.6, 0.62, 0.615, 0.63, 0.7, 9_000_000, 400_000),
            SummaryRow("found", 98.33, 0.6, 0.59, 0.61, 0.605, 0.63, 0.7, 8_000_000, 300_000),
        ],
        widths=[LayerWidth("stem.0", 64, 48, 32), LayerWidth("a<b.conv", 128, 16, 64)],
        pairs=[
            Pair("held-out 1", "held out", 0.95, 1.0, 0.9, 1.0),
            Pair("held-out 2", "held out", 2.1, 2.0, 2.0, 2.2),
            Pair("found", "found", 0.6, 0.605, 0.59, 0.61),
        ],
        layers={"full": layers, "found": layers[:2]},
        front=FrontPlot("latency", "ms", candidates, candidates[:2], candidates[1], 0.6),
        curves=[Curve("supernet", "loss", "epoch", ((0, 2.3), (1, 1.2), (2, 0.7)))],
        generations=[GenerationPoint(0, 80.0, 70.0, 1.0), GenerationPoint(1, 90.0, 80.0, 0.95)],
        provenance=[("device", "cpu"), ("runtime", "onnxruntime <1>")],
    )  # fmt: skip


class Marks(HTMLParser):
    """Collects the exact values of the marks of each figure, of the wide drawing, and the table cells."""

    def __init__(self) -> None:
        super().__init__()
        self.figure = ""
        self.narrow = False
        self.found: dict[str, list[list[float | None]]] = {}
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "figure":
            self.figure = given.get("id") or ""
        if tag == "svg":
            self.narrow = given["class"] == "narrow"
        if tag == "div" and given.get("class") == "widths":
            self.narrow = False
        if "mark" in (given.get("class") or "").split() and not self.narrow:
            self.found.setdefault(self.figure, []).append(json.loads(given["data-values"] or ""))


def marks(page: str) -> dict[str, list[list[float | None]]]:
    parser = Marks()
    parser.feed(page)
    return parser.found


def test_marks_carry_exactly_the_given_numbers() -> None:
    given_content = content()
    found = marks(render(given_content))
    assert set(found) == PLOTS
    assert found["plot-widths"] == [[64, 48, 32], [128, 16, 64]]
    pairs = [[p.measured_ms, p.predicted_ms, p.low_ms, p.high_ms] for p in given_content.pairs]
    assert found["plot-pairs"] == pairs
    assert found["plot-layers"] == [[0.21], [0.4], [0.05], [0.21], [0.4]]
    assert found["plot-curve-loss"] == [[0, 2.3, None, None], [1, 1.2, None, None], [2, 0.7, None, None]]
    chosen = found["plot-front"][-1]
    assert chosen[0] == 0.6 and chosen[1] == pytest.approx(90.0)
    assert len(found["plot-front"]) == 3 + 2 + 1 and len(found["plot-progress"]) == 4


def test_summary_shows_the_figures_and_the_gap() -> None:
    page = render(content())
    for text in (
        "98.33%",
        "97.01%",
        "605 µs",
        "600 µs (590–610)",
        "1.25 ms (1.2–1.3)",
        "8M",
        "+1.32",
        "2.08×",
        "-0.79",
    ):
        assert text in page, text
    assert 'class="estimated"' not in page


def test_estimates_are_marked_wherever_a_prediction_stands() -> None:
    page = render(content(estimated=True))
    rows = re.findall(r"<tr[^>]*><td>(?:full|uniform|found)</td>.*?</tr>", page)
    assert len(rows) >= 3 and all("estimated" in row for row in rows[:3])
    for section in ("prediction", "layers", "front"):
        body = page.split(f'<section id="{section}">')[1].split("</section>")[0]
        assert 'class="estimated"' in body, section


def test_an_empty_run_names_the_command_for_each_section() -> None:
    page = render(Content("t", "demo", "digits", "cpu"))
    for key in SECTIONS.keys() - {"devices"}:
        body = page.split(f'<section id="{key}">')[1].split("</section>")[0]
        assert "bcnet-deploy " in body, key
    assert marks(page) == {}


def test_staircases_are_there_where_several_devices_are() -> None:
    assert 'id="devices"' not in render(content())
    one = Staircase("stem.0", "found", 48, (16, 32, 64), {"cpu": (0.5, 0.7, 1.0), "npu": (0.9, 0.95, 1.0)})
    assert one.apart == (pytest.approx(0.4), 16)
    several = replace(content(), staircases=[one], by_device={"cpu": {"found": 0.6}, "npu": {"found": 0.2}})
    page = render(several)
    assert 'id="devices"' in page and 'href="#devices"' in page
    assert "<td>600 µs</td><td>200 µs</td>" in page
    assert "<td>stem.0</td><td>64</td><td>48</td><td>40.0</td><td>16</td><td>50.0%</td><td>90.0%</td>" in page
    assert page.count('data-series="npu"') == 2  # wide and narrow


def test_no_reference_leaves_the_file() -> None:
    page = render(content())
    assert not re.search(r"""(?:src|href|url)\s*[=(]\s*["']?(?:https?:|//|file:)""", page)
    assert re.findall(r'<(?:script|link)[^>]*(?:src|href)="([^"]*)"', page) == ["data:,"]


HOSTILE = """<script>alert("&amp;'1'")</script></style>{{ 7 * 7 }}"""


def hostile(value: Any) -> Any:
    """The same content with :data:`HOSTILE` behind every text in it."""
    if isinstance(value, str):
        return value + HOSTILE
    if isinstance(value, dict):
        return {hostile(key): hostile(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(hostile(item) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{item.name: hostile(getattr(value, item.name)) for item in fields(value)})
    return value


class Text(HTMLParser):
    """What a browser makes of a page: tags with their attributes, and the text that a reader sees."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [value or "" for _, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.mark.parametrize("departs", ["", "another machine"])
def test_text_is_escaped_wherever_it_comes_from(departs: str) -> None:
    """The same page, tag by tag, whatever stands in the texts; and a reader sees them as they are."""
    plain = replace(
        content(), measured_on="cpu", measured_departs=departs, warnings=["warning"], metric="mean IoU"
    )
    # Names that the page knows keep their meaning: colours, stars and the comparison hang on them.
    named = replace(hostile(plain), networks=plain.networks)
    tame, wild = Text(render(plain)), Text(render(named))
    added = set(tame.tags) ^ set(wild.tags)
    assert not added and wild.tags.count("script") == 1 and HOSTILE not in render(named)
    seen = "".join(wild.text)
    for text in (
        "demo", "digits", "bcnet-deploy: demo", "cpu", "test mean IoU", "stem.0", "a<b.conv", "held-out 1",
        "latency", "onnxruntime <1>", "warning",
    ):  # fmt: skip
        assert text + HOSTILE in seen, text
    assert any(tip.startswith("a<b.conv" + HOSTILE) for tip in wild.attributes)
    assert "49" not in "".join(set(wild.text) - set(tame.text)), "no text is taken for a template"


def test_the_summary_says_what_the_content_does() -> None:
    """Read back from the page's cells: every figure of every network, to the digits shown."""
    given_content = content()
    section = render(given_content).split('<section id="summary">')[1].split("</section>")[0]
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", section.replace("\n", ""))
    head, *body = [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in rows]
    assert head[:2] == ["network", "test top-1"] and len(body) == 3
    scale = {"µs": 1e-3, "ms": 1.0}
    for cells, network in zip(body, given_content.networks, strict=True):
        values = dict(zip(head, cells, strict=True))
        assert values["network"] == network.name
        assert values["test top-1"] == f"{network.test_metric:.2f}%"
        for column, value in (
            ("measured", network.measured_ms), ("median", network.measured_median_ms),
            ("p90", network.measured_p90_ms),
        ):  # fmt: skip
            number, unit = values[column].split()
            assert float(number) * scale[unit] == pytest.approx(value, rel=5e-3)
        parts = re.fullmatch(r"(\S+) (\S+) \((\S+)–(\S+)\)", values["predicted"])
        assert parts is not None
        number, unit, low, high = parts.groups()
        bounds = network.predicted_low_ms, network.predicted_high_ms
        for shown, value in zip((number, low, high), (network.predicted_ms, *bounds), strict=True):
            assert float(shown) * scale[unit] == pytest.approx(value, rel=5e-3)


@pytest.mark.parametrize(
    ("metric", "unit", "cell", "gap", "axis"),
    [
        ("mean IoU", "%", "98.33%", ("+1.32", "percentage points against"), "validation mean IoU, %"),
        ("R²", "", "98.33", ("+1.32", "R² against"), "validation R²"),
        ("PSNR", "dB", "98.33 dB", ("+1.32", "dB PSNR against"), "validation PSNR, dB"),
    ],
)
def test_another_tasks_metric_is_called_by_its_name(
    metric: str, unit: str, cell: str, gap: tuple[str, str], axis: str
) -> None:
    given_content = replace(content(), metric=metric, unit=unit)
    page = render(given_content)
    assert f"<th>test {metric}</th>" in page and f"<td>{cell}</td>" in page and "top-1" not in page
    assert f"<strong>{gap[0]}</strong><span>{gap[1]} uniform scaling</span>" in page
    assert f">{axis}</text>" in page
    assert all("test_top1" not in row and row["metric"] == metric for row in given_content.rows())


def test_what_training_began_with_is_said_where_weights_were_inherited() -> None:
    began = {"full": "trained weights, as given", "uniform": "", "found": "trained weights"}
    rows = [replace(row, began=began[row.name]) for row in content().networks]
    page = render(replace(content(), networks=rows))
    body = page.split('<section id="summary">')[1].split("</section>")[0]
    lines = re.findall(r"<tr[^>]*>(<td>.*?)</tr>", body, re.S)
    cells = [re.findall(r"<td>(.*?)</td>", line) for line in lines]
    assert {row[0]: row[-1] for row in cells} == {**began, "uniform": "–"}
    fresh = [replace(row, began="new weights") for row in content().networks]
    assert "began with" not in render(replace(content(), networks=fresh))


def test_what_the_scores_are_of_and_how_sure_they_are() -> None:
    page = render(replace(content(), scored="slices of the trained network", beats_uniform=0.931))
    assert "Accuracy is of slices of the trained network, on" in page
    assert "found is better than uniform with a probability of 93%" in page
    assert "probability" not in render(content())


def test_the_rows_of_a_classification_have_its_old_name_too() -> None:
    (full, *_) = content().rows()
    assert full["test_metric"] == 99.12 and full["test_top1"] == pytest.approx(0.9912)


def test_rendering_twice_gives_the_same_bytes() -> None:
    assert render(content()) == render(content())


@given(
    st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 9)
)  # fmt: skip
def test_ticks_are_round_inside_and_evenly_spaced(low: float, span: float, count: int) -> None:
    high = low + span
    if high - low < 1e-9 * max(abs(low), 1):
        return
    ticks = nice_ticks(low, high, count)
    assert len(ticks) <= count + 1
    assert all(low - 1e-6 * span <= tick <= high + 1e-6 * span for tick in ticks)
    if len(ticks) > 1:
        step = ticks[1] - ticks[0]
        lead = step / 10 ** math.floor(math.log10(step) + 1e-9)
        assert min(abs(lead - want) for want in (1, 2, 5, 10)) < 1e-2


def test_marks_stand_where_their_values_say() -> None:
    """Positions against the linear scale recovered from the two grid ends: a check by proportion."""
    points = [Point(0.0, 0.0), Point(5.0, 2.0), Point(10.0, 8.0)]
    chart = xy_chart("x", [Series("s", points)], Axis("a"), Axis("b"))
    wide = chart.split("</svg>")[0]
    places = [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', wide)]
    (x0, y0), (x1, y1), (x2, y2) = places
    assert (x1 - x0) / (x2 - x0) == pytest.approx(0.5, abs=1e-3)
    assert (y0 - y1) / (y0 - y2) == pytest.approx(0.25, abs=1e-3)
    assert y2 < y0, "larger values stand higher"


PROBE = """
<script>
const shown = {};
for (const figure of document.querySelectorAll("figure[id]")) {
  let drawn = 0, values = [];
  for (const mark of figure.querySelectorAll(".mark")) {
    const box = mark.getBoundingClientRect(), style = getComputedStyle(mark);
    const paint = mark instanceof SVGElement ? style.fill : style.backgroundColor;
    if (box.width > 0 && box.height > 0 && paint !== "none" && paint !== "rgba(0, 0, 0, 0)") {
      drawn += 1; values.push(JSON.parse(mark.dataset.values));
    }
  }
  shown[figure.id] = {drawn, values};
}
const first = document.querySelector("[data-toggle]");
first.click();
const hidden = first.closest("figure").querySelectorAll("[data-series].off").length;
first.click();
const mark = [...document.querySelectorAll("svg .mark")].find(m => m.getBoundingClientRect().width > 0);
mark.scrollIntoView();
const box = mark.getBoundingClientRect();
mark.dispatchEvent(new PointerEvent("pointermove", {bubbles: true, clientX: box.x + box.width / 2,
                                                    clientY: box.y + box.height / 2}));
const out = document.createElement("pre");
out.id = "probe";
out.textContent = JSON.stringify({shown, hidden, tip: document.getElementById("tip").textContent,
  wide: document.documentElement.scrollWidth <= innerWidth,
  paper: getComputedStyle(document.body).backgroundColor});
document.body.append(out);
</script>
"""


def browse(path: Path, tmp_path: Path, *flags: str) -> tuple[dict, list[str]]:
    """Open ``path`` with the probe appended; what it saw, and the console's messages."""
    probed = tmp_path / "probed.html"
    probed.write_text(
        path.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>"), encoding="utf-8"
    )
    done = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
            "--disable-component-update", "--disable-sync", "--no-first-run", "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", *flags, probed.as_uri(),
        ],
        capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    seen = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.S)
    assert seen, f"the page's script did not finish:\n{done.stderr[-2000:]}"
    return json.loads(html.unescape(seen.group(1))), [
        line for line in done.stderr.splitlines() if "CONSOLE" in line
    ]


@needs_chromium
@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("light", ["--window-size=1000,900", "--blink-settings=preferredColorScheme=1"]),
        ("dark", ["--window-size=1000,900", "--blink-settings=preferredColorScheme=0"]),
        ("phone", ["--window-size=500,900"]),
    ],
)  # fmt: skip
def test_chromium_draws_every_plot_without_console_messages(
    name: str, flags: list[str], tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    page.write_text(render(content()), encoding="utf-8")
    seen, console = browse(page, tmp_path, *flags)
    assert console == []
    assert {figure: shown["values"] for figure, shown in seen["shown"].items()} == marks(render(content()))
    assert all(shown["drawn"] > 0 for shown in seen["shown"].values())
    assert seen["hidden"] >= 1, "a legend button hides its series"
    assert seen["tip"], "a tooltip opens over a mark"
    assert seen["wide"], "nothing sticks out sideways"
    assert seen["paper"] == ("rgb(18, 22, 29)" if name == "dark" else "rgb(255, 255, 255)")


@needs_chromium
def test_the_probe_sees_console_messages(tmp_path: Path) -> None:
    """The check above would pass for a browser that logs nothing: prove that it does."""
    page = tmp_path / "report.html"
    page.write_text(render(content()).replace("</body>", "<script>console.error('seen')</script></body>"))
    _, console = browse(page, tmp_path)
    assert len(console) == 1 and "seen" in console[0]
