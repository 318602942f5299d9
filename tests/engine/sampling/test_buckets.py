"""Row counts that calls are padded to and run in."""

import pytest

from twig.engine.sampling.buckets import ROW_BUCKETS, buckets_up_to, most_useful_first, split_over


@pytest.mark.parametrize(
    ("rows", "counts", "calls"),
    [
        (6, (1, 2, 4, 8), [4, 2]),
        (7, (1, 2, 4, 8), [8]),
        (16, (2,), [2] * 8),
        (5, (2, 16), [2, 2, 2]),
        (1, (8,), [8]),
        (13, (8, 4), [8, 8]),
    ],
)
def test_rows_are_run_in_what_takes_least_time(rows, counts, calls):
    assert split_over(rows, counts) == calls


@pytest.mark.parametrize("rows", range(1, 40))
def test_only_the_last_call_is_padded(rows):
    calls = split_over(rows, (2, 6, 16))
    assert sum(calls[:-1]) < rows <= sum(calls)


def test_few_buckets_soon_serve_calls_of_all_sizes():
    order = most_useful_first(buckets_up_to(16, prepared=True), 2)
    assert sorted(order) == [1, 2, 4, 6, 8, 12, 16]
    assert order[:2] == [2, 6]

    def stretch(counts):
        return max(sum(calls) + len(calls) for rows in range(1, 17) if (calls := split_over(rows, counts))) / 17

    assert stretch(order[:4]) <= 1.2
    assert set(order) <= set(ROW_BUCKETS)
