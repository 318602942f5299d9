"""What requests cost, in rows of the UNet, before they have run: what admission and simulation count by."""

import math

from .api.event import State
from .api.mechanisms import Avoidance
from .api.request import GenerationRequest
from .api.settings import Stage
from .avoidance.initial_noise import sharpness_probes
from .batching.job import Job, Trajectory
from .judging.gate import witness_rows
from .sampling.rows import Row, plan_rows, shallow_steps

_BEFORE_DRAFT = (State.QUEUED, State.ENCODED)
_DRAFTED = (State.SEGMENTING, State.WITNESSING)


def rows_of(request: GenerationRequest, witnesses: int = 0, embedded: bool = False, shallow: float = 1.0) -> int:
    """Rows of the draft, of the gate's `witnesses`, and of every image's first attempt, avoidance being on.

    A gate that stays shut spares some of them, and each retry costs a final more. embedded: as of `plan_rows`, here and
    below; shallow: what a row counts for that takes the deep part over.
    """
    called = witnesses * witness_rows(request.draft, embedded)
    draft, final = _draft_rows(request, embedded, shallow), _final_rows(request, embedded, shallow)
    return draft + called + _finals(request) * final


def rows_due(job: Job, witnesses: int = 0, shallow: float = 1.0) -> int:
    """Rows that a job, and the images that have not forked from it yet, will spend at least on their way to a verdict.

    witnesses: those that its request's gate may call. shallow: as of `rows_of`.
    """
    request, run, embedded = job.request, job.trajectory, job.embedded
    if job.state in _BEFORE_DRAFT:
        return rows_of(request, witnesses, embedded, shallow)
    left = _cost(run, shallow) if run is not None else 0
    if job.state in (State.SEGMENTED, State.PLACING):
        return _cost(final_run(request, job.avoidance, embedded), shallow)
    if job.redrafted and job.state in (State.DRAFTING, State.SEGMENTING):
        return left + _cost(final_run(request, job.avoidance, embedded), shallow)
    if job.state is State.DRAFTING:
        return left + rows_of(request, witnesses, embedded, shallow) - _draft_rows(request, embedded, shallow)
    if job.state in _DRAFTED:
        calls = max(0, witnesses - len(job.shared.agreements) - (job.state is State.WITNESSING))
        called = calls * witness_rows(request.draft, embedded)
        return left + called + _finals(request) * _final_rows(request, embedded, shallow)
    return left if job.state is State.FINALISING else 0


def draft_run(request: GenerationRequest, embedded: bool = False) -> Trajectory:
    """Rows of the draft, step by step."""
    return _run(plan_rows(request.draft, embedded=embedded), request.draft)


def final_run(request: GenerationRequest, policy: Avoidance, embedded: bool = False) -> Trajectory:
    """Rows of an attempt at the final under `policy`, the probes that move its initial noise included."""
    plan = plan_rows(request.final, policy.delayed_guidance, policy.moved_control, embedded=embedded)
    return _run(plan, request.final, sharpness_probes(policy.initial_noise))


def _run(plan: tuple[tuple[Row, ...], ...], stage: Stage, probes: int = 0) -> Trajectory:
    return Trajectory(plan, (0.0,) * len(plan), probes, shallow=shallow_steps(plan, stage))


def _cost(run: Trajectory, shallow: float) -> int:
    """Rows that are still due, in whole ones."""
    return math.ceil(run.rows_left - (1 - shallow) * run.shallow_rows_left)


def _draft_rows(request: GenerationRequest, embedded: bool, shallow: float) -> int:
    return _cost(draft_run(request, embedded), shallow) if request.source is None else 0


def _finals(request: GenerationRequest) -> int:
    """How many images are drawn beside the draft."""
    return request.num_images - (request.is_plain and request.delivers_draft)


def _final_rows(request: GenerationRequest, embedded: bool, shallow: float) -> int:
    return _cost(final_run(request, request.avoidance, embedded), shallow)
