"""What every part runs on: a device, a number type, a budget, and how something is timed there."""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ..rows import percentiles


@dataclass(frozen=True)
class Bench:
    """Where and how much is measured.

    dtype: of the networks that are timed. quick: tiny networks and few rounds, so that every part runs on a CPU in
    seconds; what it says of speed means nothing then. seconds: what the part may take, from when this was made.
    """

    device: torch.device
    dtype: torch.dtype
    quick: bool = False
    seconds: float = float("inf")
    began: float = field(default_factory=time.monotonic)

    @property
    def cuda(self) -> bool:
        """Whether there is a GPU."""
        return self.device.type == "cuda"

    @property
    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self.seconds - (time.monotonic() - self.began)

    def pick(self, full: int, quick: int) -> int:
        """Return `full`, or `quick` where little is measured."""
        return quick if self.quick else full

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def timed(self, call: Callable[[], object], rounds: int = 20, warm: int = 3) -> dict[str, float]:
        """Seconds of a call, percentiles by name: from events on the device, or the process's time on a CPU."""
        for _ in range(warm):
            call()
        return percentiles(self._on_device(call, rounds) if self.cuda else _on_cpu(call, rounds))

    def _on_device(self, call: Callable[[], object], rounds: int) -> list[float]:
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(rounds)]
        for start, end in events:
            start.record()
            call()
            end.record()
        self.synchronize()
        return [start.elapsed_time(end) / 1000 for start, end in events]

    def elapsed(self, call: Callable[[], object]) -> float:
        """Seconds by the wall until a call's work is done on the device; on a CPU the process's time."""
        self.synchronize()
        clock = time.perf_counter if self.cuda else time.process_time
        began = clock()
        call()
        self.synchronize()
        return clock() - began

    def tidy(self) -> None:
        """Give back the memory that nothing holds any more."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    def allocated(self) -> int:
        """Bytes that tensors hold on the device, 0 on a CPU."""
        return torch.cuda.memory_allocated(self.device) if self.cuda else 0


def _on_cpu(call: Callable[[], object], rounds: int) -> list[float]:
    seconds = []
    for _ in range(rounds):
        began = time.process_time()
        call()
        seconds.append(time.process_time() - began)
    return seconds


def named(dtype: torch.dtype) -> str:
    """A number type's name."""
    return str(dtype).removeprefix("torch.")
