"""Columns of numbers side by side in one block of the device: written on the host, brought over in one copy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .streams import Staging

_ALIGNMENT = 256
"""Bytes, as of memory of its own: kernels are compiled for how their arguments are aligned."""


@dataclass(frozen=True)
class Column:
    """One column. axes: numbers, or names of what is counted; padding: what stands after the last value.

    A padding that is a name stands for the largest count of that name.
    """

    axes: tuple[str | int, ...]
    dtype: torch.dtype
    padding: int | str = 0


class Columns:
    """A block of columns by name. most: the largest count of each name. views: each column, where it stays."""

    def __init__(self, columns: Mapping[str, Column], most: Mapping[str, int], device: torch.device) -> None:
        self._columns = columns
        self._most = most
        self._counted = {name: (str(column.axes[0]), self._padding(column)) for name, column in columns.items()}
        self._places: dict[str, tuple[int, int]] = {}
        end = 0
        for name, column in columns.items():
            size = torch.Size(self._shape(column)).numel() * column.dtype.itemsize
            self._places[name] = end, end + size
            end += -(-size // _ALIGNMENT) * _ALIGNMENT
        self._block = torch.zeros(end, dtype=torch.uint8, device=device)
        self._staging: tuple[Staging, list[dict[str, np.ndarray]]] | None = None
        self._written: list[dict[str, tuple[Sequence[object], int]]] = []
        self.views = self._split(self._block)

    def write(self, values: Mapping[str, Sequence[object]], counts: Mapping[str, int]) -> None:
        """Write each column's values, padded up to the count of its first axis; what lies behind stays as it is.

        What a column holds already is not written again: from step to step little changes. Values must not be changed
        afterwards.
        """
        staging, hosts = self._ready()
        turn = staging.turn()
        host, written = hosts[turn], self._written[turn]
        for name, (axis, padding) in self._counted.items():
            given, count = values[name], counts[axis]
            if written.get(name) == (given, count):
                continue
            into = host[name]
            if len(given) < count:
                into[len(given) : count] = padding
            if given:
                into[: len(given)] = given
            written[name] = given, count
        staging.send()

    def read(self, name: str, count: int) -> list[Any]:
        """The first values of a column of the block, which must be on the host."""
        found: list[Any] = self._ready()[1][0][name][:count].tolist()
        return found

    @torch.inference_mode()
    def poison(self) -> None:
        """Fill the columns, and all that could be sent, with values that cannot go unnoticed."""
        for block in (self._block, *self._ready()[0].pieces):
            for view in self._split(block).values():
                view.fill_(float("nan") if view.is_floating_point() else 2**40)
        for written in self._written:
            written.clear()

    def _ready(self) -> tuple[Staging, list[dict[str, np.ndarray]]]:
        """Memory to send from, and its columns; made when first needed, for what is only measured has no use for it."""
        if self._staging is None:
            staging = Staging(self._block)
            for piece in staging.pieces:
                for name, view in self._split(piece).items():
                    view.fill_(self._padding(self._columns[name]))
            columns = [{name: view.numpy() for name, view in self._split(piece).items()} for piece in staging.pieces]
            self._staging, self._written = (staging, columns), [{} for _ in columns]
        return self._staging

    def _split(self, block: Tensor) -> dict[str, Tensor]:
        """Views of the columns in a block, on whatever device."""
        return {
            name: block[start:end].view(column.dtype).view(self._shape(column))
            for (name, column), (start, end) in zip(self._columns.items(), self._places.values(), strict=True)
        }

    def _shape(self, column: Column) -> tuple[int, ...]:
        return tuple(self._most[axis] if isinstance(axis, str) else axis for axis in column.axes)

    def _padding(self, column: Column) -> int:
        return self._most[column.padding] if isinstance(column.padding, str) else column.padding
