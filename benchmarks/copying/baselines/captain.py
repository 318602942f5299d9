"""CAPTAIN, arXiv 2512.10655: what is recited in a picture is overlaid with a picture of the same that is not."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ....engine.api.event import State
from ....engine.batching.arenas import Arenas
from ....engine.batching.denoising import Bucket
from ....engine.batching.job import Job
from ....engine.engine import Engine
from ....engine.judging.registry import encode
from ....engine.models.checkpoint import Components
from ....engine.stages.denoising import Apart, together
from ....engine.stages.starting import Starting
from ..measures import same_caption, to_tensor
from ..paraphrases import scene_of
from ..scenes import render
from .ending import end_attention
from .steering import Steered, Taken

LOW = 0.25
"""Share of the highest frequency below which the initial noise is the reference's."""

WINDOW = (0.2, 0.6)
"""Steps that features are injected at, as fractions of all."""


class CaptainEngine(Engine):
    """Starts from a reference's low frequencies and injects it, by `strength`, where the draft is recited.

    An oracle: the reference is a fresh scene that the caption describes, which the paper has a search engine find. The
    initial noise takes its frequencies up to `LOW` from the reference's latent. Recited are the pixels that attend to
    the end token more than the mean in a plain draft's last step, which costs the draft and one row; there the
    predicted x0 of steps in `WINDOW` becomes (1 - strength) x0 + strength reference. The order and the formula of the
    noise are the paper's. Ours: region and window, which the paper finds for each prompt (it also asks which pixels
    attend to the caption's concepts), and the injection into x0, of which nothing but its place is published.
    """

    def __init__(self, *arguments: Any, strength: float, **options: Any) -> None:
        super().__init__(*arguments, **options)
        memory = References(self.components)
        self.stages.starting = CaptainStarting(self.components, self.arenas, memory)
        self.stages.denoising = Captain(self.arenas, self.stages.denoising.decoder, memory=memory, strength=strength)


class References:
    """References of requests, and where their drafts are recited: (h, w) in 0 and 1, by request."""

    def __init__(self, components: Components) -> None:
        self.components = components
        self.recited: dict[int, Tensor] = {}
        self._latents: dict[tuple[str, int], Tensor] = {}

    def latent(self, job: Job) -> Tensor:
        """Latent (C, h, w) of a fresh scene that the job's prompt describes."""
        key = job.request.prompt, job.request.seed
        if key not in self._latents:
            rng = np.random.default_rng((71, job.request.seed))
            picture = render(same_caption(scene_of(job.request.prompt), rng))[0]
            self._latents[key] = encode(self.components, to_tensor([picture]))[0]
        return self._latents[key]

    def end_of(self, job: Job) -> int:
        """Position of the end token of the job's prompt."""
        return job.shared.input_ids.tolist().index(self.components.tokenizer.eos_token_id)


class CaptainStarting(Starting):
    """Starts finals from noise with the reference's low frequencies."""

    def __init__(self, components: Components, arenas: Arenas, memory: References) -> None:
        super().__init__(components, arenas)
        self.memory = memory

    @torch.inference_mode()
    def start_final(self, job: Job) -> None:
        """Start a final as usual, then exchange the frequencies."""
        super().start_final(job)
        arena = self.arenas.loop(job.shape).arena
        arena.latents[job.slot] = exchanged(arena.latents[job.slot].cpu(), self.memory.latent(job))


def exchanged(noise: Tensor, reference: Tensor) -> Tensor:
    """Noise (C, h, w) with the frequencies up to `LOW` of the highest taken from a reference of the same shape."""
    rows, columns = (torch.fft.fftfreq(side) for side in noise.shape[-2:])
    low = (rows[:, None] ** 2 + columns**2).sqrt() <= LOW / 2
    return torch.fft.ifft2(torch.where(low, torch.fft.fft2(reference), torch.fft.fft2(noise))).real


class Captain(Steered):
    """Looks at each draft's last step, and injects the reference into finals."""

    def __init__(self, *parts: Any, memory: References, strength: float) -> None:
        super().__init__(*parts)
        self.memory = memory
        self.strength = strength

    @torch.inference_mode()
    def denoise(self, jobs: Sequence[Job], apart: Apart = together) -> Bucket:
        """Look at drafts that are about to end, then step."""
        ending = [self.before(job) for job in jobs if job.state is State.DRAFTING and _last(job)]
        if ending:
            maps = end_attention(self.beside, ending, [[self.memory.end_of(each.job)] for each in ending])
            for each, bright in zip(ending, maps[:, 0].mean(1), strict=True):
                self.memory.recited[each.job.request_id] = (bright > bright.mean()).float()
        return super().denoise(jobs, apart)

    def steer(self, taken: Sequence[Taken]) -> None:
        """Inject the reference at steps in the window."""
        for each in taken:
            place = each.number / len(each.run.plan)
            if WINDOW[0] <= place < WINDOW[1]:
                where = self.strength * self.memory.recited[each.job.request_id]
                self.push_picture(each, where * (self.memory.latent(each.job) - self.clean(each)))
            if each.number == len(each.run.plan) - 1:
                del self.memory.recited[each.job.request_id]


def _last(job: Job) -> bool:
    return job.trajectory is not None and job.trajectory.step == len(job.trajectory.plan) - 1
