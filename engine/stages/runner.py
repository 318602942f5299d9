"""Batches to work on the device: encode prompts, start runs, denoise, segment drafts, judge finals."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import CLIPTokenizer

from ..api.errors import NonFiniteLatentError
from ..api.event import State
from ..api.request import GenerationRequest
from ..api.result import Attempt, Explanation
from ..api.rules import Decision
from ..api.settings import Stage
from ..avoidance.conditioning import (
    avoidance_mask,
    mask_pyramid,
    masked_noise_columns,
    moved_labels,
    token_vectors,
    transition_point,
)
from ..avoidance.initial_noise import initial_noise, sharpness_lengths, sharpness_probes
from ..backends.networks import BackendSettings, Networks
from ..batching.carried import Own, attempt_seed, witness_seed
from ..batching.denoising import Bucket, DenoisingLoop
from ..batching.graphs import GraphPool
from ..batching.job import Job, Trajectory
from ..batching.slots import Arena, SlotState
from ..judging.gate import agreement, witness_steps
from ..judging.judge import PREFIX, Judge, Measured
from ..judging.registry import Registry
from ..judging.similarity import ExtraMetric, judge
from ..models.attention import latent_grids
from ..models.checkpoint import Components
from ..models.networks import Denoiser, EncodedText, MassRecord
from ..models.tensors import Network
from ..sampling.rows import Branch, Hint, guidance_rows, plan_rows
from ..sampling.solver import SolverTable, solver_table

_TEXT_CACHE_BYTES = 2 * 2**30  # most memory of the prompts that are kept, however many may be


class Runner:
    """Executes batches on one model. Knows nothing of queues; jobs' states are the engine's to change."""

    def __init__(
        self,
        components: Components,
        *,
        num_slots: int,
        buckets: Sequence[int],
        max_steps: int,
        device: torch.device,
        dtype: torch.dtype,
        graphs: GraphPool,
        extra_metrics: Mapping[str, ExtraMetric],
        registry: Registry | None = None,
        backends: BackendSettings | None = None,
        text_cache: int = 256,
    ) -> None:
        self.components = components
        self.denoiser = Denoiser(components.unet, components.controlnet)
        self.networks = Networks(
            components, self.denoiser, backends or BackendSettings(), buckets=buckets, device=device, dtype=dtype
        )
        self.num_slots = num_slots
        self.buckets = tuple(buckets)
        self.max_steps = max_steps
        self.device = device
        self.dtype = dtype
        self.graphs = graphs
        self.judging = Judge(components, extra_metrics, registry, self.decode, self._segment)
        self._protected = registry.latents.to(device) if registry is not None else None
        self.loops: dict[tuple[int, int], DenoisingLoop] = {}
        self._texts: OrderedDict[str | None, EncodedText] = OrderedDict()
        self._text_cache = text_cache

    def loop(self, shape: tuple[int, int]) -> DenoisingLoop:
        """Arena and buffers of a latent shape, made when first needed."""
        if shape not in self.loops:
            arena = Arena(
                self.denoiser,
                num_slots=self.num_slots,
                max_steps=self.max_steps,
                shape=shape,
                num_tokens=self.components.max_tokens,
                device=self.device,
                dtype=self.dtype,
            )
            self.loops[shape] = DenoisingLoop(
                self.networks, arena, self.buckets, self.dtype, self.graphs, self._protected
            )
        return self.loops[shape]

    # --- text ---

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> token ids (B, T) int64, padded; longer prompts were refused before."""
        return self._padded(self.components.tokenizer, prompts)

    def _padded(self, tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> Tensor:
        length = self.components.max_tokens
        encoded = tokenizer(
            list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        return encoded.input_ids

    @torch.inference_mode()
    def encode(self, jobs: Sequence[Job]) -> None:
        """Encode the prompts of `jobs`, each distinct prompt once."""
        wanted = {p for job in jobs for p in self._prompts(job.request)}
        new = sorted(wanted - self._texts.keys(), key=str)
        if new:
            self._texts |= zip(new, self._encoded(new), strict=True)
        for job in jobs:
            sizes = job.request.framing.sizes(*(side * self.components.vae_scale_factor for side in job.shape))
            job.shared.texts = tuple(self.denoiser.sized(self._texts[p], sizes) for p in self._prompts(job.request))
            job.shared.input_ids = self.tokenize([job.request.prompt])[0]
        for prompt in wanted:
            self._texts.move_to_end(prompt)
        room = _TEXT_CACHE_BYTES // jobs[0].shared.texts[0].nbytes
        while len(self._texts) > min(self._text_cache, room):
            self._texts.popitem(last=False)

    def _prompts(self, request: GenerationRequest) -> tuple[str | None, str]:
        """Prompts by `Branch`; None where zeros stand for an empty one."""
        negative = request.negative_prompt
        return (None if self.components.zero_empty and not negative else negative), request.prompt

    def _encoded(self, prompts: Sequence[str | None]) -> list[EncodedText]:
        """Encode prompts by every text encoder, their states side by side; pooled text comes from the last."""
        words = [prompt or "" for prompt in prompts]
        encoders = zip((Network.TEXT_ENCODER, Network.TEXT_ENCODER_2), self.components.tokenizers, strict=False)
        outputs = [
            self.networks(name, [self._padded(tokenizer, words).to(self.device)]) for name, tokenizer in encoders
        ]
        states, pooled = torch.cat([output[0] for output in outputs], dim=-1), outputs[-1][1:]
        for tensor in (states, *pooled):
            tensor[[prompt is None for prompt in prompts]] = 0
        return self.denoiser.encode(states, pooled)

    # --- denoising ---

    @torch.inference_mode()
    def start_draft(self, job: Job) -> None:
        """Write the draft's run into the job's slot."""
        stage = job.request.draft
        table = self._table(stage)
        latent = self._noise(job, job.request.seed) * table.init_noise_sigma
        state = SlotState(latent, table.columns, job.request.seed, job.shared.texts)
        self._start(job, state, Trajectory(plan_rows(stage), tuple(table.timesteps.tolist())))

    def wants_witnesses(self, job: Job) -> bool:
        """Whether the gate cannot decide on a segmented draft before other seeds are asked."""
        return self.judging.wants_witnesses(job.request, job.shared.gate)

    @torch.inference_mode()
    def start_witness(self, job: Job) -> None:
        """Write the next witness's run into the job's slot: the draft's first steps from another seed.

        Its last step needs no guidance: what the prompt alone predicts is compared with the draft.
        """
        shared, stage = job.shared, job.request.draft
        if shared.drafted is None:
            shared.drafted = self.latent(job).clone(), job.trajectory
        seed, table = witness_seed(job.request.seed, len(shared.agreements)), self._table(stage)
        steps = witness_steps(stage.steps)
        plan = (*plan_rows(stage)[: steps - 1], guidance_rows(1))
        state = SlotState(self._noise(job, seed) * table.init_noise_sigma, table.columns, seed, shared.texts)
        self._start(job, state, Trajectory(plan, tuple(table.timesteps.tolist())))

    @torch.inference_mode()
    def hear_witness(self, job: Job) -> bool:
        """Compare a finished witness with the draft; after the last, decide on the gate and return True."""
        shared = job.shared
        assert job.slot is not None
        assert job.trajectory is not None
        assert job.request.gate is not None
        seen, mask = self.loop(job.shape).arena.history[job.slot], torch.from_numpy(shared.mask).to(self.device)
        shared.agreements.append(agreement(seen, shared.drafted[0], mask))
        if len(shared.agreements) < job.request.gate.witnesses:
            return False
        rows = len(shared.agreements) * job.trajectory.rows_spent
        shared.gate = self.judging.witnessed(job.request, shared.gate, shared.agreements, rows)
        return True

    @torch.inference_mode()
    def start_final(self, job: Job) -> None:
        """Write an attempt's run into the job's slot; mask, texts and (for the same warp) hint come from the draft."""
        request, shared = job.request, job.shared
        own = job.own = job.own or Own()
        own.policy = policy = job.avoidance.settled(transition_point(shared.magnitudes))
        own.seed = attempt_seed(request.seed, job.index, job.attempt)
        own.masses, own.early, own.noise_moved, own.delivered = [], [], 0.0, False
        table = self._table(request.final)
        mask = torch.from_numpy(shared.mask).float()
        latent_mask = F.adaptive_avg_pool2d(mask[None, None], job.shape)[0, 0]
        fresh, drafts = (self._noise(job, seed) for seed in (own.seed, request.seed))
        own.noise = initial_noise(policy.initial_noise, fresh, drafts, latent_mask, own.seed) * table.init_noise_sigma
        state = SlotState(
            latent=own.noise,
            columns=masked_noise_columns(table, policy.masked_noise),
            seed=own.seed,
            texts=shared.texts,
            mask=latent_mask,
            pyramid=mask_pyramid(mask, latent_grids(job.shape, self.denoiser.num_levels)),
            tokens=token_vectors(
                policy.masked_attention, shared.input_ids, self.components.tokenizer, _drawn(shared.masses)
            ),
            hints=self._hints(job),
            sharpness=sharpness_lengths(policy.initial_noise, table, own.noise.shape),
        )
        plan = plan_rows(request.final, policy.delayed_guidance, policy.moved_control)
        probes = sharpness_probes(policy.initial_noise)
        self._start(job, state, Trajectory(plan, tuple(table.timesteps.tolist()), probes))

    def _start(self, job: Job, state: SlotState, trajectory: Trajectory) -> None:
        assert job.slot is not None
        self.loop(job.shape).arena.write(job.slot, state)
        job.trajectory = trajectory

    def _table(self, stage: Stage) -> SolverTable:
        return solver_table(stage.solver, stage.steps, self.components.scheduler)

    def _noise(self, job: Job, seed: int) -> Tensor:
        """Unit noise (C, h, w) of a seed, as a diffusers pipeline draws it from a CPU generator."""
        generator = torch.Generator("cpu").manual_seed(seed)
        shape = (1, self.components.unet.config.in_channels, *job.shape)
        return torch.randn(shape, generator=generator)[0]

    def _hints(self, job: Job) -> tuple[Tensor | None, Tensor | None]:
        """Embed the moved label map and, for a negative branch, the draft's own as control images, by `Hint`."""
        control = job.avoidance.moved_control
        if control is None:
            job.own.control_map = None
            return None, None
        segmenter = self.components.segmenter
        assert segmenter is not None
        moved = moved_labels(job.shared.labels, segmenter.background, control, seed=job.own.seed)
        job.own.control_map = moved.astype(np.uint16)
        return self._embedded(moved), self._embedded(job.shared.labels) if control.negative else None

    def _embedded(self, labels: np.ndarray) -> Tensor:
        segmenter = self.components.segmenter
        assert segmenter is not None
        hint = torch.from_numpy(segmenter.palette[labels]).permute(2, 0, 1)[None] / 255
        return self.denoiser.embed_hint(hint.to(self.device, self.dtype))[0]

    def denoise(self, jobs: Sequence[Job]) -> Bucket:
        """Run one step of each job; return the padded sizes it ran at."""
        record = MassRecord() if any(_recorded(job) for job in jobs) else None
        bucket = self.loop(jobs[0].shape).step(jobs, record)
        if record is not None:
            self._keep_masses(jobs, record)
        for job in jobs:
            assert job.trajectory is not None
            job.trajectory.advance()
        return bucket

    def _keep_masses(self, jobs: Sequence[Job], record: MassRecord) -> None:
        """Hand each job the masses of its conditional row, (2 rules, 2 sides, T); NaN without such a row."""
        assert isinstance(record.ruled, Tensor)
        assert isinstance(record.neutral, Tensor)
        masses = torch.stack([record.ruled, record.neutral], dim=1).cpu() / record.layers
        first = 0
        for job in jobs:
            assert job.trajectory is not None
            branches = [row.branch for row in job.trajectory.rows]
            found = Branch.CONDITIONAL in branches
            row = first + branches.index(Branch.CONDITIONAL) if found else first
            kept = masses[row] if found else torch.full_like(masses[row], torch.nan)
            if job.state is State.DRAFTING:
                job.shared.masses.append(kept)
            elif job.state is State.FINALISING and job.trajectory.probes:
                job.own.noise_moved = self._noise_moved(job)
            elif job.state is State.FINALISING:
                job.own.masses.append(kept)
            first += len(branches)

    def _noise_moved(self, job: Job) -> float:
        noise, latent = job.own.noise, self.loop(job.shape).arena.latents[job.slot].cpu()
        return float((latent - noise).norm() / noise.norm())

    # --- pictures ---

    def latent(self, job: Job) -> Tensor:
        """The job's latent (C, h, w), still in its slot; its predicted x0 while the run is not done.

        Raises NonFiniteLatentError.
        """
        assert job.slot is not None
        assert job.trajectory is not None
        arena = self.loop(job.shape).arena
        latent = (arena.latents if job.trajectory.done else arena.history)[job.slot]
        if not torch.isfinite(latent).all():
            raise NonFiniteLatentError(
                f"the {job.state.value} run of request {job.id} left NaN or infinity in its latent; "
                "a lower guidance scale or another dtype may help"
            )
        return latent

    def guidance_magnitudes(self, job: Job) -> np.ndarray | None:
        """Size of the guidance at each step of a finished draft, (S,) float64; None where it ran unguided.

        The root mean square over the latent of eps(x, prompt) - eps(x, negative prompt), before the guidance scale:
        what Wen et al. (ICLR 2024) and Jain et al. (CVPR 2025) tell recited pictures by.
        """
        stage = job.request.draft
        if stage.guidance_scale == 1:
            return None
        measured = self.loop(job.shape).arena.magnitudes[job.slot, : stage.steps].cpu().double()
        return (measured * self._table(stage).noise_scale).numpy()

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> pixels (B, 3, H, W) float32 in [0, 1]."""
        config = self.components.vae.config
        scaled = latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
        (decoded,) = self.networks(Network.VAE_DECODER, [scaled.to(self.components.vae.dtype)])
        return (decoded.float() / 2 + 0.5).clamp(0, 1)

    @torch.inference_mode()
    def previews(self, jobs: Sequence[Job]) -> dict[int, Image.Image]:
        """Decode the predicted x0 of each job, by job id."""
        if not jobs:
            return {}
        arena = self.loop(jobs[0].shape).arena
        pixels = self.decode(torch.stack([arena.history[job.slot] for job in jobs]))
        return {job.id: to_picture(one) for job, one in zip(jobs, pixels, strict=True)}

    @torch.inference_mode()
    def segment(self, jobs: Sequence[Job]) -> None:
        """Decode drafts (or take sources), find their labels and masks."""
        latents = {job.id: self.latent(job) for job in jobs if job.shared.source is None}
        for group in _by_shape(jobs):
            drafted = [job for job in group if job.id in latents]
            pixels = iter(self.decode(torch.stack([latents[job.id] for job in drafted])) if drafted else ())
            references = [next(pixels)[None] if job.id in latents else job.shared.source for job in group]
            labels = self._labels(torch.cat(references))
            for job, reference, found in zip(group, references, labels, strict=True):
                self._keep_draft(job, reference, found)

    def _scores(self, pixels: Tensor) -> Tensor:
        """Score of each label, from pixels as the segmenter sees them."""
        return self.networks(Network.SEGMENTER, [pixels])[0]

    def _segment(self, pixels: Tensor) -> Tensor | None:
        """Labels (B, H, W) of pictures, None without a segmenter."""
        segmenter = self.components.segmenter
        return None if segmenter is None else segmenter(pixels, self._scores)

    def _labels(self, pixels: Tensor) -> list[np.ndarray | None]:
        labels = self._segment(pixels)
        return [None] * len(pixels) if labels is None else list(labels.cpu().numpy())

    def _keep_draft(self, job: Job, reference: Tensor, labels: np.ndarray | None) -> None:
        shared, segmenter = job.shared, self.components.segmenter
        # Copies, here and of an attempt's picture: a view would keep its whole batch for as long as the job lives.
        shared.reference, shared.labels = reference.clone(), None if labels is None else labels.copy()
        if job.request.mask is not None:
            shared.mask = job.request.mask
        else:
            assert segmenter is not None
            assert labels is not None
            shared.mask = avoidance_mask(labels, segmenter.background)
        if job.trajectory is not None:
            shared.draft_rows = job.trajectory.rows_spent
            shared.magnitudes = self.guidance_magnitudes(job)
        shared.gate = self.judging.gate(job.request, reference, shared.magnitudes)

    @torch.inference_mode()
    def judge(self, jobs: Sequence[Job]) -> None:
        """Score finals against their draft or source.

        A finished run, and one that an early verdict ends, is appended to the job's attempts.
        """
        latents = {job.id: self.latent(job) for job in jobs}
        for group in _by_shape(jobs):
            pixels = self.decode(torch.stack([latents[job.id] for job in group]))
            references = torch.cat([job.shared.reference for job in group])
            masks = torch.stack([torch.from_numpy(job.shared.mask) for job in group]).to(self.device)
            controls = [job.own.control_map for job in group]
            found = self.judging.measure(pixels, references, masks, controls)
            for job, image, measured in zip(group, pixels, found, strict=True):
                self._keep_attempt(job, image, measured)

    @torch.inference_mode()
    def deliver_draft(self, job: Job) -> None:
        """Make the job's draft its picture, to be judged as one; it costs nothing more and has no draft to be like."""
        job.own = Own(seed=job.request.seed, delivered=True)
        job.own.policy = job.avoidance
        if job.shared.drafted is not None:
            latent, job.trajectory = job.shared.drafted
            self.loop(job.shape).arena.latents[job.slot] = latent

    def _keep_attempt(self, job: Job, image: Tensor, measured: Measured) -> None:
        own, run = job.own, job.trajectory
        assert run is not None
        values: dict[str, float | None] = dict(measured.values)
        if own.delivered:
            values |= {name: None for name in values if not name.startswith(PREFIX)}
        judged = judge(values, self.judging.rule(job.request))
        if not run.done:
            passed = judged.decision is not Decision.REFUSE
            own.early.append((run.step, passed))
            if passed or not job.request.similarity.early_stops:
                return
        rows, steps, saved = (0, 0, 0) if own.delivered else (run.rows_spent, run.step, run.rows_left)
        own.image = image.clone()
        own.attempts.append(
            Attempt(
                own.seed, own.policy, judged.scores, rows, steps, saved, tuple(own.early),
                judged.decision, judged.reasons, measured.nearest,
            )
        )  # fmt: skip

    def explanation(self, job: Job) -> Explanation:
        """What the last attempt's mechanisms did, step by step."""
        assert job.trajectory is not None
        own, plan, reference = job.own, job.trajectory.plan, job.shared.reference
        policy, nearest = own.attempts[-1].avoidance, own.attempts[-1].nearest
        unseen = torch.full((len(plan), 2, 2, self.components.max_tokens), torch.nan)  # a draft that was delivered
        masses = (torch.stack(own.masses) if own.masses else unseen).numpy()
        ids = job.shared.input_ids.tolist()
        noise = policy.masked_noise
        return Explanation(
            tokens=tuple(self.components.tokenizer.convert_ids_to_tokens(ids)),
            mass_inside=masses[:, 0, 0],
            mass_outside=masses[:, 0, 1],
            neutral_inside=masses[:, 1, 0],
            neutral_outside=masses[:, 1, 1],
            guidance=np.array([sum(r.weight for r in rows if r.branch is Branch.CONDITIONAL) for rows in plan]),
            control=np.array([max(r.control for r in rows) for rows in plan]),
            noise=np.array([
                noise.strength if noise is not None and noise.active(step, len(plan)) else 0.0
                for step in range(len(plan))
            ]),
            negative=np.array([sum(-r.weight for r in rows if r.hint is Hint.OWN) for rows in plan]),
            rows=np.array([len(rows) for rows in plan]),
            noise_moved=own.noise_moved,
            similarity=self.judging.maps(own.image, None if own.delivered else reference, nearest),
            repulsion=self.loop(job.shape).arena.pushes[job.slot, : len(plan)].numpy(force=True).copy(),
        )  # fmt: skip


def _recorded(job: Job) -> bool:
    """Whether the job's attention is recorded: that of a final to explain, or of a draft to find spikes in."""
    if job.state is State.FINALISING:
        return job.request.explain
    rule = job.request.avoidance.masked_attention
    return job.state is State.DRAFTING and rule is not None and rule.listens


def _drawn(masses: Sequence[Tensor]) -> Tensor | None:
    """Attention (T,) that each token drew in a draft, over all its pixels and steps, from `MassRecord`s of a step each.

    A draft has no mask: all of it lies outside.
    """
    return torch.stack(list(masses))[:, 1, 1].mean(0) if masses else None


def to_picture(pixels: Tensor) -> Image.Image:
    """Pixels (3, H, W) in [0, 1] -> 8-bit RGB."""
    array = (pixels.permute(1, 2, 0).cpu().numpy() * 255).round().astype(np.uint8)
    return Image.fromarray(array)


def _by_shape(jobs: Sequence[Job]) -> list[list[Job]]:
    groups: dict[tuple[int, int], list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.shape, []).append(job)
    return list(groups.values())
