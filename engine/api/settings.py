"""Settings of a denoising stage, and what all settings have in common."""

import operator
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from .choices import Rhythm, Sigmas, Solver, Spacing
from .reading import shown

Fraction = Annotated[float, Field(ge=0, le=1)]
_ROUNDING = 1e-9
_SEVERAL = (list, tuple, set, frozenset, deque)


class Settings(BaseModel):
    """Base of what a user sets: frozen, unknown keys refused, numbers finite; switches, numbers and texts never mixed.

    A whole number does for a field of floats, and 20.0 for one of whole numbers, as JSON has one kind of them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _of_its_kind(cls, value: Any, info: ValidationInfo) -> Any:
        assert info.field_name is not None
        annotation = cls.model_fields[info.field_name].annotation
        if annotation is bool:
            if not isinstance(value, bool):
                raise ValueError(f"must be true or false, got {shown(repr(value), 80)}")
            return value
        kinds, within = _taken_apart(value, annotation)
        if any(map(_is_switch, within)):
            raise ValueError(f"true and false are no values here, got {shown(repr(value), 80)}")
        if any(map(_is_text, within)) and _are_numbers(kinds):
            raise ValueError(f"must be a number, not a text, got {shown(repr(value), 80)}")
        return value


def _taken_apart(value: Any, annotation: Any) -> tuple[Sequence[Any], Collection[Any]]:
    """What of an annotation a value may be meant as, and what it consists of: items, numbers by name, else itself.

    What a mapping holds for a class of its own, that class checks.
    """
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    if isinstance(value, _SEVERAL):
        return [kind for kind in kinds if get_origin(kind) is tuple], value
    if isinstance(value, Mapping):
        by_name = [kind for kind in kinds if get_origin(kind) is dict]
        return by_name, list(value.values()) if by_name else ()
    return kinds, (value,)


def _are_numbers(kinds: Sequence[Any]) -> bool:
    """Whether kinds come down to numbers alone."""
    leaves = {leaf for kind in kinds for leaf in _leaves(kind)}
    return bool(leaves & {int, float}) and leaves <= {int, float, type(None), Ellipsis}


def _leaves(annotation: Any) -> Iterator[Any]:
    """The types that an annotation comes down to; of a mapping, those of its values."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        yield from map(type, arguments)
    elif not arguments:
        yield annotation
    else:
        inner = arguments[:1] if origin is Annotated else arguments[1:] if origin is dict else arguments
        yield from (leaf for each in inner for leaf in _leaves(each))


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool | np.bool_)


def _is_text(value: Any) -> bool:
    return isinstance(value, str | bytes | bytearray)


MAX_ADAPTERS = 4
"""Most adapters that one stage can have at once."""

AdapterWeight = Annotated[float, Field(ge=-10, le=10)]


class Windowed(Settings):
    """A mechanism that acts from `start` to `stop`, fractions of the final stage's steps."""

    start: Fraction = 0.0
    stop: Fraction = 1.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.start > self.stop:
            raise ValueError(f"start {self.start} lies after stop {self.stop}")
        return self

    def active(self, step: int, num_steps: int) -> bool:
        """Whether the mechanism acts at `step` of `num_steps`."""
        return within_window(self.start, self.stop, step, num_steps)


def within_window(start: float, stop: float, step: int, num_steps: int) -> bool:
    """Whether `step` of `num_steps` lies from `start` to `stop`, fractions of the steps."""
    # Fractions like 0.2 + 0.1 must not reach one step further than they say.
    return start * num_steps - _ROUNDING <= step < stop * num_steps - _ROUNDING


def _is_none(value: object) -> bool:
    return value is None


class Stage(Settings):
    """How one of the two denoising stages runs.

    steps: as diffusers counts them. guidance_scale: 1 draws by the prompt alone and 0 by the negative prompt alone, one
    row a step each. Outside of `guidance_start` to `guidance_stop`, fractions of the steps, it is 1 (Kynkäänniemi et
    al., NeurIPS 2024). guidance_rescale: how much of a guided prediction's deviation is brought back to that of the
    prompt's own (Lin et al., arXiv 2305.08891). solver: None takes the model's own. spacing, sigmas: None for the
    model's. eta: how much of the noise that a step takes away is drawn anew, where the solver leaves the choice: ddim
    (0 unless said) and tcd (0.3). lora: adapters that the engine keeps, by name, each with its weight. cache_interval:
    every so many evaluations compute the network in full, and those between take its deep part over from the last that
    did (Ma et al., DeepCache, CVPR 2024); 1 computes all in full. cache_rhythm: where those in full lie.
    """

    steps: int = Field(default=20, ge=1, le=1000)
    guidance_scale: float = Field(default=5.0, ge=0, le=50)
    solver: Solver | None = Field(default=None, exclude_if=_is_none)
    spacing: Spacing | None = Field(default=None, exclude_if=_is_none)
    sigmas: Sigmas | None = Field(default=None, exclude_if=_is_none)
    eta: Fraction | None = Field(default=None, exclude_if=_is_none)
    guidance_start: Fraction = Field(default=0.0, exclude_if=lambda value: value == 0)
    guidance_stop: Fraction = Field(default=1.0, exclude_if=lambda value: value == 1)
    guidance_rescale: Fraction = Field(default=0.0, exclude_if=lambda value: value == 0)
    lora: dict[str, AdapterWeight] = Field(default={}, max_length=MAX_ADAPTERS, exclude_if=operator.not_)
    cache_interval: int = Field(default=1, ge=1, le=10, exclude_if=lambda value: value == 1)
    cache_rhythm: Rhythm = Field(default=Rhythm.EVEN, exclude_if=lambda value: value is Rhythm.EVEN)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.guidance_start > self.guidance_stop:
            raise ValueError(f"guidance_start {self.guidance_start} lies after guidance_stop {self.guidance_stop}")
        return self

    @property
    def evaluations(self) -> int:
        """How often the network is asked: Heun's method asks twice a step, but once at the last."""
        return 2 * self.steps - 1 if self.solver is Solver.HEUN else self.steps

    def scale_at(self, step: int) -> float:
        """Guidance at evaluation `step`."""
        within = within_window(self.guidance_start, self.guidance_stop, step, self.evaluations)
        return self.guidance_scale if within else 1.0
