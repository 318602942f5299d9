"""Tile sizes of masked attention, chosen so that no supported shape spills a register on any architecture."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

LONGEST_TILE = 96
"""The longest token row that fits one tile without spilling; a longer one is swept tile by tile."""


class AttentionTile(NamedTuple):
    """Query pixels a program holds, the warps that hold them, and the inner step.

    looped: whether tokens are swept tile by tile. The step counts tokens then, else the head channels of one product.
    """

    block: int
    warps: int
    step: int
    looped: bool


def _power_of_two(size: int) -> int:
    return max(16, 1 << (size - 1).bit_length())


@functools.cache
def split_tile(size: int) -> tuple[int, int]:
    """Cover `size` by a power of two and a smaller one (0 where one is enough), each at least 16."""
    whole = _power_of_two(size)
    main = whole // 2
    if main < 16 or size == whole:
        return whole, 0
    tail = _power_of_two(size - main)
    return (whole, 0) if tail == main else (main, tail)


def attention_constants(head_dim: int, length: int, tile: AttentionTile) -> dict[str, int]:
    """The kernel's compile-time sizes: one definition for the launcher and the ahead-of-time build."""
    sizes = {"T": length, "D": head_dim, "BLOCK": tile.block}
    if tile.looped:
        d_main, d_tail = split_tile(head_dim)
        return sizes | {"T_BLOCK": tile.step, "D_MAIN": d_main, "D_TAIL": d_tail}
    t_main, t_tail = split_tile(length)
    chunks = -(-head_dim // tile.step)
    return sizes | {"T_MAIN": t_main, "T_TAIL": t_tail, "D_CHUNK": tile.step, "D_CHUNKS": chunks}


def attention_tile(head_dim: int, length: int, dtype: torch.dtype, with_mass: bool = False) -> AttentionTile:
    """Tile for one shape: 64 pixels, a warp group's product, or 16 where fp32 has no tensor core.

    Up to 160 channels and 96 tokens, and up to 80 channels beyond, within a fiftieth of the fastest on an H100 of those
    that spill nowhere (`benchmarks/results/attention_tiles.jsonl`); the rest was chosen by spills alone.
    """
    looped = length > LONGEST_TILE
    if dtype == torch.float32:
        # Wide heads leave no registers for a whole row of tokens.
        return AttentionTile(16, 8, 16, True) if looped or head_dim > 128 else AttentionTile(16, 8, 32, False)
    if not looped:
        return AttentionTile(64, 4, 64 if head_dim <= 128 else 32, False)
    if head_dim > 80:
        # Wide heads leave few registers, and sums of masses beside the widest none for 64 pixels.
        return AttentionTile(32 if with_mass and head_dim > 128 else 64, 8, 16, True)
    # Sums of masses leave four warps no registers.
    return AttentionTile(64, 8 if with_mass else 4, 32, True)


def attention_options(head_dim: int, tile: AttentionTile) -> dict[str, int]:
    """What the compiler is told of one shape: one definition for the launcher and the ahead-of-time build."""
    options = {"num_warps": tile.warps, "num_stages": 1}
    if tile.looped and head_dim > 128:
        options["maxnreg"] = 255  # else ptxas would rather spill a word than have one block fewer resident
    return options
