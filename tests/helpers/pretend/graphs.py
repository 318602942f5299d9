"""Graphs: captured operator by operator, replayed at the addresses that they were captured with."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from .operators import leaves, replaced
from .rules import CaptureError
from .tensors import OnDevice

if TYPE_CHECKING:
    from .device import Device
    from .memory import Block


@dataclass(frozen=True)
class _Result:
    """A tensor that the graph itself made: the number of an operator and of its result."""

    call: int
    place: int


@dataclass(frozen=True)
class _Call:
    """An operator, with its arguments as they lie on the host or as results of earlier ones."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Graph:
    """What one capture recorded. Tensors that were there before are used where they lie, others are made anew."""

    device: Device

    def __init__(self) -> None:
        self.calls: list[_Call] = []
        self._reads: weakref.WeakSet[Block] = weakref.WeakSet()
        self._writes: weakref.WeakSet[Block] = weakref.WeakSet()
        self._made: dict[int, _Result] = {}
        self._kept_alive: list[torch.Tensor] = []
        self._own: weakref.WeakSet[Block] = weakref.WeakSet()
        self._handed_out: list[weakref.ref[OnDevice]] = []
        self._static: dict[int, torch.Tensor] = {}

    def pool(self) -> tuple[int, int]:
        """Stands for the memory that graphs may share."""
        return 0, 1

    def add(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Record an operator with its arguments and results as they lie on the host."""

        def named(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            found = self._made.get(id(leaf))
            if found is None:
                self._static[id(leaf)] = leaf
            return leaf if found is None else found

        args, kwargs = replaced(named, (args, kwargs))
        for place, result in enumerate(leaves([out])):
            if isinstance(result, torch.Tensor) and id(result) not in self._static:
                self._made.setdefault(id(result), _Result(len(self.calls), place))
                self._kept_alive.append(result)
        self.calls.append(_Call(func, args, kwargs))

    def use(self, reads: Iterable[Block], writes: Iterable[Block]) -> None:
        """Remember what an operator reads and writes of what was there before."""
        self._reads.update(block for block in reads if block not in self._own)
        self._writes.update(block for block in writes if block not in self._own)

    def hand_out(self, tensor: OnDevice) -> None:
        """Remember a result that the captured body sees; it must be gone when the capture ends."""
        if tensor.block not in self._reads and tensor.block not in self._writes:
            self._own.add(tensor.block)
        self._handed_out.append(weakref.ref(tensor))

    def end(self) -> None:
        """Finish the capture. Raises CaptureError where a tensor made in it is still held: replays overwrite it."""
        self._made.clear()
        self._kept_alive.clear()
        if any(each() is not None for each in self._handed_out):
            gc.collect()
        held = [tuple(tensor.shape) for each in self._handed_out if (tensor := each()) is not None]
        self._handed_out.clear()
        if held:
            raise CaptureError(f"{len(held)} tensors made in a capture outlive it, the first of shape {held[0]}")

    def replay(self) -> None:
        """Run what was recorded."""
        self.device.replayed(self._reads, self._writes)
        made: list[list[Any]] = []

        def found(leaf: Any) -> Any:
            return made[leaf.call][leaf.place] if isinstance(leaf, _Result) else leaf

        with _disable_current_modes(), torch.inference_mode():
            for call in self.calls:
                args, kwargs = replaced(found, (call.args, call.kwargs))
                made.append([*leaves([call.func(*args, **kwargs)])])

    def reset(self) -> None:
        """Forget what was recorded."""
        self.calls.clear()
