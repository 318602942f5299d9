"""The denoising step and the gather on a CPU: the same operators, job by job, without what is multiplied by zero.

A latent is so small that a call of PyTorch takes longer than its arithmetic; NumPy's calls are cheaper, and there are
fewer of them. Values equal the references' bit for bit, for the operations are the same in the same order.
"""

from __future__ import annotations

import numpy as np
import torch

from .denoise_step import StepColumns
from .gather_rows import gather_rows_reference
from .guidance_gain import guidance_gain
from .philox import NoiseStream, philox_normal


def denoise_step_cpu(
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
    """As `denoise_step_reference`."""
    samples, predicted, kept, table = latents.numpy(), history.numpy(), carried.numpy(), coefficients.numpy()
    combined = zip(rows.tolist(), weights.tolist(), strict=True)
    jobs = zip(slots.tolist(), steps.tolist(), combined, pairs.tolist(), rescales.tolist(), strict=True)
    for slot, step, (own, factors), pair, rescale in jobs:
        if slot < 0:
            continue
        p, q, a, b, c, d, u, w, m, r, n, g, kx, ke, kh, kl = table[slot, step, 1:].tolist()
        x, out = samples[slot], _guided(eps, own, factors, pair[1], rescale)
        noise_pred = p * x + q * out
        x0 = u * x + w * noise_pred
        new = a * x + b * noise_pred
        if c:
            new += c * predicted[slot]
        if g or kl:
            new += g * kept[slot]
        if kx:
            keep = kx * x + ke * noise_pred
            if kh:
                keep += kh * predicted[slot]
            kept[slot] = keep + kl * kept[slot] if kl else keep
        if d:
            new += d * _noise(seeds, slot, step, NoiseStream.SOLVER, x.shape)
        if m:
            fresh = r * x0 + n * _noise(seeds, slot, step, NoiseStream.MASK, x.shape)
            new += m * masks[slot].numpy() * (fresh - new)
        samples[slot], predicted[slot] = new, x0


def _guided(eps: torch.Tensor, rows: list[int], weights: list[float], text: int, rescale: float) -> np.ndarray:
    """A job's rows by their weights, its deviation brought back by `rescale` to that of the row `text`."""
    out = np.zeros(eps.shape[1:], np.float32)
    for row, weight in zip(rows, weights, strict=True):
        if weight:
            out += weight * eps[row].float().contiguous().numpy()
    if rescale:
        gain = guidance_gain(torch.from_numpy(out)[None], eps[text][None].float(), torch.tensor([rescale]))
        out *= gain.item()
    return out


def _noise(seeds: torch.Tensor, slot: int, step: int, stream: NoiseStream, shape: tuple[int, ...]) -> np.ndarray:
    own = philox_normal(seeds[slot : slot + 1], torch.tensor([step]), stream, shape)
    values: np.ndarray = own[0].numpy()
    return values


def gather_rows_cpu(
    latents: torch.Tensor, coefficients: torch.Tensor, slots: torch.Tensor, steps: torch.Tensor, out: torch.Tensor
) -> None:
    """As `gather_rows_reference`."""
    if out.dtype is not torch.float32:  # NumPy has no bf16
        gather_rows_reference(latents, coefficients, slots, steps, out)
        return
    samples, scales, into = latents.numpy(), coefficients.numpy()[..., StepColumns.INPUT_SCALE], out.numpy()
    for row, (slot, step) in enumerate(zip(slots.tolist(), steps.tolist(), strict=True)):
        if slot < 0:
            into[row] = 0
        else:
            np.multiply(samples[slot], scales[slot, step], out=into[row])
