"""The denoise batch: one step of each job, and the pictures that a request wants to see on the way."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ..api.event import State
from ..batching.arenas import Arenas
from ..batching.denoising import Bucket
from ..batching.job import DENOISING, Job
from ..batching.planning import is_shallow
from ..batching.slots import Arena
from ..models.networks import MassRecord
from ..models.pictures import eight_bits
from ..models.transfers import fetched
from ..sampling.rows import Branch
from .decoding import Decoder

Apart = Callable[[Callable[[Sequence[Job]], None], Sequence[Job]], object]
"""Does a work on jobs, each by itself where it fails for all of them."""


class _Heard(NamedTuple):
    """Of a job whose attention is recorded: its conditional row in the call, if it has one; if it probes its noise."""

    row: int | None
    probing: bool


def together(work: Callable[[Sequence[Job]], None], jobs: Sequence[Job]) -> None:
    """Do `work`, which may fail: an `Apart` that leaves everything to its caller."""
    work(jobs)


class Denoising:
    """Runs steps in the arenas."""

    def __init__(self, arenas: Arenas, decoder: Decoder) -> None:
        self.arenas = arenas
        self.decoder = decoder

    def denoise(self, jobs: Sequence[Job], apart: Apart = together) -> Bucket:
        """Run one step of each job, all of one shape; return the padded sizes it ran at.

        Where it raises nothing has moved, and it may be run again, of fewer jobs. Once the solver has written the step
        counts as run, whatever becomes of what is done with its result, which goes through `apart`.
        """
        with self.arenas.streams.step() as mark:
            loop = self.arenas.loop(jobs[0].shape)
            _turn(loop.arena, jobs)
            loop.stepping(jobs, mark)
            heard = _heard(jobs)
            record = MassRecord() if heard and not is_shallow(jobs) else None
            bucket, after = loop.step(jobs, record)
            if record is not None:
                after.append((partial(self._keep, record, heard), list(heard)))
            elif heard:
                after.append((_keep_nothing, list(heard)))
            for work, acted in after:
                if left := [job for job in acted if job.state in DENOISING]:
                    apart(work, left)
        return bucket

    @torch.inference_mode()
    def previews(self, jobs: Sequence[Job]) -> dict[int, Image.Image]:
        """Decode the predicted x0 of each job, by job id."""
        latents = torch.stack([self.arenas.arena(job).history[job.slot] for job in jobs])
        (found,) = fetched([{"drawn": eight_bits(self.decoder.preview(latents))}])
        return {job.id: Image.fromarray(one) for job, one in zip(jobs, found["drawn"].numpy(), strict=True)}

    def _keep(self, record: MassRecord, heard: Mapping[Job, _Heard], jobs: Sequence[Job]) -> None:
        """Hand each of `jobs` the masses of its conditional row, (2 rules, 2 sides, T); NaN without such a row."""
        assert isinstance(record.ruled, Tensor)
        assert isinstance(record.neutral, Tensor)
        masses = torch.stack([record.ruled, record.neutral], dim=1) / record.layers
        for job in jobs:
            row, probing = heard[job]
            own = masses[..., : len(job.shared.input_ids)]
            kept = torch.full_like(own[0], torch.nan) if row is None else own[row].clone()
            if job.state is State.DRAFTING:
                job.shared.masses.append(kept)
            elif probing:
                job.own.moved = self.arenas.arena(job).latents[job.slot].clone()
            else:
                job.own.masses.append(kept)


@torch.inference_mode()
def _turn(arena: Arena, jobs: Sequence[Job]) -> None:
    """Let finals whose prompt is said otherwise from the coming step on read that; to do so twice changes nothing."""
    for job in jobs:
        assert job.trajectory is not None
        said = job.own.turns.get(job.trajectory.step) if job.state is State.FINALISING else None
        if said is not None:
            assert job.slot is not None
            arena.say(job.slot, *said)


def _keep_nothing(jobs: Sequence[Job]) -> None:
    """A shallow step leaves most layers out: of a final its attention is not known, and a draft's others do."""
    for job in jobs:
        if job.state is State.FINALISING:
            tokens = len(job.shared.input_ids)
            job.own.masses.append(torch.full((2, 2, tokens), torch.nan, device=job.shared.reference.device))


def _heard(jobs: Sequence[Job]) -> dict[Job, _Heard]:
    """What is recorded of the coming step of `jobs`."""
    heard, first = {}, 0
    for job in jobs:
        assert job.trajectory is not None
        branches = [row.branch for row in job.trajectory.rows]
        if _recorded(job):
            found = Branch.CONDITIONAL in branches and not _restated(job)
            row = first + branches.index(Branch.CONDITIONAL) if found else None
            heard[job] = _Heard(row, bool(job.trajectory.probes))
        first += len(branches)
    return heard


def _recorded(job: Job) -> bool:
    """Whether the job's attention is recorded: that of a final to explain, or of a draft to find spikes in."""
    if job.state is State.FINALISING:
        return job.request.explain
    rule = job.request.avoidance.masked_attention
    return job.state is State.DRAFTING and rule is not None and rule.listens


def _restated(job: Job) -> bool:
    """Whether the job's coming step reads other tokens than its prompt's."""
    if job.state is not State.FINALISING or job.shared.restated is None:
        return False
    restating, run = job.own.policy.restated_prompt, job.trajectory
    assert run is not None
    return restating is not None and restating.active(run.step, len(run.plan))
