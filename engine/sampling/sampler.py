"""What a model's own scheduler says of how it steps: which solver is served for it, and how near that is.

The noise schedule itself (betas, prediction type, spacing) stays in diffusers' `DDIMScheduler`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ..api.choices import Sigmas, Solver
from ..api.reading import shown
from ..api.settings import Stage

TAKING: Mapping[Sigmas, frozenset[Solver]] = MappingProxyType(
    {
        **dict.fromkeys(
            (Sigmas.KARRAS, Sigmas.EXPONENTIAL, Sigmas.BETA),
            frozenset({Solver.EULER, Solver.HEUN, Solver.DPMPP_2M, Solver.DPMPP_2M_SDE, Solver.UNIPC}),
        ),
        Sigmas.AYS: frozenset({Solver.EULER, Solver.HEUN, Solver.DPMPP_2M, Solver.DPMPP_2M_SDE}),
    }
)
"""Solvers whose schedulers in diffusers take each kind of noise levels."""

CONSISTENCY = frozenset({Solver.LCM, Solver.TCD})
"""Solvers of models that were distilled at timesteps of their own."""

SAME: Mapping[str, Solver] = MappingProxyType(
    {
        "DDIMScheduler": Solver.DDIM,
        "DDIMParallelScheduler": Solver.DDIM,
        "EulerDiscreteScheduler": Solver.EULER,
        "EulerAncestralDiscreteScheduler": Solver.EULER_ANCESTRAL,
        "DPMSolverMultistepScheduler": Solver.DPMPP_2M,
        "UniPCMultistepScheduler": Solver.UNIPC,
        "HeunDiscreteScheduler": Solver.HEUN,
        "LCMScheduler": Solver.LCM,
        "TCDScheduler": Solver.TCD,
    }
)
"""Solvers that step as the scheduler of diffusers does, with its usual settings."""

_ONE_STEP = "of what is served the nearest: at fifty steps they draw nearly the same, at few each its own"

_ALL_ANEW = "with all the noise of a step drawn anew (eta 1) the same process"

NEAREST: Mapping[str, tuple[Solver, str]] = MappingProxyType(
    {
        "PNDMScheduler": (Solver.DDIM, _ONE_STEP),
        "LMSDiscreteScheduler": (Solver.EULER, _ONE_STEP),
        "DPMSolverSinglestepScheduler": (Solver.EULER, _ONE_STEP),
        "DEISMultistepScheduler": (Solver.DPMPP_2M, "a multistep method of the second order too"),
        "DPMSolverSDEScheduler": (Solver.DPMPP_2M_SDE, "the same equation, over several steps"),
        "KDPM2DiscreteScheduler": (Solver.HEUN, "two evaluations a step and of the second order too"),
        "KDPM2AncestralDiscreteScheduler": (Solver.EULER_ANCESTRAL, "ancestral too, of the first order"),
        "DDPMScheduler": (Solver.DDIM, _ALL_ANEW),
        "DDPMParallelScheduler": (Solver.DDIM, _ALL_ANEW),
    }
)
"""Solvers that stand in for schedulers that are not served themselves, and how near they are."""

_USUAL: Mapping[Solver, Mapping[str, Any]] = MappingProxyType(
    {
        Solver.DPMPP_2M: {
            "solver_order": 2, "solver_type": "midpoint", "lower_order_final": True, "euler_at_final": False,
        },
        Solver.UNIPC: {
            "solver_order": 2, "solver_type": "bh2", "lower_order_final": True, "predict_x0": True,
            "disable_corrector": [], "solver_p": None,
        },
    }
)  # fmt: skip
"""Settings that a solver is served with; a scheduler of others steps nearly so."""


@dataclass(frozen=True)
class Sampler:
    """How a model is sampled where a request says nothing, and what its solvers need to know of its training.

    solver, sigmas, eta: as of a `Stage`. note: how `solver` differs from the model's own, None where it does not.
    original_steps, timestep_scaling: of a consistency model's distillation, as of diffusers' `LCMScheduler`. xl:
    whether the timesteps of "Align Your Steps" are those found for SDXL. distilled: whether the scheduler is of the
    kind that models have which are drawn in few steps without guidance.
    """

    solver: Solver = Solver.DDIM
    sigmas: Sigmas | None = None
    eta: float | None = None
    note: str | None = None
    original_steps: int = 50
    timestep_scaling: float = 10.0
    xl: bool = False
    distilled: bool = False

    def settled(self, stage: Stage) -> Stage:
        """`stage` with what it leaves to the model filled in."""
        solver, eta = stage.solver, stage.eta
        if solver is None:
            solver, eta = self.solver, self.eta if eta is None else eta
        sigmas = stage.sigmas
        if sigmas is None and self.sigmas is not None and solver in TAKING[self.sigmas]:
            sigmas = self.sigmas
        if (solver, sigmas, eta) == (stage.solver, stage.sigmas, stage.eta):
            return stage
        return stage.model_copy(update={"solver": solver, "sigmas": sigmas, "eta": eta})


def sampler_of(config: Mapping[str, Any], xl: bool = False) -> Sampler:
    """Return how the model of a scheduler's configuration, which has been checked, is sampled."""
    name = str(config.get("_class_name"))
    solver, near = (SAME[name], None) if name in SAME else NEAREST.get(name, (Solver.DDIM, "the plainest solver"))
    difference = None if near is None else f"the model's {name} is not served itself"
    if near is None and (other := _unusual(solver, config)):
        difference, near = f"the model's {name} asks for {other}", "the same method with its usual settings"
    algorithm = config.get("algorithm_type", "dpmsolver++")
    if solver is Solver.DPMPP_2M and str(algorithm).startswith("sde-"):
        solver = Solver.DPMPP_2M_SDE
    sigmas = [kind for kind in Sigmas if config.get(f"use_{kind}_sigmas")]
    turbo = name.startswith("Euler") and config.get("timestep_spacing") == "trailing"
    return Sampler(
        solver,
        sigmas[0] if sigmas else None,
        eta=1.0 if name in ("DDPMScheduler", "DDPMParallelScheduler") else None,
        note=None if difference is None else f"{difference}: {solver} stands in for it, {near}",
        original_steps=config.get("original_inference_steps") or 50,
        timestep_scaling=config.get("timestep_scaling") or 10.0,
        xl=xl,
        distilled=solver in CONSISTENCY or (turbo and not config.get("rescale_betas_zero_snr")),
    )


def _unusual(solver: Solver, config: Mapping[str, Any]) -> str | None:
    """The first setting of a scheduler that its solver is not served with."""
    usual = _USUAL.get(solver, {})
    found = next((name for name, value in usual.items() if config.get(name, value) != value), None)
    if found is None and solver is Solver.DPMPP_2M and not str(config.get("algorithm_type", "++")).endswith("++"):
        found = "algorithm_type"
    return None if found is None else f"{found} {shown(repr(config[found]), 80)}"
