"""What methods share that act between the steps of a run: what a step did, and predictions besides its rows."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ....engine.api.event import State
from ....engine.api.mechanisms import Avoidance
from ....engine.api.request import GenerationRequest
from ....engine.api.settings import Stage
from ....engine.batching.arenas import Arenas
from ....engine.batching.denoising import Bucket
from ....engine.batching.job import Job, Trajectory
from ....engine.batching.slots import Arena
from ....engine.engine import Engine
from ....engine.models.layers import latent_grids
from ....engine.models.networks import DenoiserInputs, EncodedText, MassRecord
from ....engine.sampling.rows import Branch
from ....engine.stages.decoding import Decoder
from ....engine.stages.denoising import Apart, Denoising, together
from ....kernels import StepColumns, neutral_scalars, neutral_tokens
from ..limits import ordinary_captions
from ..methods import ANY, GUIDANCE, STEPS, UNLOOKED


@dataclass(frozen=True)
class Taken:
    """A step that was just taken: its number, from 0, and the latent (C, h, w) float32 it began with."""

    job: Job
    number: int
    latent: Tensor

    @property
    def run(self) -> Trajectory:
        """The run it is a step of."""
        assert self.job.trajectory is not None
        return self.job.trajectory

    @property
    def stage(self) -> Stage:
        """How that run was asked for."""
        return self.job.request.draft if self.job.state is State.DRAFTING else self.job.request.final


class Beside:
    """Predictions of the UNet besides a batch's rows, plain and uncontrolled. Each counts as a row of its job's run."""

    def __init__(self, arenas: Arenas) -> None:
        self.arenas = arenas

    def predict(self, taken: Sequence[Taken], texts: Sequence[EncodedText], record: MassRecord | None = None) -> Tensor:
        """What the network makes of the latents that steps of one shape began with, for other texts: (B, C, h, w)."""
        timesteps = torch.tensor([each.run.timesteps[each.number] for each in taken])
        scales = torch.stack([self.columns(each)[StepColumns.INPUT_SCALE] for each in taken])
        return self.arenas.networks.predict(self.inputs(taken, texts, timesteps, scales, record)).float()

    def inputs(
        self,
        taken: Sequence[Taken],
        texts: Sequence[EncodedText],
        timesteps: Tensor,
        scales: Tensor,
        record: MassRecord | None = None,
    ) -> DenoiserInputs:
        """What the network reads of latents at other timesteps (B,), times scales (B,); counts the rows."""
        latents = torch.stack([each.latent for each in taken])
        for each in taken:
            each.run.rows_spent += 1
        networks, count = self.arenas.networks, len(taken)
        denoiser, device = networks.denoiser, latents.device
        grids = latent_grids(latents.shape, denoiser.num_levels)
        scalars = neutral_scalars(count, device)[:, None].expand(-1, len(denoiser.layers), -1).contiguous()
        return DenoiserInputs(
            sample=(latents * scales.view(-1, 1, 1, 1)).to(networks.dtype),
            time_proj=denoiser.time_proj(timesteps.to(device)),
            text_kv=tuple(torch.stack(layer) for layer in zip(*(text.unet for text in texts), strict=True)),
            added=tuple(torch.stack(each) for each in zip(*(text.added for text in texts), strict=True)),
            mask_pyramid=torch.zeros(count, sum(h * w for h, w in grids), device=device),
            tokens=neutral_tokens(count, len(texts[0].unet[0]), device),
            scalars=scalars,
            record=record,
        )

    def arena(self, job: Job) -> Arena:
        """Where the job's run lies."""
        return self.arenas.loop(job.shape).arena

    def columns(self, taken: Taken) -> Tensor:
        """Coefficients (K,) of a step, in the order of `StepColumns`."""
        return self.arena(taken.job).columns[taken.job.slot, taken.number]


class Steered(Denoising, ABC):
    """Runs steps as usual, and lets `steer` change what each step of a run in `state` left."""

    state = State.FINALISING

    def __init__(self, arenas: Arenas, decoder: Decoder) -> None:
        super().__init__(arenas, decoder)
        self.beside = Beside(arenas)

    @abstractmethod
    def steer(self, taken: Sequence[Taken]) -> None:
        """Change latents and predicted x0 of steps that were just taken."""

    @torch.inference_mode()
    def denoise(self, jobs: Sequence[Job], apart: Apart = together) -> Bucket:
        """Run one step of each job, then steer those in `state`."""
        taken = {job: self.before(job) for job in jobs if job.state is self.state and not _probing(job)}
        bucket = super().denoise(jobs, apart)
        if left := [job for job in taken if job.state is self.state]:
            apart(lambda some: self.steer([taken[job] for job in some]), left)
        return bucket

    def before(self, job: Job) -> Taken:
        """The step that the job is about to take."""
        assert job.trajectory is not None
        return Taken(job, job.trajectory.step, self.beside.arena(job).latents[job.slot].clone())

    def update(self, taken: Taken) -> Tensor:
        """How far a step moved its latent, (C, h, w)."""
        return self.beside.arena(taken.job).latents[taken.job.slot] - taken.latent

    def clean(self, taken: Taken) -> Tensor:
        """The picture that a step predicted, its latent (C, h, w)."""
        return self.beside.arena(taken.job).history[taken.job.slot]

    def guided(self, taken: Taken) -> Tensor:
        """What guidance made of the network's predictions in a step, (C, h, w), in the network's own terms."""
        p, q, u, w = (self.beside.columns(taken)[column] for column in _PREDICTING)
        return ((self.clean(taken) - u * taken.latent) / w - p * taken.latent) / q

    def contrast(self, taken: Taken) -> Tensor:
        """Conditional minus unconditional prediction of a step, (C, h, w)."""
        return self.beside.arena(taken.job).contrasts[taken.job.slot]

    def unconditional(self, taken: Taken) -> Tensor:
        """Unconditional prediction of a step, (C, h, w)."""
        return self.guided(taken) - taken.stage.guidance_scale * self.contrast(taken)

    def noise_level(self, taken: Taken) -> float:
        """Share of noise in the latent that a step began with, for a network that predicts the noise."""
        columns = self.beside.columns(taken)
        return float(-columns[StepColumns.W] / columns[StepColumns.U])

    def push(self, taken: Taken, change: Tensor) -> None:
        """Leave what the step would have left had its guided prediction been more by `change` (C, h, w)."""
        columns, arena = self.beside.columns(taken), self.beside.arena(taken.job)
        predicted = columns[StepColumns.Q] * change
        arena.latents[taken.job.slot] += columns[StepColumns.B] * predicted
        arena.history[taken.job.slot] += columns[StepColumns.W] * predicted

    def push_picture(self, taken: Taken, change: Tensor) -> None:
        """Leave what the step would have left had its predicted x0 been more by `change` (C, h, w)."""
        columns = self.beside.columns(taken)
        self.push(taken, change / (columns[StepColumns.W] * columns[StepColumns.Q]))


def _probing(job: Job) -> bool:
    return job.trajectory is not None and bool(job.trajectory.probes)


_PREDICTING = (StepColumns.P, StepColumns.Q, StepColumns.U, StepColumns.W)


@dataclass(frozen=True)
class Region:
    """Where a number lies at each step of runs that recite nothing: its mean and standard deviation, (S,) each."""

    mean: Tensor
    spread: Tensor

    def upper(self, number: int, width: float) -> float:
        """Upper end at a step of the region that reaches `width` standard deviations from the mean."""
        return float(self.mean[number] + width * self.spread[number])


class Watching(Steered, ABC):
    """Steers by a number of each step, once `region` is known; until then it watches runs and changes nothing."""

    region: Region | None = None

    def __init__(self, arenas: Arenas, decoder: Decoder) -> None:
        super().__init__(arenas, decoder)
        self._seen: dict[int, list[float]] = {}

    @abstractmethod
    def number(self, taken: Taken) -> float:
        """What is watched of a step."""

    def steer(self, taken: Sequence[Taken]) -> None:
        """Watch while there is no region; then steer those steps that left it."""
        if self.region is None:
            for each in taken:
                self._seen.setdefault(each.number, []).append(self.number(each))
        else:
            self.steer_within(taken, self.region)

    @abstractmethod
    def steer_within(self, taken: Sequence[Taken], region: Region) -> None:
        """Change what steps left that lie outside the region."""

    def learn(self, engine: Engine, runs: int) -> None:
        """Find the region on that many runs of captions that name no source."""
        engine.generate([_plain(caption, seed) for seed, caption in enumerate(ordinary_captions(runs))])
        seen = torch.tensor([self._seen[number] for number in sorted(self._seen)])
        self._seen.clear()
        self.region = Region(seen.mean(1), seen.std(1))


def _plain(caption: str, seed: int) -> GenerationRequest:
    final = Stage(steps=STEPS, guidance_scale=GUIDANCE)
    return GenerationRequest(
        prompt=caption, seed=seed, draft=UNLOOKED, final=final, avoidance=Avoidance.off(), similarity=ANY
    )


def conditional_text(job: Job) -> EncodedText:
    """What the job's prompt brings to the networks."""
    return job.shared.texts[Branch.CONDITIONAL]


def unconditional_text(job: Job) -> EncodedText:
    """What the job's negative prompt, empty as a rule, brings to the networks."""
    return job.shared.texts[Branch.UNCONDITIONAL]
