"""Predicted pictures pushed out of balls around protected works: SPELL (Kirchhof et al., ICML 2025)."""

import torch
from torch import Tensor

from ...kernels import StepColumns

_MOST_BALLS = 8  # that push one picture at a time: the nearest


def repulsion(predicted: Tensor, protected: Tensor, radius: Tensor, strength: Tensor) -> Tensor:
    """How far each predicted x0 (J, C, h, w) is pushed: s * sum_k relu(r / |x0 - z_k| - 1) (x0 - z_k).

    protected z (K, C, h, w); radius, strength (J,): a distance is the root mean square over the latent. Alone in one
    ball, a picture pushed with strength 1 lands on its surface; the paper overdoes it by 1.6. Zero outside all balls.
    """
    flat, works = predicted.flatten(1), protected.flatten(1)
    # Without matrix products a pair's distance is rounded the same whatever else is in the batch.
    distances = torch.cdist(flat, works, compute_mode="donot_use_mm_for_euclid_dist") / flat.shape[1] ** 0.5
    near, which = distances.topk(min(_MOST_BALLS, len(works)), largest=False)
    push = strength[:, None] * (radius[:, None] / near.clamp_min(1e-6) - 1).relu()
    return (push[..., None] * (flat[:, None] - works[which])).sum(1).view_as(predicted)


def step_change(columns: Tensor, masks: Tensor) -> Tensor:
    """What a unit change of the predicted x0 makes of the step's result, (J, 1, h, w): a step is linear in it.

    columns (J, K) of the step as in `StepColumns`; masks (J, h, w) in [0, 1] of the masked noise.
    """
    of_solver, of_noise = columns[:, StepColumns.B] / columns[:, StepColumns.W], columns[:, StepColumns.R]
    blend = columns[:, StepColumns.M].view(-1, 1, 1) * masks
    return ((1 - blend) * of_solver.view(-1, 1, 1) + blend * of_noise.view(-1, 1, 1))[:, None]


def carried_change(columns: Tensor) -> Tensor:
    """The same, (J, 1, 1, 1), of what a step (J, K) carries over to the next one."""
    return (columns[:, StepColumns.KE] / columns[:, StepColumns.W]).view(-1, 1, 1, 1)
