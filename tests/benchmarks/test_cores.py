"""One program on all cores, or one on each."""

import os

import pytest

from twig.benchmarks.cores import Worker, arrangement_rows


def test_both_arrangements_draw_all_pictures(tiny_checkpoint):
    core = min(os.sched_getaffinity(0))
    rows = list(arrangement_rows("torch", str(tiny_checkpoint), [1, 3], steps=2, rounds=1, cores=[core]))
    assert [(row["arrangement"], row["pictures"]) for row in rows] == [
        ("one on all", 1), ("one on each", 1), ("one on all", 3), ("one on each", 3),
    ]  # fmt: skip
    assert all(row["seconds"] > 0 and row["cores_used"] == 1 for row in rows)
    assert [row["speed"] for row in rows[::2]] == [1, 1]


def test_a_process_that_cannot_draw_is_told(tmp_path, capfd):
    with (
        Worker("torch", str(tmp_path), 2, sorted(os.sched_getaffinity(0))[:1]) as worker,
        pytest.raises(RuntimeError, match="ended with status 1"),
    ):
        worker.wait()
