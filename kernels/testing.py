"""What tests and benchmarks of the kernels share: shapes, inputs, tolerances and a comparison that explains."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from .conditioning import ScalarColumn, TokenRow, neutral_scalars, neutral_tokens
from .low_rank_rows import NONE, Window

TOLERANCES = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""Greatest error allowed of an attention output, relative to max(1, |expected|)."""


class AttentionShape(NamedTuple):
    """One cross-attention layer."""

    model: str
    head_dim: int
    heads: int
    side: int
    length: int = 77


ATTENTION_SHAPES = (
    AttentionShape("sd15-512", 40, 8, 64),
    AttentionShape("sd15-512", 80, 8, 32),
    AttentionShape("sd15-512", 160, 8, 16),
    AttentionShape("sd15-512", 160, 8, 8),
    AttentionShape("sd15-768", 40, 8, 96),
    AttentionShape("sdxl-1024", 64, 10, 64),
    AttentionShape("sdxl-1024", 64, 20, 32),
    AttentionShape("sdxl-1024", 64, 20, 32, 154),
    AttentionShape("sdxl-1024", 64, 20, 32, 231),
)
"""The cross-attention layers of the models that the benchmark times."""


def attention_inputs(
    batch: int,
    heads: int,
    grid: tuple[int, int],
    length: int,
    head_dim: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    active: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """Arguments of `masked_attention`: every mechanism at work, or with `active=False` none."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    tokens, scalars = neutral_tokens(batch, length), neutral_scalars(batch)
    if active:
        tokens[:, [TokenRow.B, TokenRow.BBAR, TokenRow.PAD]] = normal(batch, 3, length)
        tokens[:, [TokenRow.C, TokenRow.G]] = 2 * uniform(batch, 2, length)
        scalars = uniform(batch, len(ScalarColumn))
    channels = heads * head_dim
    return {
        "q": normal(batch, grid[0] * grid[1], channels).to(device, dtype),
        "k": normal(batch, length, channels).to(device, dtype),
        "v": normal(batch, length, channels).to(device, dtype),
        "mask": uniform(batch, *grid).to(device),
        "tokens": tokens.to(device),
        "scalars": scalars.to(device),
        "heads": heads,
        "grid": grid,
    }


class GroupNormShape(NamedTuple):
    """One group normalisation. shifted: with a timestep or a bias before it; silu: with the activation after it."""

    model: str
    channels: int
    side: int
    groups: int = 32
    shifted: bool = True
    silu: bool = True


GROUP_NORM_SHAPES = (
    GroupNormShape("sd15-512", 320, 64),
    GroupNormShape("sd15-512", 960, 64, shifted=False),
    GroupNormShape("sd15-512", 320, 64, shifted=False, silu=False),
    GroupNormShape("sd15-512", 640, 32),
    GroupNormShape("sd15-512", 1920, 32, shifted=False),
    GroupNormShape("sd15-512", 1280, 16),
    GroupNormShape("sd15-512", 2560, 16, shifted=False),
    GroupNormShape("sd15-512", 1280, 8),
    GroupNormShape("sd15-512", 2560, 8, shifted=False),
    GroupNormShape("sdxl-1024", 320, 128),
    GroupNormShape("sdxl-1024", 640, 64),
    GroupNormShape("vae-512", 512, 64),
    GroupNormShape("vae-512", 128, 512),
)
"""The group normalisations of the models that the benchmark times."""


class TokenShape(NamedTuple):
    """The tokens of one transformer block, a square picture's pixels."""

    model: str
    width: int
    side: int


TOKEN_SHAPES = (
    TokenShape("sd15-512", 320, 64),
    TokenShape("sd15-512", 640, 32),
    TokenShape("sd15-512", 1280, 16),
    TokenShape("sd15-512", 1280, 8),
    TokenShape("sdxl-1024", 640, 64),
    TokenShape("sdxl-1024", 1280, 32),
)
"""The transformer blocks of the models that the benchmark times."""


def group_norm_inputs(
    batch: int,
    channels: int,
    groups: int,
    grid: tuple[int, int],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    shifted: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """Arguments of `group_norm_reference` but for the activation; each channel has a mean and spread of its own."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    x = normal(batch, channels, *grid) * (0.5 + normal(channels, 1, 1).abs()) + 2 * normal(channels, 1, 1)
    return {
        "x": x.to(device, dtype).contiguous(memory_format=torch.channels_last),
        "weight": (1 + normal(channels)).to(device, dtype),
        "bias": normal(channels).to(device, dtype),
        "shift": normal(batch, channels).to(device, dtype) if shifted else None,
        "groups": groups,
        "eps": 1e-5,
    }


def low_rank_inputs(
    rows: int,
    grid: tuple[int, int] | int | None,
    inputs: int,
    outputs: int,
    window: Window = Window(),  # noqa: B008 - it is a constant
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    ranks: tuple[int, ...] = (4, 17, 32),
    seed: int = 0,
) -> dict[str, Any]:
    """Arguments of `low_rank_rows`: the first row without an adapter, the last with two, each other with one.

    grid: of pictures, which then lie channels last; how many tokens; or None for vectors.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    if isinstance(grid, tuple):
        sides = [(side + 2 * window.padding - window.size) // window.stride + 1 for side in grid]
        shapes = (rows, inputs, *grid), (rows, outputs, *sides)
    else:
        middle = () if grid is None else (grid,)
        shapes = (rows, *middle, inputs), (rows, *middle, outputs)
    x, y = (normal(*shape) for shape in shapes)
    if x.ndim == 4:
        x, y = (each.contiguous(memory_format=torch.channels_last) for each in (x, y))
    adapters = torch.full((rows, 3), NONE)
    adapters[1:, 1] = torch.arange(rows - 1) % len(ranks)
    adapters[-1, 2] = len(ranks) - 1
    total = max(sum(ranks), 128)
    starts = torch.tensor([0, *ranks[:-1]]).cumsum(0)
    return {
        "y": y,
        "x": x,
        "down": normal(total, window.size**2, inputs) / (inputs**0.5 * window.size),
        "up": normal(total, outputs) / 4,
        "starts": starts.to(device),
        "ranks": torch.tensor(ranks, device=device),
        "adapters": adapters.to(device),
        "weights": torch.rand(rows, 3, generator=generator).to(device),
        "most": max(ranks),
        "window": window,
    }


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float, what: str = "tensor") -> None:
    """Raise AssertionError with the largest and RMS error and the worst place, unless all is within tolerance.

    Errors are relative to max(1, |expected|), in fp64; NaN anywhere fails.
    """
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)} != {tuple(expected.shape)}"
    if not actual.numel():
        return
    expected = expected.double()
    error = (actual.double() - expected).abs() / expected.abs().clamp_min(1)
    error = torch.where(error.isnan(), torch.inf, error)
    worst = int(error.argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), error.shape))
    if float(error.max()) > tolerance:
        raise AssertionError(
            f"{what}: max error {float(error.max()):.3e} > {tolerance:.1e} at {index} "
            f"(got {float(actual[index]):.6g}, expected {float(expected[index]):.6g}), "
            f"RMS {float(error.square().mean().sqrt()):.3e}"
        )
