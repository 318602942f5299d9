"""The operators of the networks' blocks as PyTorch sees them, `torch.ops.twig.*`, and their Python faces.

As in `ops.py`: CUDA tensors run Triton where it is installed, everything else the PyTorch references.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ._triton import AVAILABLE
from .add_bias import add_bias_reference, check_add_bias, launch_add_bias
from .add_layer_norm import add_layer_norm_reference, check_add_layer_norm, launch_add_layer_norm
from .fp8_rows import check_fp8_rows, fp8_rows_reference, launch_fp8_rows
from .geglu import check_geglu, geglu_reference, launch_geglu
from .group_norm import check_group_norm, group_norm_reference, launch_group_norm
from .low_rank_rows import Window, check_low_rank_rows, launch_low_rank_rows, low_rank_rows_reference
from .low_rank_rows_cpu import low_rank_rows_cpu


@torch.library.custom_op("twig::group_norm", mutates_args=())
def _group_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    shift: torch.Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
) -> torch.Tensor:
    check_group_norm(x, weight, bias, shift, groups)
    return group_norm_reference(x, weight, bias, shift, groups, eps, silu)


@_group_norm.register_fake
def _(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    shift: torch.Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


@torch.library.custom_op("twig::geglu", mutates_args=())
def _geglu(x: torch.Tensor) -> torch.Tensor:
    check_geglu(x)
    return geglu_reference(x)


@_geglu.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2))


@torch.library.custom_op("twig::add_layer_norm", mutates_args=())
def _add_layer_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    check_add_layer_norm(x, residual, weight, bias)
    return add_layer_norm_reference(x, residual, weight, bias, eps)


@_add_layer_norm.register_fake
def _(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


@torch.library.custom_op("twig::add_bias", mutates_args=())
def _add_bias(x: torch.Tensor, residual: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    check_add_bias(x, residual, bias)
    return add_bias_reference(x, residual, bias)


@_add_bias.register_fake
def _(x: torch.Tensor, residual: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


@torch.library.custom_op("twig::fp8_rows", mutates_args=())
def _fp8_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    check_fp8_rows(x)
    return fp8_rows_reference(x)


@_fp8_rows.register_fake
def _(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(x, dtype=torch.float8_e4m3fn), x.new_empty((len(x), 1), dtype=torch.float32)


@torch.library.custom_op("twig::low_rank_rows", mutates_args=("y",))
def _low_rank_rows(
    y: torch.Tensor,
    x: torch.Tensor,
    down: torch.Tensor,
    up: torch.Tensor,
    starts: torch.Tensor,
    ranks: torch.Tensor,
    adapters: torch.Tensor,
    weights: torch.Tensor,
    most: int,
    window: Sequence[int],
) -> None:
    arguments = (y, x, down, up, starts, ranks, adapters, weights)
    check_low_rank_rows(*arguments, Window(*window))
    if x.is_cpu:
        low_rank_rows_cpu(*arguments, Window(*window))
    else:
        low_rank_rows_reference(*arguments, most, Window(*window))


@_low_rank_rows.register_fake
def _(*arguments: torch.Tensor) -> None:
    return None


if AVAILABLE:

    @_low_rank_rows.register_kernel("cuda")
    def _(y: torch.Tensor, x: torch.Tensor, *arguments: Any) -> None:
        *factors, most, window = arguments
        launch: Any = launch_low_rank_rows
        launch(y, x, *factors, most, Window(*window))

    _fp8_rows.register_kernel("cuda")(launch_fp8_rows)
    _geglu.register_kernel("cuda")(launch_geglu)
    _add_layer_norm.register_kernel("cuda")(launch_add_layer_norm)
    _add_bias.register_kernel("cuda")(launch_add_bias)
    _group_norm.register_kernel("cuda")(launch_group_norm)


def group_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    groups: int,
    eps: float,
    *,
    shift: torch.Tensor | None = None,
    silu: bool = False,
) -> torch.Tensor:
    """Group normalisation of `x` (B, C, H, W) plus `shift` (B, C), perhaps with SiLU; the result lies channels last.

    `weight`, `bias` (C,); computed in fp32, in x's dtype. The equations stand in `kernels.group_norm`.
    """
    return torch.ops.twig.group_norm(x, weight, bias, shift, groups, eps, silu)


def geglu(x: torch.Tensor) -> torch.Tensor:
    """Gated linear unit of both halves of `x` (..., 2 C), value and gate: (..., C) in its dtype; `kernels.geglu`."""
    return torch.ops.twig.geglu(x)


def add_layer_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of `x` and `residual` (..., C), and its layer normalisation, in their dtype; `kernels.add_layer_norm`."""
    return torch.ops.twig.add_layer_norm(x, residual, weight, bias, eps)


def add_bias(x: torch.Tensor, residual: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Sum of `x` and `residual` (B, C, H, W) and `bias` (C,); the result lies channels last; `kernels.add_bias`."""
    return torch.ops.twig.add_bias(x, residual, bias)


def fp8_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`x` (M, K) in e4m3 and a scale (M, 1) float32 for each row; `kernels.fp8_rows`."""
    return torch.ops.twig.fp8_rows(x)


def low_rank_rows(
    y: torch.Tensor,
    x: torch.Tensor,
    down: torch.Tensor,
    up: torch.Tensor,
    starts: torch.Tensor,
    ranks: torch.Tensor,
    adapters: torch.Tensor,
    weights: torch.Tensor,
    *,
    most: int,
    window: Window = Window(),  # noqa: B008 - it is a constant
) -> torch.Tensor:
    """Add to `y`, what a layer made of `x`, each row's own low-rank changes in place; returns it.

    Shapes, dtypes and equations stand in `kernels.low_rank_rows`.
    """
    torch.ops.twig.low_rank_rows(y, x, down, up, starts, ranks, adapters, weights, most, list(window))
    return y
