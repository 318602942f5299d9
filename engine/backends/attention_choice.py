"""Which of PyTorch's kernels computes plain attention: for each level of a network the one that was fastest there.

PyTorch's own order of preference knows the device and not the shape: heads of 40 channels cost FlashAttention-2 what
heads of 64 do, and which kernel wins at 4096 pixels need not win at 64. Levels are told apart by all but their rows, so
that company changes no kernel; whoever measures first does so on the largest batch.
"""

import statistics
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Level = tuple[object, ...]
Call = Callable[[], object]

CANDIDATES = (
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
)
_RUNS = 5


class AttentionChoice:
    """Attention by the kernels that were measured. fastest: by device, dtype, heads, pixels, tokens and head size."""

    def __init__(self, milliseconds: Callable[[Call], float]) -> None:
        self.fastest: dict[Level, SDPBackend] = {}
        self._milliseconds = milliseconds
        self._measuring = False

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(B, H, N, d), (B, H, T, d) twice -> (B, H, N, d); by PyTorch's own choice where nothing was measured."""
        if torch.compiler.is_compiling():
            return F.scaled_dot_product_attention(query, key, value)
        level = query.device, query.dtype, *query.shape[1:3], *key.shape[2:]
        if self._measuring and level not in self.fastest:
            self._measure(level, query, key, value)
        if level not in self.fastest:
            return F.scaled_dot_product_attention(query, key, value)
        return _attend(self.fastest[level], query, key, value)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Measure every level that comes by for the first time; what is captured meanwhile must have run before."""
        self._measuring = True
        try:
            yield
        finally:
            self._measuring = False

    def _measure(self, level: Level, query: Tensor, key: Tensor, value: Tensor) -> None:
        times: dict[SDPBackend, float] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they say at length why a kernel does not run here
            for backend in CANDIDATES:
                with suppress(RuntimeError):  # PyTorch's word for it
                    times[backend] = self._milliseconds(partial(_attend, backend, query, key, value))
        if times:
            self.fastest[level] = min(times, key=lambda backend: times[backend])


def _attend(backend: SDPBackend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(query, key, value)


def cuda_milliseconds(call: Call) -> float:
    """Median time of a call on the current CUDA stream, by events."""
    call()
    times = []
    for _ in range(_RUNS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


attend = AttentionChoice(cuda_milliseconds)
"""The process's choice: what was measured on a device holds for every engine there."""
