"""One denoising step of a mixed batch: plan on the host, static buffers, ControlNet, UNet, solver."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import Tensor

from ...kernels import denoise_step
from ..avoidance.initial_noise import sharpness_move
from ..avoidance.repulsion import carried_change, repulsion, step_change
from ..backends.networks import Networks
from ..models.networks import DenoiserInputs, MassRecord, Residuals
from ..models.shallow import ShallowInputs
from ..sampling.buckets import bucket_of, most_useful_first
from ..sampling.rows import Branch
from .buffers import StepBuffers
from .controls import KINDS, column_of
from .graphs import GraphPool
from .inputs import StepInputs
from .job import Job
from .planning import empty_plan, is_compared, is_controlled, is_shallow, keeps, planned, repulsion_at
from .slots import Arena
from .streams import Mark


@dataclass(frozen=True)
class Bucket:
    """Padded sizes of a step: rows of the UNet call and of the ControlNets' calls together, and tokens of a row."""

    rows: int
    control_rows: int
    tokens: int


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
        self.inputs = StepInputs(networks, arena, self.buffers, in_graphs=graphs.enabled)

    @property
    def lengths(self) -> list[int]:
        """Tokens that a step can be padded to, ascending."""
        return sorted(self.buffers.texts)

    @property
    def is_long(self) -> bool:
        """Whether there is room for the longest prompts."""
        return self.arena.longest in self.buffers.texts

    def widen(self, *, long: bool, deep: bool) -> None:
        """Make room for the longest prompts, and for what shallow steps take over, where there is none yet."""
        if long:
            self.arena.lengthen()
            self.buffers.lengthen(self.arena, self.arena.longest)
        if deep:
            self.arena.deepen()

    @property
    def keeps(self) -> bool:
        """Whether there is room for what shallow steps take over."""
        return self.arena.deep is not None

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
    def capture(self, least: bool = False) -> None:
        """Capture the graphs of every bucket, largest first; where a backend compiles, make it compile instead.

        There the most useful buckets come first, should not all of them fit; least: the one of a single guided picture
        alone.
        """
        in_torch = self.networks.all_torch
        capture = self.graphs.capture if in_torch else _run
        order = self.buckets[::-1] if in_torch else most_useful_first(self.buckets, self.first)
        for rows, key, body in self._bodies([self.first] if least else order):
            if rows != self.first and self.networks.by_row(self.arena.shape):
                continue  # what is run row by row is ready for any number
            plan, control_rows = empty_plan(self.arena.controls), rows if self.arena.hints is not None else 0
            self.buffers.load(plan, rows, control_rows, dict.fromkeys(self.arena.controls, rows))
            capture(key, body)

    @property
    def first(self) -> int:
        """The bucket of one picture with guidance."""
        return bucket_of(min(len(Branch), self.buckets[-1]), self.buckets)

    def release(self) -> None:
        """Let go the graphs, which would outlive the buffers that they read."""
        for _, key, _ in self._bodies(self.buckets):
            self.graphs.forget(key)

    def _bodies(self, buckets: Sequence[int]) -> Iterator[tuple[int, Hashable, Callable[[], None]]]:
        """Rows, key and body of what a step runs, for each length and bucket, in their order."""
        controlled = (False, True) if self.arena.hints is not None else (False,)
        adapted = (False, True) if self.networks.components.adapters else (False,)
        keeping = (False, True) if self.keeps else (False,)
        for tokens, rows in product(self.lengths, buckets):
            for kind in product(controlled, adapted, keeping):
                yield rows, self._predict_key(rows, tokens, *kind), partial(self._predict, rows, tokens, *kind)
            for over in product(controlled, adapted) if self.keeps else ():
                yield rows, self._recall_key(rows, tokens, *over), partial(self._recall, rows, tokens, *over)
            if self.arena.hints is not None:
                for name in (None, *self.arena.controls):
                    yield rows, self._control_key(rows, tokens, name), partial(self._control, rows, tokens, name)

    @torch.inference_mode()
    def step(self, jobs: Sequence[Job], record: MassRecord | None = None) -> tuple[Bucket, list[After]]:
        """Run the next step of each job, in place in the arena; return its sizes, and what is to be done after it.

        All of them are shallow, or none is.

        With a `record`, attention masses are summed there. Where this raises no job has moved, and it may be called
        again; once it returns they have, and what comes after may fail but never runs the step again.
        """
        plan = planned(jobs, self._groups, len(self.arena.latents), self.arena.controls)
        rows = bucket_of(len(plan["row_slots"]), self.buckets)
        control_rows = self._bucket(plan["control_rows"])
        further = {name: self._bucket(plan[column_of("control_rows", name)]) for name in self.arena.controls}
        tokens = bucket_of(self._longest(jobs), self.lengths)
        after = self._after(jobs)
        self.buffers.load(plan, rows, control_rows, further)
        controlled = self._run_controls([(None, control_rows), *further.items()], tokens)
        adapted = any(job.trajectory is not None and bool(job.trajectory.adapters) for job in jobs)
        # A graph is of all that any of its jobs may need.
        compared = self.graphs.enabled or any(map(is_compared, jobs))
        if is_shallow(jobs):
            over = is_controlled(jobs), adapted
            run = partial(self._recall, rows, tokens, *over, compared=compared)
            self.graphs.run(self._recall_key(rows, tokens, *over), run)
        else:
            kind = controlled, adapted, any(map(keeps, jobs))
            run = partial(self._predict, rows, tokens, *kind, record=record, compared=compared)
            if record is not None:
                run()
            else:
                self.graphs.run(self._predict_key(rows, tokens, *kind), run)
        for job in jobs:
            assert job.trajectory is not None
            job.trajectory.advance()
        return Bucket(rows, control_rows + sum(further.values()), tokens), after

    def _longest(self, jobs: Sequence[Job]) -> int:
        """Tokens of the longest text of `jobs`."""
        return max(self.arena.lengths[job.slot] for job in jobs if job.slot is not None)

    def _bucket(self, rows: Sequence[object]) -> int:
        """Padded size of a call for these rows, 0 for none."""
        return bucket_of(len(rows), self.buckets) if rows else 0

    def _run_controls(self, counts: Sequence[tuple[str | None, int]], tokens: int) -> bool:
        """Run each ControlNet that has rows, padded to so many; return whether any had. The first one begins anew."""
        asked = {name: rows for name, rows in counts if rows}
        if asked and None not in asked:
            for residual in self.buffers.residuals:
                residual.zero_()
        for name, rows in asked.items():
            self.graphs.run(self._control_key(rows, tokens, name), partial(self._control, rows, tokens, name))
        return bool(asked)

    def _after(self, jobs: Sequence[Job]) -> list[After]:
        """Mechanisms on what the solver leaves, with the jobs that they act on in the coming step."""
        probing = [job for job in jobs if job.trajectory is not None and job.trajectory.probes]
        repelled = [job for job in jobs if repulsion_at(job) is not None]
        works = ((self._move_noise, probing), (self._repel, repelled))
        return [(partial(work, acted), acted) for work, acted in works if acted]

    def _predict_key(
        self, rows: int, tokens: int, controlled: bool, adapted: bool, keeping: bool
    ) -> tuple[object, ...]:
        return "unet", self.arena.shape, rows, controlled, adapted, tokens, *(["keeping"] if keeping else [])

    def _recall_key(self, rows: int, tokens: int, controlled: bool, adapted: bool) -> tuple[object, ...]:
        return "shallow unet", self.arena.shape, rows, controlled, adapted, tokens

    def _control_key(self, rows: int, tokens: int, name: str | None) -> tuple[object, ...]:
        return "controlnet", self.arena.shape, rows, tokens, *([] if name is None else [name])

    def _control(self, rows: int, tokens: int, name: str | None = None) -> None:
        """ControlNet on its rows: its residuals are scattered into zeroed buffers, a further one's are added there."""
        columns = {kind: self.buffers.columns[column_of(kind, name)][:rows] for kind in KINDS}
        residuals = self.networks.control(self.inputs.control(rows, tokens, name, columns), name)
        for source, target in zip(residuals, self.buffers.residuals, strict=True):
            if name is None:
                target.zero_()
                target.index_copy_(0, columns["control_rows"], source)
            else:
                target.index_add_(0, columns["control_rows"], source)

    def _predict(
        self,
        rows: int,
        length: int,
        controlled: bool,
        adapted: bool,
        keeping: bool = False,
        record: MassRecord | None = None,
        compared: bool = True,
    ) -> None:
        """UNet on all rows, then guidance and solver in place on the slots.

        keeping: also what shallow steps take over. compared: also how far apart the branches of each job are.
        """
        b = self.buffers
        inputs = DenoiserInputs(
            *self.inputs.rows(rows, length, range(len(b.texts[length].text_kv))),
            residuals=tuple(r[:rows] for r in b.residuals) if controlled else None,
            record=record,
            adapters=self.inputs.adapters(rows) if adapted else None,
        )
        if keeping:
            predicted, deep = self.networks.predict_keeping(inputs)
            self._keep_deep(rows, deep, inputs.residuals)
        else:
            predicted = self.networks.predict(inputs)
        self._advance(rows, predicted, compared)

    def _recall(self, rows: int, length: int, controlled: bool, adapted: bool, compared: bool = True) -> None:
        """The UNet's shallow part on all rows, with what was kept of them; then guidance and solver."""
        arena, places = self.arena, self.buffers.columns["row_kept"][:rows]
        assert arena.deep is not None
        inputs = ShallowInputs(
            *self.inputs.rows(rows, length, self.networks.denoiser.shallow_layers),
            deep=arena.deep.index_select(0, places),
            residuals=tuple(r.index_select(0, places) for r in arena.kept_residuals) if controlled else None,
            adapters=self.inputs.adapters(rows) if adapted else None,
        )
        self._advance(rows, self.networks.recall(inputs), compared)

    def _keep_deep(self, rows: int, deep: Tensor, residuals: Residuals | None) -> None:
        """Keep what a shallow step of the rows takes over: (R, D, h, w), and zeros where no row has residuals."""
        arena, places = self.arena, self.buffers.columns["row_kept"][:rows]
        assert arena.deep is not None
        arena.deep.index_copy_(0, places, deep)
        for number, kept in enumerate(arena.kept_residuals):
            if residuals is None:
                kept.index_fill_(0, places, 0)
            else:
                kept.index_copy_(0, places, residuals[number])

    def _advance(self, rows: int, predicted: Tensor, compared: bool) -> None:
        """Guidance and solver, in place on the slots."""
        arena, c = self.arena, self.buffers.columns
        if compared:
            self._contrast(rows, predicted)
        if self.inputs.host is not None:
            self.inputs.host.advance(rows, predicted)
            return
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
        if self.inputs.host is not None:
            self.inputs.host.contrast(rows, predicted)
            return
        unconditional, conditional = (predicted.index_select(0, c["job_pairs"][:rows, i]).float() for i in (0, 1))
        contrasts = conditional - unconditional
        slots = c["pair_slots"][:rows]
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
