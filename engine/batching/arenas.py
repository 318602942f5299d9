"""What each latent shape needs on the device, under a byte budget."""

import functools
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from ..backends.networks import Networks
from .denoising import DenoisingLoop
from .graphs import GraphPool
from .job import Job
from .slots import Arena
from .streams import Streams

Shape = tuple[int, int]


class Arenas:
    """A denoising loop, with its arena and buffers, for each latent shape (height, width) in use.

    budget: bytes that all of them together may take. Where a further shape would not fit, those without a job go, least
    recently used first; one with a job never does. A single loop is made whatever it takes.
    buckets: row counts that a step is padded to. streams: where steps run, and what comes between them. protected
    (K, C, h, w): latents of works to be repelled from.
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
        budget: int,
        protected: Tensor | None = None,
    ) -> None:
        self.networks = networks
        self.graphs = graphs
        self.streams = streams
        self.num_slots = num_slots
        self.max_steps = max_steps
        self.num_tokens = num_tokens
        self.budget = budget
        self.buckets: Sequence[int] = networks.buckets
        self._protected = None if protected is None else protected.to(networks.device)
        self._loops: OrderedDict[Shape, DenoisingLoop] = OrderedDict()
        self._claims: dict[int, Shape] = {}
        self._nbytes = functools.cache(self._measured)

    @property
    def shapes(self) -> list[Shape]:
        """Shapes that have a loop, the one used last at the end."""
        return list(self._loops)

    @property
    def nbytes(self) -> int:
        """Bytes that arenas and buffers take."""
        return sum(map(self._nbytes, self._loops))

    def claim(self, job: Job) -> bool:
        """Keep the arena of the job's shape for it until `release`; False, and nothing is kept, if it does not fit."""
        claimed = {*self._claims.values()}
        if claimed and sum(map(self._nbytes, claimed | {job.shape})) > self.budget and job.shape not in claimed:
            return False
        self._claims[job.id] = job.shape
        return True

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
            self._make_room(self._nbytes(shape))
            self._loops[shape] = self._made(shape, self.networks.device)
        self._loops.move_to_end(shape)
        return self._loops[shape]

    def arena(self, job: Job) -> Arena:
        """The arena that the job's slot lies in, for what is asked for from now on: after the slot's last step."""
        assert job.slot is not None
        loop = self._loop(job.shape)
        self.streams.after(loop.mark(job.slot))
        return loop.arena

    def latent(self, job: Job) -> Tensor:
        """The job's latent (C, h, w), still in its slot; its predicted x0 while the run is not done."""
        assert job.trajectory is not None
        arena = self.arena(job)
        return (arena.latents if job.trajectory.done else arena.history)[job.slot]

    def _make_room(self, wanted: int) -> None:
        """Drop loops without a job, least recently used first, until `wanted` bytes fit or none is left to drop."""
        claimed = {*self._claims.values()}
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
            device=device,
            dtype=self.networks.dtype,
            order=self.networks.memory_format,
        )
        return DenoisingLoop(self.networks, arena, self.buckets, self.networks.dtype, self.graphs, self._protected)

    def _measured(self, shape: Shape) -> int:
        """Bytes of a shape's loop, counted on one that has no memory."""
        return self._made(shape, torch.device("meta")).nbytes
