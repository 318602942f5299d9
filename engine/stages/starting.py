"""The start of a run: a draft, a witness of the gate or a final is written into its job's slot."""

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..api.settings import Stage
from ..avoidance.conditioning import mask_pyramid, masked_noise_columns, token_vectors, transition_point
from ..avoidance.initial_noise import initial_noise, sharpness_lengths, sharpness_probes
from ..batching.arenas import Arenas
from ..batching.carried import Own, Said, attempt_seed, witness_seed
from ..batching.job import Job, Trajectory
from ..batching.slots import SlotState
from ..judging.gate import witness_plan
from ..models.components import Components
from ..models.layers import latent_grids
from ..models.networks import EncodedText
from ..models.transfers import sent
from ..sampling.noise import seeded_noise
from ..sampling.rows import Branch, plan_rows, shallow_steps
from ..sampling.solver import SolverTable, stage_table


class Starting:
    """Starts runs on one model."""

    def __init__(self, components: Components, arenas: Arenas) -> None:
        self.components = components
        self.arenas = arenas
        if components.segmenter is not None:
            colours = torch.from_numpy(components.segmenter.palette) / 255
            self._colours = colours.to(arenas.networks.device)

    @torch.inference_mode()
    def start_draft(self, job: Job) -> None:
        """Start the draft."""
        stage = job.draft
        table = self._table(stage)
        latent = self._noise(job, job.request.seed) * table.init_noise_sigma
        state = SlotState(latent, table.columns, job.request.seed, job.shared.texts, further=job.shared.hints)
        plan = plan_rows(stage, further=job.request.controls, embedded=job.embedded)
        self._start(job, state, stage, Trajectory(plan, tuple(table.timesteps.tolist())))

    def start_redraft(self, job: Job) -> None:
        """Start the job's second draft, which other images of its request know nothing of."""
        job.redrafted = True
        job.shared = replace(job.shared, masses=[], drafted=None)
        self.start_draft(job)

    @torch.inference_mode()
    def start_witness(self, job: Job) -> None:
        """Start the next witness: the draft's first steps from another seed."""
        shared, stage = job.shared, job.request.draft
        if shared.drafted is None:
            shared.drafted = self.arenas.latent(job).clone(), job.trajectory
        seed, table = witness_seed(job.request.seed, len(shared.agreements)), self._table(stage)
        latent = self._noise(job, seed) * table.init_noise_sigma
        state = SlotState(latent, table.columns, seed, shared.texts, further=shared.hints)
        plan = witness_plan(stage, job.request.controls, job.embedded)
        self._start(job, state, stage, Trajectory(plan, tuple(table.timesteps.tolist())))

    @torch.inference_mode()
    def start_final(self, job: Job) -> None:
        """Start an attempt at the final; mask and texts come from the draft, the map it follows from `Placing`."""
        request, shared = job.request, job.shared
        own = job.own = job.own or Own()
        own.policy = policy = job.avoidance.settled(transition_point(shared.magnitudes))
        own.seed = attempt_seed(request.seed, job.index, job.attempt)
        own.masses, own.early, own.moved, own.delivered = [], [], None, False
        table = self._table(request.final)
        mask = shared.shape.float()
        latent_mask = F.adaptive_avg_pool2d(mask[None, None], job.shape)[0, 0]
        fresh, drafts = (self._noise(job, seed) for seed in (own.seed, request.seed))
        own.noise = initial_noise(policy.initial_noise, fresh, drafts, latent_mask, own.seed) * table.init_noise_sigma
        texts = shared.texts if shared.final_texts is None else shared.final_texts
        first, own.turns = self._said(job, texts[Branch.CONDITIONAL])
        state = SlotState(
            latent=own.noise,
            columns=masked_noise_columns(table, policy.masked_noise),
            seed=own.seed,
            texts=(texts[Branch.UNCONDITIONAL], first.text),
            mask=latent_mask,
            pyramid=mask_pyramid(mask, latent_grids(job.shape, self.arenas.networks.denoiser.num_levels)),
            tokens=first.tokens,
            hints=self._hints(job),
            sharpness=sharpness_lengths(policy.initial_noise, table, own.noise.shape),
            further=shared.hints,
        )
        plan = plan_rows(request.final, policy.delayed_guidance, policy.moved_control, request.controls, job.embedded)
        probes = sharpness_probes(policy.initial_noise)
        trajectory = Trajectory(plan, tuple(table.timesteps.tolist()), probes)
        self._start(job, state, request.final, trajectory, own.turns)

    def _said(self, job: Job, prompt: EncodedText) -> tuple[Said, dict[int, Said]]:
        """What an attempt's conditional text is at first, and what it becomes at which steps."""
        shared, policy, steps = job.shared, job.own.policy, job.request.final.evaluations
        rule, tokenizer, restating = policy.masked_attention, self.components.tokenizer, policy.restated_prompt
        own = Said(prompt, token_vectors(rule, shared.input_ids, tokenizer, _drawn(shared.masses)))
        if restating is None or shared.restated is None:
            return own, {}
        other, ids = shared.restated
        # Positions and spikes are of the prompt's own tokens.
        kinds = rule if rule is not None and not rule.listens and isinstance(rule.tokens, str) else None
        restated = Said(other, token_vectors(kinds, ids, tokenizer))
        said = [restated if restating.active(step, steps) else own for step in range(steps)]
        return said[0], {step: said[step] for step in range(1, steps) if said[step] is not said[step - 1]}

    @torch.inference_mode()
    def deliver_draft(self, job: Job) -> None:
        """Make the job's draft its picture, to be judged as one; it costs nothing more and has no draft to be like."""
        job.own = Own(seed=job.request.seed, delivered=True)
        job.own.policy = job.avoidance
        if job.shared.drafted is not None:
            latent, job.trajectory = job.shared.drafted
            self.arenas.arena(job).latents[job.slot] = latent

    def _start(
        self, job: Job, state: SlotState, stage: Stage, trajectory: Trajectory, turns: Collection[int] = ()
    ) -> None:
        assert job.slot is not None
        trajectory.adapters, trajectory.rescale = self.components.chosen(stage), stage.guidance_rescale
        trajectory.shallow = shallow_steps(trajectory.plan, stage, turns)
        self.arenas.arena(job).write(job.slot, state)
        job.trajectory = trajectory

    def _table(self, stage: Stage) -> SolverTable:
        return stage_table(stage, self.components.scheduler, self.components.sampler)

    def _noise(self, job: Job, seed: int) -> Tensor:
        return seeded_noise(self.components.unet.config.in_channels, job.shape, seed)

    def _hints(self, job: Job) -> tuple[Tensor | None, Tensor | None]:
        """Embed the placed map and, for a negative branch, the draft's own as control images, by `Hint`."""
        control, own = job.avoidance.moved_control, job.own
        if control is None:
            own.control_map, own.shapes, own.inherits = None, (), True
            return None, None
        maps = self._coloured([own.control_map, job.shared.labels] if control.negative else [own.control_map])
        embedded = [self.arenas.networks.denoiser.controller().embed_hint(each)[0] for each in maps]
        return embedded[0], embedded[1] if control.negative else None

    def _coloured(self, maps: Sequence[np.ndarray]) -> list[Tensor]:
        """Label maps (H, W) as control images (1, 3, H, W) on the device, which the labels alone are copied to."""
        segmenter, networks = self.components.segmenter, self.arenas.networks
        assert segmenter is not None
        labels = sent([torch.from_numpy(each.astype(np.int16)) for each in maps], networks.device)
        return [self._colours[each.long()].permute(2, 0, 1)[None].to(networks.dtype) for each in labels]


def _drawn(masses: Sequence[Tensor]) -> Tensor | None:
    """Attention (T,) that each token drew in a draft, over all its pixels and steps, from `MassRecord`s of a step each.

    A draft has no mask: all of it lies outside.
    """
    return torch.stack(list(masses))[:, 1, 1].mean(0) if masses else None
