"""The denoise batch: one step of each job, and the pictures that a request wants to see on the way."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from ..api.event import State
from ..batching.arenas import Arenas
from ..batching.denoising import Bucket
from ..batching.job import Job
from ..models.networks import MassRecord
from ..models.pictures import eight_bits
from ..models.transfers import fetched
from ..sampling.rows import Branch
from .decoding import Decoder


class Denoising:
    """Runs steps in the arenas."""

    def __init__(self, arenas: Arenas, decoder: Decoder) -> None:
        self.arenas = arenas
        self.decoder = decoder

    def denoise(self, jobs: Sequence[Job]) -> Bucket:
        """Run one step of each job, all of one shape; return the padded sizes it ran at."""
        record = MassRecord() if any(_recorded(job) for job in jobs) else None
        bucket = self.arenas.loop(jobs[0].shape).step(jobs, record)
        if record is not None:
            self._keep_masses(jobs, record)
        for job in jobs:
            assert job.trajectory is not None
            job.trajectory.advance()
        return bucket

    @torch.inference_mode()
    def previews(self, jobs: Sequence[Job]) -> dict[int, Image.Image]:
        """Decode the predicted x0 of each job, by job id."""
        latents = torch.stack([self.arenas.arena(job).history[job.slot] for job in jobs])
        (found,) = fetched([{"drawn": eight_bits(self.decoder.decode(latents))}])
        return {job.id: Image.fromarray(one) for job, one in zip(jobs, found["drawn"].numpy(), strict=True)}

    def _keep_masses(self, jobs: Sequence[Job], record: MassRecord) -> None:
        """Hand each job the masses of its conditional row, (2 rules, 2 sides, T); NaN without such a row."""
        assert isinstance(record.ruled, Tensor)
        assert isinstance(record.neutral, Tensor)
        masses = torch.stack([record.ruled, record.neutral], dim=1) / record.layers
        first = 0
        for job in jobs:
            assert job.trajectory is not None
            branches = [row.branch for row in job.trajectory.rows]
            found = Branch.CONDITIONAL in branches
            row = first + branches.index(Branch.CONDITIONAL) if found else first
            kept = masses[row].clone() if found else torch.full_like(masses[row], torch.nan)
            if job.state is State.DRAFTING:
                job.shared.masses.append(kept)
            elif job.state is State.FINALISING and job.trajectory.probes:
                job.own.moved = self.arenas.arena(job).latents[job.slot].clone()
            elif job.state is State.FINALISING:
                job.own.masses.append(kept)
            first += len(branches)


def _recorded(job: Job) -> bool:
    """Whether the job's attention is recorded: that of a final to explain, or of a draft to find spikes in."""
    if job.state is State.FINALISING:
        return job.request.explain
    rule = job.request.avoidance.masked_attention
    return job.state is State.DRAFTING and rule is not None and rule.listens
