"""The segment batch: drafts or sources to labels and masks, and what the gate makes of them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..avoidance.conditioning import avoidance_mask
from ..batching.arenas import Arenas
from ..batching.job import Job, by_shape
from ..judging.gate import agreement
from ..judging.judge import Judge
from ..models.checkpoint import Components
from ..sampling.solver import solver_table
from .decoding import Decoder


class Segmenting:
    """Segments what drafts drew, and asks the gate."""

    def __init__(self, components: Components, arenas: Arenas, decoder: Decoder, judge: Judge) -> None:
        self.components = components
        self.arenas = arenas
        self.decoder = decoder
        self.judge = judge

    @torch.inference_mode()
    def segment(self, jobs: Sequence[Job]) -> None:
        """Decode drafts (or take sources), find their labels and masks; neither without a segmenter."""
        latents = {job.id: self.arenas.latent(job) for job in jobs if job.shared.source is None}
        for group in by_shape(jobs):
            drafted = [latents[job.id] for job in group if job.id in latents]
            pixels = iter(self.decoder.decode(torch.stack(drafted)) if drafted else ())
            references = [next(pixels)[None] if job.id in latents else job.shared.source for job in group]
            labels = self._labels(torch.cat(references))
            for job, reference, found in zip(group, references, labels, strict=True):
                self._keep_draft(job, reference, found)

    def wants_witnesses(self, job: Job) -> bool:
        """Whether the gate cannot decide on a segmented draft before other seeds are asked."""
        return self.judge.wants_witnesses(job.request, job.shared.gate)

    @torch.inference_mode()
    def hear_witness(self, job: Job) -> bool:
        """Compare a finished witness with the draft; after the last, decide on the gate and return True."""
        shared = job.shared
        assert job.slot is not None
        assert job.trajectory is not None
        assert job.request.gate is not None
        seen = self.arenas.arena(job).history[job.slot]
        mask = shared.shape.to(seen.device)
        shared.agreements.append(agreement(seen, shared.drafted[0], mask))
        if len(shared.agreements) < job.request.gate.witnesses:
            return False
        rows = len(shared.agreements) * job.trajectory.rows_spent
        shared.gate = self.judge.witnessed(job.request, shared.gate, shared.agreements, rows)
        return True

    def guidance_magnitudes(self, job: Job) -> np.ndarray | None:
        """Size of the guidance at each step of a finished draft, (S,) float64; None where it ran unguided.

        The root mean square over the latent of eps(x, prompt) - eps(x, negative prompt), before the guidance scale:
        what Wen et al. (ICLR 2024) and Jain et al. (CVPR 2025) tell recited pictures by.
        """
        stage = job.draft
        if stage.guidance_scale == 1:
            return None
        measured = self.arenas.arena(job).magnitudes[job.slot, : stage.steps].cpu().double()
        return (measured * solver_table(stage.solver, stage.steps, self.components.scheduler).noise_scale).numpy()

    def _labels(self, pixels: Tensor) -> list[np.ndarray | None]:
        labels = self.decoder.labels(pixels)
        return [None] * len(pixels) if labels is None else list(labels.cpu().numpy())

    def _keep_draft(self, job: Job, reference: Tensor, labels: np.ndarray | None) -> None:
        shared, segmenter = job.shared, self.components.segmenter
        # Copies, here and of an attempt's picture: a view would keep its whole batch for as long as the job lives.
        shared.reference, shared.labels = reference.clone(), None if labels is None else labels.copy()
        if job.request.mask is not None:
            shared.mask = job.request.mask
        elif segmenter is not None:
            assert labels is not None
            shared.mask = avoidance_mask(labels, segmenter.background)
        if job.trajectory is not None:
            shared.draft_rows += job.trajectory.rows_spent
            shared.magnitudes = self.guidance_magnitudes(job)
        if not job.redrafted:  # avoidance is on by now whatever the first draft looked like
            shared.gate = self.judge.gate(job.request, reference, shared.magnitudes)
