"""Row counts that calls are padded to."""

from collections.abc import Sequence

ROW_BUCKETS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Row counts that batches are padded to where a graph is captured or a network compiled for each."""


def buckets_up_to(rows: int, prepared: bool) -> list[int]:
    """Row counts to pad to, the last of them `rows`.

    Every one where nothing is `prepared` by their number, for padding saves nothing there and each row costs.
    """
    counts = ROW_BUCKETS if prepared else range(1, rows)
    return [count for count in counts if count < rows] + [rows]


def bucket_of(size: int, buckets: Sequence[int]) -> int:
    """Smallest bucket that holds `size`."""
    return next(b for b in buckets if b >= size)
