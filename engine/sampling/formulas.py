"""Each solver as factors: what a step makes of the latent, the predicted x0, what it remembers, and fresh noise.

Every solver here is one formula. At a level x = alpha x0 + sigma eps, and for the data prediction x0 a first-order
step to level (alpha', sigma') is exact in its linear part (Lu et al., arXiv 2211.01095, equation 9):

    x' = (sigma' / sigma) x + (alpha' - alpha sigma' / sigma) x0

On variance-preserving levels that is DDIM (Song et al., arXiv 2010.02502, equation 12), with alpha = 1 it is Euler's
method of Karras et al. (arXiv 2206.00364, algorithm 1), with sigma' lowered and noise added it is the ancestral step,
and with x0 extrapolated from the step before it is DPM-Solver++(2M).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from diffusers.schedulers.scheduling_tcd import TCDScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from torch import Tensor

from ..api.choices import Solver
from .levels import Course, Levels, cumulative_levels, exploding_levels, preserving_levels

_FEW_STEPS = 15  # below this, DPM-Solver++ ends on a first-order step whatever the last level is
_TCD_ETA = 0.3
_SIGMA_DATA = 0.5  # of consistency models


@dataclass
class Factors:
    """Factors (S,) float64 of each step's result, and of what it carries over to the next; zero unless given.

    x: the latent; x0: the predicted sample; last: the predicted sample of the step before; noise; carried: what the
    step before carried over. keep_...: the same of what this step carries over.
    """

    x: Tensor
    x0: Tensor
    last: Tensor
    noise: Tensor
    carried: Tensor
    keep_x: Tensor
    keep_x0: Tensor
    keep_last: Tensor
    keep_carried: Tensor

    @classmethod
    def of(cls, x: Tensor, x0: Tensor, noise: Tensor | None = None) -> "Factors":
        """Factors of steps that remember nothing."""
        zeros = [torch.zeros_like(x) for _ in range(7)]
        return cls(x, x0, zeros[0], zeros[1] if noise is None else noise, *zeros[2:])


Formula = tuple[Levels, Factors]


def towards(levels: Levels, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Factors on x and x0 of the exact step to level (alpha, sigma)."""
    on_x = sigma / levels.sigma
    return on_x, alpha - levels.alpha * on_x


def _first_order(levels: Levels) -> Factors:
    return Factors.of(*towards(levels, levels.next_alpha, levels.next_sigma))


def ddim(course: Course) -> Formula:
    """Song et al., arXiv 2010.02502, equations 12 and 16; `eta` of the noise is drawn anew."""
    made: DDIMScheduler = course.made(DDIMScheduler)
    cumulative = made.alphas_cumprod.double()
    start = cumulative[made.timesteps.clamp(0, len(cumulative) - 1)]
    before = made.timesteps - made.config.num_train_timesteps // course.num_steps
    end = torch.where(before >= 0, cumulative[before.clamp_min(0)], made.final_alpha_cumprod.double())
    levels = cumulative_levels(made, start, end)
    if not course.eta:
        return levels, _first_order(levels)
    drawn = course.eta * ((1 - end) / (1 - start) * (1 - start / end)).clamp_min(0).sqrt()
    kept = (levels.next_sigma**2 - drawn**2).clamp_min(0).sqrt()
    return levels, Factors.of(*towards(levels, levels.next_alpha, kept), drawn)


def euler(course: Course) -> Formula:
    """Karras et al., arXiv 2206.00364, algorithm 1."""
    levels = exploding_levels(course.made(EulerDiscreteScheduler))
    return levels, _first_order(levels)


def euler_ancestral(course: Course) -> Formula:
    """Step below the next level, then add the noise that reaches it."""
    levels = exploding_levels(course.made(EulerAncestralDiscreteScheduler))
    on_x = (levels.next_sigma / levels.sigma) ** 2
    return levels, Factors.of(on_x, 1 - on_x, levels.next_sigma * (1 - on_x).sqrt())


def heun(course: Course) -> Formula:
    """Karras et al., arXiv 2206.00364, algorithm 1: an Euler step, then its repetition by the mean of both slopes.

    Carried over is where the Euler step began: the slope there follows from it and from where the step went.
    """
    levels = exploding_levels(course.made(HeunDiscreteScheduler))
    factors = _first_order(levels)
    factors.keep_x[:-1:2] = 1
    again = slice(1, None, 2)
    slope = (levels.sigma[again] - levels.sigma[:-1:2]) / (2 * levels.sigma[again])
    factors.x[again], factors.x0[again], factors.carried[again] = 0.5 + slope, -slope, 0.5
    return levels, factors


def dpmpp_2m(course: Course) -> Formula:
    """Extrapolate x0 to the middle of the step in log signal-to-noise ratio: algorithm 2 of arXiv 2211.01095."""
    made = _multistep(course, "dpmsolver++")
    levels = preserving_levels(made)
    factors = _first_order(levels)
    _extrapolate(factors, made)
    return levels, factors


def dpmpp_2m_sde(course: Course) -> Formula:
    """The same for the stochastic equation (arXiv 2211.01095, section 4): e^-2h of the noise stays, the rest is drawn
    anew."""
    made = _multistep(course, "sde-dpmsolver++")
    levels = preserving_levels(made)
    shrinks = levels.alpha * levels.next_sigma / (levels.next_alpha * levels.sigma)
    on_x = levels.next_sigma / levels.sigma * shrinks
    noise = levels.next_sigma * (1 - shrinks**2).sqrt()
    factors = Factors.of(on_x, levels.next_alpha * (1 - shrinks**2), noise)
    _extrapolate(factors, made)
    return levels, factors


def _multistep(course: Course, algorithm: str) -> DPMSolverMultistepScheduler:
    made: DPMSolverMultistepScheduler = course.made(
        DPMSolverMultistepScheduler,
        algorithm_type=algorithm, solver_order=2, solver_type="midpoint", lower_order_final=True,
    )  # fmt: skip
    return made


def _extrapolate(factors: Factors, made: DPMSolverMultistepScheduler) -> None:
    """Put x0, as a line through it and the last one gives it in the middle of the step, in its place."""
    count = len(made.timesteps)
    ends_first_order = made.config.euler_at_final or made.config.final_sigmas_type == "zero" or count < _FEW_STEPS
    second = slice(1, count - 1 if ends_first_order else count)
    step = -made.sigmas.double().log().diff()
    weight = (step[1:] / step[:-1] / 2)[: len(factors.x[second])]
    factors.last[second] = -weight * factors.x0[second]
    factors.x0[second] *= 1 + weight


def unipc(course: Course) -> Formula:
    """UniPC-2 with B(h) = e^h - 1 (Zhao et al., arXiv 2302.04867, algorithms 5 to 8): correct, then predict.

    Carried over is the corrected latent, from which the next one is corrected again. What the paper takes from the x0
    two steps before is taken from the latent, in which the last prediction has put it.
    """
    made: UniPCMultistepScheduler = course.made(
        UniPCMultistepScheduler, solver_order=2, solver_type="bh2", lower_order_final=True
    )
    levels = preserving_levels(made)
    factors = _first_order(levels)
    on_corrected, of_x0 = factors.x.clone(), factors.x0.clone()
    steps = -made.sigmas.double().log().diff()
    second = slice(1, len(of_x0) - 1)
    weight = (steps[1:] / steps[:-1] / 2)[: len(of_x0[second])]
    factors.last[second] = -weight * of_x0[second]
    factors.x0[second] *= 1 + weight
    factors.keep_x[:1] = 1
    for i in range(1, len(of_x0)):
        _correct(factors, i, steps, on_corrected[i - 1], of_x0[i - 1])
    for result, kept in (
        (factors.x0, factors.keep_x0), (factors.last, factors.keep_last), (factors.carried, factors.keep_carried),
    ):  # fmt: skip
        result += on_corrected * kept
    factors.x = on_corrected * factors.keep_x
    for kept in (factors.keep_x, factors.keep_x0, factors.keep_last, factors.keep_carried):
        kept[-1] = 0
    return levels, factors


def _correct(factors: Factors, i: int, steps: Tensor, on_corrected: Tensor, of_x0: Tensor) -> None:
    """Factors of the corrected latent at step `i`; on_corrected, of_x0: of the first-order step that led there."""
    if i == 1:
        factors.keep_x[i], factors.keep_x0[i], factors.keep_last[i] = 1, of_x0 / 2, -of_x0 / 2
        return
    h = -steps[i - 1]
    grown = torch.expm1(h)
    first = grown / h - 1
    wanted = torch.stack((first, 2 * (first / h - 0.5))) / grown
    back = -steps[i - 2] / steps[i - 1]
    before, here = torch.linalg.solve(torch.stack((torch.ones(2).double(), torch.stack((back, back / back)))), wanted)
    factors.keep_x[i], factors.keep_x0[i] = 2 * before, here * of_x0
    factors.keep_last[i] = (1 - 2 * before - here) * of_x0
    factors.keep_carried[i] = (1 - 2 * before) * on_corrected


def lcm(course: Course) -> Formula:
    """Multistep consistency sampling (Luo et al., arXiv 2310.04378, algorithm 1): to x0, then noised afresh."""
    made: LCMScheduler = course.made(
        LCMScheduler, original_inference_steps=course.original_steps, timestep_scaling=course.timestep_scaling
    )
    cumulative = made.alphas_cumprod.double()
    start = cumulative[made.timesteps]
    end = torch.cat((start[1:], torch.ones(1).double()))
    levels = cumulative_levels(made, start, end)
    scaled = made.timesteps.double() * made.config.timestep_scaling
    size = scaled**2 + _SIGMA_DATA**2
    x, x0 = _SIGMA_DATA**2 / size, scaled / size.sqrt()
    return levels, Factors.of(levels.next_alpha * x, levels.next_alpha * x0, levels.next_sigma)


def tcd(course: Course) -> Formula:
    """Trajectory consistency sampling (Zheng et al., arXiv 2402.19159, algorithm 2): below the next level, then
    noise."""
    made: TCDScheduler = course.made(TCDScheduler, original_inference_steps=course.original_steps)
    eta = _TCD_ETA if course.eta is None else course.eta
    cumulative = made.alphas_cumprod.double()
    after = torch.cat((made.timesteps[1:], torch.zeros(1, dtype=made.timesteps.dtype)))
    below = cumulative[((1 - eta) * after).floor().long()]
    end = cumulative[after]
    levels = cumulative_levels(made, cumulative[made.timesteps], end)
    on_x, on_x0 = towards(levels, below.sqrt(), (1 - below).sqrt())
    shrinks = end / below
    return levels, Factors.of(on_x * shrinks.sqrt(), on_x0 * shrinks.sqrt(), (1 - shrinks).clamp_min(0).sqrt())


FORMULAS: Mapping[Solver, Callable[[Course], Formula]] = MappingProxyType(
    {
        Solver.DDIM: ddim,
        Solver.EULER: euler,
        Solver.EULER_ANCESTRAL: euler_ancestral,
        Solver.DPMPP_2M: dpmpp_2m,
        Solver.DPMPP_2M_SDE: dpmpp_2m_sde,
        Solver.UNIPC: unipc,
        Solver.HEUN: heun,
        Solver.LCM: lcm,
        Solver.TCD: tcd,
    }
)
"""What makes each solver's steps."""
