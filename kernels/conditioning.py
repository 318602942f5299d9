"""How a request speaks to masked attention: five numbers a token, three numbers a sample, and a mask."""

from __future__ import annotations

from enum import IntEnum

import torch

HIDDEN = -1e4
"""A pad that hides a token: its probability is 0 in every precision that has this number, whatever the scores."""


class TokenRow(IntEnum):
    """Order of dimension 1 of `tokens` (B, 5, T)."""

    B = 0
    """Bias added to the logit inside the mask."""
    BBAR = 1
    """Bias added to the logit outside the mask."""
    C = 2
    """Factor on the logit inside the mask."""
    G = 3
    """Factor on the probability inside the mask."""
    PAD = 4
    """Bias inside the score itself, everywhere (padding masks)."""


class ScalarColumn(IntEnum):
    """Order of dimension 1 of `scalars` (B, 3)."""

    ETA = 0
    """Strength of the mask; 0 switches the sample's reweighting off."""
    RHO = 1
    """Renormalisation after `g`: 0 none, 1 full."""
    GAMMA = 2
    """How much of the output is withdrawn inside the mask."""


def neutral_tokens(batch: int, length: int, device: torch.device | str | None = None) -> torch.Tensor:
    """Tokens (batch, 5, length) fp32 that change nothing: b = bbar = pad = 0 and c = g = 1."""
    tokens = torch.zeros(batch, len(TokenRow), length, device=device)
    tokens[:, TokenRow.C] = 1
    tokens[:, TokenRow.G] = 1
    return tokens


def neutral_scalars(batch: int, device: torch.device | str | None = None) -> torch.Tensor:
    """Scalars (batch, 3) fp32 that switch every sample off: eta = rho = gamma = 0."""
    return torch.zeros(batch, len(ScalarColumn), device=device)


def sample_mask(mask: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Mask (B, h, w) -> (B, gh * gw): query pixel (y, x) reads `mask[y * h // gh, x * w // gw]`."""
    (height, width), (rows, columns) = mask.shape[-2:], grid
    y = torch.arange(rows, device=mask.device) * height // rows
    x = torch.arange(columns, device=mask.device) * width // columns
    return mask[:, y[:, None], x[None, :]].flatten(1)
