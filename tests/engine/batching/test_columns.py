"""Columns of a step: padded where they are read, together in one copy, each where it was when a graph was captured."""

import pytest
import torch

from twig.engine.batching.columns import Column, Columns

WHAT = {
    "slots": Column(("rows",), torch.int64, -1),
    "rows": Column(("rows", 2), torch.int64),
    "weights": Column(("rows", "layers"), torch.float32),
    "chosen": Column(("chosen",), torch.int64, "chosen"),
}
GIVEN = {"slots": [5, 3], "rows": [(0, 1), (2, 3)], "weights": [[0.5, 0.25, 1.0], [2.0, 3.0, 4.0]], "chosen": []}


@pytest.fixture
def columns():
    return Columns(WHAT, {"rows": 6, "chosen": 6, "layers": 3}, torch.device("cpu"))


def test_values_are_padded_up_to_the_count_of_what_they_are_of(columns):
    columns.write(GIVEN, {"rows": 3, "chosen": 2})
    read = {name: view[: 2 if name == "chosen" else 3].tolist() for name, view in columns.views.items()}
    assert read == {
        "slots": [5, 3, -1],
        "rows": [[0, 1], [2, 3], [0, 0]],
        "weights": [[0.5, 0.25, 1.0], [2.0, 3.0, 4.0], [0.0, 0.0, 0.0]],
        "chosen": [6, 6],
    }


def test_what_changed_is_written_and_what_did_not_stays(columns):
    columns.write(GIVEN, {"rows": 3, "chosen": 2})
    columns.write({**GIVEN, "slots": [5, 4]}, {"rows": 2, "chosen": 2})
    assert columns.views["slots"][:3].tolist() == [5, 4, -1]
    columns.write({**GIVEN, "slots": [5], "weights": []}, {"rows": 4, "chosen": 2})
    assert columns.views["slots"][:4].tolist() == columns.read("slots", 4) == [5, -1, -1, -1]
    assert columns.views["weights"][:4].tolist() == [[0.0] * 3] * 4
    assert columns.views["rows"][:4].tolist() == [[0, 1], [2, 3], [0, 0], [0, 0]]


def test_what_nobody_wrote_goes_unnoticed_nowhere(columns):
    columns.poison()
    for _ in range(4):  # more than there are pieces to send from
        columns.write(GIVEN, {"rows": 3, "chosen": 2})
        assert columns.views["weights"][3:].isnan().all()
        assert (columns.views["slots"][3:] == 2**40).all()
        assert columns.views["slots"][:3].tolist() == [5, 3, -1]


def test_a_column_stays_where_it_is_aligned_as_memory_of_its_own(columns):
    where = {name: view.data_ptr() for name, view in columns.views.items()}
    first = where["slots"]
    columns.write(GIVEN, {"rows": 6, "chosen": 6})
    assert {name: view.data_ptr() for name, view in columns.views.items()} == where
    assert all((address - first) % 256 == 0 for address in where.values())


def test_a_block_can_be_measured_without_memory():
    views = Columns(WHAT, {"rows": 6, "chosen": 6, "layers": 3}, torch.device("meta")).views
    assert sum(view.nbytes for view in views.values()) == 8 * (6 + 12 + 6) + 4 * 18
