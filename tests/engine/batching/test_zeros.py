"""Zeros of an arena: as any others, but for the memory that they take."""

from pathlib import Path

import pytest
import torch

from twig.engine.batching.zeros import zeros

STATUS = Path("/proc/self/statm")
CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [2, 64])
def test_they_are_zeros_in_the_order_that_was_asked_for(size):
    found = zeros(3, 5, size, size, dtype=torch.float32, device=CPU, order=torch.channels_last)
    assert found.shape == (3, 5, size, size)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert not found.any()
    found[1] = 1
    assert found.sum() == 5 * size * size


@pytest.mark.skipif(not STATUS.exists(), reason="Linux tells what is resident")
def test_what_was_never_written_takes_no_memory():
    before = int(STATUS.read_text().split()[1])
    kept = zeros(1 << 26, dtype=torch.uint8, device=CPU)
    kept[:10] = 1
    assert int(STATUS.read_text().split()[1]) - before < (1 << 26) // 4096 // 2
    assert kept[-1] == 0
