"""Rescaled guidance: the factor on a guided prediction that takes a share of its deviation to the text's own.

Lin et al., arXiv 2305.08891, equations 15 and 16: with s the deviation over a whole latent,

    out' = out * (1 - f + f * s(text) / s(out))

It is a part of the denoising step, no operator of its own. Sums are in fp64: what the order of summation changes is
lost where the factor is rounded to fp32. A prediction without deviation stays as it is.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import torch

from ._triton import jit, tl


def guidance_gain(out: torch.Tensor, text: torch.Tensor, rescale: torch.Tensor) -> torch.Tensor:
    """Factors (J,) fp32 for guided predictions and those of the text, (J, C, H, W) fp32, and shares f (J,) fp32."""
    spread, of_text = _spread(out), _spread(text)
    # On a CPU torch.sqrt of fp32 is not exactly rounded everywhere; through fp64 it is.
    ratio = torch.where(spread > 0, (of_text / spread).double().sqrt().float(), 1.0)
    return 1 - rescale + rescale * ratio


def _spread(values: torch.Tensor) -> torch.Tensor:
    """Variance (J,) fp32, times the square of the count."""
    flat = values.flatten(1).double()
    return (flat.square().sum(1) * flat.shape[1] - flat.sum(1).square()).clamp_min(0).float()


@jit
def guidance_gain_kernel(
    eps, rows, weights, text, rescale, size, pixels, eps_row, eps_channel, eps_pixel,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The factor of one job; rows, weights: where its own begin; text: the row of the text."""
    total, squares = tl.full((), 0.0, tl.float64), tl.full((), 0.0, tl.float64)
    text_total, text_squares = tl.full((), 0.0, tl.float64), tl.full((), 0.0, tl.float64)
    for start in tl.range(0, size, BLOCK, num_stages=1):
        offsets = start + tl.arange(0, BLOCK)
        channel = offsets // pixels
        where = channel.to(tl.int64) * eps_channel + (offsets - channel * pixels).to(tl.int64) * eps_pixel
        out = tl.zeros((BLOCK,), tl.float32)
        for i in tl.static_range(ROWS):
            weight = tl.load(weights + i)
            read = offsets < tl.where(weight != 0.0, size, 0)
            value = tl.load(eps + tl.load(rows + i) * eps_row + where, mask=read, other=0.0)
            out = out + weight * value.to(tl.float32)
        wide = out.to(tl.float64)
        said = tl.load(eps + text * eps_row + where, mask=offsets < size, other=0.0).to(tl.float64)
        total += tl.sum(wide, 0)
        squares += tl.sum(wide * wide, 0)
        text_total += tl.sum(said, 0)
        text_squares += tl.sum(said * said, 0)
    count = size.to(tl.float64)
    spread = tl.maximum(squares * count - total * total, 0.0).to(tl.float32)
    of_text = tl.maximum(text_squares * count - text_total * text_total, 0.0).to(tl.float32)
    ratio = tl.sqrt_rn(tl.div_rn(of_text, tl.where(spread > 0.0, spread, 1.0)))
    return 1.0 - rescale + rescale * tl.where(spread > 0.0, ratio, 1.0)
