"""Memory: what lies on the device and who is at it, and which of the host's is pinned."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from .rules import RaceError
from .streams import Stream


@dataclass(eq=False)
class Block:
    """Memory of one allocation, for as long as a tensor is there that sees it.

    origin: the stream it was allocated on, which may have it back at once when it is freed. written: by which stream,
    and at which of its launches; read: the last of each stream. recorded: streams that freeing waits for. divided: who
    uses it says that streams keep to parts of their own, which operators that are given all of it do not tell.
    """

    nbytes: int
    origin: Stream
    memory: Memory
    written: tuple[Stream, int] | None = None
    read: dict[Stream, int] = field(default_factory=dict)
    recorded: set[Stream] = field(default_factory=set)
    divided: bool = False

    def check(self, stream: Stream, *, writes: bool) -> None:
        """Raise RaceError unless `stream` may read, or write, what it does not own alone."""
        if self.divided or self.memory is not stream.device.memory:  # of a device that is gone
            return
        uses = [*([self.written] if self.written is not None else []), *(self.read.items() if writes else ())]
        for other, ticks in uses:
            if not stream.knows(other, ticks):
                raise RaceError(
                    f"stream {stream.number} {'writes' if writes else 'reads'} {self.nbytes} bytes that stream "
                    f"{other.number} may still be at: let it wait for an event of that"
                )

    def used(self, stream: Stream, *, writes: bool) -> None:
        """Remember a launch that reads or writes it."""
        if writes:
            self.written, self.read = (stream, stream.ticks), {}
        else:
            self.read[stream] = stream.ticks

    def __del__(self) -> None:
        self.memory.freed(self)


class Memory:
    """The device's blocks by address, and pinned memory, which is never given back.

    allocated, peak: bytes on the device. broken: races that were found when nothing could be raised.
    """

    def __init__(self) -> None:
        self.allocated = self.peak = 0
        self.broken: list[RaceError] = []
        self._blocks: weakref.WeakValueDictionary[int, Block] = weakref.WeakValueDictionary()
        self._pinned: dict[int, torch.UntypedStorage] = {}

    def block(self, host: torch.Tensor, stream: Stream) -> Block:
        """The block that a tensor lies in, allocated now if it is new."""
        storage = host.untyped_storage()
        address = storage.data_ptr()
        found = self._blocks.get(address) if address else None
        if found is None:
            found = Block(storage.nbytes(), stream, self)
            self.allocated += found.nbytes
            self.peak = max(self.peak, self.allocated)
            if address:
                self._blocks[address] = found
        return found

    def freed(self, block: Block) -> None:
        """Take a block back: its stream may use it at once, whoever else is still at it."""
        self.allocated -= block.nbytes
        uses = [*([block.written] if block.written is not None else []), *block.read.items()]
        if late := [s for s, ticks in uses if s not in block.recorded and not block.origin.knows(s, ticks)]:
            self.broken.append(
                RaceError(
                    f"{block.nbytes} bytes of stream {block.origin.number} are freed while stream {late[0].number} may "
                    "still be at them: record_stream, or let the first wait for the second"
                )
            )

    def reset_peak(self) -> None:
        """Begin anew to look for the peak."""
        self.peak = self.allocated

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        """Pin what `tensor`, of the CPU, lies in; no other will ever come to lie at its address."""
        storage = tensor.untyped_storage()
        self._pinned[storage.data_ptr()] = storage
        return tensor

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor of the CPU lies in pinned memory."""
        return tensor.untyped_storage().data_ptr() in self._pinned


def use(reads: Iterable[Block], writes: Iterable[Block], stream: Stream) -> None:
    """One launch of `stream`. Raises RaceError."""
    reads, writes = [*reads], [*writes]
    stream.tick()
    for blocks, writing in ((reads, False), (writes, True)):
        for block in blocks:
            block.check(stream, writes=writing)
    for blocks, writing in ((reads, False), (writes, True)):
        for block in blocks:
            block.used(stream, writes=writing)
