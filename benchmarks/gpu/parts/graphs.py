"""Every bucket's graph: captured, held to eager steps, interleaved with others, replayed a thousand times, unsynced."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from ....engine.batching.denoising import DenoisingLoop
from ....engine.batching.job import Job
from ....engine.engine import Engine
from ...printing import Row
from ..bench import Bench
from ..models import random_components
from ..stepping import ROWS_A_JOB, Stepper, engine
from .operators import checked

_ROWS = 16
_STEPS = 2
_LEAST = 1e-2
"""Root mean square difference of latents, relative to theirs, up to which fp16 steps count as the same."""


def measure(bench: Bench) -> Iterator[Row]:
    """Rows of each bucket, plain and controlled, then of graphs interleaved, replayed without end, and unsynced."""
    served = engine(bench, random_components(bench), bench.pick(_ROWS, 4))
    filled = [rows for rows in served.arenas.buckets if rows == 1 or rows % ROWS_A_JOB == 0]
    cases = [Case(bench, served, rows, controlled) for rows in filled for controlled in (False, True)]
    for case in cases:
        case.eager = case.run(_STEPS)
    served.warmup()
    stats = served.stats().graphs
    yield {"measure": "capture", **vars(stats), "ok": bench.cuda == bool(stats.captured) and not stats.dropped}
    for case in cases:
        yield checked(case.row, case.replayed)
    yield checked({"measure": "interleaved"}, lambda: interleaved(cases[-2], cases[1]))
    yield checked({"measure": "memory"}, lambda: replays(bench, cases[2]))
    yield checked({"measure": "no sync"}, lambda: unsynced(bench, cases[-1]))
    stats = served.stats().graphs
    yield {"measure": "replays", "hits": stats.hits, "misses": stats.misses, "captured": stats.captured}


class Case:
    """Jobs that fill a bucket, and where they start from."""

    def __init__(self, bench: Bench, served: Engine, rows: int, controlled: bool) -> None:
        self.bench, self.served = bench, served
        self.row: Row = {"measure": "replay", "rows": rows, "controlled": controlled}
        # A bucket of one row is filled by a job without guidance, others by guided ones.
        self.stepper = Stepper(served, "both" if controlled else None, 1.0 if rows == 1 else 7.5)
        self.jobs = self.stepper.jobs(max(1, rows // ROWS_A_JOB))
        self.loop: DenoisingLoop = served.arenas.loop(self.jobs[0].shape)
        self._slots = [job.slot for job in self.jobs if job.slot is not None]
        self._kept = self.snapshot()
        self.eager: torch.Tensor | None = None

    def begin(self) -> None:
        """Put the arena back to where the jobs began, and poison the buffers."""
        self.restore(self._kept)
        self.loop.buffers.poison()
        self.bench.synchronize()

    def snapshot(self) -> list[torch.Tensor]:
        """The arena as it is once all steps are done."""
        self.bench.synchronize()
        kept = [tensor.clone() for tensor in self.loop.arena.tensors()]
        self.bench.synchronize()
        return kept

    @torch.inference_mode()
    def restore(self, kept: Sequence[torch.Tensor]) -> None:
        """Bring a snapshot back."""
        self.bench.synchronize()
        for tensor, one in zip(self.loop.arena.tensors(), kept, strict=True):
            tensor.copy_(one)
        self.bench.synchronize()

    def run(self, steps: int) -> torch.Tensor:
        """The latents after some steps from the start."""
        self.begin()
        self.stepper.run(self.jobs, steps)
        return self.latents()

    def latents(self) -> torch.Tensor:
        """Latents of the jobs, once their steps are done."""
        self.bench.synchronize()
        latents = self.loop.arena.latents[self._slots].clone()
        self.bench.synchronize()
        return latents

    def replayed(self) -> Row:
        """Hold replays to the eager steps; twice, for a graph may leave something behind."""
        assert self.eager is not None
        first, second = self.run(_STEPS), self.run(_STEPS)
        assert torch.equal(first, second), "two replays from the same start differ"
        return {"bitwise": bool(torch.equal(first, self.eager)), "error": near(first, self.eager)}


def near(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Root mean square difference relative to what was expected; AssertionError where it is not small."""
    error = float((actual - expected).square().mean().sqrt() / expected.square().mean().sqrt())
    assert error <= _LEAST, f"relative error {error:.2e}, {_LEAST:.0e} is allowed"
    return error


def interleaved(one: Case, other: Case) -> Row:
    """Steps of two buckets in turn, in the same slots by turns, are what they are one after the other."""
    expected = one.run(_STEPS)
    one.begin()
    middle = one.snapshot()
    for step in range(_STEPS):
        other.run(1)
        one.restore(middle)
        _place(one.jobs, step)
        one.served.stages.denoising.denoise(one.jobs)
        middle = one.snapshot()
    return {"bitwise": bool(torch.equal(one.latents(), expected)), "error": near(one.latents(), expected)}


def _place(jobs: Sequence[Job], step: int) -> None:
    for job in jobs:
        assert job.trajectory is not None
        job.trajectory.step = step


def replays(bench: Bench, case: Case) -> Row:
    """A thousand steps leave not a byte more than ten did."""
    case.run(10)
    before = bench.allocated()
    for _ in range(bench.pick(10, 1)):
        case.stepper.run(case.jobs, bench.pick(100, 2))
    bench.synchronize()
    after = bench.allocated()
    assert after <= before, f"{after - before} bytes more after a thousand replays"
    return {"allocated": after}


@contextmanager
def _syncs_forbidden() -> Iterator[None]:
    """Let a wait for the device raise, where PyTorch was built for one."""
    if not (torch.backends.cuda.is_built() and torch.cuda.is_available()):
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def unsynced(bench: Bench, case: Case) -> None:
    """Loading and replaying steps never waits for the device."""
    case.run(1)
    bench.synchronize()
    with _syncs_forbidden():
        case.stepper.run(case.jobs, 5)
