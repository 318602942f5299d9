"""The race of runtimes: the folder that all read, contenders over pipes, and who is not timed."""

import json
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from twig.benchmarks.peers import __main__ as command
from twig.benchmarks.peers import ours, race, theirs
from twig.benchmarks.peers.folders import write_folder
from twig.benchmarks.peers.ours import PLAIN
from twig.benchmarks.peers.processes import Process, asked

ANSWER = """
import sys, numpy as np
sys.path.insert(0, {folder!r})
import theirs
def make():
    print("loading, which nobody may take for an answer")
    return lambda asked: np.full((len(asked.latents), 64, 64, 3), {level}, np.uint8)
theirs.answer(make)
"""


class Scripted:
    """A contender that draws pictures of one level of grey."""

    conversion = None

    def __init__(self, level):
        folder = theirs.__file__.rsplit("/", 1)[0]
        self.script = ANSWER.format(folder=folder, level=level)

    def command(self, job, out, cache):
        return [sys.executable, "-c", self.script]

    def versions(self, out):
        return {}


@pytest.fixture
def track(tmp_path, monkeypatch):
    racers = {"first": Scripted(100), "same": Scripted(100), "other": Scripted(250)}
    monkeypatch.setattr(race, "CONTESTANTS", {PLAIN: racers})
    monkeypatch.setattr(race, "OURS", "same")
    return race.Track(tmp_path, race.Plan({2: 1}, starts=1, steps=1))


def test_a_contender_that_draws_something_else_is_named_and_not_timed(track):
    rows = {row["contender"]: row for row in race.race(track, PLAIN, 2, ["first", "same", "other"])}
    assert rows["other"]["cpu_seconds"] is None
    assert rows["other"]["largest_difference"] == 150
    assert rows["first"]["cpu_seconds"]["p50"] > 0
    assert rows["first"]["over_ours"] > 0
    assert rows["same"]["peak_mib"] > 1


def test_rows_that_are_there_are_not_measured_again(track):
    rows = list(race.measure(track, [], ["same"]))
    assert [row["measure"] for row in rows] == ["cannot"] * 3 + ["race"] * 2 + ["first picture"]
    assert not list(race.measure(track, rows, ["same"]))


def test_a_contender_that_dies_says_why(tmp_path):
    broken = [sys.executable, "-c", "raise SystemExit('no such model')"]
    with Process(broken, tmp_path / "log") as process, pytest.raises(RuntimeError, match="no such model"):
        process.draw(asked("a red star", [1], 1, 5.0, 16))


def test_unknown_contenders_are_refused_before_anything_is_installed(tmp_path):
    ran = CliRunner().invoke(command.app, ["--only", "nobody", "--out", str(tmp_path / "out")])
    assert ran.exit_code == 2
    assert "openvino-genai" in ran.output
    assert not (tmp_path / "out").exists()


def test_twig_and_diffusers_draw_the_same_of_the_folder_that_every_peer_reads(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    folder = write_folder(tmp_path / "model")
    assert json.loads((folder / "model_index.json").read_text())["vae"] == ["diffusers", "AutoencoderKL"]
    wanted = asked("a red star on a green field", [3, 4], 4, 5.0, 16)
    drawn = [
        make(wanted)
        for make in (
            theirs.diffusers_pipeline(str(folder), str(tmp_path)),
            ours.drawer("torch", PLAIN, str(folder), str(tmp_path)),
        )
    ]
    assert drawn[0].shape == (2, 64, 64, 3)
    assert np.abs(drawn[0].astype(int) - drawn[1]).max() <= 2
    assert drawn[0].std() > 20  # or there would be nothing to compare
