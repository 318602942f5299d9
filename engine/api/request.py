"""What a user asks for. Unknown keys are refused, values are checked once, here."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from PIL import Image
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    field_validator,
    model_validator,
)

from .rules import MAX_RETRIES, Rule

Fraction = Annotated[float, Field(ge=0, le=1)]
_ROUNDING = 1e-9


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class Solver(StrEnum):
    """Diffusion solver, by the name of its scheduler in diffusers."""

    DDIM = "ddim"
    EULER = "euler"
    EULER_ANCESTRAL = "euler_ancestral"
    DPMPP_2M = "dpmpp_2m"


class Stage(_Settings):
    """How one of the two denoising stages runs."""

    steps: int = Field(default=20, ge=1, le=1000)
    guidance_scale: float = Field(default=5.0, ge=1, le=50)
    solver: Solver = Solver.DDIM


class _Windowed(_Settings):
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


class DelayedGuidance(_Windowed):
    """A: run one unguided branch until `stop` (Jain et al., CVPR 2025), at half a guided step's cost.

    With `detect`, only until the draft's guidance had fallen to its first minimum, which is where a run leaves the
    basin of what it would recite, and at most until `stop`; a draft that ran unguided, or a source, tells nothing.
    """

    stop: Annotated[float, Field(ge=0, le=0.4)] = 0.4
    branch: Literal["unconditional", "conditional"] = "conditional"
    detect: bool = False

    def settled(self, transition: float | None) -> Self:
        """Return the policy with its end decided, given the fraction of the steps at which the draft left the basin."""
        if not self.detect:
            return self
        stop = self.stop if transition is None else max(self.start, min(self.stop, transition))
        return self.model_copy(update={"stop": stop, "detect": False})


class InitialNoise(_Settings):
    """B: the noise that the final starts from.

    `resample`: 0 draws it all anew, as without this mechanism; above 0 the final starts from the draft's own noise,
    with this much of its low frequencies redrawn inside the mask (those below `cutoff`, in cycles per latent pixel).
    `sharpness_steps` moves it away from where guidance grows (Han et al., NeurIPS 2025, batch-wise rule): each step
    predicts both branches twice, four rows; `radius` of its climb as a share of the noise's norm (published: 0.39), and
    `gamma` (published: 0.7).
    """

    resample: Fraction = 0.0
    cutoff: float = Field(default=0.125, gt=0, le=0.5)
    sharpness_steps: int = Field(default=2, ge=0, le=2)
    radius: Fraction = 0.25
    gamma: float = Field(default=7.0, ge=0, le=100)

    @property
    def block(self) -> int:
        """Side in latent pixels of the squares whose means hold the frequencies below `cutoff`."""
        return max(1, round(0.5 / self.cutoff))


class MaskedNoise(_Windowed):
    """B: inside the mask, blend `strength` of freshly noised latent into each step's result."""

    stop: Fraction = 0.3
    strength: Fraction = 0.5


class MaskedAttention(_Windowed):
    """C: reweight cross-attention inside the mask; `docs` of the terms in `twig.kernels.masked_attention`.

    `tokens` says which text tokens the rule touches: all words of the prompt, the end token and padding, or
    both; positions in the 77-token sequence; or the `spikes`: those that drew attention in the draft by more than
    `spike_threshold` standard deviations above the mean token (GUARD, arXiv 2603.00133).
    """

    stop: Fraction = 0.6
    bias: float = Field(default=-2.0, ge=-1e4, le=1e4)
    outside_bias: float = Field(default=0.0, ge=-1e4, le=1e4)
    scale: float = Field(default=1.0, ge=0, le=10)
    gain: float = Field(default=1.0, ge=0, le=10)
    renormalise: Fraction = 1.0
    damping: Fraction = 0.0
    tokens: Literal["words", "padding", "all", "spikes"] | tuple[int, ...] = "all"
    spike_threshold: float = Field(default=2.0, ge=0, le=100)
    layers: tuple[Literal["down", "mid", "up"], ...] = ("down", "mid")

    @property
    def listens(self) -> bool:
        """Whether the draft must record what its tokens draw."""
        return self.tokens == "spikes"


class MovedControl(_Windowed):
    """D: ControlNet on the draft's label map, moved so that its mask overlaps the draft's by at most `max_iou`.

    `warp`: "auto" mirrors and shifts the objects, "flip" and "shift" do one of them, "scale" and "elastic" change their
    size and shape where they stand; "none" follows the draft's shape itself, as a control experiment. `rows` says
    whether the unconditional branch is controlled too, as in diffusers' pipeline, where guidance cannot amplify the
    control, for both branches hold it. `negative` subtracts this much of a
    further prediction, controlled by the draft's own shape, and adds as much of the one it is `negative_against`:
    controlled by the moved shape (one row more a step), or not controlled at all (two rows more).
    """

    scale: float = Field(default=2.0, ge=0, le=4)
    warp: Literal["auto", "flip", "shift", "scale", "elastic", "none"] = "auto"
    max_iou: Fraction = 0.4
    rows: Literal["both", "conditional"] = "conditional"
    negative: float = Field(default=0.0, ge=0, le=4)
    negative_against: Literal["moved", "none"] = "moved"


class Repulsion(_Windowed):
    """E: push the predicted picture out of balls around registered works (SPELL: Kirchhof et al., ICML 2025).

    `radius` of a ball, as the root mean square difference of two latents; `strength` of the push, 1 of which ends on
    the ball's surface (published: 1.6).
    """

    radius: float = Field(default=0.5, gt=0, le=10)
    strength: float = Field(default=1.6, ge=0, le=10)


class Avoidance(_Settings):
    """How the final stage keeps away from the draft's shape; a mechanism that is None is off."""

    delayed_guidance: DelayedGuidance | None = DelayedGuidance()
    initial_noise: InitialNoise | None = None
    masked_noise: MaskedNoise | None = None
    masked_attention: MaskedAttention | None = None
    moved_control: MovedControl | None = MovedControl()
    repulsion: Repulsion | None = None

    @classmethod
    def off(cls) -> Self:
        """No avoidance at all: the final stage is an ordinary generation."""
        return cls(delayed_guidance=None, moved_control=None)

    def escalated(self, attempt: int) -> Self:
        """Return the stronger policy of retry `attempt` (0 returns this one).

        Each retry delays guidance by another tenth of the steps (at most 40 %, and no longer by what is detected),
        strengthens control by a quarter and lengthens it by a tenth, moves the initial noise a quarter further and
        widens the balls of repulsion by a quarter.
        """
        changes: dict[str, Any] = {}
        if attempt and self.delayed_guidance:
            stop = min(0.4, self.delayed_guidance.stop + 0.1 * attempt)
            changes["delayed_guidance"] = self.delayed_guidance.model_copy(update={"stop": stop, "detect": False})
        if attempt and self.moved_control:
            scale = min(4.0, self.moved_control.scale * (1 + 0.25 * attempt))
            stop = min(1.0, self.moved_control.stop + 0.1 * attempt)
            changes["moved_control"] = self.moved_control.model_copy(update={"scale": scale, "stop": stop})
        if attempt and self.initial_noise:
            gamma = min(100.0, self.initial_noise.gamma * (1 + 0.25 * attempt))
            changes["initial_noise"] = self.initial_noise.model_copy(update={"gamma": gamma})
        if attempt and self.repulsion:
            radius = min(10.0, self.repulsion.radius * (1 + 0.25 * attempt))
            changes["repulsion"] = self.repulsion.model_copy(update={"radius": radius})
        return self.model_copy(update=changes)

    def settled(self, transition: float | None) -> Self:
        """Return the policy with everything decided that was left to the draft; `DelayedGuidance.settled`."""
        if self.delayed_guidance is None:
            return self
        return self.model_copy(update={"delayed_guidance": self.delayed_guidance.settled(transition)})


class SimilarityPolicy(_Settings):
    """When a final is too close to its draft, its source or a registered work.

    `rule` says it in words, in the language of `twig.engine.api.rules`, and is kept in its canonical form. Without one,
    `limits` maps a metric's name to the largest similarity that is accepted (for distances: the smallest
    distance), None taking the limits calibrated for the model, and `retries` more attempts follow a failed one.
    `early` names fractions of the final's steps at which the predicted picture is judged already: a failed one ends the
    attempt there, or, with `early_stops` off, is only recorded beside the final verdict.
    """

    rule: str | None = None
    limits: dict[str, float] | None = None
    retries: int = Field(default=2, ge=0, le=MAX_RETRIES)
    early: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    early_stops: bool = True

    @model_validator(mode="before")
    @classmethod
    def _one_voice(cls, data: Any) -> Any:
        """A rule alone says what is refused and how often it is retried."""
        if not isinstance(data, dict) or not isinstance(data.get("rule"), str):
            return data
        rule = Rule.parse(data["rule"])
        if data.get("limits") is not None:
            raise ValueError("both a rule and limits are given; write the limits into the rule")
        if data.get("retries", rule.retries) != rule.retries:
            raise ValueError(f"retries is {data['retries']} and the rule says {rule.retries}; write 'retry N' into it")
        return data | {"rule": str(rule), "retries": rule.retries}

    def early_steps(self, num_steps: int) -> frozenset[int]:
        """Number of finished steps after which an early verdict is due, of `num_steps`."""
        due = {round(fraction * num_steps) for fraction in self.early}
        return frozenset(due - {0, num_steps})


class Gate(_Settings):
    """Avoidance only where the draft looks recalled; elsewhere the final is the plain result, bit for bit.

    `limits` maps a signal of `twig.engine.judging.gate` to the value above which avoidance switches on; None takes
    those calibrated for the model, and the gate stands open where there are none. `deliver_draft`: where avoidance
    stays off and the draft ran as the final would, the draft is the first image, at no further cost. A refused plain
    picture is drawn again with avoidance. `witnesses`: how many other seeds take the draft's first steps to see whether
    they are on their way to the same picture, where there is a limit on that and no other signal has opened the gate.
    """

    limits: dict[str, float] | None = None
    deliver_draft: bool = True
    witnesses: int = Field(default=3, ge=1, le=16)


class Framing(_Settings):
    """What SDXL is told of how a picture was made (Podell et al., arXiv 2307.01952, section 2.2), in pixels.

    original: (height, width) before it was scaled and cropped; crop: (top, left) of what was kept; target: (height,
    width) of what it was scaled to. None is the picture's own size.
    """

    original: tuple[PositiveInt, PositiveInt] | None = None
    crop: tuple[NonNegativeInt, NonNegativeInt] = (0, 0)
    target: tuple[PositiveInt, PositiveInt] | None = None

    def sizes(self, height: int, width: int) -> tuple[int, ...]:
        """Return the six numbers for a picture of `height` and `width`, as the networks take them."""
        own = height, width
        return *(self.original or own), *self.crop, *(self.target or own)


Picture = Image.Image | Path | str


class GenerationRequest(_Settings):
    """One two-step generation.

    prompt: what to draw. seed: everything random derives from it. width, height: pixels, the model's own size
    if None. num_images: finals that share one draft. source: a picture that takes the draft's place (only its
    mask goes on). mask: the user's own avoidance mask, boolean (height, width). gate: avoid only where the draft looks
    recalled; None avoids always. framing: what SDXL is told of the picture's size. priority: higher goes first.
    timeout: seconds after which the request expires. preview: show the predicted picture every so many steps, 0 for
    never. explain: record what each mechanism did.
    """

    prompt: str
    negative_prompt: str = ""
    seed: int = Field(default=0, ge=0, lt=2**63)
    width: int | None = Field(default=None, ge=8, le=8192)
    height: int | None = Field(default=None, ge=8, le=8192)
    draft: Stage = Stage()
    final: Stage = Stage()
    num_images: int = Field(default=1, ge=1, le=64)
    source: Picture | None = Field(default=None, exclude=True, repr=False)
    mask: np.ndarray | None = Field(default=None, exclude=True, repr=False)
    avoidance: Avoidance = Avoidance()
    similarity: SimilarityPolicy = SimilarityPolicy()
    gate: Gate | None = None
    framing: Framing = Framing()
    priority: int = Field(default=0, ge=-100, le=100)
    timeout: float | None = Field(default=None, gt=0)
    preview: int = Field(default=0, ge=0)
    explain: bool = False

    @field_validator("prompt", "negative_prompt")
    @classmethod
    def _printable(cls, value: str) -> str:
        if "\x00" in value:
            raise ValueError("a prompt cannot hold a NUL character")
        return value

    @field_validator("mask")
    @classmethod
    def _two_dimensional(cls, value: np.ndarray | None) -> np.ndarray | None:
        if value is not None and (value.ndim != 2 or value.dtype != bool):
            raise ValueError(f"mask must be boolean (height, width), got {value.dtype} {value.shape}")
        return value


Requests = GenerationRequest | Sequence[GenerationRequest]
