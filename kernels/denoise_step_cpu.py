"""The denoising step and the gather on a CPU: the same operators, job by job, without what is multiplied by zero.

A latent is so small that a call of PyTorch takes longer than its arithmetic; NumPy's calls are cheaper, and there are
fewer of them. Values equal the references' bit for bit, for the operations are the same in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from .checks import check_contiguous, check_dtype
from .denoise_step import StepColumns
from .gather_rows import gather_rows_reference
from .guidance_gain import guidance_gain
from .philox import NoiseStream, philox_normal


class HostSteps:
    """Both operators over slots that stay where they are: what is the same at every step is looked at once.

    latents, history, coefficients, masks, seeds and carried as of `denoise_step`, on a CPU. Raises TypeError and
    ValueError for tensors that are not float32 (seeds: int64) and contiguous.
    """

    def __init__(
        self,
        latents: torch.Tensor,
        history: torch.Tensor,
        coefficients: torch.Tensor,
        masks: torch.Tensor,
        seeds: torch.Tensor,
        carried: torch.Tensor,
    ) -> None:
        slots = {"latents": latents, "history": history, "coefficients": coefficients, "masks": masks}
        for name, tensor in {**slots, "carried": carried}.items():
            check_dtype("denoise_step", name, tensor, torch.float32)
            check_contiguous("denoise_step", name, tensor)
        check_dtype("denoise_step", "seeds", seeds, torch.int64)
        self._seeds = seeds
        self._samples, self._predicted, self._carried = latents.numpy(), history.numpy(), carried.numpy()
        self._table, self._masks = coefficients.numpy(), masks.numpy()

    def gather(self, slots: Iterable[int], steps: Iterable[int], out: np.ndarray) -> None:
        """As `gather_rows`, into `out` (R, C, H, W) float32."""
        _gather(self._samples, self._table, slots, steps, out)

    def step(
        self,
        eps: torch.Tensor,
        slots: Sequence[int],
        rows: Sequence[Sequence[int]],
        weights: Sequence[Sequence[float]],
        steps: Sequence[int],
        pairs: Sequence[Sequence[int]],
        rescales: Sequence[float],
    ) -> None:
        """As `denoise_step`, of jobs in lists."""
        outputs = eps.float().numpy()
        for slot, own, factors, step, pair, rescale in zip(slots, rows, weights, steps, pairs, rescales, strict=True):
            if slot >= 0:
                self._advance(slot, step, _guided(outputs, own, factors, pair[1], rescale))

    def _advance(self, slot: int, step: int, out: np.ndarray) -> None:
        """A job's step by its guided output (C, H, W)."""
        p, q, a, b, c, d, u, w, m, r, n, g, kx, ke, kh, kl = self._table[slot, step, 1:].tolist()
        x, last, kept = self._samples[slot], self._predicted[slot], self._carried[slot]
        noise_pred = p * x + q * out
        x0 = u * x + w * noise_pred
        new = a * x + b * noise_pred
        if c:
            new += c * last
        if g or kl:
            new += g * kept
        if kx:
            keep = kx * x + ke * noise_pred
            if kh:
                keep += kh * last
            kept[...] = keep + kl * kept if kl else keep
        if d:
            new += d * self._noise(slot, step, NoiseStream.SOLVER)
        if m:
            fresh = r * x0 + n * self._noise(slot, step, NoiseStream.MASK)
            new += m * self._masks[slot] * (fresh - new)
        x[...], last[...] = new, x0

    def _noise(self, slot: int, step: int, stream: NoiseStream) -> np.ndarray:
        shape = self._samples.shape[1:]
        own = philox_normal(self._seeds[slot : slot + 1], torch.tensor([step]), stream, shape)
        values: np.ndarray = own[0].numpy()
        return values


def _guided(
    outputs: np.ndarray, rows: Sequence[int], weights: Sequence[float], text: int, rescale: float
) -> np.ndarray:
    """A job's rows by their weights, its deviation brought back by `rescale` to that of the row `text`."""
    out = np.zeros(outputs.shape[1:], np.float32)
    for row, weight in zip(rows, weights, strict=True):
        if weight:
            out += weight * outputs[row]
    if rescale:
        own, of_text = (torch.from_numpy(np.ascontiguousarray(each))[None] for each in (out, outputs[text]))
        out *= guidance_gain(own, of_text, torch.tensor([rescale])).item()
    return out


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
    jobs = (slots.tolist(), rows.tolist(), weights.tolist(), steps.tolist(), pairs.tolist(), rescales.tolist())
    HostSteps(latents, history, coefficients, masks, seeds, carried).step(eps, *jobs)


def gather_rows_cpu(
    latents: torch.Tensor, coefficients: torch.Tensor, slots: torch.Tensor, steps: torch.Tensor, out: torch.Tensor
) -> None:
    """As `gather_rows_reference`."""
    if out.dtype is not torch.float32:  # NumPy has no bf16
        gather_rows_reference(latents, coefficients, slots, steps, out)
        return
    _gather(latents.numpy(), coefficients.numpy(), slots.tolist(), steps.tolist(), out.numpy())


def _gather(
    samples: np.ndarray, table: np.ndarray, slots: Iterable[int], steps: Iterable[int], out: np.ndarray
) -> None:
    for row, (slot, step) in enumerate(zip(slots, steps, strict=True)):
        if slot < 0:
            out[row] = 0
        else:
            np.multiply(samples[slot], table[slot, step, StepColumns.INPUT_SCALE], out=out[row])
