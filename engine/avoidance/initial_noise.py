"""The noise a final starts from: new low frequencies inside the mask, and a way out of where prompts are recited."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..api.mechanisms import InitialNoise
from ..sampling.solver import SolverTable

PROBES_PER_STEP = 2
"""Predictions of both branches that one sharpness step takes."""


def resampled_noise(noise: Tensor, mask: Tensor, seed: int, *, block: int, strength: float = 1.0) -> Tensor:
    """Draw the low frequencies of an initial latent anew inside a mask, and leave it exactly white.

    noise (C, h, w) unit normal; mask (h, w) in [0, 1]; block: side in latent pixels of the squares whose means are
    drawn anew, so frequencies below about 1 / (2 block) change. With m = strength * mask pooled to the squares, each
    mean becomes m e2 + sqrt(1 - m^2) e1. Means of disjoint squares are independent of each other and of what remains,
    so mean, variance and spectrum stay those of unit white noise for every mask. A recited layout sits in the low
    frequencies of the initial noise (Han et al., NeurIPS 2025, who move all of it along the network's gradient).
    """
    if block < 1 or not 0 <= strength <= 1:
        raise ValueError(f"block must be at least 1 and strength in 0..1, got {block} and {strength}")
    generator = torch.Generator("cpu").manual_seed(seed)
    fresh = torch.randn(noise.shape, generator=generator).to(noise)
    old, new, inside = (_block_means(each, block) for each in (noise, fresh, mask.to(noise)[None]))
    weight = strength * inside.clamp(0, 1)
    change = weight * new + (1 - weight**2).sqrt() * old - old
    height, width = noise.shape[-2:]
    return noise + change.repeat_interleave(block, -2).repeat_interleave(block, -1)[..., :height, :width]


def _block_means(field: Tensor, block: int) -> Tensor:
    """Means over squares of `block` pixels, smaller at the far edges."""
    return F.avg_pool2d(field[None], block, ceil_mode=True, count_include_pad=False)[0]


def initial_noise(policy: InitialNoise | None, fresh: Tensor, draft: Tensor, mask: Tensor, seed: int) -> Tensor:
    """Unit noise (C, h, w) of a final: `fresh`, or the draft's with its low frequencies redrawn inside mask (h, w)."""
    if policy is None or not policy.resample:
        return fresh
    return resampled_noise(draft, mask, seed, block=policy.block, strength=policy.resample)


def sharpness_probes(policy: InitialNoise | None) -> int:
    """Predictions of both branches that a run makes before its first step."""
    return PROBES_PER_STEP * policy.sharpness_steps if policy is not None else 0


def sharpness_lengths(policy: InitialNoise | None, table: SolverTable, shape: Sequence[int]) -> tuple[float, float]:
    """How far a sharpness step climbs, and its gamma, in units of a latent of `shape` that starts `table`'s run."""
    if policy is None:
        return 0.0, 0.0
    norm = torch.Size(shape).numel() ** 0.5 * table.init_noise_sigma
    return policy.radius * norm, policy.gamma * table.init_noise_sigma * float(table.noise_scale[0])


def sharpness_move(latents: Tensor, first: Tensor, contrast: Tensor, lengths: Tensor, climbs: Tensor) -> Tensor:
    """One half of a sharpness step (Han et al., NeurIPS 2025, batch-wise rule) on latents (S, C, h, w).

    contrast (S, C, h, w): conditional minus unconditional prediction where the latent stands; lengths (S, 2): radius
    and gamma; climbs (S,) bool. The first half climbs, x + radius c / |c|. The second is given the contrast of the
    first as `first`, goes back and descends the difference, x - gamma (c' - c): away from where guidance grows. No
    gradient is taken: a contrast stands for that of its own size.
    """
    radius, gamma = (length.view(-1, 1, 1, 1) for length in lengths.unbind(1))
    climbs = climbs.view(-1, 1, 1, 1)
    direction = torch.where(climbs, contrast, first)
    size = direction.square().sum((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-12)
    climb = radius * direction / size
    return torch.where(climbs, latents + climb, latents - climb - gamma * (contrast - first))
