"""Wen et al., ICLR 2024: the prompt's embedding moved to where first-step guidance is small."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ....engine.api.settings import Stage
from ....engine.backends.networks import Networks
from ....engine.batching.arenas import Arenas
from ....engine.batching.carried import attempt_seed
from ....engine.batching.job import Job
from ....engine.engine import Engine
from ....engine.judging.judge import Judge
from ....engine.models.checkpoint import Components
from ....engine.models.layers import RowConditions, latent_grids, text_kv
from ....engine.sampling.noise import seeded_noise
from ....engine.sampling.rows import Branch
from ....engine.sampling.solver import stage_table
from ....engine.stages.decoding import Decoder
from ....engine.stages.encoding import Encoding
from ....engine.stages.segmenting import Segmenting


class WenEngine(Engine):
    """Descends along the prompt's embedding until first-step guidance is small (Wen et al., ICLR 2024).

    Adam on the text states of each request, for the noise its final starts from, until the mean square of
    eps(x, prompt) - eps(x, nothing) falls to `target` of what it was or `descent_steps` are done. A step costs three
    rows, one forward and two for the backward pass; they are counted with the draft.
    """

    def __init__(self, *arguments: Any, descent_steps: int, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.stages.encoding = encoding = WenEncoding(self.components, self.networks, descent_steps)
        usual = self.stages.segmenting
        self.stages.segmenting = WenSegmenting(self.components, self.arenas, usual.decoder, self.judge, encoding.rows)


class WenSegmenting(Segmenting):
    """Counts the rows of each request's descent with its draft."""

    def __init__(
        self, components: Components, arenas: Arenas, decoder: Decoder, judge: Judge, rows: dict[int, int]
    ) -> None:
        super().__init__(components, arenas, decoder, judge)
        self.rows = rows

    def segment(self, jobs: Sequence[Job]) -> None:
        """Segment as usual, then add the rows."""
        super().segment(jobs)
        for job in jobs:
            job.shared.draft_rows += self.rows.pop(job.request_id)


class WenEncoding(Encoding):
    """Encodes prompts, then descends; `rows` by request."""

    learning_rate = 0.05
    target = 0.05

    def __init__(self, components: Components, networks: Networks, descent_steps: int) -> None:
        super().__init__(components, networks)
        self.descent_steps = descent_steps
        self.rows: dict[int, int] = {}

    def encode(self, jobs: Sequence[Job]) -> None:
        """Encode as usual, then put what the descent found in the prompt's place."""
        super().encode(jobs)
        states, rows = self._descend(jobs)
        for job, text, spent in zip(jobs, self.networks.denoiser.encode(states), rows.tolist(), strict=True):
            job.shared.texts = (job.shared.texts[Branch.UNCONDITIONAL], text)
            self.rows[job.request_id] = spent

    def _descend(self, jobs: Sequence[Job]) -> tuple[Tensor, Tensor]:
        """Text states (B, T, D) after the descent, and the rows (B,) it took."""
        noise = torch.cat([self._final_noise(job) for job in jobs])
        nothing = self._predict(noise, self._states([job.request.negative_prompt for job in jobs])).detach()
        states = self._states([job.request.prompt for job in jobs]).requires_grad_()
        optimizer = torch.optim.Adam([states], lr=self.learning_rate)
        rows = torch.ones(len(jobs), dtype=torch.int64, device=noise.device)
        goal = None
        for _ in range(self.descent_steps):
            sizes = (self._predict(noise, states) - nothing).square().mean((1, 2, 3))
            goal = self.target * sizes.detach() if goal is None else goal
            arrived = sizes.detach() <= goal
            if arrived.all():
                break
            kept = states.detach().clone()
            (states.grad,) = torch.autograd.grad(sizes.sum(), states)
            optimizer.step()
            states.data[arrived] = kept[arrived]
            rows += torch.where(arrived, 0, 3)
        return states.detach(), rows

    def _final_noise(self, job: Job) -> Tensor:
        """The network's first input (1, C, h, w) of the job's first attempt."""
        channels = self.components.unet.config.in_channels
        noise = seeded_noise(channels, job.shape, attempt_seed(job.request.seed, job.index, 0))
        return noise[None].to(self.networks.device)

    @torch.no_grad()
    def _states(self, prompts: Sequence[str]) -> Tensor:
        """Text states (B, T, D) as ordinary tensors."""
        return self.components.text_encoder(self.tokenize(prompts).to(self.networks.device))[0].clone()

    def _predict(self, noise: Tensor, states: Tensor, step: int = 0) -> Tensor:
        """The network's prediction (B, C, h, w) at one of a stage's usual steps, with gradients to the text."""
        denoiser, stage = self.networks.denoiser, Stage()
        kv = tuple(text_kv(denoiser.unet, denoiser.layers, states))
        conditions = RowConditions(kv, latent_grids(noise.shape, denoiser.num_levels))
        table = stage_table(stage, self.components.scheduler, self.components.sampler)
        timesteps = table.timesteps[step : step + 1].to(noise.device)
        sinusoids = denoiser.time_proj(timesteps).expand(len(noise), -1)
        return denoiser.unet(
            noise, timesteps, kv[0], timestep_cond=sinusoids, cross_attention_kwargs={"conditions": conditions}
        ).sample
