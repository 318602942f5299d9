"""A long run under random traffic that must not grow: `python -m twig.benchmarks.soak`.

Requests of every kind (mixed steps and guidance, several images, retries, gates, sources, deadlines, cancellations)
arrive at random at the rate that keeps the engine busy. At the end no slot may be held, no job left and no tensor that
belonged to one, and the process's memory may not have grown by more than a limit since it settled.

Memory is resident memory once the C library has given back its free pages. What it keeps of them for the next
allocation grows and shrinks with the order in which buffers came and went, and says nothing of a leak; a block that is
held cannot be given back. Resident memory as it was before is told beside it.
"""

import ctypes
import gc
import itertools
import os
import resource
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image

from ..engine.api.choices import Precision
from ..engine.api.request import Gate, GenerationRequest, SimilarityPolicy
from ..engine.batching.carried import Shared
from ..engine.batching.job import Job
from ..engine.batching.scheduler import ContinuousPolicy, Limits
from ..engine.engine import Engine
from .options import DeviceOption, DtypeOption, ModelOption, OutOption, RowsOption, SlotsOption, ThreadsOption, set_up
from .printing import Row, line
from .rows import write_rows
from .workloads import mixed

_EARLY, _LATE = (0.3, 0.5), (0.8, 1.0)
"""Shares of the run whose memory is compared: before, allocator pools and kernel caches still find their size."""
_TENSORS = 100
"""Tensors more than before that are let pass: tables of solvers and shapes met on the way."""
_SAMPLES = 40
_BACKLOG = 4
"""Requests that wait for a slot, on average."""


class Leak(RuntimeError):  # noqa: N818
    """The engine kept something that it should have let go."""


@dataclass
class Tally:
    """What happened: images by verdict, cancellations, and (seconds, bytes) over the run.

    memory: resident without the free pages that could be given back; untrimmed: bytes with them.
    """

    verdicts: Counter[str] = field(default_factory=Counter)
    cancelled: int = 0
    submitted: int = 0
    memory: list[tuple[float, int]] = field(default_factory=list)
    untrimmed: list[int] = field(default_factory=list)
    new_tensors: int = 0

    def sample(self, seconds: float) -> None:
        """Note how much memory there is, `seconds` after the start."""
        self.untrimmed.append(resident_bytes())
        trim()
        self.memory.append((seconds, resident_bytes()))

    @property
    def growth(self) -> int:
        """Bytes from the early part of the run to the late one, medians of either."""
        end = self.memory[-1][0]
        early, late = (
            [size for at, size in self.memory if start * end <= at <= stop * end] for start, stop in (_EARLY, _LATE)
        )
        return int(np.median(late) - np.median(early)) if early else 0


def main(
    minutes: Annotated[float, typer.Option(min=0.01, help="How long requests go on arriving.")] = 10,
    allowed: Annotated[float, typer.Option(min=0, help="Growth of memory that is let pass, MiB.")] = 32,
    model: ModelOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = Precision.FLOAT32,
    threads: ThreadsOption = 1,
    slots: SlotsOption = Limits.slots,
    rows: RowsOption = Limits.rows,
    out: OutOption = Path("out/benchmarks"),
) -> None:
    """Soak, print and write a row to OUT/soak.jsonl; exit with an error where something grew."""
    setup = set_up(model, device, dtype, threads, None, slots, rows)
    engine = setup.models.engine(ContinuousPolicy(), setup.limits)
    fill_text_cache(engine)
    tally = soak(engine, 60 * minutes)
    for row in write_rows(out / "soak.jsonl", [soak_row(engine, tally) | setup.describe()]):
        print(line(row))
    check(engine, tally, int(allowed * 2**20))


def fill_text_cache(engine: Engine, prompts: int = 512) -> None:
    """Encode more prompts than the engine keeps, so that the growth of that cache is over before memory counts."""
    requests = [GenerationRequest(prompt=f"a red star and {i}") for i in range(prompts)]
    for first in range(0, prompts, engine.limits.boundary):
        batch = requests[first : first + engine.limits.boundary]
        engine.stages.encoding.encode([Job(i, i, request, (0, 0), 0.0, Shared()) for i, request in enumerate(batch)])


def soak(engine: Engine, seconds: float, seed: int = 0) -> Tally:
    """Keep `engine` busy for `seconds`, then drain it."""
    tally, rng = Tally(), np.random.default_rng(seed)
    requests = traffic(engine, rng)
    live: deque[int] = deque(maxlen=64)
    _settle(engine, requests)
    before = live_tensors()
    began = time.monotonic()
    while (elapsed := time.monotonic() - began) < seconds:
        while engine.stats().waiting < rng.poisson(_BACKLOG):
            live.append(engine.submit(next(requests)))
            tally.submitted += 1
        if rng.random() < 0.01:
            engine.cancel(live[rng.integers(len(live))])
            tally.cancelled += 1
        _count(tally, engine)
        if elapsed >= len(tally.memory) * seconds / _SAMPLES:
            tally.sample(elapsed)
    while engine.pending:
        _count(tally, engine)
    tally.sample(time.monotonic() - began)
    tally.new_tensors = live_tensors() - before
    return tally


def _settle(engine: Engine, requests: Iterator[GenerationRequest], count: int = 12) -> None:
    """Draw requests of all sizes of batches, so that views of buffers and sinusoids are there before tensors count."""
    for request in itertools.islice(requests, count):
        engine.submit(request)
    while engine.pending:
        engine.step()


def traffic(engine: Engine, rng: np.random.Generator) -> Iterator[GenerationRequest]:
    """Requests without end, of every kind that the engine serves."""
    height, width = engine.components.size
    round = 0
    while True:
        round += 1
        similarity = SimilarityPolicy(limits={"ssim": float(rng.uniform(0.2, 1.0))}, retries=int(rng.integers(0, 3)))
        for request in mixed(16, similarity, (2, 12), seed=round):
            changes: dict[str, object] = {"priority": int(rng.integers(0, 3))}
            if rng.random() < 0.2:
                changes["num_images"] = int(rng.integers(2, 4))
            if rng.random() < 0.2:
                noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
                changes["source"] = Image.fromarray(noise)
            if rng.random() < 0.2:
                changes["gate"] = Gate(limits={"agreement": float(rng.uniform(0.0, 1.0))})
            if rng.random() < 0.05:
                changes["timeout"] = float(rng.exponential(1.0)) + 1e-3
            yield request.model_copy(update=changes)


def _count(tally: Tally, engine: Engine) -> None:
    for event in engine.step():
        if event.result is not None:
            tally.verdicts[event.result.verdict.value] += 1


def live_tensors() -> int:
    """Tensors that something in this process still holds."""
    gc.collect()
    # type() and not isinstance(), which would wake lazy proxies among all those objects.
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def trim() -> None:
    """Let the C library give its free pages back to the system, where it can (glibc)."""
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if give_back is not None:
        give_back(0)


def resident_bytes() -> int:
    """Memory of this process that is in use now."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def soak_row(engine: Engine, tally: Tally) -> Row:
    """Columns of the run."""
    stats = engine.stats()
    return {
        "measure": "soak",
        "seconds": tally.memory[-1][0],
        "requests": tally.submitted,
        "verdicts": dict(tally.verdicts),
        "steps": stats.steps,
        "rows": stats.rows,
        "occupancy": stats.occupancy,
        "memory_growth": tally.growth,
        "new_tensors": tally.new_tensors,
        "memory": [size for _, size in tally.memory],
        "memory_untrimmed": tally.untrimmed,
        "free_slots": engine.scheduler.free_slots,
    }


def check(engine: Engine, tally: Tally, allowed: int) -> None:
    """Raise Leak where slots, jobs, tensors or memory were kept, or a request failed."""
    kept = engine.limits.slots - engine.scheduler.free_slots
    if kept or engine.pending:
        raise Leak(f"{kept} slots and {engine.pending} jobs are held though every request is finished")
    if tally.new_tensors > _TENSORS:
        raise Leak(f"{tally.new_tensors} tensors more than before are held, {_TENSORS} are let pass")
    if tally.growth > allowed:
        raise Leak(f"memory grew by {tally.growth / 2**20:.1f} MiB, {allowed / 2**20:.1f} are let pass")
    if tally.verdicts["failed"]:
        raise Leak(f"{tally.verdicts['failed']} requests failed")


if __name__ == "__main__":
    typer.run(main)
