"""CUDA graphs over static buffers: captured at start, within a memory budget, replayed ever after."""

import logging
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch

from .faults import device_failed, memory_ran_out

_log = logging.getLogger(__name__)
_WARMUP_RUNS = 2


@dataclass
class GraphStats:
    """captured: graphs held. hits, misses: runs that replayed one, and runs that did not. seconds: spent capturing.

    dropped: keys, in words, of what there was no room for.
    """

    captured: int = 0
    hits: int = 0
    misses: int = 0
    seconds: float = 0.0
    dropped: list[str] = field(default_factory=list)


class GraphPool:
    """Callables by key: replayed where they were captured, called where not.

    `reserve` bytes of device memory stay free for what runs beside the graphs (decoder, segmenter); a graph that
    would eat into them is dropped, and its key runs eagerly, as is one that there is no memory to capture. Off a CUDA
    device nothing is captured; with `rehearse`, what would be is run once, so that what compiles on its first run has
    done so.
    """

    def __init__(self, device: torch.device, *, reserve: int = 0, rehearse: bool = False) -> None:
        self.device = device
        self.reserve = reserve
        self.rehearse = rehearse
        self.stats = GraphStats()
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._pool: Any = None
        # One for all of them: memory that graphs share is shared on one stream.
        self._stream = torch.cuda.Stream(device) if self.enabled else None

    @property
    def enabled(self) -> bool:
        """Whether graphs can be captured here."""
        return self.device.type == "cuda"

    def memory(self) -> dict[str, int]:
        """Bytes allocated and reserved on the device; nothing where there is none."""
        if not self.enabled:
            return {}
        return {
            "allocated": torch.cuda.memory_allocated(self.device),
            "reserved": torch.cuda.memory_reserved(self.device),
        }

    def capture(self, key: Hashable, body: Callable[[], None]) -> bool:
        """Capture `body`, which must read and write static buffers only. Return whether it was kept.

        Capture the largest batch first: later graphs then live in the memory pool of the first.
        """
        if not self.enabled:
            if self.rehearse:
                body()
            return False
        if self._free() < self.reserve:
            return self._drop(key, f"fewer than {self.reserve} bytes are free")
        began = time.perf_counter()
        try:
            graph = self._captured(body)
        except RuntimeError as error:
            if device_failed(error) or not memory_ran_out(error):
                raise
            graph = None
        # Only now is the traceback gone, and with it what had been allocated before memory ran out.
        if graph is None:
            return self._drop(key, "there is no memory to capture it")
        if self._free() < self.reserve:
            del graph
            return self._drop(key, f"it would leave fewer than {self.reserve} bytes free")
        self._pool = self._pool or graph.pool()
        self._graphs[key] = graph
        self.stats.captured += 1
        self.stats.seconds += time.perf_counter() - began
        return True

    def _captured(self, body: Callable[[], None]) -> torch.cuda.CUDAGraph:
        assert self._stream is not None
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        # The block puts the caller's stream back even where the end of a capture raises.
        with torch.cuda.stream(self._stream):
            for _ in range(_WARMUP_RUNS):
                body()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                body()
        torch.cuda.current_stream(self.device).wait_stream(self._stream)
        return graph

    def need(self, body: Callable[[], object]) -> int:
        """Bytes of device memory that `body` takes at its most beside what is taken already; 0 off a CUDA device."""
        if not self.enabled:
            return 0
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        body()
        return torch.cuda.max_memory_reserved(self.device) - before

    def run(self, key: Hashable, body: Callable[[], None]) -> None:
        """Replay the graph of `key`, or call `body`."""
        graph = self._graphs.get(key)
        if graph is None:
            self.stats.misses += 1
            body()
        else:
            self.stats.hits += 1
            graph.replay()

    def forget(self, key: Hashable) -> None:
        """Let the graph of `key` go, if there is one: its buffers are about to."""
        if key in self._graphs:
            del self._graphs[key]
            self.stats.captured -= 1
            if not self._graphs:
                self._pool = None  # it went with the last of them

    def _free(self) -> int:
        torch.cuda.empty_cache()  # what the allocator keeps for later is free too
        return torch.cuda.mem_get_info(self.device)[0]

    def _drop(self, key: Hashable, reason: str) -> bool:
        if not self.stats.dropped:
            _log.warning("graph %s is not kept and runs eagerly, as others may: %s", key, reason)
        self.stats.dropped.append(str(key))
        return False
