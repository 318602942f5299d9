"""Diffusion solvers as tables: one row of coefficients a step, so that one kernel serves every mix of solvers.

With z the network's input, `out` its guided output, h the history and e noise, step i of a row computes

    z = input_scale x      e' = p x + q out      x0 = u x + w e'      x' = a x + b e' + c h + d e      h <- x0

Every solver here is one formula. At a level x = alpha x0 + sigma eps, and for the data prediction x0 a first-order
step to level (alpha', sigma') is exact in its linear part (Lu et al., arXiv 2211.01095, equation 9):

    x' = (sigma' / sigma) x + (alpha' - alpha sigma' / sigma) x0

On variance-preserving levels that is DDIM (Song et al., arXiv 2010.02502, equation 12), with alpha = 1 it is Euler's
method of Karras et al. (arXiv 2206.00364, algorithm 1), with sigma' lowered and noise added it is the ancestral step,
and with x0 extrapolated from the step before it is DPM-Solver++(2M).

The discretisation (timesteps and noise levels) is diffusers' own: the scheduler of the same name, built from the
checkpoint's configuration.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from torch import Tensor

from ...kernels import StepColumns
from ..api.errors import CheckpointError, InvalidRequestError
from ..api.settings import Solver

_PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
_FEW_STEPS = 15  # below this, DPM-Solver++ ends on a first-order step whatever the last level is


@dataclass(frozen=True)
class SolverTable:
    """A solver's steps for one step count. Tables are cached and shared: their tensors are read-only.

    timesteps (S,) float32: as the network takes them. columns (S, K) float32: coefficients in the order of
    `StepColumns`, with m = r = n = 0. init_noise_sigma: factor on unit noise that gives the first latent. alphas,
    sigmas (S + 1,) float64: signal and noise of the latent before each step and after the last one.
    """

    timesteps: Tensor
    columns: Tensor
    init_noise_sigma: float
    alphas: Tensor
    sigmas: Tensor

    @property
    def num_steps(self) -> int:
        """S."""
        return len(self.timesteps)

    @property
    def noise_scale(self) -> Tensor:
        """Size (S,) float64 of the change in predicted noise that a unit change of the network's output makes."""
        columns = self.columns.double()
        on_x0 = (columns[:, StepColumns.W] * columns[:, StepColumns.Q]).abs()
        return self.alphas[:-1] / self.sigmas[:-1] * on_x0


@dataclass(frozen=True)
class _Levels:
    """Where each of S steps starts and ends, float64 (S,): DDIM's end need not be where the next step starts."""

    timesteps: Tensor
    alpha: Tensor
    sigma: Tensor
    next_alpha: Tensor
    next_sigma: Tensor
    init_noise_sigma: float


@lru_cache(maxsize=256)
def solver_table(solver: Solver, num_steps: int, scheduler: DDIMScheduler) -> SolverTable:
    """Return the table that steps as diffusers' scheduler of `solver`'s name does, to float32 rounding.

    `scheduler` gives the training schedule and the spacing of the timesteps; clipping of x0 is off, as in Stable
    Diffusion pipelines. DPM-Solver++(2M) is the midpoint form. Raises InvalidRequestError for a step count that the
    schedule cannot be divided into, and CheckpointError for a schedule that no linear step can follow.
    """
    _check_schedule(scheduler)
    if not 1 <= num_steps <= scheduler.config.num_train_timesteps:
        raise InvalidRequestError(
            f"{num_steps} steps: the model was trained on {scheduler.config.num_train_timesteps} timesteps, "
            f"so 1 to {scheduler.config.num_train_timesteps} steps are possible"
        )
    levels, columns = _BUILDERS[solver](num_steps, scheduler)
    _check_levels(solver, num_steps, levels, scheduler)
    table = _in_networks_terms(columns, levels, scheduler.config.prediction_type)
    if not table.isfinite().all():
        raise CheckpointError(
            f"solver {solver} is undefined on this noise schedule for {scheduler.config.prediction_type!r} prediction: "
            "a schedule that reaches zero signal needs 'v_prediction' or 'sample'"
        )
    return SolverTable(
        timesteps=levels.timesteps.float(),
        columns=table.float(),
        init_noise_sigma=levels.init_noise_sigma,
        alphas=torch.cat((levels.alpha, levels.next_alpha[-1:])),
        sigmas=torch.cat((levels.sigma, levels.next_sigma[-1:])),
    )


def _check_schedule(scheduler: DDIMScheduler) -> None:
    if scheduler.config.prediction_type not in _PREDICTION_TYPES:
        raise CheckpointError(
            f"prediction type {scheduler.config.prediction_type!r} is not supported; "
            f"it must be one of {', '.join(_PREDICTION_TYPES)}"
        )
    if scheduler.config.thresholding:
        raise CheckpointError("the scheduler asks for dynamic thresholding, which latent diffusion does not use")


def _check_levels(solver: Solver, num_steps: int, levels: _Levels, scheduler: DDIMScheduler) -> None:
    last = scheduler.config.num_train_timesteps - 1
    timesteps = levels.timesteps
    descending = bool((timesteps.diff() < 0).all())
    if len(timesteps) != num_steps or not descending or timesteps[0] > last or timesteps[-1] < 0:
        raise InvalidRequestError(
            f"{num_steps} steps of {solver}: with {scheduler.config.timestep_spacing!r} spacing they do not fall on "
            f"different timesteps between 0 and {last}; ask for fewer steps"
        )


def _in_networks_terms(data_columns: Tensor, levels: _Levels, prediction_type: str) -> Tensor:
    """(S, 4) factors on x, x0, the last x0 and noise -> (S, K) table on the network's own kind of prediction.

    The slot e' of the step holds eps for a network that predicts eps, and x0 for the other two: that stays
    defined where a level has no signal (zero terminal signal-to-noise ratio).
    """
    on_x, on_x0, on_history, on_noise = data_columns.unbind(1)
    input_scale = torch.hypot(levels.alpha, levels.sigma).reciprocal()
    zero, one = torch.zeros_like(on_x), torch.ones_like(on_x)
    p, q, u, w = {
        "epsilon": (zero, one, levels.alpha.reciprocal(), -levels.sigma / levels.alpha),
        "v_prediction": (levels.alpha * input_scale**2, -levels.sigma * input_scale, zero, one),
        "sample": (zero, one, zero, one),
    }[prediction_type]
    table = torch.zeros(len(on_x), len(StepColumns), dtype=torch.float64)
    table[:, StepColumns.INPUT_SCALE] = input_scale
    table[:, StepColumns.P], table[:, StepColumns.Q] = p, q
    table[:, StepColumns.U], table[:, StepColumns.W] = u, w
    table[:, StepColumns.A], table[:, StepColumns.B] = on_x + on_x0 * u, on_x0 * w
    table[:, StepColumns.C], table[:, StepColumns.D] = on_history, on_noise
    return table


def _first_order(levels: _Levels) -> Tensor:
    """Factors (S, 4) of the first-order step from each level to the next."""
    on_x = levels.next_sigma / levels.sigma
    on_x0 = levels.next_alpha - levels.alpha * on_x
    return torch.stack((on_x, on_x0, torch.zeros_like(on_x), torch.zeros_like(on_x)), 1)


def _ddim(num_steps: int, scheduler: DDIMScheduler) -> tuple[_Levels, Tensor]:
    ddim = DDIMScheduler.from_config(scheduler.config)
    ddim.set_timesteps(num_steps)
    cumulative = ddim.alphas_cumprod.double()
    start = cumulative[ddim.timesteps.clamp(0, len(cumulative) - 1)]
    before = ddim.timesteps - ddim.config.num_train_timesteps // num_steps
    end = torch.where(before >= 0, cumulative[before.clamp_min(0)], ddim.final_alpha_cumprod.double())
    levels = _Levels(
        ddim.timesteps, start.sqrt(), (1 - start).sqrt(), end.sqrt(), (1 - end).sqrt(), ddim.init_noise_sigma
    )
    return levels, _first_order(levels)


def _euler_levels(scheduler: EulerDiscreteScheduler | EulerAncestralDiscreteScheduler, num_steps: int) -> _Levels:
    """Levels with alpha = 1: the latent is x0 plus noise, and the network's input is rescaled."""
    scheduler.set_timesteps(num_steps)
    sigmas = scheduler.sigmas.double()
    one = torch.ones_like(sigmas)
    return _Levels(scheduler.timesteps, one[:-1], sigmas[:-1], one[1:], sigmas[1:], float(scheduler.init_noise_sigma))


def _euler(num_steps: int, scheduler: DDIMScheduler) -> tuple[_Levels, Tensor]:
    levels = _euler_levels(EulerDiscreteScheduler.from_config(scheduler.config), num_steps)
    return levels, _first_order(levels)


def _euler_ancestral(num_steps: int, scheduler: DDIMScheduler) -> tuple[_Levels, Tensor]:
    """Step below the next level, then add the noise that reaches it."""
    levels = _euler_levels(EulerAncestralDiscreteScheduler.from_config(scheduler.config), num_steps)
    on_x = (levels.next_sigma / levels.sigma) ** 2
    added = levels.next_sigma * (1 - on_x).sqrt()
    return levels, torch.stack((on_x, 1 - on_x, torch.zeros_like(on_x), added), 1)


def _dpmpp_2m(num_steps: int, scheduler: DDIMScheduler) -> tuple[_Levels, Tensor]:
    """Extrapolate x0 to the middle of the step in log signal-to-noise ratio: algorithm 2 of arXiv 2211.01095."""
    dpm = DPMSolverMultistepScheduler.from_config(
        scheduler.config, algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint", lower_order_final=True
    )
    dpm.set_timesteps(num_steps)
    sigmas = dpm.sigmas.double()
    alpha = (1 + sigmas**2).rsqrt()
    sigma = sigmas * alpha
    levels = _Levels(dpm.timesteps, alpha[:-1], sigma[:-1], alpha[1:], sigma[1:], dpm.init_noise_sigma)
    columns = _first_order(levels)
    ends_first_order = dpm.config.euler_at_final or dpm.config.final_sigmas_type == "zero" or num_steps < _FEW_STEPS
    second = slice(1, num_steps - 1 if ends_first_order else num_steps)
    step = -sigmas.log().diff()
    weight = step[1:] / step[:-1] / 2
    weight = weight[: len(columns[second])]
    columns[second, 2] = -weight * columns[second, 1]
    columns[second, 1] *= 1 + weight
    return levels, columns


_BUILDERS = {
    Solver.DDIM: _ddim,
    Solver.EULER: _euler,
    Solver.EULER_ANCESTRAL: _euler_ancestral,
    Solver.DPMPP_2M: _dpmpp_2m,
}
