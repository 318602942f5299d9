"""The solvers of the plain PyTorch reference: diffusers' schedulers, stepped with the run's own noise."""

import math
from typing import TypeAlias
from unittest import mock

import torch
import torch.nn.functional as F
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
)
from torch import Tensor

from ...engine.api.mechanisms import MaskedNoise
from ...engine.api.settings import Solver
from ...kernels.philox import NoiseStream, philox_normal

Scheduler: TypeAlias = (
    DDIMScheduler | DPMSolverMultistepScheduler | EulerAncestralDiscreteScheduler | EulerDiscreteScheduler
)

_ANCESTRAL_NOISE = "diffusers.schedulers.scheduling_euler_ancestral_discrete.randn_tensor"


def make_scheduler(solver: Solver, config: DDIMScheduler) -> Scheduler:
    """Diffusers' scheduler of the solver's name, on the checkpoint's noise schedule."""
    match solver:
        case Solver.DDIM:
            return DDIMScheduler.from_config(config.config)
        case Solver.EULER:
            return EulerDiscreteScheduler.from_config(config.config)
        case Solver.EULER_ANCESTRAL:
            return EulerAncestralDiscreteScheduler.from_config(config.config)
        case Solver.DPMPP_2M:
            return DPMSolverMultistepScheduler.from_config(config.config)


def step(scheduler: Scheduler, i: int, t: Tensor, output: Tensor, x: Tensor, seed: int) -> Tensor:
    """The scheduler's own step, with the run's own numbers where it draws noise."""
    noise = step_noise(seed, i, NoiseStream.SOLVER, x)
    with mock.patch(_ANCESTRAL_NOISE, return_value=noise):
        return scheduler.step(output, t, x).prev_sample


def step_noise(seed: int, i: int, stream: NoiseStream, like: Tensor) -> Tensor:
    """Normal numbers of step `i`, in the shape of `like`."""
    return philox_normal(torch.tensor([seed], device=like.device), i, stream, like.shape[1:])


def level(scheduler: Scheduler, i: int) -> tuple[float, float]:
    """Signal and noise (alpha, sigma) of the latent x = alpha x0 + sigma eps before step `i`, or after the last."""
    if isinstance(scheduler, DDIMScheduler):
        last = i == len(scheduler.timesteps)
        alpha_bar = scheduler.final_alpha_cumprod if last else scheduler.alphas_cumprod[scheduler.timesteps[i]]
        return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    sigma = float(scheduler.sigmas[i])
    if isinstance(scheduler, DPMSolverMultistepScheduler):
        alpha = 1 / math.hypot(1, sigma)
        return alpha, alpha * sigma
    return 1.0, sigma


def predicted_x0(scheduler: Scheduler, i: int, output: Tensor, x: Tensor) -> Tensor:
    """The clean latent that the network's output means (Salimans & Ho, ICLR 2022, for v)."""
    alpha, sigma = level(scheduler, i)
    norm = math.hypot(alpha, sigma)
    match scheduler.config.prediction_type:
        case "epsilon":
            return (x - sigma * output) / alpha
        case "v_prediction":
            return (alpha / norm**2) * x - (sigma / norm) * output
        case "sample":
            return output
    raise AssertionError(f"unknown prediction type {scheduler.config.prediction_type}")


def moved_output(scheduler: Scheduler, i: int, output: Tensor, change: Tensor) -> Tensor:
    """The network's output that means a clean latent moved by `change`."""
    alpha, sigma = level(scheduler, i)
    match scheduler.config.prediction_type:
        case "epsilon":
            return output - (alpha / sigma) * change
        case "v_prediction":
            return output - (math.hypot(alpha, sigma) / sigma) * change
        case "sample":
            return output + change
    raise AssertionError(f"unknown prediction type {scheduler.config.prediction_type}")


def predicted_noise(scheduler: Scheduler, i: int, output: Tensor, x: Tensor) -> Tensor:
    """The noise in x = alpha x0 + sigma eps that the network's output means."""
    alpha, sigma = level(scheduler, i)
    return (x - alpha * predicted_x0(scheduler, i, output, x)) / sigma


def masked_noise(
    scheduler: Scheduler, i: int, x: Tensor, x0: Tensor, mask: Tensor | None, policy: MaskedNoise, seed: int
) -> Tensor:
    """Blend freshly noised x0 into the new latent: x <- (1 - m M) x + m M (alpha' x0 + sigma' noise)."""
    assert mask is not None
    alpha, sigma = level(scheduler, i + 1)
    strength = policy.strength * F.adaptive_avg_pool2d(mask[None, None], (x.shape[2], x.shape[3]))
    fresh = alpha * x0 + sigma * step_noise(seed, i, NoiseStream.MASK, x)
    return (1 - strength) * x + strength * fresh
