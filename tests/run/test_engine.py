"""Skipping, resuming and redoing steps, with steps that count their calls."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from bcnet_deploy.errors import RunDirError
from bcnet_deploy.run.directory import RunDir
from bcnet_deploy.run.display import StepsDisplay
from bcnet_deploy.run.engine import Done, Progress, Step, carry_out, digest, only_writer


class Chain:
    """Two steps, a -> b; each copies its input and its setting."""

    def __init__(self, folder: Path) -> None:
        self.run = RunDir(folder)
        self.folder = folder
        self.calls: list[tuple[str, bool]] = []
        self.shares: list[float] = []
        self.fail = ""

    def step(self, name: str, setting: str, source: Path | None) -> Step:
        target = self.folder / f"{name}.txt"

        def work(fresh: bool, progress: Progress) -> None:
            self.calls.append((name, fresh))
            progress(0.5, "half")
            if self.fail == name:
                raise KeyboardInterrupt
            target.write_text(setting + (source.read_text() if source else ""))
            progress(7.0, "")

        return Step(
            name=name, identity={"setting": setting}, inputs=[source] if source else [], outputs=[target],
            work=work,
        )  # fmt: skip

    def go(self, a: str = "1", b: str = "2") -> list[str]:
        first = self.step("a", a, None)
        ran = []
        for step in (first, self.step("b", b, first.outputs[0])):
            done = carry_out(self.run, step, lambda share, note: self.shares.append(share), replace=True)
            ran += [step.name] if done.ran else []
        return ran


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    return Chain(tmp_path)


def test_a_second_run_does_nothing(chain: Chain) -> None:
    assert chain.go() == ["a", "b"]
    assert chain.go() == [] and len(chain.calls) == 2
    assert (chain.folder / "b.txt").read_text() == "21"


def test_only_what_depends_on_a_change_runs_again_and_afresh(chain: Chain) -> None:
    chain.go()
    assert chain.go(b="3") == ["b"]
    assert chain.calls[-1] == ("b", True)
    assert chain.go(a="9", b="3") == ["a", "b"]
    assert (chain.folder / "b.txt").read_text() == "39"


def test_a_changed_input_file_is_taken_and_its_readers_run_again(chain: Chain) -> None:
    chain.go()
    (chain.folder / "a.txt").write_text("by hand")
    assert chain.go() == ["b"]
    assert (chain.folder / "b.txt").read_text() == "2by hand"


def test_a_missing_output_is_made_again(chain: Chain) -> None:
    chain.go()
    (chain.folder / "b.txt").unlink()
    assert chain.go() == ["b"]


def test_an_interrupted_step_goes_on_instead_of_starting_afresh(chain: Chain) -> None:
    chain.fail = "b"
    with pytest.raises(KeyboardInterrupt):
        chain.go()
    chain.fail = ""
    assert chain.go() == ["b"]
    assert chain.calls == [("a", False), ("b", False), ("b", False)]


def test_settings_changed_while_interrupted_start_afresh(chain: Chain) -> None:
    chain.fail = "b"
    with pytest.raises(KeyboardInterrupt):
        chain.go()
    chain.fail = ""
    chain.go(b="other")
    assert chain.calls[-1] == ("b", True)


def test_shares_are_held_between_none_and_all(chain: Chain) -> None:
    chain.go()
    assert chain.shares == [0.5, 1.0, 0.5, 1.0]


@pytest.mark.parametrize(("text", "word"), [("{", "not valid JSON"), ('{"format": 99}', "format 99")])
def test_damaged_and_foreign_stamps_are_refused_by_name(chain: Chain, text: str, word: str) -> None:
    chain.go()
    (chain.folder / "steps" / "a.json").write_text(text)
    with pytest.raises(RunDirError, match=word) as caught:
        chain.go()
    assert "a.json" in str(caught.value)


def test_a_step_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    step = Step(
        name="x", identity=None, inputs=[], outputs=[tmp_path / "never"], work=lambda fresh, progress: None
    )
    with pytest.raises(RunDirError, match="never"):
        carry_out(RunDir(tmp_path), step)


def test_without_replace_the_step_itself_decides_about_other_work(chain: Chain) -> None:
    step = chain.step("a", "1", None)
    carry_out(chain.run, step)
    carry_out(chain.run, chain.step("a", "2", None))
    assert chain.calls == [("a", False), ("a", False)]
    carry_out(chain.run, chain.step("a", "2", None), fresh=True)
    assert chain.calls[-1] == ("a", True)


def test_only_one_process_writes(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    script = (
        "import sys, time\n"
        "from bcnet_deploy.run.directory import RunDir\n"
        "from bcnet_deploy.run.engine import only_writer\n"
        "with only_writer(RunDir(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(run.path)], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline().strip() == "held"
    with pytest.raises(RunDirError, match=f"process {holder.pid}"), only_writer(run, patience_s=0.2):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    with only_writer(run, patience_s=5), only_writer(run):  # a dead holder stops nobody; a step calls another
        assert run.writing
    assert not run.writing


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
from bcnet_deploy.run.directory import RunDir
from bcnet_deploy.run.engine import Step, carry_out
from bcnet_deploy import files
folder = Path(sys.argv[1])
def make(name):
    state, target = folder / (name + ".state"), folder / (name + ".txt")
    def work(fresh, progress):
        assert not fresh
        done = int(state.read_text()) if state.exists() else 0
        for count in range(done, 12):   # checkpointed work: each unit appended once
            time.sleep(0.02)
            files.write_text(state, str(count + 1))
        files.write_text(target, state.read_text())
    return Step(name=name, identity=None, inputs=[], outputs=[target], work=work)
for name in "abc":
    carry_out(RunDir(folder), make(name))
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
            process.wait(timeout=0.5 + 0.15 * (attempt % 8))
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    assert (folder / "finished").read_text() == "121212" and kills > 0
    stamps = [json.loads((folder / "steps" / f"{name}.json").read_text()) for name in "abc"]
    assert all(stamp["finished"] for stamp in stamps)


def test_without_a_terminal_one_line_a_step_and_none_when_quiet(tmp_path: Path) -> None:
    for quiet, expected in ((False, 2), (True, 0)):
        log = tmp_path / f"log-{quiet}"
        with log.open("w") as stream:
            console = Console(file=stream, force_terminal=False, quiet=quiet)
            with StepsDisplay(console, {"step a": 1.0, "step b": 2.0}).shown() as display:
                for title in ("step a", "step b"):
                    display.begin(title)(0.5, "half")
                    display.end(title, Done(title, title == "step a", 1.25))
        lines = log.read_text().splitlines()
        assert len(lines) == expected
        if lines:
            assert lines == ["[1/2] step a: 1.2 s", "[2/2] step b: done already"]


def test_what_a_step_has_to_say_is_said_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as stream:
        console = Console(file=stream, force_terminal=False, width=200)
        with StepsDisplay(console, {"step a": 1.0, "step b": 2.0}).shown() as display:
            for title, notes in (("step a", ("[2] images", "a")), ("step b", ("[2] images", "b"))):
                display.begin(title)
                display.end(title, Done(title, True, 1.0, notes))
    said = ["Note: [2] images", "Note: a", "Note: b"]
    assert [line for line in log.read_text().splitlines() if line.startswith("Note")] == said
