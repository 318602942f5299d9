"""What a step's networks read of its rows: gathered out of an arena into static buffers, at fixed addresses."""

from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property, lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels import gather_rows, host_steps
from ..backends.networks import Networks
from ..models.adapters import AdapterRows
from ..models.networks import Added, ControlInputs, Denoiser
from .buffers import StepBuffers, Told
from .controls import ControlPlaces, column_of
from .host import HostArithmetic
from .slots import Arena

_SINUSOIDS = 40
"""Calls of which the sinusoids of timesteps are kept on a processor: a few kilobytes each."""


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


class StepInputs:
    """Gathers inputs of one arena. in_graphs: whether a CUDA graph does, which no host may look into."""

    def __init__(self, networks: Networks, arena: Arena, buffers: StepBuffers, *, in_graphs: bool) -> None:
        self.arena, self.buffers = arena, buffers
        self._denoiser, self._one_chunk = networks.denoiser, networks.components.max_tokens
        self._in_graphs = in_graphs
        self._sinusoids = lru_cache(_SINUSOIDS)(partial(_sinusoids, self._denoiser))
        self._control_sinusoids = lru_cache(_SINUSOIDS)(partial(_control_sinusoids, self._denoiser))
        self._views: dict[Hashable, RowInputs] = {}

    @cached_property
    def host(self) -> HostArithmetic | None:
        """What is computed around the networks on a processor; None on a GPU, where operators do it."""
        a = self.arena
        steps = host_steps(a.latents, a.history, a.columns, a.masks, a.seeds, a.carried)
        return None if steps is None else HostArithmetic(steps, a, self.buffers)

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
        if self._in_graphs:
            return own, None
        return own, (self.arena.writes, *(tuple(self.buffers.read(name, rows)) for name in (contexts, *places)))

    def control(self, rows: int, tokens: int, name: str | None, columns: Mapping[str, Tensor]) -> ControlInputs:
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
        if self._in_graphs:
            return self._denoiser.controller(name).time_proj(self.buffers.columns[column][:rows])
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
        return tokens > self._one_chunk

    def adapters(self, rows: int) -> AdapterRows:
        """Which adapters the rows use, and how much of each."""
        c = self.buffers.columns
        return AdapterRows(c["row_adapters"][:rows], c["row_adapter_weights"][:rows])

    def rows(self, rows: int, length: int, layers: Sequence[int]) -> RowInputs:
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
        if self.host is None or not self.host.gather(rows, slots, steps, into):
            c = self.buffers.columns
            gather_rows(self.arena.latents, self.arena.columns, c[slots][:rows], c[steps][:rows], into)

    def _with_time(self, rows: int, views: RowInputs) -> RowInputs:
        """Inputs with the sinusoids of their rows; on a processor those of late calls are kept, for requests take the
        same steps."""
        b = self.buffers
        if self._in_graphs:
            c = b.columns
            return views._replace(time_proj=self._denoiser.time_proj(c["timesteps"][:rows], c["guidances"][:rows]))
        views.time_proj.copy_(self._sinusoids(tuple(b.read("timesteps", rows)), tuple(b.read("guidances", rows))))
        return views


def _sinusoids(denoiser: Denoiser, timesteps: Sequence[float], guidances: Sequence[float]) -> Tensor:
    return denoiser.time_proj(torch.tensor(timesteps), torch.tensor(guidances))


def _control_sinusoids(denoiser: Denoiser, name: str | None, timesteps: Sequence[float]) -> Tensor:
    return denoiser.controller(name).time_proj(torch.tensor(timesteps))
