"""The segment batch: drafts or sources to labels and masks, and what the gate makes of them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..api.mechanisms import Avoidance
from ..api.request import GenerationRequest
from ..avoidance.conditioning import avoidance_mask
from ..batching.arenas import Arenas
from ..batching.job import Job, by_shape
from ..judging.gate import agreement
from ..judging.judge import Judge
from ..models.components import Components
from ..models.pictures import eight_bits
from ..models.transfers import fetched, sent
from ..sampling.rows import guidance_pair
from ..sampling.solver import stage_table
from .decoding import Decoder, check_finite, finite


class _Look(NamedTuple):
    """What a job's draft or source shows: pixels (1, 3, H, W), and what of it comes to the host, by name."""

    job: Job
    reference: Tensor
    table: dict[str, Tensor]


class Segmenting:
    """Segments what drafts drew, and asks the gate."""

    def __init__(self, components: Components, arenas: Arenas, decoder: Decoder, judge: Judge) -> None:
        self.components = components
        self.arenas = arenas
        self.decoder = decoder
        self.judge = judge

    @torch.inference_mode()
    def segment(self, jobs: Sequence[Job]) -> None:
        """Decode drafts (or take sources), find their labels and masks; not of plain pictures, nor without a segmenter.

        Everything that is found comes to the host in one copy, so that a failure leaves no job half segmented.
        """
        looks = [look for group in by_shape(jobs) for look in self._looks(group)]
        found = fetched([look.table for look in looks])
        drafted = [(look.job, table["finite"]) for look, table in zip(looks, found, strict=True) if "finite" in table]
        check_finite([job for job, _ in drafted], [bool(flag) for _, flag in drafted])
        for look, table in zip(looks, found, strict=True):
            self._keep_draft(look.job, look.reference, {name: each.numpy() for name, each in table.items()})

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
        (mask,) = sent([shared.shape], seen.device)
        shared.agreements.append(float(agreement(seen, shared.drafted[0], mask)))
        if len(shared.agreements) < job.request.gate.witnesses:
            return False
        rows = len(shared.agreements) * job.trajectory.rows_spent
        shared.gate = self.judge.witnessed(job.request, shared.gate, shared.agreements, rows)
        return True

    def _looks(self, group: Sequence[Job]) -> list[_Look]:
        """What is seen of drafts and sources of one shape, on the device."""
        drafted = [job for job in group if job.shared.source is None]
        sources = sent(
            [job.shared.source for job in group if job.shared.source is not None], self.arenas.networks.device
        )
        pixels, tables = self._decoded(drafted) if drafted else ((), ())
        drafts, photos = iter(zip(pixels, tables, strict=True)), iter(sources)
        looks = []
        for job in group:
            reference, table = next(drafts) if job.shared.source is None else (next(photos)[0], {})
            looks.append(_Look(job, reference[None], table))
        shaped = [look for look in looks if _heeds_shape(look.job.request)]
        labels = self.decoder.labels(torch.cat([look.reference for look in shaped])) if shaped else None
        if labels is not None:
            for look, found in zip(shaped, labels, strict=True):
                look.table["labels"] = found
        for look in looks:
            if (views := self.judge.views(look.reference)) is not None:
                look.table["views"] = views
        return looks

    def _decoded(self, jobs: Sequence[Job]) -> tuple[Tensor, list[dict[str, Tensor]]]:
        """Pixels (B, 3, H, W) of drafts of one shape, and what else of each of them comes to the host."""
        latents = torch.stack([self.arenas.latent(job) for job in jobs])
        pixels = (self.decoder.decode if self._measures_drafts else self.decoder.preview)(latents)
        tables = [{"finite": f, "drawn": d} for f, d in zip(finite(latents), eight_bits(pixels), strict=True)]
        for job, table in zip(jobs, tables, strict=True):
            plan = job.trajectory.plan if job.trajectory is not None else ()
            if plan and all(guidance_pair(rows) for rows in plan):
                table["magnitudes"] = self.arenas.arena(job).magnitudes[job.slot, : len(plan)]
            if job.shared.masses:
                table["masses"] = torch.stack(job.shared.masses)
        return pixels, tables

    @property
    def _measures_drafts(self) -> bool:
        """Whether every draft is measured as soon as it is there, for which it is decoded as finals are."""
        return self.judge.registry is not None or self.components.preview_vae is None

    def guidance_magnitudes(self, job: Job, measured: np.ndarray) -> np.ndarray:
        """Size of the guidance at each step of a finished draft, (S,) float64, of what was measured (S,) on the way.

        The root mean square over the latent of eps(x, prompt) - eps(x, negative prompt), before the guidance scale:
        what Wen et al. (ICLR 2024) and Jain et al. (CVPR 2025) tell recited pictures by.
        """
        scale = stage_table(job.draft, self.components.scheduler, self.components.sampler).noise_scale
        return (torch.from_numpy(measured).double() * scale).numpy()

    def _keep_draft(self, job: Job, reference: Tensor, found: Mapping[str, np.ndarray]) -> None:
        shared, segmenter = job.shared, self.components.segmenter
        # Copies, here and of an attempt's picture: a view would keep its whole batch for as long as the job lives.
        kept = {name: values.copy() for name, values in found.items()}
        shared.reference, shared.labels, shared.drawn = reference.clone(), kept.get("labels"), kept.get("drawn")
        previewed = job.shared.source is None and not self._measures_drafts
        shared.previewed = self.arenas.latent(job).clone() if previewed else None
        if job.request.mask is not None:
            shared.mask = job.request.mask
        elif segmenter is not None and shared.labels is not None:
            shared.mask = avoidance_mask(shared.labels, segmenter.background)
        if job.trajectory is not None:
            shared.draft_rows += job.trajectory.rows_spent
            shared.magnitudes = self.guidance_magnitudes(job, kept["magnitudes"]) if "magnitudes" in kept else None
        shared.masses = [torch.from_numpy(mass) for mass in kept.get("masses", ())]
        if not job.redrafted:  # avoidance is on by now whatever the first draft looked like
            shared.gate = self.judge.gate(job.request, kept.get("views"), shared.magnitudes)


def _heeds_shape(request: GenerationRequest) -> bool:
    """Whether anything is made of what a draft shows: not of a plain picture, which nothing keeps away from."""
    return not request.is_plain or request.explain or request.avoidance != Avoidance.off()
