"""What each latent shape needs on the device, under a byte budget."""

import functools
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..backends.networks import Networks
from .denoising import DenoisingLoop
from .graphs import GraphPool
from .job import Job
from .slots import Arena
from .streams import Streams

_log = logging.getLogger(__name__)

Shape = tuple[int, int]


class Room(NamedTuple):
    """What a loop has memory for beyond the least.

    long: prompts of several chunks. deep: what shallow steps take over.
    """

    long: bool = False
    deep: bool = False

    def joined(self, other: "Room") -> "Room":
        """For all that either is for."""
        return Room(self.long or other.long, self.deep or other.deep)


class Arenas:
    """A denoising loop, with its arena and buffers, for each latent shape (height, width) in use.

    budget: bytes that all of them together may take. Where a further shape would not fit, those without a job go, least
    recently used first; one with a job never does. A single loop is made whatever it takes.
    buckets: row counts that a step is padded to. streams: where steps run, and what comes between them. protected
    (K, C, h, w): latents of works to be repelled from. num_tokens: that every loop has room for; max_tokens: of the
    longest prompt, which a loop makes room for when the first such job comes, as for what shallow steps take over.
    """

    def __init__(
        self,
        networks: Networks,
        graphs: GraphPool,
        streams: Streams,
        *,
        num_slots: int,
        max_steps: int,
        num_tokens: int,
        max_tokens: int,
        budget: int,
        protected: Tensor | None = None,
    ) -> None:
        self.networks = networks
        self.graphs = graphs
        self.streams = streams
        self.num_slots = num_slots
        self.max_steps = max_steps
        self.num_tokens = num_tokens
        self.max_tokens = max_tokens
        self.budget = budget
        self.buckets: Sequence[int] = networks.buckets
        self._protected = None if protected is None else protected.to(networks.device)
        self._loops: OrderedDict[Shape, DenoisingLoop] = OrderedDict()
        self._claims: dict[int, tuple[Shape, Room]] = {}
        self._nbytes = functools.cache(self._measured)

    @property
    def shapes(self) -> list[Shape]:
        """Shapes that have a loop, the one used last at the end."""
        return list(self._loops)

    @property
    def nbytes(self) -> int:
        """Bytes that arenas and buffers take."""
        return sum(self._nbytes(shape, self._room(shape)) for shape in self._loops)

    def claim(self, job: Job) -> bool:
        """Keep the arena of the job's shape for it until `release`; False, and nothing is kept, if it does not fit.

        A prompt of several chunks, and a run with shallow steps, need one with room for them.
        """
        claim = job.shape, self._room_for(job)
        claimed, wanted = self._claimed(), self._claimed(claim)
        if claimed and wanted != claimed and self._total(wanted) > self.budget:
            return False
        self._claims[job.id] = claim
        return True

    def _room_for(self, job: Job) -> Room:
        """What a job needs: more tokens than every loop has room for, and what its shallow steps take over."""
        caches = any(stage.cache_interval > 1 for stage in (job.request.draft, job.request.final))
        return Room(job.chunks * self.networks.components.max_tokens > self.num_tokens, caches)

    def _claimed(self, *more: tuple[Shape, Room]) -> dict[Shape, Room]:
        """Shapes that have a job, and what they are to have room for."""
        claimed: dict[Shape, Room] = {}
        for shape, room in (*self._claims.values(), *more):
            claimed[shape] = claimed.get(shape, self._room(shape)).joined(room)
        return claimed

    def _total(self, claimed: Mapping[Shape, Room]) -> int:
        return sum(self._nbytes(shape, room) for shape, room in claimed.items())

    def _room(self, shape: Shape) -> Room:
        """What the loop of a shape has room for, if there is one."""
        loop = self._loops.get(shape)
        return Room() if loop is None else Room(loop.is_long, loop.keeps)

    def release(self, job: Job) -> None:
        """Let go what `claim` kept for the job, if anything."""
        self._claims.pop(job.id, None)

    def loop(self, shape: Shape) -> DenoisingLoop:
        """Arena, buffers and graphs of a latent shape, for what is asked for from now on: after all of its steps."""
        loop = self._loop(shape)
        self.streams.after(loop.latest)
        return loop

    def _loop(self, shape: Shape) -> DenoisingLoop:
        """The loop of a shape, made when first needed."""
        if shape not in self._loops:
            self._make_room(self._nbytes(shape, Room()))
            self._loops[shape] = self._made(shape, self.networks.device)
        self._loops.move_to_end(shape)
        return self._loops[shape]

    def prepare(self, shape: Shape, room: Room) -> DenoisingLoop:
        """The loop of a shape, with room for what is asked for before any job that needs it comes."""
        loop = self.loop(shape)
        self._widen(shape, room)
        return loop

    def _widen(self, shape: Shape, room: Room) -> bool:
        """Make room where there is none yet; return whether there was none."""
        had, loop = self._room(shape), self._loops[shape]
        wanted = had.joined(room)
        if wanted == had:
            return False
        self._make_room(self._nbytes(shape, wanted) - self._nbytes(shape, had), besides=shape)
        loop.widen(long=room.long, deep=room.deep)
        return True

    def arena(self, job: Job) -> Arena:
        """The arena that the job's slot lies in, for what is asked for from now on: after the slot's last step."""
        assert job.slot is not None
        loop = self._loop(job.shape)
        if self._widen(job.shape, self._room_for(job)) and self.graphs.stats.captured:
            _log.warning(
                "prompts of several chunks and cached steps run without graphs where no warm-up captured theirs"
            )
        self.streams.after(loop.mark(job.slot))
        return loop.arena

    def latent(self, job: Job) -> Tensor:
        """The job's latent (C, h, w), still in its slot; its predicted x0 while the run is not done."""
        assert job.trajectory is not None
        arena = self.arena(job)
        return (arena.latents if job.trajectory.done else arena.history)[job.slot]

    def _make_room(self, wanted: int, besides: Shape | None = None) -> None:
        """Drop loops without a job, least recently used first, until `wanted` bytes fit or none is left to drop."""
        claimed = {*self._claimed(), besides}
        for shape in [shape for shape in self._loops if shape not in claimed]:
            if self.nbytes + wanted <= self.budget:
                return
            self.streams.settle()  # its last step may be on its way yet
            self._loops.pop(shape).release()
            self.networks.forget(shape)

    def _made(self, shape: Shape, device: torch.device) -> DenoisingLoop:
        arena = Arena(
            self.networks.denoiser,
            num_slots=self.num_slots,
            max_steps=self.max_steps,
            shape=shape,
            num_tokens=self.num_tokens,
            max_tokens=self.max_tokens,
            device=device,
            dtype=self.networks.dtype,
            order=self.networks.memory_format,
        )
        return DenoisingLoop(self.networks, arena, self.buckets, self.networks.dtype, self.graphs, self._protected)

    def _measured(self, shape: Shape, room: Room) -> int:
        """Bytes of a shape's loop with so much room, counted on one that has no memory."""
        loop = self._made(shape, torch.device("meta"))
        loop.widen(long=room.long, deep=room.deep)
        return loop.nbytes
