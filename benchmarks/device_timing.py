"""Times of calls on a CUDA device, and how fast it copies."""

from collections.abc import Callable, Mapping

import torch

from .rows import percentiles

Call = Callable[[], torch.Tensor]


def time_calls(
    calls: Mapping[str, Callable[[], object]], rounds: int = 60, warm: int = 10
) -> dict[str, dict[str, float]]:
    """Microseconds of each call by CUDA events, the cache cleared before each, contenders in turn."""
    flush = torch.empty(256 << 20, dtype=torch.int8, device="cuda")
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(warm + rounds):
        for name, call in calls.items():
            flush.zero_()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            end.record()
            end.synchronize()
            if i >= warm:
                times[name].append(1000 * start.elapsed_time(end))
    return {name: percentiles(values) for name, values in times.items()}


def copy_bandwidth() -> float:
    """Bytes a second of a large device copy, reads and writes counted."""
    source = torch.empty(1 << 30, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    return 2e6 * source.numel() / time_calls({"copy": lambda: target.copy_(source)}, 20)["copy"]["p50"]
