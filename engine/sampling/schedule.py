"""A model's noise schedule as solvers take it: diffusers' own, or one that was kept with the tables made of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from torch import Tensor

from ...kernels import StepColumns
from ..api.choices import Sigmas, Solver, Spacing
from .settings import Settings

if TYPE_CHECKING:
    from diffusers import DDIMScheduler


@dataclass(frozen=True)
class SolverTable:
    """A solver's steps for one step count. Tables are cached and shared: their tensors are read-only.

    timesteps (S,) float32: as the network takes them, one for each evaluation of it. columns (S, K) float32:
    coefficients in the order of `StepColumns`, with m = r = n = 0. init_noise_sigma: factor on unit noise that gives
    the first latent. alphas, sigmas (S + 1,) float64: signal and noise of the latent before each step and after the
    last one.
    """

    timesteps: Tensor
    columns: Tensor
    init_noise_sigma: float
    alphas: Tensor
    sigmas: Tensor

    @property
    def num_steps(self) -> int:
        """S, which is `Stage.evaluations`."""
        return len(self.timesteps)

    @property
    def noise_scale(self) -> Tensor:
        """Size (S,) float64 of the change in predicted noise that a unit change of the network's output makes."""
        columns = self.columns.double()
        on_x0 = (columns[:, StepColumns.W] * columns[:, StepColumns.Q]).abs()
        return self.alphas[:-1] / self.sigmas[:-1] * on_x0


class Wanted(NamedTuple):
    """What a table is made of beside the schedule and the model's own sampler."""

    solver: Solver
    num_steps: int
    spacing: Spacing | None = None
    sigmas: Sigmas | None = None
    eta: float | None = None

    @property
    def name(self) -> str:
        """Its own among others."""
        return "/".join(str(value) for value in self)


@dataclass(frozen=True, eq=False)
class KeptSchedule:
    """A schedule that was read before. config: of diffusers' `DDIMScheduler`. alphas_cumprod (T,) float32.

    table: what was made of it, None for what was not.
    """

    config: Settings
    alphas_cumprod: Tensor
    table: Callable[[Wanted], SolverTable | None]


NoiseSchedule: TypeAlias = "DDIMScheduler | KeptSchedule"
