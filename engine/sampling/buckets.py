"""Row counts that calls are padded to."""

from collections.abc import Sequence

ROW_BUCKETS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Row counts that batches are padded to where a graph is captured or a network compiled for each."""


def bucket_of(size: int, buckets: Sequence[int]) -> int:
    """Smallest bucket that holds `size`."""
    return next(b for b in buckets if b >= size)
