"""What requests cost, in rows of the UNet, before they have run: what admission and simulation count by."""

from .api.event import State
from .api.mechanisms import Avoidance
from .api.request import GenerationRequest
from .avoidance.initial_noise import sharpness_probes
from .batching.job import Job, Trajectory
from .judging.gate import witness_rows
from .sampling.rows import Row, plan_rows

_BEFORE_DRAFT = (State.QUEUED, State.ENCODED)
_DRAFTED = (State.SEGMENTING, State.WITNESSING)


def rows_of(request: GenerationRequest, witnesses: int = 0) -> int:
    """Rows of the draft, of the gate's `witnesses`, and of every image's first attempt, avoidance being on.

    A gate that stays shut spares some of them, and each retry costs a final more.
    """
    return _draft_rows(request) + witnesses * witness_rows(request.draft) + request.num_images * _final_rows(request)


def rows_due(job: Job, witnesses: int = 0) -> int:
    """Rows that a job, and the images that have not forked from it yet, will spend at least on their way to a verdict.

    witnesses: those that its request's gate may call.
    """
    request, run = job.request, job.trajectory
    if job.state in _BEFORE_DRAFT:
        return rows_of(request, witnesses)
    left = run.rows_left if run is not None else 0
    if job.state in (State.SEGMENTED, State.PLACING):
        return final_run(request, job.avoidance).rows_left
    if job.redrafted and job.state in (State.DRAFTING, State.SEGMENTING):
        return left + final_run(request, job.avoidance).rows_left
    if job.state is State.DRAFTING:
        return left + rows_of(request, witnesses) - _draft_rows(request)
    if job.state in _DRAFTED:
        calls = max(0, witnesses - len(job.shared.agreements) - (job.state is State.WITNESSING))
        return left + calls * witness_rows(request.draft) + request.num_images * _final_rows(request)
    return left if job.state is State.FINALISING else 0


def draft_run(request: GenerationRequest) -> Trajectory:
    """Rows of the draft, step by step."""
    return _run(plan_rows(request.draft))


def final_run(request: GenerationRequest, policy: Avoidance) -> Trajectory:
    """Rows of an attempt at the final under `policy`, the probes that move its initial noise included."""
    plan = plan_rows(request.final, policy.delayed_guidance, policy.moved_control)
    return _run(plan, sharpness_probes(policy.initial_noise))


def _run(plan: tuple[tuple[Row, ...], ...], probes: int = 0) -> Trajectory:
    return Trajectory(plan, (0.0,) * len(plan), probes)


def _draft_rows(request: GenerationRequest) -> int:
    return draft_run(request).rows_left if request.source is None else 0


def _final_rows(request: GenerationRequest) -> int:
    return final_run(request, request.avoidance).rows_left
