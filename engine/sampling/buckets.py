"""Row counts that calls are padded to, and those that a call is run in where its own is not there."""

from collections.abc import Collection, Sequence

ROW_BUCKETS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Row counts that batches are padded to where a graph is captured or a network compiled for each."""

_CALL = 1.2
"""What a call takes beside its rows, in rows: 11 ms beside 9 a row, for the embedded UNet in OpenVINO."""


def buckets_up_to(rows: int, prepared: bool) -> list[int]:
    """Row counts to pad to, the last of them `rows`.

    Every one where nothing is `prepared` by their number, for padding saves nothing there and each row costs.
    """
    counts = ROW_BUCKETS if prepared else range(1, rows)
    return [count for count in counts if count < rows] + [rows]


def bucket_of(size: int, buckets: Sequence[int]) -> int:
    """Smallest bucket that holds `size`."""
    return next(b for b in buckets if b >= size)


def split_over(rows: int, counts: Collection[int]) -> list[int]:
    """Which of `counts` to run so many rows in, so that it takes least time: the last of them may be padded.

    Largest first; a count may come several times.
    """
    ways: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for left in range(1, rows + 1):
        options = ((ways[max(0, left - count)], count) for count in counts)
        ways.append(min((took + count + _CALL, (*way, count)) for (took, way), count in options))
    return sorted(ways[rows][1], reverse=True)


def most_useful_first(buckets: Sequence[int], first: int) -> list[int]:
    """Buckets, after `first` in an order in which calls of all sizes soon take nearly as long as in their own."""
    order = [first]
    while len(order) < len(buckets):
        order.append(min(set(buckets) - set(order), key=lambda more: _stretch([*order, more], buckets[-1])))
    return order


def _stretch(counts: Sequence[int], most: int) -> float:
    """How many times as long as in their own sizes calls of 1 to `most` rows take in `counts`, added up."""
    return sum(_time(split_over(rows, counts)) / _time([rows]) for rows in range(1, most + 1))


def _time(calls: Sequence[int]) -> float:
    return sum(calls) + _CALL * len(calls)
