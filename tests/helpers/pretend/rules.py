"""What an operator costs beside its launch, and what a device refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Any

import torch

from .operators import leaves
from .tensors import OnDevice


class Kind(StrEnum):
    """What the device did, or made the host do.

    UPLOAD and DOWNLOAD: a copy from or to pinned memory that the host does not wait for. PAGEABLE: an upload that was
    to be one and is from memory that is not pinned. BLOCKING_UPLOAD, BLOCKING_DOWNLOAD: a copy that the host waits for,
    and with it for everything that was launched before. SYNC: another wait for everything. WAIT: for an event.
    """

    LAUNCH = "launch"
    REPLAY = "replay"
    UPLOAD = "upload"
    DOWNLOAD = "download"
    PAGEABLE = "pageable upload"
    BLOCKING_UPLOAD = "blocking upload"
    BLOCKING_DOWNLOAD = "blocking download"
    SYNC = "sync"
    WAIT = "wait"


WAITING = frozenset({Kind.BLOCKING_UPLOAD, Kind.BLOCKING_DOWNLOAD, Kind.SYNC})
"""What makes the host wait for everything that was launched."""


class DeviceMixError(RuntimeError):
    """An operator was given tensors of two devices."""


class CaptureError(RuntimeError):
    """A graph's body did what no capture allows, or left something behind that the next replay overwrites."""


class RaceError(RuntimeError):
    """Something was read or written while another stream, or a copy, might still be at it."""


_ANSWERS = frozenset({"aten::_local_scalar_dense", "aten::equal"})
_SHAPED_BY_VALUES = frozenset({
    "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive",
    "aten::bincount", "aten::repeat_interleave",
})  # fmt: skip
"""Operators whose result's shape the host has to be told."""
_INDEXED = frozenset(
    {"aten::index", "aten::_unsafe_index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
)
_STRICT = frozenset({
    "aten::cat", "aten::stack", "aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm", "aten::index_select",
    "aten::index_copy_", "aten::gather", "aten::scatter",
})  # fmt: skip
"""Operators that do not even take a single number of the host's as a tensor."""


def traffic(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], pinned: Callable[[torch.Tensor], bool]
) -> list[Kind]:
    """What an operator on the device costs beside its launch. Raises DeviceMixError."""
    if name == "aten::copy_":
        waits = not (kwargs.get("non_blocking") or args[2:3] == (True,))
        return _copy(args[1], args[0], waits, pinned)
    if name == "aten::_to_copy":
        return _converted(args[0], kwargs, pinned)
    if name in _INDEXED:
        return list(_indexing(name, args))
    _check_devices(name, args, kwargs)
    waits = name in _ANSWERS or name in _SHAPED_BY_VALUES
    return [Kind.SYNC] if waits else []


def _copy(
    source: torch.Tensor, target: torch.Tensor, waits: bool, pinned: Callable[[torch.Tensor], bool]
) -> list[Kind]:
    up = isinstance(target, OnDevice) and not isinstance(source, OnDevice)
    down = isinstance(source, OnDevice) and not isinstance(target, OnDevice)
    if up:
        return [Kind.BLOCKING_UPLOAD if waits else Kind.UPLOAD if pinned(source) else Kind.PAGEABLE]
    if down:
        return [Kind.DOWNLOAD if not waits and pinned(target) else Kind.BLOCKING_DOWNLOAD]
    return []


def _converted(source: torch.Tensor, kwargs: dict[str, Any], pinned: Callable[[torch.Tensor], bool]) -> list[Kind]:
    device, waits = kwargs.get("device"), not kwargs.get("non_blocking")
    if not isinstance(source, OnDevice):
        return [Kind.BLOCKING_UPLOAD if waits else Kind.UPLOAD if pinned(source) else Kind.PAGEABLE]
    if device is not None and device.type == "cpu":
        return [Kind.BLOCKING_DOWNLOAD if waits else Kind.DOWNLOAD]
    return []


def _indexing(name: str, args: tuple[Any, ...]) -> Iterator[Kind]:
    """Indices of the host are copied first, and how many a mask chooses the host must know."""
    values = args[2] if len(args) > 2 else None
    if not isinstance(args[0], OnDevice) or (_of_host(values) and values.dim()):
        raise DeviceMixError(f"{name} mixes cuda:0 and cpu")
    for index in args[1]:
        if _of_host(index):
            yield Kind.BLOCKING_UPLOAD
        if index is not None and index.dtype in (torch.bool, torch.uint8):
            yield Kind.SYNC
    if _of_host(values):
        yield Kind.BLOCKING_UPLOAD


def _check_devices(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A single number of the host's goes along with most launches; anything larger does not."""
    tensors = [leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    strange = [each for each in tensors if _of_host(each) and (each.dim() or name in _STRICT)]
    if strange and len(strange) < len(tensors):
        raise DeviceMixError(f"{name} mixes cuda:0 and cpu: {[tuple(each.shape) for each in strange]}")


def _of_host(value: object) -> bool:
    return isinstance(value, torch.Tensor) and not isinstance(value, OnDevice)
