"""The operators of the networks' blocks as PyTorch sees them, `torch.ops.twig.*`, and their Python faces.

As in `ops.py`: CUDA tensors run Triton where it is installed, everything else the PyTorch references.
"""

from __future__ import annotations

import torch

from ._triton import AVAILABLE
from .group_norm import check_group_norm, group_norm_reference, launch_group_norm


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


if AVAILABLE:
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
