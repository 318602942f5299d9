"""Where the steps of each solver lie: timesteps and noise levels, out of diffusers' own scheduler of its name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import SchedulerMixin
from diffusers.schedulers import AysSchedules
from torch import Tensor

from ..api.choices import Sigmas, Spacing
from .schedule import NoiseSchedule


@dataclass(frozen=True)
class Levels:
    """Where each of S evaluations starts and ends, float64 (S,): DDIM's end need not be where the next starts."""

    timesteps: Tensor
    alpha: Tensor
    sigma: Tensor
    next_alpha: Tensor
    next_sigma: Tensor
    init_noise_sigma: float


@dataclass(frozen=True)
class Course:
    """What a solver's steps are made of: their number, the model's schedule, and what takes the place of its own.

    xl, original_steps, timestep_scaling: as of `Sampler`.
    """

    num_steps: int
    scheduler: NoiseSchedule
    spacing: Spacing | None = None
    sigmas: Sigmas | None = None
    eta: float | None = None
    xl: bool = False
    original_steps: int = 50
    timestep_scaling: float = 10.0

    def made(self, kind: type[Any], **settings: Any) -> Any:
        """Diffusers' scheduler of a class on the model's schedule, its timesteps set."""
        if self.spacing is not None:
            settings["timestep_spacing"] = self.spacing.value
        if self.sigmas not in (None, Sigmas.AYS):
            settings[f"use_{self.sigmas}_sigmas"] = True
        scheduler: SchedulerMixin = kind.from_config(self.scheduler.config, **settings)
        if self.sigmas is Sigmas.AYS:
            scheduler.set_timesteps(timesteps=self.aligned())
        else:
            scheduler.set_timesteps(self.num_steps)
        return scheduler

    def aligned(self) -> list[int]:
        """Timesteps of "Align Your Steps": the published ten, and for other counts in between on a logarithmic scale.

        As its authors do, by the noise levels of the timesteps.
        """
        published = AysSchedules["StableDiffusionXLTimesteps" if self.xl else "StableDiffusionTimesteps"]
        if self.num_steps == len(published):
            return list(published)
        cumulative = self.scheduler.alphas_cumprod.double().numpy()
        levels = np.log((1 - cumulative) / cumulative) / 2
        places = np.linspace(0, len(published) - 1, self.num_steps)
        wanted = np.interp(places, np.arange(len(published)), levels[np.minimum(published, len(levels) - 1)])
        return [round(float(step)) for step in np.interp(wanted, levels, np.arange(len(levels)))]


def cumulative_levels(scheduler: Any, start: Tensor, end: Tensor) -> Levels:
    """Variance-preserving levels, of products of alphas before and after each step, float64 (S,)."""
    noise = float(scheduler.init_noise_sigma)
    return Levels(scheduler.timesteps, start.sqrt(), (1 - start).sqrt(), end.sqrt(), (1 - end).sqrt(), noise)


def preserving_levels(scheduler: Any) -> Levels:
    """Variance-preserving levels, of a scheduler that counts by sigma / alpha."""
    sigmas = scheduler.sigmas.double()
    alpha = (1 + sigmas**2).rsqrt()
    sigma = sigmas * alpha
    return Levels(scheduler.timesteps, alpha[:-1], sigma[:-1], alpha[1:], sigma[1:], float(scheduler.init_noise_sigma))


def exploding_levels(scheduler: Any) -> Levels:
    """Levels with alpha = 1: the latent is x0 plus noise, and the network's input is rescaled."""
    count = len(scheduler.timesteps)
    sigmas = scheduler.sigmas.double()[: count + 1]
    one = torch.ones_like(sigmas)
    return Levels(scheduler.timesteps, one[:-1], sigmas[:-1], one[1:], sigmas[1:], float(scheduler.init_noise_sigma))


def ratio(levels: Levels) -> Tensor:
    """Noise to signal at the start of each evaluation, infinite where there is no signal."""
    return torch.where(levels.alpha > 0, levels.sigma / levels.alpha, math.inf)
