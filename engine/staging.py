"""What the door makes of a request's stages: what they leave to the model filled in, mixes that do not go refused."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .api.choices import Solver
from .api.errors import CheckpointError, InvalidRequestError, TwigWarning
from .api.reading import shown
from .api.request import GenerationRequest
from .api.settings import Stage
from .models.components import Components
from .models.shallow import can_be_split
from .sampling.sampler import CONSISTENCY, Sampler
from .sampling.solver import stage_table

if TYPE_CHECKING:
    from .sampling.schedule import NoiseSchedule

_FEW_STEPS = 8
"""Most steps that distilled models are made for."""
_CARRYING = frozenset({Solver.HEUN, Solver.UNIPC})
"""Solvers that go back on a step at the next one."""


def settled(request: GenerationRequest, sampler: Sampler) -> GenerationRequest:
    """`request` with the solver and noise levels that its stages leave to the model."""
    stages = {name: sampler.settled(getattr(request, name)) for name in ("draft", "final")}
    changed = {name: stage for name, stage in stages.items() if stage is not getattr(request, name)}
    return request.model_copy(update=changed) if changed else request


def check_stages(request: GenerationRequest, components: Components, max_steps: int) -> None:
    """Raise InvalidRequestError for a stage of a settled request that cannot run on the model in so many steps."""
    for name, stage in _stages(request):
        count, said = stage.evaluations, f"{name} steps {stage.steps}"
        if count > max_steps:
            asked = said if count == stage.steps else f"{said} of {stage.solver}, which asks the network {count} times,"
            raise InvalidRequestError(f"{asked} exceed this engine's {max_steps}, its max_steps")
        check_steps(name, stage, components.scheduler, components.sampler)
        _check_adapters(name, stage, components)
        _check_caching(name, stage, components)
    if request.avoidance.masked_noise is not None and request.final.solver in _CARRYING:
        raise InvalidRequestError(
            f"avoidance.masked_noise renews noise after each step, which {request.final.solver} goes back on at the "
            "next one; take another solver, or set masked_noise to null"
        )


def check_steps(name: str, stage: Stage, scheduler: NoiseSchedule, sampler: Sampler) -> None:
    """The solver must have a table for so many steps: spacings by rounding have none for some counts."""
    try:
        stage_table(stage, scheduler, sampler)
    except (InvalidRequestError, CheckpointError) as error:
        raise InvalidRequestError(f"{name}: {error}") from error


def _check_adapters(name: str, stage: Stage, components: Components) -> None:
    """Every adapter that a stage names must be kept here. Raises InvalidRequestError."""
    known = components.adapters
    if strange := sorted(stage.lora.keys() - known.keys()):
        there = f"the adapters are {', '.join(sorted(known))}" if known else "no adapters were loaded"
        raise InvalidRequestError(
            f"{name}.lora: there is no adapter {shown(repr(strange[0]), 80)}; {there}; load others with adapters=..."
        )


def _check_caching(name: str, stage: Stage, components: Components) -> None:
    """Steps can take over a deep part where the network has one apart. Raises InvalidRequestError."""
    if stage.cache_interval > 1 and not can_be_split(components.unet):
        raise InvalidRequestError(
            f"{name}.cache_interval {stage.cache_interval}: this model's UNet has no first and last block as "
            "Stable Diffusion's, so its deep part cannot be kept; leave it at 1"
        )


def warn_of_stages(asked: GenerationRequest, components: Components, said: set[str]) -> None:
    """Say, once each, what of a request as it came is drawn otherwise than one may think; said: what was."""
    for doubt in _doubts(asked, components):
        if doubt not in said:
            said.add(doubt)
            warnings.warn(doubt, TwigWarning, stacklevel=4)


def _doubts(asked: GenerationRequest, components: Components) -> Iterator[str]:
    sampler, told = components.sampler, components.unet.config.time_cond_proj_dim is not None
    for name, stage in _stages(asked):
        if stage.solver is None and sampler.note is not None:
            yield f"{sampler.note}; name a solver to choose another"
        if stage.guidance_scale < 1:
            yield (
                f"{name} guidance {stage.guidance_scale:g} draws less by the prompt than without guidance, which is "
                "guidance 1 (where diffusers says 0 for few-step models, 1 is meant)"
            )
        own = sampler.settled(stage).solver
        if sampler.distilled and not told and (stage.guidance_scale > 2 or stage.steps > _FEW_STEPS):
            yield (
                f"the model's scheduler is of those that few-step models come with (Turbo, Lightning, LCM, Hyper-SD): "
                f"such are drawn in 1 to {_FEW_STEPS} steps at guidance 1, and {name} asks for {stage.steps} at "
                f"{stage.guidance_scale:g}"
            )
        elif told and own in CONSISTENCY and stage.steps > _FEW_STEPS:
            yield (
                f"the model is told its guidance, as latent consistency models are, which are drawn in 1 to "
                f"{_FEW_STEPS} steps; {name} asks for {stage.steps}"
            )


def _stages(request: GenerationRequest) -> Iterator[tuple[str, Stage]]:
    yield "draft", request.draft
    yield "final", request.final
