"""One denoising step of a mixed batch: plan on the host, static buffers, ControlNet, UNet, solver."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels import denoise_step, gather_rows, host_steps
from ..avoidance.initial_noise import sharpness_move
from ..avoidance.repulsion import carried_change, repulsion, step_change
from ..backends.networks import Networks
from ..models.adapters import AdapterRows
from ..models.networks import Added, ControlInputs, Denoiser, DenoiserInputs, MassRecord, Residuals
from ..models.shallow import ShallowInputs
from ..sampling.buckets import bucket_of, most_useful_first
from ..sampling.rows import Branch
from .buffers import StepBuffers, Told
from .controls import KINDS, ControlPlaces, column_of
from .graphs import GraphPool
from .host import HostArithmetic
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


_SINUSOIDS = 256
"""Calls of which the sinusoids of timesteps are kept on a processor: a few kilobytes each."""

After = tuple[Callable[[Sequence[Job]], None], list[Job]]
"""What is to be done with what a step left, for any of some jobs, and those jobs. It may fail and be repeated: nothing
is written before everything is computed."""


class RowInputs(NamedTuple):
    """What `DenoiserInputs` and `ShallowInputs` begin with, up to the scalars."""

    sample: Tensor
    time_proj: Tensor
    text_kv: tuple[Tensor, ...]
    added: Added
    mask_pyramid: Tensor
    tokens: Tensor
    scalars: Tensor


class Rows(NamedTuple):
    """Rows of a call by the contexts of their texts (R,), and what buffers have once they were filled for them."""

    contexts: Tensor
    told: Told


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
        self._sinusoids = lru_cache(_SINUSOIDS)(partial(_sinusoids, denoiser))
        self._control_sinusoids = lru_cache(_SINUSOIDS)(partial(_control_sinusoids, denoiser))
        self._views: dict[Hashable, RowInputs] = {}

    @cached_property
    def _host(self) -> HostArithmetic | None:
        """What is computed around the networks on a processor; None on a GPU, where operators do it."""
        a = self.arena
        steps = host_steps(a.latents, a.history, a.columns, a.masks, a.seeds, a.carried)
        return None if steps is None else HostArithmetic(steps, a, self.buffers)

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

    def _gather(
        self, kv: Sequence[Tensor], more: Sequence[Tensor], into: Sequence[Tensor], names: Sequence[Hashable], who: Rows
    ) -> None:
        """Keys and values of `who`, with those behind the first tokens where `into`, called `names`, has room."""
        first = self.arena.num_tokens
        for layer, (name, target) in enumerate(zip(names, into, strict=True)):
            if self.buffers.lacks(name, who.told):
                torch.index_select(kv[layer], 0, who.contexts, out=target[:, :first])
                if target.shape[1] > first:
                    torch.index_select(more[layer], 0, who.contexts, out=target[:, first:])
                self.buffers.has(name, who.told)

    def _fill(self, name: Hashable, source: Tensor, places: Tensor, into: Tensor, who: Rows) -> None:
        """The values of `who`, at `places` of what slots keep, into the buffer called `name`."""
        if self.buffers.lacks(name, who.told):
            torch.index_select(source, 0, places, out=into)
            self.buffers.has(name, who.told)

    def _told(self, rows: int, contexts: str, *places: str) -> tuple[Tensor, Told]:
        """The column of contexts; what buffers of texts and maps hold once they are filled from that and further ones,
        None where a graph fills them."""
        own = self.buffers.columns[contexts][:rows]
        if self.graphs.enabled:
            return own, None
        return own, (self.arena.writes, *(tuple(self.buffers.read(name, rows)) for name in (contexts, *places)))

    def _control(self, rows: int, tokens: int, name: str | None = None) -> None:
        """ControlNet on its rows: its residuals are scattered into zeroed buffers, a further one's are added there."""
        columns = {kind: self.buffers.columns[column_of(kind, name)][:rows] for kind in KINDS}
        residuals = self.networks.control(self._control_inputs(rows, tokens, name, columns), name)
        for source, target in zip(residuals, self.buffers.residuals, strict=True):
            if name is None:
                target.zero_()
                target.index_copy_(0, columns["control_rows"], source)
            else:
                target.index_add_(0, columns["control_rows"], source)

    def _control_inputs(self, rows: int, tokens: int, name: str | None, columns: Mapping[str, Tensor]) -> ControlInputs:
        """Gather what the ControlNet `name` reads of its rows; `columns`, its own, by kind."""
        arena, places = self.arena, self._places(name, tokens)
        own = partial(column_of, name=name)
        sample, slots = places.sample[:rows], columns["control_slots"]
        contexts, told = self._told(rows, own("control_contexts"), own("control_hints"))
        who = Rows(contexts, told)
        self._gather_latents(rows, own("control_slots"), own("control_steps"), sample)
        kv = [each[:rows] for each in places.text_kv]
        self._gather(places.kept_kv, places.more_kv, kv, [("control", name, tokens, i) for i in range(len(kv))], who)
        for number, (source, target) in enumerate(zip(arena.added, places.added, strict=True)):
            self._fill(("control added", name, number), source, contexts, target[:rows], who)
        self._fill(("hints", name), places.kept_hints, columns["control_hints"], places.hints[:rows], who)
        hidden = None
        if self._hides(tokens):
            hidden = places.tokens[:rows]
            used = slots.clamp(min=0)
            self._fill(("control tokens", name, tokens), arena.tokens[..., :tokens], used, hidden, who)
        return ControlInputs(
            sample,
            self._control_time(rows, name),
            tuple(kv),
            tuple(condition[:rows] for condition in places.added),
            places.hints[:rows],
            columns["control_scales"],
            hidden,
        )

    def _control_time(self, rows: int, name: str | None) -> Tensor:
        """Sinusoids of a ControlNet's rows, as a UNet's."""
        column = column_of("control_timesteps", name)
        if self.graphs.enabled:
            return self.networks.denoiser.controller(name).time_proj(self.buffers.columns[column][:rows])
        return self._control_sinusoids(name, tuple(self.buffers.read(column, rows)))

    def _places(self, name: str | None, tokens: int) -> ControlPlaces:
        """Where a ControlNet's inputs come from, and go to, for texts of so many tokens."""
        arena, b = self.arena, self.buffers
        if name is not None:
            return b.controls[name].places(arena.controls[name], tokens)
        assert arena.hints is not None
        kept, texts = (arena.control_kv, arena.more_control_kv, arena.hints), b.texts[tokens]
        return ControlPlaces(*kept, b.control_sample, texts.control_kv, texts.control_tokens, b.control_added, b.hints)

    def _hides(self, tokens: int) -> bool:
        """Whether rows may hide tokens: where they have more than one chunk."""
        return tokens > self.networks.components.max_tokens

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
            *self._row_inputs(rows, length, range(len(b.texts[length].text_kv))),
            residuals=tuple(r[:rows] for r in b.residuals) if controlled else None,
            record=record,
            adapters=self._adapters(rows) if adapted else None,
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
            *self._row_inputs(rows, length, self.networks.denoiser.shallow_layers),
            deep=arena.deep.index_select(0, places),
            residuals=tuple(r.index_select(0, places) for r in arena.kept_residuals) if controlled else None,
            adapters=self._adapters(rows) if adapted else None,
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

    def _adapters(self, rows: int) -> AdapterRows:
        c = self.buffers.columns
        return AdapterRows(c["row_adapters"][:rows], c["row_adapter_weights"][:rows])

    def _row_inputs(self, rows: int, length: int, layers: Sequence[int]) -> RowInputs:
        """Gather what every call of the UNet reads of its rows, up to scalars; of the cross-attention `layers`."""
        names = length, tuple(layers)
        if (rows, names) not in self._views:
            self._views[rows, names] = self._viewed(rows, length, layers)
        views, who = self._views[rows, names], Rows(*self._told(rows, "row_contexts"))
        self._gather_latents(rows, "row_slots", "row_steps", views.sample)
        if self.buffers.lacks_any(names, who.told):
            self._fill_rows(rows, length, layers, who)
            self.buffers.has_all(names, who.told)
        return self._with_time(rows, views)

    def _viewed(self, rows: int, length: int, layers: Sequence[int]) -> RowInputs:
        """Where a call reads: the same tensors each time, by which a backend knows them."""
        b = self.buffers
        texts = b.texts[length]
        return RowInputs(
            b.sample[:rows],
            b.time_proj[:rows],
            tuple(texts.text_kv[layer][:rows] for layer in layers),
            tuple(condition[:rows] for condition in b.added),
            b.pyramid[:rows],
            texts.tokens[:rows],
            b.columns["scalars"][:rows],
        )

    def _fill_rows(self, rows: int, length: int, layers: Sequence[int], who: Rows) -> None:
        """What of a call's rows stays from step to step: texts, what is added to them, and maps."""
        arena, b = self.arena, self.buffers
        texts, used = b.texts[length], b.columns["row_slots"][:rows].clamp(min=0)
        kv = [texts.text_kv[layer][:rows] for layer in layers]
        more = [arena.more_text_kv[layer] for layer in layers] if arena.more_text_kv else ()
        self._gather([arena.text_kv[layer] for layer in layers], more, kv, [("text", length, n) for n in layers], who)
        for number, (source, target) in enumerate(zip(arena.added, b.added, strict=True)):
            self._fill(("added", number), source, who.contexts, target[:rows], who)
        self._fill("pyramid", arena.pyramid, used, b.pyramid[:rows], who)
        self._fill(("tokens", length), arena.tokens[..., :length], used, texts.tokens[:rows], who)

    def _gather_latents(self, rows: int, slots: str, steps: str, into: Tensor) -> None:
        """Latents of the slots in one column, scaled as their steps in another say."""
        if self._host is None or not self._host.gather(rows, slots, steps, into):
            c = self.buffers.columns
            gather_rows(self.arena.latents, self.arena.columns, c[slots][:rows], c[steps][:rows], into)

    def _with_time(self, rows: int, views: RowInputs) -> RowInputs:
        """Inputs with the sinusoids of their rows; on a processor those of late calls are kept, for requests take the
        same steps."""
        b = self.buffers
        if self.graphs.enabled:
            c = b.columns
            return views._replace(
                time_proj=self.networks.denoiser.time_proj(c["timesteps"][:rows], c["guidances"][:rows])
            )
        views.time_proj.copy_(self._sinusoids(tuple(b.read("timesteps", rows)), tuple(b.read("guidances", rows))))
        return views

    def _advance(self, rows: int, predicted: Tensor, compared: bool) -> None:
        """Guidance and solver, in place on the slots."""
        arena, c = self.arena, self.buffers.columns
        if compared:
            self._contrast(rows, predicted)
        if self._host is not None:
            self._host.advance(rows, predicted)
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
        if self._host is not None:
            self._host.contrast(rows, predicted)
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


def _sinusoids(denoiser: Denoiser, timesteps: Sequence[float], guidances: Sequence[float]) -> Tensor:
    return denoiser.time_proj(torch.tensor(timesteps), torch.tensor(guidances))


def _control_sinusoids(denoiser: Denoiser, name: str | None, timesteps: Sequence[float]) -> Tensor:
    return denoiser.controller(name).time_proj(torch.tensor(timesteps))


def _places(among: Sequence[Job], jobs: Sequence[Job]) -> slice | list[int]:
    """Where `jobs` stand among others; neighbours, as they nearly always are, as a slice, which takes no copy."""
    places = [among.index(job) for job in jobs]
    together = slice(places[0], places[0] + len(places))
    return together if places == list(range(together.start, together.stop)) else places


def _run(_: Hashable, body: Callable[[], None]) -> None:
    body()
