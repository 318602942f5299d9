"""Parts one after the other, each under its own budget, and none of them the end of the others.

A process runs them and writes rows as they come. A part that raises ends alone. One that takes too long, or leaves the
device unusable, ends its process, and another goes on with the parts that are left.
"""

import json
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import typer

from ..printing import Row, line
from ..rows import write_rows
from .bench import Bench
from .parts import PARTS, measure

OVERDUE = 124
"""Exit status of a process that ended because a part took too long."""
_LEAST = 15.0


def rows_file(out: Path, dtype: str, quick: bool) -> Path:
    """Where rows go: those of a number type, and those that mean nothing, have files of their own."""
    return out / f"gpu_{'quick' if quick else dtype}.jsonl"


def read_rows(path: Path) -> list[Row]:
    """Rows of the latest run of each part, in the order they were written."""
    rows = [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []
    latest = {row["part"]: row["run"] for row in rows}
    return [row for row in rows if latest[row["part"]] == row["run"]]


def ends(rows: Iterable[Row]) -> dict[str, Row]:
    """How each part ended, by its name; one that only began is not there."""
    return {str(row["part"]): row for row in rows if row["measure"] == "part" and row["status"] != "begun"}


def done(path: Path) -> set[str]:
    """Parts that came to their end."""
    return {name for name, row in ends(read_rows(path)).items() if row["status"] == "done"}


class Recorder:
    """Writes the rows of one run of a part, and prints them. run: when it began, which tells it from other runs."""

    def __init__(self, path: Path, part: str, run: float | None = None) -> None:
        self.path = path
        self.run = time.time() if run is None else run
        self.common: Row = {"part": part, "run": self.run}

    def write(self, row: Row) -> None:
        """Write and print one row."""
        full = {**self.common, **row}
        write_rows(self.path, [full])
        typer.echo(line({name: value for name, value in full.items() if name not in ("run", "trace")}))
        sys.stdout.flush()

    def end(self, status: str, **more: object) -> None:
        """Say that the part begins, or how it ended and after how long."""
        self.write({"measure": "part", "status": status, "seconds": round(time.time() - self.run, 1), **more})


def run_part(bench: Bench, name: str, path: Path) -> bool:
    """Run a part; return whether the device can still be used.

    The process ends where it takes more than the bench's seconds: what hangs cannot be told to stop.
    """
    recorder = Recorder(path, name)
    recorder.end("begun")
    overdue = threading.Timer(min(bench.seconds, threading.TIMEOUT_MAX), _give_up, (recorder,))
    overdue.daemon = True
    overdue.start()
    try:
        for row in measure(name, bench):
            recorder.write(row)
        bench.synchronize()
    except Exception as error:
        trace = "".join(traceback.format_exception(error))
        typer.echo(trace, err=True)
        recorder.end("failed", why=f"{type(error).__name__}: {error}"[:2000], trace=trace[-3000:])
    else:
        recorder.end("done")
    finally:
        overdue.cancel()
    return _usable(bench)


def _give_up(recorder: Recorder) -> None:
    recorder.end("overdue", why="it took longer than its budget")
    os._exit(OVERDUE)


def _usable(bench: Bench) -> bool:
    try:
        bench.tidy()
        bench.synchronize()
    except RuntimeError:
        return False
    return True


def run_parts(bench: Bench, names: Sequence[str], path: Path, seconds: float) -> None:
    """Run parts in this process, within `seconds`, as long as the device can be used."""
    began = time.monotonic()
    for name in names:
        left = seconds - (time.monotonic() - began)
        if left < _LEAST:
            return
        budget = left if bench.quick else min(PARTS[name].seconds, left)
        if not run_part(replace(bench, seconds=budget, began=time.monotonic()), name, path):
            return


def supervise(names: Sequence[str], path: Path, seconds: float, options: Sequence[str]) -> None:
    """Run parts in processes of their own: one, and another after each that ended before its parts did."""
    began, left = time.time(), list(names)
    while left:
        remaining = seconds - (time.time() - began)
        if remaining < _LEAST:
            return
        only = [argument for name in left for argument in ("--only", name)]
        command = [sys.executable, "-m", __package__, "--here", "--again", *only, *options]
        status = subprocess.run([*command, "--minutes", f"{remaining / 60:.3f}"], check=False).returncode
        after = _left(left, path, began, status)
        if after == left:
            return
        left = after


def _left(names: Sequence[str], path: Path, since: float, status: int) -> list[str]:
    """Parts that were not begun since then; of one that was begun and did not end it is written that it died."""
    rows = [row for row in read_rows(path) if float(str(row["run"])) >= since]
    ended, begun = ends(rows), {str(row["part"]): float(str(row["run"])) for row in rows}
    for name in begun.keys() - ended.keys():
        Recorder(path, name, begun[name]).end("died", why=f"its process ended with status {status}")
    return [name for name in names if name not in begun]
