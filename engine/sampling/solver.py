"""Diffusion solvers as tables: one row of coefficients a step, so that one kernel serves every mix of solvers.

With z the network's input, `out` its guided output, h the history, l what is carried over and e noise, step i of a row
computes

    z = input_scale x      e' = p x + q out      x0 = u x + w e'      x' = a x + b e' + c h + g l + d e
    l <- kx x + ke e' + kh h + kl l      h <- x0

The discretisation (timesteps and noise levels) is diffusers' own: the scheduler of the same name, built from the
checkpoint's configuration. What each solver makes of it is in `formulas`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...kernels import StepColumns
from .. import sampling
from ..api.choices import Sigmas, Solver, Spacing
from ..api.errors import CheckpointError, InvalidRequestError
from ..api.settings import Stage
from .sampler import CONSISTENCY, TAKING, Sampler
from .schedule import KeptSchedule, NoiseSchedule, SolverTable, Wanted

if TYPE_CHECKING:
    from .formulas import Factors
    from .levels import Course, Levels

_PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
_ETA = frozenset({Solver.DDIM, Solver.TCD})


def stage_table(stage: Stage, scheduler: NoiseSchedule, sampler: Sampler) -> SolverTable:
    """`solver_table` of a stage, where it says nothing as the model's own `sampler` does."""
    own = sampler.settled(stage)
    assert own.solver is not None
    return solver_table(
        own.solver, own.steps, scheduler, sampler, spacing=own.spacing, sigmas=own.sigmas, eta=own.eta
    )  # fmt: skip


@lru_cache(maxsize=256)
def solver_table(
    solver: Solver,
    num_steps: int,
    scheduler: NoiseSchedule,
    sampler: Sampler = Sampler(),  # noqa: B008
    *,
    spacing: Spacing | None = None,
    sigmas: Sigmas | None = None,
    eta: float | None = None,
) -> SolverTable:
    """Return the table that steps as diffusers' scheduler of `solver`'s name does, to float32 rounding.

    `scheduler` gives the training schedule, and the spacing of the timesteps unless `spacing` does; `sampler` what was
    found in distillation; sigmas, eta: as of a `Stage`. Clipping of x0 is off, as in Stable Diffusion pipelines.
    DPM-Solver++(2M) is the midpoint form. Raises InvalidRequestError for a step count that the schedule cannot be
    divided into and for a mix that is not defined, and CheckpointError for a schedule that no linear step can follow.
    """
    _check_schedule(solver, scheduler)
    _check_mix(solver, spacing, sigmas, eta)
    if not 1 <= num_steps <= scheduler.config.num_train_timesteps:
        raise InvalidRequestError(
            f"{num_steps} steps: the model was trained on {scheduler.config.num_train_timesteps} timesteps, "
            f"so 1 to {scheduler.config.num_train_timesteps} steps are possible"
        )
    if solver in CONSISTENCY and num_steps > sampler.original_steps:
        raise InvalidRequestError(
            f"{num_steps} steps of {solver}: the model was distilled at {sampler.original_steps} timesteps, so 1 to "
            f"{sampler.original_steps} steps are possible"
        )
    wanted = Wanted(solver, num_steps, spacing, sigmas, eta)
    if isinstance(scheduler, KeptSchedule) and (kept := scheduler.table(wanted)) is not None:
        return kept
    course = sampling.levels.Course(
        num_steps, scheduler, spacing, sigmas, eta, sampler.xl, sampler.original_steps, sampler.timestep_scaling
    )
    levels, factors = sampling.formulas.FORMULAS[solver](course)
    _check_levels(solver, course, levels)
    table = _in_networks_terms(factors, levels, scheduler.config.prediction_type)
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


def _check_schedule(solver: Solver, scheduler: NoiseSchedule) -> None:
    config = scheduler.config
    if config.prediction_type not in _PREDICTION_TYPES:
        raise CheckpointError(
            f"prediction type {config.prediction_type!r} is not supported; "
            f"it must be one of {', '.join(_PREDICTION_TYPES)}"
        )
    if config.thresholding:
        raise CheckpointError("the scheduler asks for dynamic thresholding, which latent diffusion does not use")
    if solver is Solver.HEUN and config.rescale_betas_zero_snr:
        raise InvalidRequestError(
            "solver heun: the model's noise schedule is rescaled to reach zero signal (rescale_betas_zero_snr), which "
            "this solver is not defined for; take another"
        )


def _check_mix(solver: Solver, spacing: Spacing | None, sigmas: Sigmas | None, eta: float | None) -> None:
    """Refuse what diffusers' scheduler of the solver's name does not take, or would pass over in silence."""
    if sigmas is not None and solver not in TAKING[sigmas]:
        takers = ", ".join(sorted(TAKING[sigmas]))
        raise InvalidRequestError(f"sigmas {sigmas} are not defined for {solver}; solvers that take them: {takers}")
    if spacing is not None and solver in CONSISTENCY:
        raise InvalidRequestError(
            f"spacing {spacing}: {solver} has the timesteps that the model was distilled at; leave it out"
        )
    if spacing is not None and sigmas is Sigmas.AYS:
        raise InvalidRequestError(f"spacing {spacing}: sigmas ays name their own timesteps; leave one of them out")
    if eta is not None and solver not in _ETA:
        raise InvalidRequestError(f"eta {eta:g}: {solver} leaves no choice of it; it is for {', '.join(sorted(_ETA))}")


def _check_levels(solver: Solver, course: Course, levels: Levels) -> None:
    last = course.scheduler.config.num_train_timesteps - 1
    timesteps = levels.timesteps
    ratio = sampling.levels.ratio(levels)
    begins = ratio[::2] if solver is Solver.HEUN else ratio
    descending = bool((begins.diff() < 0).all() and (timesteps.diff() <= 0).all())
    if len(begins) != course.num_steps or not descending or timesteps[0] > last or timesteps[-1] < 0:
        spacing = course.spacing or course.scheduler.config.timestep_spacing
        levelled = f"sigmas {course.sigmas}" if course.sigmas is not None else f"{str(spacing)!r} spacing"
        raise InvalidRequestError(
            f"{course.num_steps} steps of {solver}: with {levelled} they do not fall on different timesteps between "
            f"0 and {last}; ask for fewer steps"
        )


def _in_networks_terms(factors: Factors, levels: Levels, prediction_type: str) -> Tensor:
    """Factors on the predicted x0 -> (S, K) table on the network's own kind of prediction.

    The slot e' of the step holds eps for a network that predicts eps, and x0 for the other two: that stays
    defined where a level has no signal (zero terminal signal-to-noise ratio).
    """
    input_scale = torch.hypot(levels.alpha, levels.sigma).reciprocal()
    zero, one = torch.zeros_like(factors.x), torch.ones_like(factors.x)
    p, q, u, w = {
        "epsilon": (zero, one, levels.alpha.reciprocal(), -levels.sigma / levels.alpha),
        "v_prediction": (levels.alpha * input_scale**2, -levels.sigma * input_scale, zero, one),
        "sample": (zero, one, zero, one),
    }[prediction_type]
    columns = {
        StepColumns.INPUT_SCALE: input_scale,
        StepColumns.P: p,
        StepColumns.Q: q,
        StepColumns.U: u,
        StepColumns.W: w,
        StepColumns.A: factors.x + factors.x0 * u,
        StepColumns.B: factors.x0 * w,
        StepColumns.C: factors.last,
        StepColumns.D: factors.noise,
        StepColumns.G: factors.carried,
        StepColumns.KX: factors.keep_x + factors.keep_x0 * u,
        StepColumns.KE: factors.keep_x0 * w,
        StepColumns.KH: factors.keep_last,
        StepColumns.KL: factors.keep_carried,
    }
    return torch.stack([columns.get(column, zero) for column in StepColumns], 1)
