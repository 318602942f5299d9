"""Adapters in a model: fused into its weights as it is loaded, or kept beside them for rows that ask.

A layer that an adapter changes holds the factors of all of them, and adds to what it gives each row that row's own
changes. Which rows have which is said around a call, by `acting`; a layer's own arithmetic is not touched, and where
nothing is said it is all there is.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...kernels import NO_ADAPTER, Window, low_rank_rows
from ..api.settings import MAX_ADAPTERS
from .lora import Adapter, Factor

Chosen = tuple[tuple[int, float], ...]
"""Adapters of a row, each by its number in the model's, with its weight."""


class AdapterRows(NamedTuple):
    """Which adapters each row of a call has: adapters (R, J) int64, `NO_ADAPTER` for none; weights (R, J) float32."""

    adapters: Tensor
    weights: Tensor

    def repeated(self, times: int) -> "AdapterRows":
        """Of rows that each stand so many times, one after the other."""
        return AdapterRows(*(each.repeat_interleave(times, dim=0) for each in self))

    def split(self, rows: int) -> list["AdapterRows"]:
        """Of calls of at most so many rows each."""
        return [AdapterRows(*pair) for pair in zip(self.adapters.split(rows), self.weights.split(rows), strict=True)]


_ALIGNED = 32

_ROWS: ContextVar[AdapterRows | None] = ContextVar("adapter_rows", default=None)


@contextmanager
def acting(rows: AdapterRows | None) -> Iterator[None]:
    """What networks compute within, their rows compute with these adapters; with none at all where it is None."""
    token = _ROWS.set(rows)
    try:
        yield
    finally:
        _ROWS.reset(token)


def padded(chosen: Chosen) -> tuple[list[int], list[float]]:
    """A row's adapters and weights at the length that all rows have."""
    missing = MAX_ADAPTERS - len(chosen)
    return [*(n for n, _ in chosen), *[NO_ADAPTER] * missing], [*(w for _, w in chosen), *[0.0] * missing]


def adapter_tensors(rows: Sequence[Chosen]) -> list[Tensor]:
    """Numbers and weights (R, J) of rows' adapters, on the host; nothing where no row has any."""
    if not any(rows):
        return []
    numbers, weights = zip(*map(padded, rows), strict=True)
    return [torch.tensor(numbers), torch.tensor(weights)]


class Factors(nn.Module):
    """What every adapter of a model changes of one layer, as `kernels.low_rank_rows` reads it."""

    down: Tensor
    up: Tensor
    starts: Tensor
    ranks: Tensor

    def __init__(self, layer: nn.Linear | nn.Conv2d, factors: Sequence[Factor | None]) -> None:
        super().__init__()
        self.window = _window(layer)
        ranks = [0 if factor is None else factor.rank for factor in factors]
        self.most, like = max(ranks), layer.weight
        held = [_aligned(rank) for rank in ranks]
        starts = [sum(held[:number]) for number in range(len(held))]
        down = torch.zeros(sum(held), self.window.size**2, like.shape[1])
        up = torch.zeros(sum(held), like.shape[0])
        for start, factor in zip(starts, factors, strict=True):
            if factor is not None:
                down[start : start + factor.rank] = factor.down.flatten(1, 2)
                up[start : start + factor.rank] = factor.up.t()
        for name, tensor in (("down", down), ("up", up)):
            self.register_buffer(name, tensor.to(like), persistent=False)
        for name, numbers in (("starts", starts), ("ranks", ranks)):
            self.register_buffer(name, torch.tensor(numbers, device=like.device), persistent=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Add to `y`, what the layer made of `x`, what the rows' adapters change of it, in place."""
        rows = _ROWS.get()
        if rows is None:
            return y
        return low_rank_rows(
            y, x, self.down, self.up, self.starts, self.ranks, *rows, most=self.most, window=self.window
        )


def adapted(layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """`y`, what `layer` made of `x`, with what the rows' adapters change of it.

    For who computes with a layer's weights itself; a layer that is called does so on its own.
    """
    lora: Any = getattr(layer, "lora", None)
    return y if lora is None else lora(x, y)


def keep(layers: Mapping[str, Mapping[str, nn.Module]], adapters: Sequence[Adapter]) -> None:
    """Give every layer that one of the adapters changes the factors of all of them."""
    for part, name in sorted({place for adapter in adapters for place in adapter.factors}):
        layer: Any = layers[part][name]
        layer.lora = Factors(layer, [adapter.factors.get((part, name)) for adapter in adapters])
        layer.register_forward_hook(_add)


def _add(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return adapted(layer, inputs[0], output)


def fuse(layers: Mapping[str, Mapping[str, nn.Module]], fused: Sequence[tuple[Adapter, float]]) -> None:
    """Add each adapter, times its weight, to the weights of the layers that it changes.

    Summed in float32 and rounded once. The weights are new ones: who shares the old ones keeps them as they were.
    """
    for part, name in sorted({place for adapter, _ in fused for place in adapter.factors}):
        layer: Any = layers[part][name]
        total = layer.weight.detach().float()
        for adapter, weight in fused:
            if (factor := adapter.factors.get((part, name))) is not None:
                total = total + (weight * factor.change(layer)).to(total.device)
        kept = total.to(layer.weight.dtype, memory_format=torch.preserve_format)
        layer.weight = nn.Parameter(kept, requires_grad=False)


def fused_hashes(hashes: Mapping[str, str], fused: Sequence[tuple[Adapter, float]]) -> dict[str, str]:
    """Hashes of a model's parts with what was fused into them, and one of all that was."""
    found = dict(hashes)
    for part in sorted({part for adapter, _ in fused for part in adapter.parts}):
        told = [f"{adapter.sha256} {weight!r}" for adapter, weight in fused if part in adapter.parts]
        found[part] = _digest([hashes[part], *told])
    if fused:
        found["lora"] = _digest([f"{adapter.sha256} {weight!r}" for adapter, weight in fused])
    return found


def kept_name(name: str) -> str:
    """By what name the hashes of a model know an adapter that is kept for those who ask."""
    return f"adapter {name}"


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _aligned(rank: int) -> int:
    """Ranks that an adapter takes: each begins at a multiple of 64 bytes, whatever lies before it.

    How a product is summed can depend on that, and a picture must not on what other adapters there are.
    """
    return -(-rank // _ALIGNED) * _ALIGNED


def _window(layer: nn.Linear | nn.Conv2d) -> Window:
    if isinstance(layer, nn.Linear):
        return Window()
    return Window(layer.kernel_size[0], layer.stride[0], int(layer.padding[0]))
