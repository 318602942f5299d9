"""A finished job as what its user gets."""

import numpy as np
from PIL import Image

from .api.event import State
from .api.result import GenerationResult, Verdict
from .backends.networks import Networks
from .batching.job import DRAWN, Job
from .judging.judge import Judge
from .judging.registry import Registry
from .stages.judging import Judging


class Results:
    """Makes results of jobs."""

    def __init__(self, networks: Networks, registry: Registry | None, judge: Judge, judging: Judging) -> None:
        self.networks = networks
        self.components = networks.components
        self.registry = registry
        self.judge = judge
        self.judging = judging

    def whole(self, job: Job, state: State) -> GenerationResult:
        """Return everything that led to the job's end in `state`. What its pictures raise goes to the caller."""
        shared, own = job.shared, job.own
        drawn = state in DRAWN
        calibration, registry = self.components.calibration, self.registry
        return GenerationResult(
            request=job.request,
            index=job.index,
            verdict=Verdict(state),
            image=Image.fromarray(own.drawn) if drawn else None,
            draft=draft_of(job),
            mask=shared.mask,
            label_map=None if shared.labels is None else shared.labels.astype(np.uint16),
            control_map=own.control_map if own is not None else None,
            gate=shared.gate,
            attempts=tuple(own.attempts) if own is not None else (),
            rule=str(self.judge.rule(job.request)),
            calibration=calibration.version if calibration is not None else None,
            bank=self.components.bank.version if self.components.bank is not None else None,
            registry=registry.version if registry is not None else None,
            metrics=self.judge.weights,
            backends=self.networks.compiled,
            timings={state.value: seconds for state, seconds in job.timings.items()},
            draft_rows=shared.draft_rows,
            chunks=job.chunks,
            explanation=self.judging.explanation(job) if drawn and job.request.explain else None,
            error=job.error,
        )

    def small(self, job: Job, error: str) -> GenerationResult:
        """Return a failed result of what needs no computing, for a job whose whole one could not be made."""
        return GenerationResult(
            request=job.request,
            index=job.index,
            verdict=Verdict.FAILED,
            gate=job.shared.gate,
            attempts=tuple(job.own.attempts) if job.own is not None else (),
            timings={state.value: seconds for state, seconds in job.timings.items()},
            draft_rows=job.shared.draft_rows,
            chunks=job.chunks,
            error=error,
        )


def draft_of(job: Job) -> Image.Image | None:
    """The draft that a job's request was given, if it was given one."""
    return None if job.shared.drawn is None else Image.fromarray(job.shared.drawn)
