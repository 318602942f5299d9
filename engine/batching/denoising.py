"""One denoising step of a mixed batch: plan on the host, static buffers, ControlNet, UNet, solver."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ...kernels import ScalarColumn, denoise_step, gather_rows
from ..api.event import State
from ..api.mechanisms import Repulsion
from ..avoidance.conditioning import attention_scalars
from ..avoidance.initial_noise import PROBES_PER_STEP, sharpness_move
from ..avoidance.repulsion import repulsion, step_change
from ..backends.networks import Networks
from ..models.networks import ControlInputs, DenoiserInputs, MassRecord
from ..sampling.buckets import bucket_of
from ..sampling.rows import MAX_ROWS, Branch, guidance_pair
from .buffers import UNUSED, StepBuffers, StepPlan
from .graphs import GraphPool
from .job import Job
from .slots import NUM_BRANCHES, NUM_HINTS, Arena


@dataclass(frozen=True)
class Bucket:
    """Padded sizes of a step: rows of the UNet call, and rows of the ControlNet call (0 for none)."""

    rows: int
    control_rows: int


class DenoisingLoop:
    """Arena, buffers and graphs of one latent shape; protected (K, C, h, w): latents of works to be repelled from."""

    def __init__(
        self,
        networks: Networks,
        arena: Arena,
        buckets: Sequence[int],
        dtype: torch.dtype,
        graphs: GraphPool,
        protected: Tensor | None = None,
    ) -> None:
        self.networks = networks
        denoiser = networks.denoiser
        self.arena = arena
        self.buckets = tuple(buckets)
        self.buffers = StepBuffers(denoiser, arena, self.buckets[-1], dtype, networks.memory_format)
        self.graphs = graphs
        self.protected = protected
        self._groups = [layer.group for layer in denoiser.layers]

    @property
    def nbytes(self) -> int:
        """Bytes of arena and buffers."""
        return sum(tensor.nbytes for tensor in (*self.arena.tensors(), *self.buffers.tensors()))

    @torch.inference_mode()
    def capture(self) -> None:
        """Capture the graphs of every bucket, largest first; where a backend compiles, make it compile instead."""
        capture = self.graphs.capture if self.networks.all_torch else _run
        for rows, key, body in self._bodies():
            self.buffers.load(_empty_plan(len(self._groups)), rows, rows if self.arena.hints is not None else 0)
            capture(key, body)

    def release(self) -> None:
        """Let go the graphs, which would outlive the buffers that they read."""
        for _, key, _ in self._bodies():
            self.graphs.forget(key)

    def _bodies(self) -> Iterator[tuple[int, Hashable, Callable[[], None]]]:
        """Rows, key and body of what a step runs, for each bucket."""
        for rows in reversed(self.buckets):
            yield rows, self._predict_key(rows, False), partial(self._predict, rows, False)
            if self.arena.hints is not None:
                yield rows, self._predict_key(rows, True), partial(self._predict, rows, True)
                yield rows, self._control_key(rows), partial(self._control, rows)

    @torch.inference_mode()
    def step(self, jobs: Sequence[Job], record: MassRecord | None = None) -> Bucket:
        """Run the next step of each job, in place in the arena. With a `record`, attention masses are summed there."""
        plan = self._plan(jobs)
        rows = bucket_of(len(plan.row_slots), self.buckets)
        control_rows = bucket_of(len(plan.control_rows), self.buckets) if plan.control_rows else 0
        self.buffers.load(plan, rows, control_rows)
        if control_rows:
            self.graphs.run(self._control_key(control_rows), partial(self._control, control_rows))
        if record is not None:
            self._predict(rows, bool(control_rows), record)
        else:
            key = self._predict_key(rows, bool(control_rows))
            self.graphs.run(key, partial(self._predict, rows, bool(control_rows)))
        if probing := [job for job in jobs if job.trajectory is not None and job.trajectory.probes]:
            self._move_noise(probing)
        if repelled := [job for job in jobs if _repulsion_at(job) is not None]:
            self._repel(repelled)
        return Bucket(rows, control_rows)

    def _predict_key(self, rows: int, controlled: bool) -> tuple[object, ...]:
        return "unet", self.arena.shape, rows, controlled

    def _control_key(self, rows: int) -> tuple[object, ...]:
        return "controlnet", self.arena.shape, rows

    def _plan(self, jobs: Sequence[Job]) -> StepPlan:
        plan = StepPlan()
        for job in jobs:
            self._add(plan, job)
        return plan

    def _add(self, plan: StepPlan, job: Job) -> None:
        trajectory, slot = job.trajectory, job.slot
        assert trajectory is not None
        assert slot is not None
        acting = job.state is State.FINALISING and not trajectory.probes
        rule = job.avoidance.masked_attention if acting else None
        scalars = attention_scalars(rule, trajectory.step, len(trajectory.plan), self._groups)
        first = len(plan.row_slots)
        for row in trajectory.rows:
            if row.control:
                plan.control_rows.append(len(plan.row_slots))
                plan.control_scales.append(row.control)
                plan.control_hints.append(slot * NUM_HINTS + row.hint)
            plan.row_slots.append(slot)
            plan.row_contexts.append(slot * NUM_BRANCHES + row.branch)
            plan.row_steps.append(trajectory.step)
            plan.timesteps.append(trajectory.timesteps[trajectory.step])
            # The rule speaks of the prompt's tokens, so the unconditional row never obeys it.
            plan.scalars.append(scalars if row.branch is Branch.CONDITIONAL else np.zeros_like(scalars))
        padding = MAX_ROWS - len(trajectory.rows)
        plan.job_slots.append(UNUSED if trajectory.probes else slot)
        plan.job_steps.append(trajectory.step)
        plan.job_rows.append([*range(first, len(plan.row_slots)), *[0] * padding])
        plan.job_weights.append([*(row.weight for row in trajectory.rows), *[0.0] * padding])
        pair = guidance_pair(trajectory.rows)
        plan.pair_slots.append(UNUSED if pair is None else slot)
        plan.job_pairs.append((0, 0) if pair is None else (first + pair[0], first + pair[1]))

    def _control(self, rows: int) -> None:
        """ControlNet on its rows; its residuals are scattered into zeroed buffers."""
        arena, b = self.arena, self.buffers
        assert arena.hints is not None
        slots, contexts = b.control_slots[:rows], b.control_contexts[:rows]
        gather_rows(arena.latents, arena.columns, slots, b.control_steps[:rows], b.control_sample[:rows])
        for source, target in zip((*arena.control_kv, *arena.added), (*b.control_kv, *b.control_added), strict=True):
            torch.index_select(source, 0, contexts, out=target[:rows])
        torch.index_select(arena.hints, 0, b.control_hints[:rows], out=b.hints[:rows])
        residuals = self.networks.control(
            ControlInputs(
                b.control_sample[:rows],
                self.networks.denoiser.control_time_proj(b.control_timesteps[:rows]),
                tuple(kv[:rows] for kv in b.control_kv),
                tuple(condition[:rows] for condition in b.control_added),
                b.hints[:rows],
                b.control_scales[:rows],
            )
        )
        for source, target in zip(residuals, b.residuals, strict=True):
            target.zero_()
            target.index_copy_(0, b.control_rows[:rows], source)

    def _predict(self, rows: int, controlled: bool, record: MassRecord | None = None) -> None:
        """UNet on all rows, then guidance and solver in place on the slots."""
        arena, b = self.arena, self.buffers
        slots, contexts = b.row_slots[:rows], b.row_contexts[:rows]
        gather_rows(arena.latents, arena.columns, slots, b.row_steps[:rows], b.sample[:rows])
        for source, target in zip((*arena.text_kv, *arena.added), (*b.text_kv, *b.added), strict=True):
            torch.index_select(source, 0, contexts, out=target[:rows])
        used = slots.clamp(min=0)
        torch.index_select(arena.pyramid, 0, used, out=b.pyramid[:rows])
        torch.index_select(arena.tokens, 0, used, out=b.tokens[:rows])
        predicted = self.networks.predict(
            DenoiserInputs(
                b.sample[:rows],
                self.networks.denoiser.time_proj(b.timesteps[:rows]),
                tuple(kv[:rows] for kv in b.text_kv),
                tuple(condition[:rows] for condition in b.added),
                b.pyramid[:rows],
                b.tokens[:rows],
                b.scalars[:rows],
                tuple(r[:rows] for r in b.residuals) if controlled else None,
                record,
            )
        )
        self._contrast(rows, predicted)
        denoise_step(
            arena.latents,
            arena.history,
            predicted,
            b.job_slots[:rows],
            b.job_rows[:rows],
            b.job_weights[:rows],
            b.job_steps[:rows],
            arena.columns,
            arena.masks,
            arena.seeds,
        )

    def _contrast(self, rows: int, predicted: Tensor) -> None:
        """Keep conditional minus unconditional prediction (R, C, h, w), job by job, and its size."""
        arena, b = self.arena, self.buffers
        unconditional, conditional = (predicted[b.job_pairs[:rows, i]].float() for i in (0, 1))
        contrasts = conditional - unconditional
        slots = torch.where(b.pair_slots[:rows] < 0, len(arena.contrasts) - 1, b.pair_slots[:rows])
        arena.contrasts.index_copy_(0, slots, contrasts)
        arena.magnitudes.index_put_((slots, b.job_steps[:rows]), contrasts.square().mean((1, 2, 3)).sqrt())

    def _move_noise(self, jobs: Sequence[Job]) -> None:
        """Half a sharpness step of each of `jobs`; over the whole arena, so that company cannot change its rounding."""
        arena = self.arena
        halves = torch.zeros(len(arena.latents), dtype=torch.int64)
        for job in jobs:
            assert job.trajectory is not None
            halves[job.slot] = 1 + job.trajectory.probes % PROBES_PER_STEP
        halves = halves.to(arena.latents.device)
        contrasts = arena.contrasts[: len(arena.latents)]
        moved = sharpness_move(arena.latents, arena.history, contrasts, arena.sharpness, halves == 1)
        probing = (halves > 0).view(-1, 1, 1, 1)
        arena.latents.copy_(torch.where(probing, moved, arena.latents))
        arena.history.copy_(torch.where(probing, contrasts, arena.history))

    def _repel(self, jobs: Sequence[Job]) -> None:
        """Push the predicted x0 of `jobs` from protected works, and their latents to where that would have led."""
        assert self.protected is not None
        arena, device = self.arena, self.arena.latents.device
        policies = [policy for job in jobs if (policy := _repulsion_at(job)) is not None]
        radius, strength = torch.tensor([(p.radius, p.strength) for p in policies], device=device).unbind(1)
        places = [(job.slot, job.trajectory.step) for job in jobs if job.trajectory is not None]
        slots, steps = torch.tensor(places, device=device).unbind(1)
        change = repulsion(arena.history[slots], self.protected, radius, strength)
        arena.history[slots] += change
        arena.latents[slots] += step_change(arena.columns[slots, steps], arena.masks[slots]) * change
        arena.pushes[slots, steps] = change.square().mean((1, 2, 3)).sqrt()


def _repulsion_at(job: Job) -> Repulsion | None:
    """The repulsion that acts on the job's step, if any."""
    policy, run = job.avoidance.repulsion, job.trajectory
    if policy is None or run is None or job.state is not State.FINALISING or run.probes:
        return None
    return policy if policy.active(run.step, len(run.plan)) else None


def _run(_: Hashable, body: Callable[[], None]) -> None:
    body()


def _empty_plan(num_layers: int) -> StepPlan:
    """A plan of one padding row, to capture graphs with."""
    plan = StepPlan()
    plan.scalars.append(np.zeros((num_layers, len(ScalarColumn)), np.float32))
    return plan
