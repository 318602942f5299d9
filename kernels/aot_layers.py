"""Production shapes of what the networks' blocks run besides attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ._triton import triton
from .add_bias import BLOCK, add_bias_kernel
from .add_bias import WARPS as ADDING_WARPS
from .add_layer_norm import add_layer_norm_kernel, layer_norm_constants, layer_norm_warps
from .aot_case import TRITON_NAMES, KernelCase, complete
from .fp8_rows import fp8_constants, fp8_rows_kernel, fp8_warps
from .geglu import WARPS as GATING_WARPS
from .geglu import geglu_constants, geglu_kernel
from .group_norm import group_constants, group_moments_kernel, group_norm_kernel, group_tile, group_warps
from .low_rank_rows import WARPS as LOW_RANK_WARPS
from .low_rank_rows import Window, low_rank_constants, low_rank_rows_kernel


def layer_cases(thorough: bool) -> Iterator[KernelCase]:
    """Every kernel at the widths of the models; not `thorough`: where they press hardest on registers."""
    dtypes = (torch.float16, torch.bfloat16) if thorough else (torch.float16,)
    for dtype in dtypes:
        for channels in (128, 320, 640, 960, 1280, 1920, 2560) if thorough else (320, 2560):
            yield from group_norm_cases(channels, 32, 4096, dtype)
        for width in (320, 640, 1280):
            yield from token_cases(width, dtype)
        for width in (320, 5120):
            yield from fp8_cases(width, dtype)
        for most in (8, 32, 128) if thorough else (128,):
            yield from low_rank_cases(most, dtype, (Window(), Window(3, 1, 1)) if thorough else (Window(3, 1, 1),))


def group_norm_cases(channels: int, groups: int, pixels: int, dtype: torch.dtype) -> Iterator[KernelCase]:
    """Both kernels of group normalisation, with a shift and an activation."""
    tile = group_tile(channels, groups, pixels)
    pointers = _of(dtype, "x", "weight", "bias", "shift", "out") | {"moments": "*fp32", "eps": "fp32"}
    shared = group_constants(channels, groups, tile) | {"SHIFTED": True, "shift_channel": 1}
    parts = triton.next_power_of_2(triton.cdiv(pixels, tile.chunk))
    shape = f"C={channels} groups={groups} {TRITON_NAMES[dtype]}"
    warps = group_warps(tile)
    yield _case("group_moments", shape, group_moments_kernel, pointers, shared, warps)
    own = {"PARTS": parts, "SILU": True}
    yield _case("group_norm", shape, group_norm_kernel, pointers, shared | own, warps)


def token_cases(width: int, dtype: torch.dtype) -> Iterator[KernelCase]:
    """What runs at a transformer's width."""
    pointers = _of(dtype, "x", "residual", "weight", "bias", "total", "out") | {"eps": "fp32"}
    shape = f"C={width} {TRITON_NAMES[dtype]}"
    yield _case("geglu", shape, geglu_kernel, pointers, geglu_constants(4 * width), GATING_WARPS)
    yield _case(
        "add_layer_norm", shape, add_layer_norm_kernel, pointers,
        layer_norm_constants(width), layer_norm_warps(width),
    )  # fmt: skip
    yield _case(
        "add_bias", shape, add_bias_kernel, pointers, {"CHANNELS": width, "BLOCK": BLOCK},
        ADDING_WARPS,
    )  # fmt: skip


def fp8_cases(width: int, dtype: torch.dtype) -> Iterator[KernelCase]:
    """Tokens in eight bits, for compute capability 8.9 and later alone."""
    pointers = _of(dtype, "x") | {"out": "*fp8e4nv", "scales": "*fp32"}
    shape = f"C={width} {TRITON_NAMES[dtype]}"
    case = _case("fp8_rows", shape, fp8_rows_kernel, pointers, fp8_constants(width), fp8_warps(width))
    yield case._replace(since=89)


def _of(dtype: torch.dtype, *names: str) -> dict[str, str]:
    return dict.fromkeys(names, f"*{TRITON_NAMES[dtype]}")


def _case(
    name: str, shape: str, function: Any, pointers: dict[str, str], constants: dict[str, Any], warps: int
) -> KernelCase:
    arguments = complete(function, pointers, constants)
    return KernelCase(name, shape, function, arguments, constants, {"num_warps": warps})


def low_rank_cases(most: int, dtype: torch.dtype, windows: Sequence[Window]) -> Iterator[KernelCase]:
    """Four adapters a row, under each of `windows`."""
    pointers = _of(dtype, "y", "x", "down", "up") | {"weights": "*fp32"}
    pointers |= dict.fromkeys(("starts", "ranks", "adapters"), "*i64")
    for window in windows:
        constants = low_rank_constants(4, 320, 1280, most, window, dtype) | {"x_channel": 1, "y_channel": 1}
        shape = f"{window.size}x{window.size} r={most} {TRITON_NAMES[dtype]}"
        yield _case("low_rank_rows", shape, low_rank_rows_kernel, pointers, constants, LOW_RANK_WARPS)
