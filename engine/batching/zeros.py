"""Zeros that cost what is written of them: a loop has room for more rows and slots than most runs ever use."""

import math
import mmap

import torch
from torch import Tensor

_LEAST = 1 << 16
"""Bytes from which on memory comes page by page."""


def zeros(
    *shape: int,
    dtype: torch.dtype,
    device: torch.device,
    order: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """Zeros in a memory order; on a processor a page is taken only when something is first written there."""
    if order is torch.channels_last:
        count, channels, height, width = shape
        return zeros(count, height, width, channels, dtype=dtype, device=device).permute(0, 3, 1, 2)
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < _LEAST:
        return torch.zeros(*shape, dtype=dtype, device=device)
    return torch.frombuffer(mmap.mmap(-1, size), dtype=dtype).view(shape)
