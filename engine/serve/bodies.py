"""Bodies of requests, as clients of the OpenAI images API send them, with Twig's own options under `twig`.

Every field that the API has is known here. One that cannot be served is refused by name with the reason, and so is one
that there is not: nothing is dropped in silence.
"""

import json
import re
from collections.abc import Iterable
from typing import Any, Literal, TypeVar, get_args

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from ..api.choices import Preset, PromptSyntax, Rhythm, Sigmas, Solver, Spacing
from ..api.errors import ForeignFileError
from ..api.prompts import MAX_PROMPT
from ..api.reading import parse_json, shown
from ..api.settings import MAX_ADAPTERS, AdapterWeight, Fraction, Settings, Windowed
from .errors import ApiError, wrong_field

_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")
_NESTED = re.compile(r"twig\[(\w+)\]")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,30})?([eE][-+]?[0-9]{1,3})?")

_UNSERVED = {
    "complexity": "there are no drawings of vectors here",
    "svg": "there are no drawings of vectors here",
    "frame_count": "a picture does not move",
    "frame_duration_ms": "a picture does not move",
    "style": "say it in the prompt",
    "input_fidelity": "only the mask of what the picture shows goes on",
    "markup": "a mask says where",
}
_ONE_QUALITY = "there is one quality; twig.steps says how long is drawn"
_SERVED: dict[str, tuple[tuple[str, ...], str]] = {
    "quality": (("auto", "standard"), _ONE_QUALITY),
    "background": (("auto", "opaque"), "pictures are opaque"),
    "moderation": (("auto",), "the operator's rule can only be tightened, by twig.rule"),
    "response_format": (("b64_json",), "pictures are in the answer and at no address"),
    "output_format": (("png", "jpeg", "webp"), "pictures are PNG, JPEG or WebP"),
}


class ControlBody(Windowed):
    """A picture that one of the server's further ControlNets follows: PNG, JPEG or WebP data in base64."""

    name: str = Field(min_length=1, max_length=64)
    image: str = Field(repr=False)
    scale: float = Field(default=1.0, ge=0, le=4)


class TwigOptions(Settings):
    """What a client may ask of Twig beyond the API, `extra_body={"twig": {...}}`.

    seed: drawn by lot unless given, and told in the answer. guidance_interval: fractions of the steps that guidance
    acts from and to. spacing, sigmas, eta, cache_interval, cache_rhythm and the rest of how is drawn: as of a `Stage`;
    prompt_syntax, clip_skip: as of a request. lora: weights of the operator's adapters that both stages are drawn with;
    draft_lora, draft_solver, draft_guidance: what the draft has instead. preset, rule, retries: only tighter than the
    operator's. controls: where the operator allows them. always: avoid also where the gate would stay shut. draft,
    mask, explain, sheet, manifest: have them in the answer. priority: up to the key's. deadline: seconds after which
    the answer is 504. background: a job that outlives the connection, answered by 202.
    """

    seed: int | None = Field(default=None, ge=0, lt=2**63)
    preset: Preset | None = None
    steps: int | None = Field(default=None, ge=1, le=1000)
    guidance: float | None = Field(default=None, ge=0, le=50)
    guidance_interval: tuple[Fraction, Fraction] | None = None
    guidance_rescale: Fraction | None = None
    solver: Solver | None = None
    lora: dict[str, AdapterWeight] = Field(default={}, max_length=MAX_ADAPTERS)
    draft_lora: dict[str, AdapterWeight] | None = Field(default=None, max_length=MAX_ADAPTERS)
    draft_solver: Solver | None = None
    draft_guidance: float | None = Field(default=None, ge=0, le=50)
    spacing: Spacing | None = None
    sigmas: Sigmas | None = None
    eta: Fraction | None = None
    cache_interval: int | None = Field(default=None, ge=1, le=10)
    cache_rhythm: Rhythm | None = None
    negative_prompt: str = ""
    prompt_syntax: PromptSyntax = PromptSyntax.WEIGHTED
    clip_skip: int | None = Field(default=None, ge=0, le=64)
    rule: str | None = Field(default=None, max_length=2**14)
    retries: int | None = Field(default=None, ge=0, le=16)
    controls: tuple[ControlBody, ...] = Field(default=(), max_length=8)
    always: bool = False
    draft: bool = False
    mask: bool = False
    explain: bool = False
    sheet: bool = False
    manifest: bool = False
    priority: int | None = Field(default=None, ge=-100, le=100)
    deadline: float | None = Field(default=None, gt=0)
    background: bool = False

    @property
    def own_draft(self) -> dict[str, Any]:
        """Fields of a stage in which the draft differs from the final."""
        said = {"lora": self.draft_lora, "solver": self.draft_solver, "guidance_scale": self.draft_guidance}
        return {name: value for name, value in said.items() if value is not None}

    @field_validator("guidance_interval")
    @classmethod
    def _ordered(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and value[0] > value[1]:
            raise ValueError(f"must not end before it starts, got {value[0]:g} to {value[1]:g}")
        return value


class ImageBody(Settings):
    """The body of a generation, and the fields of an edit. `user` and `safety_identifier` are neither used nor kept."""

    prompt: str = Field(max_length=MAX_PROMPT)
    model: str | None = None
    n: int | None = Field(default=None, ge=1, le=10)
    size: str | None = None
    quality: str | None = None
    background: str | None = None
    moderation: str | None = None
    response_format: str | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: int | None = Field(default=None, ge=0, le=100)
    stream: bool = False
    partial_images: int | None = Field(default=None, ge=0, le=3)
    user: str | None = Field(default=None, max_length=512)
    safety_identifier: str | None = Field(default=None, max_length=512)
    complexity: Any = None
    svg: Any = None
    frame_count: Any = None
    frame_duration_ms: Any = None
    style: Any = None
    input_fidelity: Any = None
    markup: Any = None
    twig: TwigOptions = TwigOptions()

    @field_validator(*_UNSERVED, mode="before")
    @classmethod
    def _unserved(cls, value: Any, info: Any) -> None:
        if value is not None:
            raise PydanticCustomError("unsupported", "cannot be served: {why}", {"why": _UNSERVED[info.field_name]})

    @field_validator(*_SERVED, mode="before")
    @classmethod
    def _of_the_served(cls, value: Any, info: Any) -> Any:
        served, why = _SERVED[info.field_name]
        if value is not None and value not in served:
            told = {"why": why, "served": " or ".join(served)}
            raise PydanticCustomError("unsupported", "cannot be served: {why}; say {served}", told)
        return value

    @field_validator("stream", mode="before")
    @classmethod
    def _not_said(cls, value: Any) -> Any:
        return False if value is None else value

    @field_validator("twig", mode="before")
    @classmethod
    def _none_said(cls, value: Any) -> Any:
        return {} if value is None else value

    @field_validator("size")
    @classmethod
    def _two_sides(cls, value: str | None) -> str | None:
        if value not in (None, "auto") and not _SIZE.fullmatch(value):
            raise ValueError("a size is written as WIDTHxHEIGHT in pixels, or auto")
        return value

    @model_validator(mode="after")
    def _together(self) -> "ImageBody":
        if self.output_compression is not None and self.output_format not in ("jpeg", "webp"):
            raise ValueError("output_compression is of the formats jpeg and webp; leave it out for png")
        if self.partial_images and not self.stream:
            raise ValueError("partial_images come in a stream alone; say stream: true")
        if self.stream and self.twig.background:
            raise ValueError("a job in the background has no stream; ask for it at /v1/twig/jobs")
        return self

    @property
    def sides(self) -> tuple[int | None, int | None]:
        """Width and height in pixels, None for the model's own."""
        found = _SIZE.fullmatch(self.size or "")
        return (int(found[1]), int(found[2])) if found else (None, None)

    @property
    def format(self) -> str:
        """The format of the pictures in the answer."""
        return self.output_format or "png"


_Body = TypeVar("_Body", bound=Settings)


def from_json(data: bytes, kind: type[_Body]) -> _Body:
    """The body that `data` is. Raises ApiError naming the first field that is wrong."""
    try:
        values = parse_json(data.decode(), "the body")
    except (UnicodeDecodeError, ForeignFileError) as error:
        raise ApiError(400, "invalid_json", f"the body is not JSON in UTF-8: {shown(error)}") from error
    if not isinstance(values, dict):
        raise ApiError(400, "invalid_json", "the body must be a JSON object")
    return from_values(values, kind)


def from_form(fields: Iterable[tuple[str, str]], kind: type[_Body]) -> _Body:
    """The body that the fields of a form are, `twig[seed]` for what is nested. Raises ApiError as `from_json`."""
    values: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for name, text in fields:
        nested = _NESTED.fullmatch(name)
        into, key, model = (options, nested[1], TwigOptions) if nested else (values, name, kind)
        if key in into:
            raise ApiError(400, "invalid_value", f"{shown(name)} is given twice", param=name)
        into[key] = _typed(text, key, model)
    return from_values(values | ({"twig": options} if options else {}), kind)


def _typed(text: str, name: str, model: type[Settings]) -> Any:
    """A form's text as JSON would have it: switches are true and false, numbers numbers, what is empty is not said."""
    field = model.model_fields.get(name)
    kinds = set() if field is None else {field.annotation, *get_args(field.annotation)}
    if bool in kinds:
        return {"true": True, "false": False}.get(text, text)
    if kinds & {int, float} and _NUMBER.fullmatch(text):
        return json.loads(text)
    return text or None


def from_values(values: dict[str, Any], kind: type[_Body]) -> _Body:
    """The body that a JSON object is. Raises ApiError naming the first field that is wrong."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise wrong_field(error) from error
