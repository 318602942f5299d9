"""One denoising step of a mixed batch: plan on the host, static buffers, ControlNet, UNet, solver."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ...kernels import denoise_step, gather_rows
from ..avoidance.initial_noise import sharpness_move
from ..avoidance.repulsion import carried_change, repulsion, step_change
from ..backends.networks import Networks
from ..models.networks import ControlInputs, DenoiserInputs, MassRecord
from ..sampling.buckets import bucket_of
from .buffers import StepBuffers
from .graphs import GraphPool
from .job import Job
from .planning import empty_plan, planned, repulsion_at
from .slots import Arena
from .streams import Mark


@dataclass(frozen=True)
class Bucket:
    """Padded sizes of a step: rows of the UNet call, and rows of the ControlNet call (0 for none)."""

    rows: int
    control_rows: int


After = tuple[Callable[[Sequence[Job]], None], list[Job]]
"""What is to be done with what a step left, for any of some jobs, and those jobs. It may fail and be repeated: nothing
is written before everything is computed."""


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
        self.latest: Mark = None
        self._marks: dict[int, Mark] = {}

    def stepping(self, jobs: Sequence[Job], mark: Mark) -> None:
        """Remember when the step of `jobs` will be done, if it is the last one that was asked for."""
        self.latest = mark
        self._marks |= {job.slot: mark for job in jobs if job.slot is not None}

    def mark(self, slot: int) -> Mark:
        """When the last step of a slot, whosever it was, will be done."""
        return self._marks.get(slot)

    @property
    def nbytes(self) -> int:
        """Bytes of arena and buffers."""
        return sum(tensor.nbytes for tensor in (*self.arena.tensors(), *self.buffers.tensors()))

    @torch.inference_mode()
    def capture(self) -> None:
        """Capture the graphs of every bucket, largest first; where a backend compiles, make it compile instead."""
        capture = self.graphs.capture if self.networks.all_torch else _run
        for rows, key, body in self._bodies():
            self.buffers.load(empty_plan(), rows, rows if self.arena.hints is not None else 0)
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
    def step(self, jobs: Sequence[Job], record: MassRecord | None = None) -> tuple[Bucket, list[After]]:
        """Run the next step of each job, in place in the arena; return its sizes, and what is to be done after it.

        With a `record`, attention masses are summed there. Where this raises no job has moved, and it may be called
        again; once it returns they have, and what comes after may fail but never runs the step again.
        """
        plan = planned(jobs, self._groups, len(self.arena.latents))
        rows = bucket_of(len(plan["row_slots"]), self.buckets)
        control_rows = bucket_of(len(plan["control_rows"]), self.buckets) if plan["control_rows"] else 0
        after = self._after(jobs)
        self.buffers.load(plan, rows, control_rows)
        if control_rows:
            self.graphs.run(self._control_key(control_rows), partial(self._control, control_rows))
        if record is not None:
            self._predict(rows, bool(control_rows), record)
        else:
            key = self._predict_key(rows, bool(control_rows))
            self.graphs.run(key, partial(self._predict, rows, bool(control_rows)))
        for job in jobs:
            assert job.trajectory is not None
            job.trajectory.advance()
        return Bucket(rows, control_rows), after

    def _after(self, jobs: Sequence[Job]) -> list[After]:
        """Mechanisms on what the solver leaves, with the jobs that they act on in the coming step."""
        probing = [job for job in jobs if job.trajectory is not None and job.trajectory.probes]
        repelled = [job for job in jobs if repulsion_at(job) is not None]
        works = ((self._move_noise, probing), (self._repel, repelled))
        return [(partial(work, acted), acted) for work, acted in works if acted]

    def _predict_key(self, rows: int, controlled: bool) -> tuple[object, ...]:
        return "unet", self.arena.shape, rows, controlled

    def _control_key(self, rows: int) -> tuple[object, ...]:
        return "controlnet", self.arena.shape, rows

    def _control(self, rows: int) -> None:
        """ControlNet on its rows; its residuals are scattered into zeroed buffers."""
        arena, b, c = self.arena, self.buffers, self.buffers.columns
        assert arena.hints is not None
        slots, contexts = c["control_slots"][:rows], c["control_contexts"][:rows]
        gather_rows(arena.latents, arena.columns, slots, c["control_steps"][:rows], b.control_sample[:rows])
        for source, target in zip((*arena.control_kv, *arena.added), (*b.control_kv, *b.control_added), strict=True):
            torch.index_select(source, 0, contexts, out=target[:rows])
        torch.index_select(arena.hints, 0, c["control_hints"][:rows], out=b.hints[:rows])
        residuals = self.networks.control(
            ControlInputs(
                b.control_sample[:rows],
                self.networks.denoiser.control_time_proj(c["control_timesteps"][:rows]),
                tuple(kv[:rows] for kv in b.control_kv),
                tuple(condition[:rows] for condition in b.control_added),
                b.hints[:rows],
                c["control_scales"][:rows],
            )
        )
        for source, target in zip(residuals, b.residuals, strict=True):
            target.zero_()
            target.index_copy_(0, c["control_rows"][:rows], source)

    def _predict(self, rows: int, controlled: bool, record: MassRecord | None = None) -> None:
        """UNet on all rows, then guidance and solver in place on the slots."""
        arena, b, c = self.arena, self.buffers, self.buffers.columns
        slots, contexts = c["row_slots"][:rows], c["row_contexts"][:rows]
        gather_rows(arena.latents, arena.columns, slots, c["row_steps"][:rows], b.sample[:rows])
        for source, target in zip((*arena.text_kv, *arena.added), (*b.text_kv, *b.added), strict=True):
            torch.index_select(source, 0, contexts, out=target[:rows])
        used = slots.clamp(min=0)
        torch.index_select(arena.pyramid, 0, used, out=b.pyramid[:rows])
        torch.index_select(arena.tokens, 0, used, out=b.tokens[:rows])
        predicted = self.networks.predict(
            DenoiserInputs(
                b.sample[:rows],
                self.networks.denoiser.time_proj(c["timesteps"][:rows], c["guidances"][:rows]),
                tuple(kv[:rows] for kv in b.text_kv),
                tuple(condition[:rows] for condition in b.added),
                b.pyramid[:rows],
                b.tokens[:rows],
                c["scalars"][:rows],
                tuple(r[:rows] for r in b.residuals) if controlled else None,
                record,
            )
        )
        self._contrast(rows, predicted)
        denoise_step(
            arena.latents,
            arena.history,
            predicted,
            c["job_slots"][:rows],
            c["job_rows"][:rows],
            c["job_weights"][:rows],
            c["job_steps"][:rows],
            arena.columns,
            arena.masks,
            arena.seeds,
            arena.carried,
            c["job_pairs"][:rows],
            c["job_rescales"][:rows],
        )

    def _contrast(self, rows: int, predicted: Tensor) -> None:
        """Keep conditional minus unconditional prediction (R, C, h, w), job by job, and its size."""
        arena, c = self.arena, self.buffers.columns
        unconditional, conditional = (predicted[c["job_pairs"][:rows, i]].float() for i in (0, 1))
        contrasts = conditional - unconditional
        slots = torch.where(c["pair_slots"][:rows] < 0, len(arena.contrasts) - 1, c["pair_slots"][:rows])
        arena.contrasts.index_copy_(0, slots, contrasts)
        arena.magnitudes.index_put_((slots, c["job_steps"][:rows]), contrasts.square().mean((1, 2, 3)).sqrt())

    @torch.inference_mode()
    def _move_noise(self, probing: Sequence[Job], jobs: Sequence[Job]) -> None:
        """Half a sharpness step of each of `jobs`, some of those that are `probing`.

        Over the whole arena, so that company cannot change its rounding. All is computed before anything is written.
        """
        arena, columns = self.arena, self.buffers.columns
        slots = columns["probe_slots"][_places(probing, jobs)]
        contrasts = arena.contrasts[: len(arena.latents)]
        moved = sharpness_move(arena.latents, arena.history, contrasts, arena.sharpness, columns["halves"] == 1)
        latents, history = moved[slots], contrasts[slots]
        arena.latents.index_copy_(0, slots, latents)
        arena.history.index_copy_(0, slots, history)

    @torch.inference_mode()
    def _repel(self, repelled: Sequence[Job], jobs: Sequence[Job]) -> None:
        """Push the predicted x0 of `jobs`, some of those `repelled`, and their latents to where that would have led.

        All is computed before anything is written.
        """
        assert self.protected is not None
        arena, plan, own = self.arena, self.buffers.columns, _places(repelled, jobs)
        slots, steps, radii, strengths = (plan[f"push_{n}"][own] for n in ("slots", "steps", "radii", "strengths"))
        change = repulsion(arena.history[slots], self.protected, radii, strengths)
        history = arena.history[slots] + change
        columns = arena.columns[slots, steps]
        latents = arena.latents[slots] + step_change(columns, arena.masks[slots]) * change
        carried = arena.carried[slots] + carried_change(columns) * change
        sizes = change.square().mean((1, 2, 3)).sqrt()
        arena.history.index_copy_(0, slots, history)
        arena.latents.index_copy_(0, slots, latents)
        arena.carried.index_copy_(0, slots, carried)
        arena.pushes.index_put_((slots, steps), sizes)


def _places(among: Sequence[Job], jobs: Sequence[Job]) -> slice | list[int]:
    """Where `jobs` stand among others; neighbours, as they nearly always are, as a slice, which takes no copy."""
    places = [among.index(job) for job in jobs]
    together = slice(places[0], places[0] + len(places))
    return together if places == list(range(together.start, together.stop)) else places


def _run(_: Hashable, body: Callable[[], None]) -> None:
    body()
