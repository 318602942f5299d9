"""Settings of a denoising stage, and what all settings have in common."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .choices import Solver

Fraction = Annotated[float, Field(ge=0, le=1)]
_ROUNDING = 1e-9


class Settings(BaseModel):
    """Base of what a user sets: frozen, unknown keys refused."""

    # A limit or timeout may be infinite, which JSON has no number for.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


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
