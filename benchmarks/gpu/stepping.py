"""Engines on the random model, and jobs in their slots whose steps can be repeated."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from ...engine.api.event import State
from ...engine.api.mechanisms import Avoidance, MovedControl
from ...engine.api.settings import Stage
from ...engine.batching.carried import Shared
from ...engine.batching.job import Job
from ...engine.batching.scheduler import Limits
from ...engine.engine import Engine
from ...engine.models.checkpoint import Components
from ..clocks import ClockKind
from ..costs import CostMeter
from ..workloads import closed
from .bench import Bench

Controlled = Literal["conditional", "both"]
_STEPS = 150
ROWS_A_JOB = 2
"""Rows of a guided job: both branches."""


def row_counts(bench: Bench) -> tuple[int, ...]:
    """Rows of the UNet calls that are measured; the first is a single request's."""
    return (2, 4) if bench.quick else (2, 4, 8, 16, 32, 64)


def engine(bench: Bench, components: Components, rows: int | None = None, **options: Any) -> Engine:
    """An engine for as many guided jobs as fill `rows`, the most that are measured if None."""
    rows = rows or row_counts(bench)[-1]
    limits = Limits(slots=max(1, rows // ROWS_A_JOB), rows=rows)
    return Engine(components, device=bench.device, dtype=bench.dtype, limits=limits, **options)


class Stepper(CostMeter):
    """Jobs of an engine that stand before their first step whenever they are asked to take it."""

    def __init__(self, engine: Engine, controlled: Controlled | None, guidance_scale: float = 7.5) -> None:
        """controlled: rows that ControlNet acts on, "conditional" or "both", all through the final; None draws drafts.

        Without guidance (a scale of 1) a job has one row.
        """
        super().__init__(engine, ClockKind.WALL, 1)
        stage = Stage(steps=_STEPS, guidance_scale=guidance_scale)
        control = MovedControl(rows=controlled) if controlled else None
        avoidance = Avoidance(delayed_guidance=None, moved_control=control)
        self._changes = {"draft": stage, "final": stage, "avoidance": avoidance}
        self._controlled = controlled is not None

    def _queued(self, n: int) -> list[Job]:
        factor = self.components.vae_scale_factor
        height, width = (side // factor for side in self.components.size)
        requests = [r.model_copy(update=self._changes) for r in closed(n, 1, round=next(self._rounds))]
        return [Job(i, i, r, (height, width), 0.0, Shared(), slot=i) for i, r in enumerate(requests)]

    def jobs(self, n: int) -> list[Job]:
        """`n` jobs at their first step."""
        jobs = self._drafting(n)
        if self._controlled:
            self._finalise(jobs)
        return jobs

    def phases(self, n: int) -> dict[str, Callable[[], object]]:
        """What `n` jobs with prompts of their own go through, one after the other, by the kind of batch."""
        jobs, stages = self._queued(n), self.stages

        def start(state: State, begin: Callable[[Job], None]) -> None:
            for job in jobs:
                job.state = state
                begin(job)

        def place() -> None:
            for job in jobs:
                if stages.placing.begin(job):
                    stages.placing.place(job)

        return {
            "encode": lambda: stages.encoding.encode(jobs),
            "start drafts": lambda: start(State.DRAFTING, stages.starting.start_draft),
            "draft step": lambda: self.run(jobs, 1),
            "segment": lambda: stages.segmenting.segment(jobs),
            "place": place,
            "start finals": lambda: start(State.FINALISING, stages.starting.start_final),
            "final step": lambda: self.run(jobs, 1),
            "judge": lambda: stages.judging.judge(jobs),
        }

    def run(self, jobs: Sequence[Job], steps: int) -> None:
        """Take as many steps."""
        for job in jobs:
            assert job.trajectory is not None
            assert job.state in (State.DRAFTING, State.FINALISING)
            job.trajectory.step = 0
        for _ in range(steps):
            self.stages.denoising.denoise(jobs)
