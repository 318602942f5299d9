"""The operators as PyTorch sees them: `torch.ops.twig.*`, visible to `torch.compile` and `torch.export`.

CUDA tensors run Triton where it is installed and built for their shape; everything else runs what is written for a CPU
(`*_cpu`), or the PyTorch references.
`masked_attention`, `masked_attention_with_mass`, `denoise_step` and `gather_rows` are the operators' Python faces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ._triton import AVAILABLE
from .denoise_step import check_denoise_step, launch_denoise_step
from .denoise_step_cpu import HostSteps, denoise_step_cpu, gather_rows_cpu
from .gather_rows import check_gather_rows, launch_gather_rows
from .masked_attention import check_masked_attention, kernel_takes, launch_masked_attention, masked_attention_reference
from .masked_attention_cpu import masked_attention_cpu


@torch.library.custom_op("twig::masked_attention", mutates_args=())
def _masked_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    tokens: torch.Tensor,
    scalars: torch.Tensor,
    heads: int,
    grid: Sequence[int],
) -> torch.Tensor:
    check_masked_attention(q, k, v, mask, tokens, scalars, heads, (grid[0], grid[1]))
    return masked_attention_cpu(q, k, v, mask, tokens, scalars, heads=heads, grid=(grid[0], grid[1]))[0]


@_masked_attention.register_fake
def _(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    tokens: torch.Tensor,
    scalars: torch.Tensor,
    heads: int,
    grid: Sequence[int],
) -> torch.Tensor:
    return q.new_empty(q.shape)


@torch.library.custom_op("twig::masked_attention_mass", mutates_args=())
def _masked_attention_mass(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    tokens: torch.Tensor,
    scalars: torch.Tensor,
    heads: int,
    grid: Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    check_masked_attention(q, k, v, mask, tokens, scalars, heads, (grid[0], grid[1]))
    out, inside, outside = masked_attention_cpu(
        q, k, v, mask, tokens, scalars, heads=heads, grid=(grid[0], grid[1]), with_mass=True
    )
    assert inside is not None
    assert outside is not None
    return out, inside, outside


@_masked_attention_mass.register_fake
def _(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    tokens: torch.Tensor,
    scalars: torch.Tensor,
    heads: int,
    grid: Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    masses = [q.new_empty((q.shape[0], heads, k.shape[1]), dtype=torch.float32) for _ in range(2)]
    return q.new_empty(q.shape), masses[0], masses[1]


@torch.library.custom_op("twig::denoise_step", mutates_args=("latents", "history", "carried"))
def _denoise_step(
    latents: torch.Tensor,
    history: torch.Tensor,
    eps: torch.Tensor,
    slots: torch.Tensor,
    rows: torch.Tensor,
    weights: torch.Tensor,
    steps: torch.Tensor,
    coefficients: torch.Tensor,
    masks: torch.Tensor,
    seeds: torch.Tensor,
    carried: torch.Tensor,
    pairs: torch.Tensor,
    rescales: torch.Tensor,
) -> None:
    arguments = (
        latents, history, eps, slots, rows, weights, steps, coefficients, masks, seeds, carried, pairs, rescales,
    )  # fmt: skip
    _denoise_step_here(*arguments)


def _denoise_step_here(*arguments: torch.Tensor) -> None:
    check_denoise_step(*arguments)
    denoise_step_cpu(*arguments)


@torch.library.custom_op("twig::gather_rows", mutates_args=("out",))
def _gather_rows(
    latents: torch.Tensor,
    coefficients: torch.Tensor,
    slots: torch.Tensor,
    steps: torch.Tensor,
    out: torch.Tensor,
) -> None:
    _gather_rows_here(latents, coefficients, slots, steps, out)


def _gather_rows_here(*arguments: torch.Tensor) -> None:
    check_gather_rows(*arguments)
    gather_rows_cpu(*arguments)


@_denoise_step.register_fake
def _(*arguments: torch.Tensor) -> None:
    return None


@_gather_rows.register_fake
def _(*arguments: torch.Tensor) -> None:
    return None


def masked_attention_cuda(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    tokens: torch.Tensor,
    scalars: torch.Tensor,
    heads: int,
    grid: Sequence[int],
    *,
    with_mass: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """What CUDA tensors run: the Triton kernel, or the reference for head dimensions it is not built for."""
    size = (grid[0], grid[1])
    if kernel_takes(q.shape[-1] // heads):
        return launch_masked_attention(q, k, v, mask, tokens, scalars, heads=heads, grid=size, with_mass=with_mass)
    check_masked_attention(q, k, v, mask, tokens, scalars, heads, size)
    return masked_attention_reference(q, k, v, mask, tokens, scalars, heads=heads, grid=size)


if AVAILABLE:

    @_masked_attention.register_kernel("cuda")
    def _(*arguments: Any) -> torch.Tensor:
        return masked_attention_cuda(*arguments)[0]

    @_masked_attention_mass.register_kernel("cuda")
    def _(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        out, inside, outside = masked_attention_cuda(*arguments, with_mass=True)
        assert inside is not None
        assert outside is not None
        return out, inside, outside

    _denoise_step.register_kernel("cuda")(launch_denoise_step)
    _gather_rows.register_kernel("cuda")(launch_gather_rows)


def masked_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    tokens: torch.Tensor,
    scalars: torch.Tensor,
    *,
    heads: int,
    grid: tuple[int, int],
) -> torch.Tensor:
    """Cross-attention reweighted inside and outside a mask: (B, N, H*d) in q's dtype.

    `q` (B, N, H*d) with N = grid[0] * grid[1]; `k`, `v` (B, T, H*d), strided views allowed; `mask` (B, h, w)
    fp32 in [0, 1] at any resolution; `tokens` (B, 5, T) fp32 in the order of `TokenRow`; `scalars` (B, 3) fp32
    in the order of `ScalarColumn`. The rule stands in `kernels.masked_attention`.
    """
    return torch.ops.twig.masked_attention(q, k, v, mask, tokens, scalars, heads, list(grid))


def masked_attention_with_mass(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    tokens: torch.Tensor,
    scalars: torch.Tensor,
    *,
    heads: int,
    grid: tuple[int, int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `masked_attention`, with the mass of each token inside and outside the mask, (B, H, T) fp32 each."""
    return torch.ops.twig.masked_attention_mass(q, k, v, mask, tokens, scalars, heads, list(grid))


def denoise_step(
    latents: torch.Tensor,
    history: torch.Tensor,
    eps: torch.Tensor,
    slots: torch.Tensor,
    rows: torch.Tensor,
    weights: torch.Tensor,
    steps: torch.Tensor,
    coefficients: torch.Tensor,
    masks: torch.Tensor,
    seeds: torch.Tensor,
    carried: torch.Tensor,
    pairs: torch.Tensor,
    rescales: torch.Tensor,
) -> None:
    """Advance the jobs at `slots` by one step, in place on `latents`, `history` and `carried`.

    Shapes, dtypes and equations stand in `kernels.denoise_step`.
    """
    run = _denoise_step_here if _is_plain(latents) else torch.ops.twig.denoise_step
    run(latents, history, eps, slots, rows, weights, steps, coefficients, masks, seeds, carried, pairs, rescales)


def gather_rows(
    latents: torch.Tensor,
    coefficients: torch.Tensor,
    slots: torch.Tensor,
    steps: torch.Tensor,
    out: torch.Tensor,
) -> torch.Tensor:
    """Fill `out` (R, C, H, W) with `input_scale * latents[slot]` in its own dtype, zeros at slot -1; returns it."""
    run = _gather_rows_here if _is_plain(latents) else torch.ops.twig.gather_rows
    run(latents, coefficients, slots, steps, out)
    return out


def host_steps(
    latents: torch.Tensor,
    history: torch.Tensor,
    coefficients: torch.Tensor,
    masks: torch.Tensor,
    seeds: torch.Tensor,
    carried: torch.Tensor,
) -> HostSteps | None:
    """`gather_rows` and `denoise_step` over slots that stay where they are, for calls from Python on a processor.

    None where the operators themselves are to be called.
    """
    return HostSteps(latents, history, coefficients, masks, seeds, carried) if _is_plain(latents) else None


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether a call is no more than Python on a processor.

    PyTorch's dispatcher would import its compiler at the first call of an operator of ours, which takes longer than a
    picture.
    """
    return type(tensor) is torch.Tensor and tensor.device.type == "cpu" and not torch.compiler.is_compiling()
