"""`low_rank_rows` on a processor: the adapters of each row by themselves, which costs what is there and no more.

A row's products never depend on the others', so that its result is the same bit for bit in any company.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .low_rank_rows import Window


def low_rank_rows_cpu(
    y: torch.Tensor,
    x: torch.Tensor,
    down: torch.Tensor,
    up: torch.Tensor,
    starts: torch.Tensor,
    ranks: torch.Tensor,
    adapters: torch.Tensor,
    weights: torch.Tensor,
    window: Window,
) -> None:
    """Add to `y` in place; arguments as in `low_rank_rows_reference`."""
    begins, sizes = starts.tolist(), ranks.tolist()
    for row, (chosen, strengths) in enumerate(zip(adapters.tolist(), weights.tolist(), strict=True)):
        for adapter, weight in zip(chosen, strengths, strict=True):
            if adapter >= 0 and sizes[adapter]:
                own = slice(begins[adapter], begins[adapter] + sizes[adapter])
                _add(y[row], x[row], down[own], up[own], weight, window)


def _add(y: torch.Tensor, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, weight: float, window: Window) -> None:
    """One adapter on one row, without its dimension."""
    if x.ndim == 3:
        kernels = down.transpose(1, 2).unflatten(2, (window.size, window.size))
        hidden = F.conv2d(x, kernels, stride=window.stride, padding=window.padding)
        y.add_(F.conv2d(hidden, up.t()[:, :, None, None]), alpha=weight)
        return
    hidden = x @ down.flatten(1).t()
    if x.ndim == 1:
        y.add_(hidden @ up, alpha=weight)
    else:
        y.addmm_(hidden, up, alpha=weight)
