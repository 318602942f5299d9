"""PRSS, CVPR 2025: a prompt that is recited becomes what guidance leads away from, another wording what it leads to."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ....engine.api.request import GenerationRequest
from ....engine.api.settings import Stage
from ....engine.batching.carried import Shared
from ....engine.batching.job import Job
from ....engine.engine import Engine
from ....engine.sampling.solver import stage_table
from ....engine.stages.encoding import Encoding
from ....kernels import StepColumns
from ..limits import ordinary_captions
from ..paraphrases import paraphrases
from .wen import WenEncoding, WenSegmenting


class PrssEngine(Engine):
    """Prompt re-anchoring and semantic prompt search (Chen et al., CVPR 2025, arXiv 2504.18032).

    A prompt is recited where early guidance, the mean square of eps(x, prompt) - eps(x, nothing) after the first step
    from the noise of its final, lies more than `width` standard deviations above the mean of `runs` captions that name
    no source. Then the wording with the least of it among `paraphrases` takes its place, and the prompt that of the
    empty one:

        eps = eps(x, prompt) + s (eps(x, wording) - eps(x, prompt))

    The look costs four rows and each wording three, counted with the draft. Formula and order are the paper's. Ours: a
    language model's wordings are the reorderings of what the caption names, without its trigger, for this text encoder
    knows few other words; the look after the first step, for guidance in the very first is noise whatever the prompt
    here; and the limit, which the paper sets by hand for each level of privacy, is told in spreads.
    """

    def __init__(self, *arguments: Any, width: float, runs: int = 64, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.stages.encoding = encoding = PrssEncoding(self.components, self.networks, 0)
        usual = self.stages.segmenting
        self.stages.segmenting = WenSegmenting(self.components, self.arenas, usual.decoder, self.judge, encoding.rows)
        encoding.learn(int(runs), width)


class PrssEncoding(WenEncoding):
    """Encodes prompts, then re-anchors those that are recited; `rows` by request. limit: of early guidance."""

    limit = float("inf")

    def learn(self, runs: int, width: float) -> None:
        """Find the limit on that many captions that name no source, at the model's own size."""
        factor = self.components.vae_scale_factor
        height, width_pixels = self.components.size
        shape = height // factor, width_pixels // factor
        jobs = [
            Job(seed, seed, GenerationRequest(prompt=caption, seed=seed), shape, 0.0, Shared())
            for seed, caption in enumerate(ordinary_captions(runs))
        ]
        sizes = torch.cat([self._sizes(job, [job.request.prompt]) for job in jobs])
        self.limit = float(sizes.mean() + width * sizes.std())

    def encode(self, jobs: Sequence[Job]) -> None:
        """Encode as usual, then put the prompt and its wording in place where the prompt is recited."""
        Encoding.encode(self, jobs)
        for job in jobs:
            prompt = job.request.prompt
            self.rows[job.request_id] = 4
            if float(self._sizes(job, [prompt])) > self.limit:
                wordings = paraphrases(prompt)
                self.rows[job.request_id] += 3 * len(wordings)
                found = wordings[int(self._sizes(job, wordings).argmin())]
                job.shared.texts = tuple(self.networks.denoiser.encode(self._states([prompt, found])))

    @torch.no_grad()
    def _sizes(self, job: Job, prompts: Sequence[str]) -> Tensor:
        """Guidance (B,) of each prompt after a guided first step from the job's noise."""
        empty, asked = self._states([job.request.negative_prompt]), self._states(prompts)
        noise = self._final_noise(job)
        nothing, prompted = self._predict(noise, empty), self._predict(noise.expand(len(prompts), -1, -1, -1), asked)
        guided = nothing + job.request.final.guidance_scale * (prompted - nothing)
        columns = stage_table(Stage(), self.components.scheduler, self.components.sampler).columns[0]
        p, q, a, b = (columns[column] for column in (StepColumns.P, StepColumns.Q, StepColumns.A, StepColumns.B))
        latents = a * noise + b * (p * noise + q * guided)
        contrast = self._predict(latents, asked, 1) - self._predict(latents, empty.expand(len(prompts), -1, -1), 1)
        return contrast.square().mean((1, 2, 3))
