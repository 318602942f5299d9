"""What a user asks for. Unknown keys are refused, values are checked once, here."""

from collections.abc import Sequence
from typing import Annotated, Any, Self

import numpy as np
from pydantic import Field, field_validator, model_validator

from .choices import PromptSyntax
from .json_fields import Brought, Mask
from .mechanisms import Avoidance
from .portable import Portable
from .prompts import parsed, words_of
from .reading import shown
from .rules import MAX_RETRIES, Rule
from .settings import Settings, Stage, Windowed


class SimilarityPolicy(Portable, Settings):
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
        retries = data.get("retries", rule.retries)
        if isinstance(retries, bool) or retries != rule.retries:
            said = shown(repr(retries), 80)
            raise ValueError(f"retries is {said} and the rule says {rule.retries}; write 'retry N' into it")
        return data | {"rule": str(rule), "retries": rule.retries}

    def early_steps(self, num_steps: int) -> frozenset[int]:
        """Number of finished steps after which an early verdict is due, of `num_steps`."""
        due = {round(fraction * num_steps) for fraction in self.early}
        return frozenset(due - {0, num_steps})


class Gate(Portable, Settings):
    """Avoidance only where the draft looks recalled; elsewhere the final is the plain result, bit for bit.

    `limits` maps a signal of `twig.engine.judging.gate` to the value above which avoidance switches on; None takes
    those calibrated for the model, and the gate stands open where there are none. `deliver_draft`: where avoidance
    stays off and the draft ran as the final would, the draft is the first image, at no further cost. A refused plain
    picture is drawn again with avoidance. `witnesses`: how many other seeds take the draft's first steps to see whether
    they are on their way to the same picture, where there is a limit on that and no other signal has opened the gate.
    `shut`: it never opens, and pictures are the plain model's, held against registered works alone.
    """

    limits: dict[str, float] | None = None
    deliver_draft: bool = True
    witnesses: int = Field(default=3, ge=1, le=16)
    shut: bool = Field(default=False, exclude_if=lambda value: value is False)

    @model_validator(mode="after")
    def _without_limits(self) -> Self:
        if self.shut and self.limits is not None:
            raise ValueError("shut: no limit opens a gate that is shut; leave limits out")
        return self


_LARGEST = 2**20
Side = Annotated[int, Field(gt=0, le=_LARGEST)]
Offset = Annotated[int, Field(ge=0, le=_LARGEST)]


class Framing(Settings):
    """What SDXL is told of how a picture was made (Podell et al., arXiv 2307.01952, section 2.2), in pixels.

    original: (height, width) before it was scaled and cropped; crop: (top, left) of what was kept; target: (height,
    width) of what it was scaled to. None is the picture's own size.
    """

    original: tuple[Side, Side] | None = None
    crop: tuple[Offset, Offset] = (0, 0)
    target: tuple[Side, Side] | None = None

    def sizes(self, height: int, width: int) -> tuple[int, ...]:
        """Return the six numbers for a picture of `height` and `width`, as the networks take them."""
        own = height, width
        return *(self.original or own), *self.crop, *(self.target or own)


def _is_none(value: object) -> bool:
    return value is None


def _is_empty(value: Sequence[object]) -> bool:
    return not value


class Control(Portable, Windowed):
    """A control image for one of the model's further ControlNets, of draft and final alike.

    name: of the ControlNet. image: as `source`; scaled to the picture. scale: of its residuals. A step counts that lies
    wholly within start and stop, as in diffusers' pipelines. It says where things are drawn: one that was made of the
    very work that a final is to keep away from works against the avoidance.
    """

    name: str = Field(min_length=1, max_length=64)
    image: Brought | None = Field(default=None, exclude_if=_is_none, repr=False)
    scale: float = Field(default=1.0, ge=0, le=4)

    def active(self, step: int, num_steps: int) -> bool:
        """Whether it acts at `step` of `num_steps`."""
        return step / num_steps >= self.start and (step + 1) / num_steps <= self.stop


class GenerationRequest(Portable, Settings):
    """One two-step generation.

    prompt: what to draw. redraft: steps of another draft, from which a final is drawn again that was refused and had
    lost an object of its map, where that showed the draft's; None keeps the first. prompt_syntax: how both prompts are
    read, `prompts`. clip_skip: how many of the text encoder's last layers the prompt leaves out, as diffusers counts
    them and without the negative prompt; None as the model was trained. seed: everything random derives from
    it. width, height: pixels, the model's own size if None. num_images: finals that share one draft. source: a picture,
    or the Path where one lies, that takes the draft's place (only its mask goes on); a text is a picture's own data in
    base64, never a path. controls: images that further ControlNets follow, at most one for each. mask: the user's own
    avoidance mask, boolean (height, width). gate: avoid only where the draft looks recalled; None avoids always.
    framing: what SDXL is told of the picture's size. priority: higher goes first. timeout: seconds after which the
    request expires. preview: show the predicted picture every so many steps, 0 for never. explain: record what each
    mechanism did.

    What a stranger sends is read by `from_json`.
    """

    prompt: str
    negative_prompt: str = ""
    prompt_syntax: PromptSyntax = Field(
        default=PromptSyntax.WEIGHTED, exclude_if=lambda value: value is PromptSyntax.WEIGHTED
    )
    clip_skip: int | None = Field(default=None, ge=0, le=64, exclude_if=_is_none)
    seed: int = Field(default=0, ge=0, lt=2**63)
    width: int | None = Field(default=None, ge=8, le=8192)
    height: int | None = Field(default=None, ge=8, le=8192)
    draft: Stage = Stage()
    final: Stage = Stage()
    redraft: int | None = Field(default=None, ge=1, le=1000, exclude_if=_is_none)
    num_images: int = Field(default=1, ge=1, le=64)
    source: Brought | None = Field(default=None, exclude_if=_is_none, repr=False)
    mask: Mask | None = Field(default=None, exclude_if=_is_none, repr=False)
    controls: tuple[Control, ...] = Field(default=(), max_length=8, exclude_if=_is_empty)
    avoidance: Avoidance = Avoidance()
    similarity: SimilarityPolicy = SimilarityPolicy()
    gate: Gate | None = None
    framing: Framing = Framing()
    priority: int = Field(default=0, ge=-100, le=100)
    timeout: float | None = Field(default=None, gt=0)
    preview: int = Field(default=0, ge=0, le=1000)
    explain: bool = False

    @field_validator("prompt", "negative_prompt")
    @classmethod
    def _printable(cls, value: str) -> str:
        if "\x00" in value:
            raise ValueError("a prompt cannot hold a NUL character")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError("a prompt cannot hold half of a surrogate pair; its text was not decoded as UTF-8")
        return value

    @field_validator("controls")
    @classmethod
    def _each_once(cls, value: tuple[Control, ...]) -> tuple[Control, ...]:
        names = [control.name for control in value]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"the ControlNet {shown(repr(twice), 80)} is given two images; one picture follows one")
        return value

    @model_validator(mode="after")
    def _readable(self) -> Self:
        for prompt in (self.prompt, self.negative_prompt):
            parsed(prompt, self.prompt_syntax)
        return self

    @model_validator(mode="after")
    def _nothing_brought(self) -> Self:
        for name in ("source", "mask"):
            if self.is_plain and getattr(self, name) is not None:
                raise ValueError(
                    f"gate: one that is shut delivers plain pictures, of the prompt alone; leave out the {name}"
                )
        return self

    @property
    def is_plain(self) -> bool:
        """Whether its pictures are the plain model's, compared with no draft."""
        return self.gate is not None and self.gate.shut

    @property
    def delivers_draft(self) -> bool:
        """Whether the draft becomes the first image where the gate stays shut: it ran as the final would."""
        return self.gate is not None and self.gate.deliver_draft and self.draft == self.final

    @property
    def words(self) -> str:
        """What the prompt says, without its marks."""
        return words_of(self.prompt, self.prompt_syntax)

    @property
    def negative_words(self) -> str:
        """What the negative prompt says, without its marks."""
        return words_of(self.negative_prompt, self.prompt_syntax)

    @field_validator("mask")
    @classmethod
    def _two_dimensional(cls, value: np.ndarray | None) -> np.ndarray | None:
        if value is not None and (value.ndim != 2 or value.dtype != bool):
            raise ValueError(f"mask must be boolean (height, width), got {value.dtype} {value.shape}")
        return value


PICTURES: dict[str, Any] = {"source": True, "mask": True, "controls": {"__all__": {"image"}}}
"""What a request brings beside its settings and prompts, as a dump leaves it out."""

Requests = GenerationRequest | str | Sequence[GenerationRequest | str]
"""One or several; a plain prompt stands for a request of it with everything else as usual."""


def as_requests(requests: Requests) -> list[GenerationRequest]:
    """Return what `requests` stands for, in its order."""
    several = [requests] if isinstance(requests, GenerationRequest | str) else requests
    return [GenerationRequest(prompt=one) if isinstance(one, str) else one for one in several]
