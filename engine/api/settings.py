"""Settings of a denoising stage, and what all settings have in common."""

from typing import Annotated, Any, Self, get_args, get_origin

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from .choices import Solver

Fraction = Annotated[float, Field(ge=0, le=1)]
_ROUNDING = 1e-9


class Settings(BaseModel):
    """Base of what a user sets: frozen, unknown keys refused, numbers finite, switches and numbers never mixed up."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _of_its_kind(cls, value: Any, info: ValidationInfo) -> Any:
        assert info.field_name is not None
        annotation = cls.model_fields[info.field_name].annotation
        switch = annotation is bool
        if switch and not isinstance(value, bool):
            raise ValueError(f"must be true or false, got {value!r}")
        numbers_by_name = any(get_origin(kind) is dict for kind in (annotation, *get_args(annotation)))
        within = list(value.values()) if isinstance(value, dict) and numbers_by_name else value
        if not switch and _holds_switch(within):
            raise ValueError(f"true and false are no values here, got {value!r}")
        return value


def _holds_switch(value: Any) -> bool:
    """Whether a value is true or false, or a list that holds one; what a mapping holds, its own class checks."""
    return any(map(_is_switch, value)) if isinstance(value, list | tuple) else _is_switch(value)


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool | np.bool_)


class Stage(Settings):
    """How one of the two denoising stages runs."""

    steps: int = Field(default=20, ge=1, le=1000)
    guidance_scale: float = Field(default=5.0, ge=1, le=50)
    solver: Solver = Solver.DDIM


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
        # Fractions like 0.2 + 0.1 must not reach one step further than they say.
        return self.start * num_steps - _ROUNDING <= step < self.stop * num_steps - _ROUNDING
