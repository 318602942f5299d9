"""One denoising step of many jobs in one pass: row combination, solver update and masked noise, in place.

Per job, with the coefficients of its own step (names as in `StepColumns`) and M its mask:

    out    = sum_r weight_r * rows_r                   guidance: a linear combination of network rows
    out    = out * (1 - f + f * std(text) / std(out))  rescaled guidance, where the job's f is not 0
    eps    = p * x + q * out                           prediction type -> noise
    x0     = u * x + w * eps                           predicted sample, kept as the job's history
    x'     = a * x + b * eps + c * history + g * carried + d * noise
    x'     = x' + m M * (r * x0 + n * noise2 - x')     masked noise
    carried <- kx * x + ke * eps + kh * history + kl * carried, where kx is not 0

The kernel is built without multiply-add contraction, so it equals the reference bit for bit. Each program of a job
whose guidance is rescaled sums over the whole latent by itself: it reads what lies in the cache and waits for nobody.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import math
from enum import IntEnum

import torch

from ._triton import jit, require_launchable, tl, triton
from .checks import FLOATS, check_contiguous, check_dtype, check_shape
from .guidance_gain import guidance_gain, guidance_gain_kernel
from .philox import NoiseStream, normal_kernel, philox_normal

BLOCK = 1024
WARPS = 4


class StepColumns(IntEnum):
    """Order of the last dimension of the coefficient table (S, max_steps, 17)."""

    INPUT_SCALE = 0
    P = 1
    Q = 2
    A = 3
    B = 4
    C = 5
    D = 6
    U = 7
    W = 8
    M = 9
    R = 10
    N = 11
    G = 12
    KX = 13
    KE = 14
    KH = 15
    KL = 16


def denoise_step_reference(
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
    """The equations above in PyTorch, writing `latents`, `history` and `carried` at the jobs' slots.

    `latents`, `history`, `carried` (S, C, H, W) fp32; `eps` (R, C, H, W) float; `slots` (J,) int64, -1 skips the job
    and no slot may occur twice; `rows`, `weights` (J, n): a row of weight 0 is not read; `steps` (J,) int64;
    `coefficients` (S, max_steps, 17) fp32; `masks` (S, H, W) fp32; `seeds` (S,) int64; `pairs` (J, 2) int64, the second
    of which is the row of the text; `rescales` (J,) fp32, the f above. History is read only where c or kh != 0, what is
    carried where g or kl != 0, the mask and noise only where m or d != 0, the text's row where f != 0.
    """
    active = slots >= 0
    slots, rows, weights, steps = slots[active], rows[active], weights[active], steps[active]
    pairs, rescales = pairs[active], rescales[active]
    if not len(slots):
        return
    table = coefficients[slots, steps]
    x = latents[slots]
    column = {name: table[:, name][:, None, None, None] for name in StepColumns}

    out = torch.zeros_like(x)
    for row, weight in zip(rows.unbind(1), weights.unbind(1), strict=True):
        weight = weight[:, None, None, None]
        out = out + weight * torch.where(weight != 0, eps[row].float(), 0.0)
    rescaled = rescales != 0
    if bool(rescaled.any()):
        gain = guidance_gain(out[rescaled], eps[pairs[rescaled, 1]].float(), rescales[rescaled])
        out[rescaled] = out[rescaled] * gain[:, None, None, None]
    noise_pred = column[StepColumns.P] * x + column[StepColumns.Q] * out
    x0 = column[StepColumns.U] * x + column[StepColumns.W] * noise_pred
    reads = (column[StepColumns.C] != 0) | (column[StepColumns.KH] != 0)
    previous = torch.where(reads, history[slots], 0.0)
    new = column[StepColumns.A] * x + column[StepColumns.B] * noise_pred
    new = new + column[StepColumns.C] * previous
    carries = (column[StepColumns.G] != 0) | (column[StepColumns.KL] != 0)
    brought = torch.where(carries, carried[slots], 0.0)
    new = torch.where(carries, new + column[StepColumns.G] * brought, new)
    kept = column[StepColumns.KX] * x + column[StepColumns.KE] * noise_pred
    kept = kept + column[StepColumns.KH] * previous + column[StepColumns.KL] * brought
    carrying = table[:, StepColumns.KX] != 0
    carried[slots[carrying]] = kept[carrying]

    noisy = table[:, StepColumns.D] != 0
    if bool(noisy.any()):
        noise = philox_normal(seeds[slots[noisy]], steps[noisy], NoiseStream.SOLVER, x.shape[1:])
        new[noisy] = new[noisy] + column[StepColumns.D][noisy] * noise
    masked = table[:, StepColumns.M] != 0
    if bool(masked.any()):
        noise = philox_normal(seeds[slots[masked]], steps[masked], NoiseStream.MASK, x.shape[1:])
        fresh = column[StepColumns.R][masked] * x0[masked] + column[StepColumns.N][masked] * noise
        blend = column[StepColumns.M][masked] * masks[slots[masked]][:, None]
        new[masked] = new[masked] + blend * (fresh - new[masked])
    latents[slots] = new
    history[slots] = x0


@jit
def denoise_step_kernel(
    latents,
    history,
    eps,
    slots,
    rows,
    weights,
    steps,
    coefficients,
    masks,
    seeds,
    carried,
    pairs,
    rescales,
    size,
    pixels,
    max_steps,
    eps_row,
    eps_channel,
    eps_pixel,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SOLVER_STREAM: tl.constexpr,
    MASK_STREAM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: BLOCK neighbouring values of one job's latent."""
    job = tl.program_id(1)
    slot = tl.load(slots + job)
    if slot >= 0:
        step = tl.load(steps + job)
        table = coefficients + (slot * max_steps + step) * COLUMNS
        p = tl.load(table + 1)
        q = tl.load(table + 2)
        a = tl.load(table + 3)
        b = tl.load(table + 4)
        c = tl.load(table + 5)
        d = tl.load(table + 6)
        u = tl.load(table + 7)
        w = tl.load(table + 8)
        m = tl.load(table + 9)

        offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        valid = offsets < size
        channel = offsets // pixels
        pixel = offsets - channel * pixels
        latents += slot * size
        history += slot * size
        carried += slot * size
        x = tl.load(latents + offsets, mask=valid, other=0.0)
        out = tl.zeros((BLOCK,), tl.float32)
        where = channel.to(tl.int64) * eps_channel + pixel.to(tl.int64) * eps_pixel
        for i in tl.static_range(ROWS):
            weight = tl.load(weights + job * ROWS + i)
            row = tl.load(rows + job * ROWS + i)
            read = offsets < tl.where(weight != 0.0, size, 0)
            value = tl.load(eps + row * eps_row + where, mask=read, other=0.0)
            out = out + weight * value.to(tl.float32)
        rescale = tl.load(rescales + job)
        if rescale != 0.0:
            gain = guidance_gain_kernel(
                eps, rows + job * ROWS, weights + job * ROWS, tl.load(pairs + job * 2 + 1), rescale, size, pixels,
                eps_row, eps_channel, eps_pixel, ROWS, BLOCK // 4,
            )  # fmt: skip
            out = out * gain
        noise_pred = p * x + q * out
        x0 = u * x + w * noise_pred
        kh = tl.load(table + 15)
        reads = offsets < tl.where((c != 0.0) | (kh != 0.0), size, 0)
        previous = tl.load(history + offsets, mask=reads, other=0.0)
        new = a * x + b * noise_pred
        new = new + c * previous
        g = tl.load(table + 12)
        kx = tl.load(table + 13)
        kl = tl.load(table + 16)
        if (g != 0.0) | (kl != 0.0) | (kx != 0.0):
            ke = tl.load(table + 14)
            carries = (g != 0.0) | (kl != 0.0)
            brought = tl.load(carried + offsets, mask=offsets < tl.where(carries, size, 0), other=0.0)
            new = tl.where(carries, new + g * brought, new)
            kept = kx * x + ke * noise_pred
            kept = kept + kh * previous + kl * brought
            tl.store(carried + offsets, kept, mask=offsets < tl.where(kx != 0.0, size, 0))

        groups = tl.program_id(0) * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
        seed = tl.load(seeds + slot)
        if d != 0.0:
            new = new + d * normal_kernel(seed, step, SOLVER_STREAM, groups)
        if m != 0.0:
            r = tl.load(table + 10)
            n = tl.load(table + 11)
            fresh = r * x0 + n * normal_kernel(seed, step, MASK_STREAM, groups)
            blend = m * tl.load(masks + slot * pixels + pixel, mask=valid, other=0.0)
            new = new + blend * (fresh - new)
        tl.store(latents + offsets, new, mask=valid)
        tl.store(history + offsets, x0, mask=valid)


def check_denoise_step(
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
    """Refuse shapes, dtypes and layouts that the step cannot take."""
    name = "denoise_step"
    check_shape(name, "latents", latents, (None, None, None, None))
    arena, channels, height, width = latents.shape
    check_shape(name, "history", history, (arena, channels, height, width))
    check_shape(name, "eps", eps, (None, channels, height, width))
    check_shape(name, "slots", slots, (None,))
    jobs = slots.shape[0]
    check_shape(name, "rows", rows, (jobs, None))
    check_shape(name, "weights", weights, (jobs, rows.shape[1]))
    check_shape(name, "steps", steps, (jobs,))
    check_shape(name, "coefficients", coefficients, (arena, None, len(StepColumns)))
    check_shape(name, "masks", masks, (arena, height, width))
    check_shape(name, "seeds", seeds, (arena,))
    check_shape(name, "carried", carried, (arena, channels, height, width))
    check_shape(name, "pairs", pairs, (jobs, 2))
    check_shape(name, "rescales", rescales, (jobs,))
    check_dtype(name, "eps", eps, *FLOATS)
    for label, tensor in (("latents", latents), ("history", history), ("weights", weights), ("masks", masks),
                          ("coefficients", coefficients), ("carried", carried), ("rescales", rescales)):  # fmt: skip
        check_dtype(name, label, tensor, torch.float32)
        check_contiguous(name, label, tensor)
    for label, tensor in (("slots", slots), ("rows", rows), ("steps", steps), ("seeds", seeds), ("pairs", pairs)):
        check_dtype(name, label, tensor, torch.int64)
        check_contiguous(name, label, tensor)


def pixel_strides(operator: str, name: str, tensor: torch.Tensor) -> tuple[int, int, int]:
    """Strides of (row, channel, pixel) of an (R, C, H, W) tensor whose rows of pixels follow each other."""
    row, channel, line, pixel = tensor.stride()
    if tensor.shape[2] > 1 and line != tensor.shape[3] * pixel:
        raise ValueError(f"{operator}: {name}'s lines must follow each other, got strides {tensor.stride()}")
    return row, channel, pixel


def launch_denoise_step(
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
    """Run the Triton kernel in place; arguments as in `denoise_step_reference`, `eps` planar or channels-last.

    Slots and steps out of range are the caller's to prevent: a kernel cannot raise. Raises ValueError or
    TypeError naming the offending value.
    """
    arguments = (
        latents, history, eps, slots, rows, weights, steps, coefficients, masks, seeds, carried, pairs, rescales,
    )  # fmt: skip
    check_denoise_step(*arguments)
    require_launchable("denoise_step", *arguments)
    size = math.prod(latents.shape[1:])
    if not len(slots) or not size:
        return
    with torch.cuda.device_of(latents):
        denoise_step_kernel[(triton.cdiv(size, BLOCK), len(slots))](
            *arguments, size, latents.shape[2] * latents.shape[3], coefficients.shape[1],
            *pixel_strides("denoise_step", "eps", eps),
            ROWS=rows.shape[1], COLUMNS=len(StepColumns), SOLVER_STREAM=int(NoiseStream.SOLVER),
            MASK_STREAM=int(NoiseStream.MASK), BLOCK=BLOCK, num_warps=WARPS, enable_fp_fusion=False,
        )  # fmt: skip
