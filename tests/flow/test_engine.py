"""Skipping, resuming and redoing steps, with steps that count their calls."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from bcnet_deploy.errors import RunDirError
from bcnet_deploy.flow.display import FlowDisplay
from bcnet_deploy.flow.engine import Advance, Step, digest, run_steps


class Silent:
    """A display that remembers."""

    def __init__(self) -> None:
        self.skipped: list[str] = []
        self.shares: list[float] = []

    def begin(self, step: Step) -> None: ...

    def advance(self, step: Step, done: float, note: str) -> None:
        self.shares.append(done)

    def end(self, step: Step, seconds: float, *, skipped: bool) -> None:
        if skipped:
            self.skipped.append(step.name)


class Chain:
    """Two steps, a -> b; each copies its input and its setting."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: list[tuple[str, bool]] = []
        self.fail = ""

    def step(self, name: str, setting: str, source: Path | None) -> Step:
        target = self.folder / f"{name}.txt"

        def run(fresh: bool, advance: Advance) -> None:
            self.calls.append((name, fresh))
            advance(0.5, "half")
            if self.fail == name:
                raise KeyboardInterrupt
            target.write_text(setting + (source.read_text() if source else ""))
            advance(7.0)

        return Step(
            name, f"step {name}", 1.0, {"setting": setting}, [source] if source else [], [target], run
        )

    def go(self, a: str = "1", b: str = "2") -> tuple[list[str], Silent]:
        display = Silent()
        first = self.step("a", a, None)
        ran = run_steps([first, self.step("b", b, first.outputs[0])], self.folder / "flow", display)
        return ran, display


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    return Chain(tmp_path)


def test_a_second_run_does_nothing(chain: Chain) -> None:
    assert chain.go()[0] == ["a", "b"]
    ran, display = chain.go()
    assert ran == [] and display.skipped == ["a", "b"] and len(chain.calls) == 2
    assert (chain.folder / "b.txt").read_text() == "21"


def test_only_what_depends_on_a_change_runs_again_and_afresh(chain: Chain) -> None:
    chain.go()
    assert chain.go(b="3")[0] == ["b"]
    assert chain.calls[-1] == ("b", True)
    assert chain.go(a="9", b="3")[0] == ["a", "b"]
    assert (chain.folder / "b.txt").read_text() == "39"


def test_a_changed_input_file_is_taken_and_its_readers_run_again(chain: Chain) -> None:
    chain.go()
    (chain.folder / "a.txt").write_text("by hand")
    assert chain.go()[0] == ["b"]
    assert (chain.folder / "b.txt").read_text() == "2by hand"


def test_a_missing_output_is_made_again(chain: Chain) -> None:
    chain.go()
    (chain.folder / "b.txt").unlink()
    assert chain.go()[0] == ["b"]


def test_an_interrupted_step_goes_on_instead_of_starting_afresh(chain: Chain) -> None:
    chain.fail = "b"
    with pytest.raises(KeyboardInterrupt):
        chain.go()
    chain.fail = ""
    assert chain.go()[0] == ["b"]
    assert chain.calls == [("a", False), ("b", False), ("b", False)]


def test_settings_changed_while_interrupted_start_afresh(chain: Chain) -> None:
    chain.fail = "b"
    with pytest.raises(KeyboardInterrupt):
        chain.go()
    chain.fail = ""
    chain.go(b="other")
    assert chain.calls[-1] == ("b", True)


def test_shares_are_held_between_none_and_all(chain: Chain) -> None:
    assert chain.go()[1].shares == [0.5, 1.0, 0.5, 1.0]


@pytest.mark.parametrize(("text", "word"), [("{", "not valid JSON"), ('{"format": 99}', "format 99")])
def test_damaged_and_foreign_stamps_are_refused_by_name(chain: Chain, text: str, word: str) -> None:
    chain.go()
    (chain.folder / "flow" / "a.json").write_text(text)
    with pytest.raises(RunDirError, match=word) as caught:
        chain.go()
    assert "a.json" in str(caught.value)


def test_a_step_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    step = Step("x", "x", 1.0, None, [], [tmp_path / "never"], lambda fresh, advance: None)
    with pytest.raises(RunDirError, match="never"):
        run_steps([step], tmp_path / "flow", Silent())


def test_digest_depends_on_settings_and_content_not_on_key_order(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text("one")
    base = digest({"a": 1, "b": 2}, [file])
    assert digest({"b": 2, "a": 1}, [file]) == base
    assert digest({"a": 1, "b": 3}, [file]) != base
    file.write_text("two")
    assert digest({"a": 1, "b": 2}, [file]) != base
    with pytest.raises(RunDirError, match="absent"):
        digest(None, [tmp_path / "absent"])


COUNTER = """
import sys, time
from pathlib import Path
from bcnet_deploy.flow.engine import Step, run_steps
from bcnet_deploy import files
folder = Path(sys.argv[1])
class Quiet:
    def begin(self, step): pass
    def advance(self, step, done, note): pass
    def end(self, step, seconds, *, skipped): pass
def make(name):
    state, target = folder / (name + ".state"), folder / (name + ".txt")
    def run(fresh, advance):
        assert not fresh
        done = int(state.read_text()) if state.exists() else 0
        for count in range(done, 12):   # checkpointed work: each unit appended once
            time.sleep(0.02)
            files.write_text(state, str(count + 1))
        files.write_text(target, state.read_text())
    return Step(name, name, 1.0, None, [], [target], run)
run_steps([make(n) for n in "abc"], folder / "flow", Quiet())
(folder / "finished").write_text("".join((folder / (n + ".txt")).read_text() for n in "abc"))
"""


def test_kill_minus_nine_at_any_moment_then_the_same_command(tmp_path: Path) -> None:
    script = tmp_path / "counter.py"
    script.write_text(COUNTER)
    folder = tmp_path / "run"
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    kills = 0
    for attempt in range(60):
        process = subprocess.Popen([sys.executable, str(script), str(folder)], env=environment)
        try:
            process.wait(timeout=0.12 + 0.05 * (attempt % 7))
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    assert (folder / "finished").read_text() == "121212" and kills > 0
    stamps = [json.loads((folder / "flow" / f"{name}.json").read_text()) for name in "abc"]
    assert all(stamp["finished"] for stamp in stamps)


def test_without_a_terminal_one_line_a_step_and_none_when_quiet(chain: Chain, tmp_path: Path) -> None:
    for quiet, expected in ((False, 2), (True, 0)):
        log = tmp_path / f"log-{quiet}"
        steps = [chain.step("a", str(time.time()), None), chain.step("b", "2", None)]
        with log.open("w") as stream:
            display = FlowDisplay(steps, Console(file=stream, force_terminal=False), quiet=quiet)
            with display:
                run_steps(steps, chain.folder / f"flow-{quiet}", display)
        lines = log.read_text().splitlines()
        assert len(lines) == expected
        if lines:
            assert lines[0].startswith("[1/2] step a: ") and "\x1b" not in log.read_text()
