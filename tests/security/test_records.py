"""Records under attack: a kill at any line of a save, and whatever the command line is given to trip over."""

import hashlib
import multiprocessing
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from twig.engine.api import writing
from twig.engine.api.result import Verdict
from twig.engine.records import stores
from twig.engine.records.audit import AuditLog
from twig.engine.records.manifest import Manifest
from twig.engine.records.output import OutputFolder
from twig.engine.records.stores import Query

KILLS = 40
RECORDS = Path(stores.__file__).parent
WATCHED = {writing.__file__, *(str(RECORDS / f"{name}.py") for name in ("audit", "stores", "sql", "output"))}
"""Files whose lines are counted: all that write."""


class Countdown:
    """Kills its own process at the `limit`-th line of the watched files; counts them all without a limit."""

    def __init__(self, limit=None):
        self.limit, self.lines = limit, 0

    def __call__(self, frame, event, _argument):
        if frame.f_code.co_filename not in WATCHED:
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self.limit:
                os.kill(os.getpid(), signal.SIGKILL)
        return self


def save(folder, results, countdown):
    """Save results while the countdown runs."""
    folder.prepare()
    sys.settrace(countdown)
    try:
        for result in results:
            folder.save(result)
    finally:
        sys.settrace(None)


def problems(folder):
    """Pictures without a record, lines whose manifest is not that, and what is wrong with the chain."""
    try:
        records = list(folder.log.search(Query()))
    except FileNotFoundError:
        records = []
    found = [str(finding) for finding in folder.log.verify().findings] if records else []
    named = set()
    for record in records:
        path = folder.path / record.manifest
        if hashlib.sha256(path.read_bytes()).hexdigest() != record.manifest_sha256:
            found.append(f"{record.manifest} is not what line {record.number} names")
        named.add(Manifest.load(path).image)
    shown = [path.name for path in folder.path.glob("*.png") if not path.stem.endswith(("-explain", "-sheet"))]
    return found + [f"{name} has no record" for name in shown if name not in named]


@pytest.fixture(params=["jsonl", "sqlite"])
def folder(request, tmp_path, model):
    if request.param == "sqlite":
        pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed")
    place = {"jsonl": tmp_path / "out/audit.jsonl", "sqlite": f"sqlite:///{tmp_path}/out/audit.db"}[request.param]
    return OutputFolder(tmp_path / "out", model, AuditLog(place, root=tmp_path / "out"))


def test_forty_kills_leave_no_picture_without_its_record_and_nothing_half_written(
    folder, make_result, explanation, tmp_path
):
    """Each run begins where a killed one left the folder, and dies some lines later than the one before."""
    kinds = [
        {"explanation": explanation},
        {"verdict": Verdict.REFUSED},
        {"verdict": Verdict.FAILED, "image": None, "error": "NaN"},
    ]

    def results(number):
        base = make_result(**kinds[number % len(kinds)])
        seeds = (number // 2, number)  # the first is often of a run that was killed before
        return [replace(base, request=base.request.model_copy(update={"seed": seed})) for seed in seeds]

    counted = Countdown()
    elsewhere = AuditLog(str(folder.log.path).replace("/out/", "/elsewhere/"), root=tmp_path / "elsewhere")
    save(replace(folder, path=tmp_path / "elsewhere", log=elsewhere), results(0), counted)
    killed, found = 0, []
    for number in range(KILLS):
        limit = 1 + number * counted.lines // KILLS
        process = multiprocessing.get_context("fork").Process(
            target=save, args=(folder, results(number), Countdown(limit))
        )
        process.start()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        found += problems(folder)
    assert killed >= KILLS * 3 // 4, "the rest had less to do than the first and ended before"
    assert found == []
    for number in range(KILLS):
        save(folder, results(number), None)
    assert problems(folder) == []
    assert not [path.name for path in folder.path.iterdir() if path.name.startswith(".")]
    wanted = {(number % 3, seed) for number in range(KILLS) if number % 3 < 2 for seed in (number // 2, number)}
    assert len([path for path in folder.path.glob("*.png") if not path.stem.endswith("-explain")]) == len(wanted)
