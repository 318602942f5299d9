"""The solvers of the plain PyTorch reference: diffusers' schedulers, stepped with the run's own noise."""

import math
from contextlib import ExitStack
from typing import Any, TypeAlias
from unittest import mock

import torch
import torch.nn.functional as F
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)
from diffusers.schedulers import AysSchedules
from torch import Tensor

from ...engine.api.choices import Sigmas, Solver
from ...engine.api.mechanisms import MaskedNoise
from ...engine.api.settings import Stage
from ...engine.sampling.sampler import Sampler
from ...kernels.philox import NoiseStream, philox_normal

Scheduler: TypeAlias = (
    DDIMScheduler
    | DPMSolverMultistepScheduler
    | EulerAncestralDiscreteScheduler
    | EulerDiscreteScheduler
    | HeunDiscreteScheduler
    | LCMScheduler
    | TCDScheduler
    | UniPCMultistepScheduler
)

_NOISES = [
    f"diffusers.schedulers.scheduling_{name}.randn_tensor"
    for name in ("ddim", "euler_ancestral_discrete", "dpmsolver_multistep", "lcm", "tcd")
]


def make_scheduler(solver: Solver, config: DDIMScheduler, sampler: Sampler | None = None, **settings: Any) -> Scheduler:
    """Diffusers' scheduler of the solver's name, on the checkpoint's noise schedule."""
    known = sampler or Sampler()
    match solver:
        case Solver.DDIM:
            return DDIMScheduler.from_config(config.config, **settings)
        case Solver.EULER:
            return EulerDiscreteScheduler.from_config(config.config, **settings)
        case Solver.EULER_ANCESTRAL:
            return EulerAncestralDiscreteScheduler.from_config(config.config, **settings)
        case Solver.DPMPP_2M:
            return DPMSolverMultistepScheduler.from_config(config.config, **settings)
        case Solver.DPMPP_2M_SDE:
            settings["algorithm_type"] = "sde-dpmsolver++"
            return DPMSolverMultistepScheduler.from_config(config.config, **settings)
        case Solver.UNIPC:
            return UniPCMultistepScheduler.from_config(config.config, **settings)
        case Solver.HEUN:
            return HeunDiscreteScheduler.from_config(config.config, **settings)
        case Solver.LCM:
            settings["timestep_scaling"] = known.timestep_scaling
            settings["original_inference_steps"] = known.original_steps
            return LCMScheduler.from_config(config.config, **settings)
        case Solver.TCD:
            settings["original_inference_steps"] = known.original_steps
            return TCDScheduler.from_config(config.config, **settings)


def stage_scheduler(stage: Stage, config: DDIMScheduler, sampler: Sampler, device: torch.device) -> Scheduler:
    """Diffusers' scheduler of a stage, with its timesteps; where the stage says nothing, as the model's own has it."""
    own = sampler.settled(stage)
    assert own.solver is not None
    settings: dict[str, Any] = {} if own.spacing is None else {"timestep_spacing": own.spacing.value}
    if own.sigmas is not None and own.sigmas is not Sigmas.AYS:
        settings[f"use_{own.sigmas}_sigmas"] = True
    scheduler = make_scheduler(own.solver, config, sampler, **settings)
    if own.sigmas is Sigmas.AYS:
        published = AysSchedules["StableDiffusionXLTimesteps" if sampler.xl else "StableDiffusionTimesteps"]
        assert own.steps == len(published), "of other counts diffusers says nothing"
        scheduler.set_timesteps(timesteps=published, device=device)
    else:
        scheduler.set_timesteps(own.steps, device=device)
    return scheduler


def step(
    scheduler: Scheduler, i: int, t: Tensor, output: Tensor, x: Tensor, seed: int, eta: float | None = None
) -> Tensor:
    """The scheduler's own step, with the run's own numbers where it draws noise."""
    noise = step_noise(seed, i, NoiseStream.SOLVER, x)
    settings = {} if eta is None else {"eta": eta}
    with ExitStack() as stack:
        for name in _NOISES:
            stack.enter_context(mock.patch(name, return_value=noise))
        return scheduler.step(output, t, x, **settings).prev_sample


def step_noise(seed: int, i: int, stream: NoiseStream, like: Tensor) -> Tensor:
    """Normal numbers of step `i`, in the shape of `like`."""
    return philox_normal(torch.tensor([seed], device=like.device), i, stream, like.shape[1:])


def level(scheduler: Scheduler, i: int) -> tuple[float, float]:
    """Signal and noise (alpha, sigma) of the latent x = alpha x0 + sigma eps before step `i`, or after the last."""
    if isinstance(scheduler, DDIMScheduler | LCMScheduler | TCDScheduler):
        last = i == len(scheduler.timesteps)
        end = scheduler.final_alpha_cumprod if isinstance(scheduler, DDIMScheduler) else _last(scheduler)
        alpha_bar = end if last else scheduler.alphas_cumprod[scheduler.timesteps[i]]
        return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    sigma = float(scheduler.sigmas[i])
    if isinstance(scheduler, DPMSolverMultistepScheduler | UniPCMultistepScheduler):
        alpha = 1 / math.hypot(1, sigma)
        return alpha, alpha * sigma
    return 1.0, sigma


def _last(scheduler: LCMScheduler | TCDScheduler) -> float:
    """Signal, squared, that a consistency model ends on."""
    return 1.0 if isinstance(scheduler, LCMScheduler) else float(scheduler.alphas_cumprod[0])


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
