"""The door: a request is checked against the model once, before it costs anything."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from .api.choices import PromptSyntax, Warp
from .api.errors import InvalidRequestError, TwigWarning
from .api.mechanisms import Avoidance
from .api.pixels import Picture, load_picture
from .api.reading import shown
from .api.request import Framing, GenerationRequest
from .estimates import draft_run, final_run
from .judging.judge import Judge
from .models.components import Components
from .models.pictures import to_pixels
from .models.prompts import Chunk, chunked
from .models.weighting import unserved_text
from .staging import check_stages, check_steps, settled, warn_of_stages

MAX_STEPS = 150
"""Most steps of a stage, unless an engine is told otherwise."""
MAX_PIXELS = 2**20
"""Most pixels of a picture, unless an engine is told otherwise."""


@dataclass(frozen=True)
class Admission:
    """What was found at the door: latent (height, width), and pixels (1, 3, H, W) in [0, 1] of what is brought.

    request: what it leaves to the model filled in. embedded: whether the network is told the guidance. controls:
    control images of further ControlNets, by name.
    """

    shape: tuple[int, int]
    source: Tensor | None
    request: GenerationRequest
    embedded: bool
    controls: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Door:
    """Checks requests for one model.

    max_pixels bounds width x height, max_steps the steps of a stage, max_rows the rows of the UNet that a step needs: a
    run that needs more than a call has would never be scheduled. judging: checks rules and the metrics they name.
    check_size: refuses (height, width) in pixels that a network cannot run at. max_chunks: of a prompt.
    """

    components: Components
    max_steps: int
    max_pixels: int
    max_rows: int
    judging: Judge
    check_size: Callable[[int, int], None]
    max_chunks: int = 1
    _said: set[str] = field(default_factory=set, compare=False, repr=False)

    def admit(self, request: GenerationRequest) -> Admission:
        """Return the request's latent shape and source, or raise InvalidRequestError naming the offending value."""
        height, width = self.check(request)
        _warn_of_marks(request)
        asked = self.settle(request)
        _check_mask(request)
        factor = self.components.vae_scale_factor
        shape, source = (height // factor, width // factor), _source(request, height, width)
        controls = {each.name: _pixels(each.image, height, width) for each in request.controls}
        return Admission(shape, source, asked, self._embedded, controls)

    def settle(self, request: GenerationRequest) -> GenerationRequest:
        """Fill in what `request` leaves to the model, and say, once each, what one may not expect of that."""
        warn_of_stages(request, self.components, self._said)
        return settled(request, self.components.sampler)

    def check(self, request: GenerationRequest) -> tuple[int, int]:
        """Return the picture's (height, width), or raise InvalidRequestError naming the offending value.

        The model's weights need not be there, and what the request brings is not opened.
        """
        request = settled(request, self.components.sampler)
        height, width = self._size(request)
        check_stages(request, self.components, self.max_steps)
        self._check_redraft(request)
        chunks = max(self._check_prompt(*each, request.prompt_syntax) for each in _prompts(request))
        self._check_skip(request)
        self._check_parts(request)
        self._check_controls(request)
        self._check_rows(request)
        self._check_framing(request)
        self._check_tokens(request, chunks)
        self.judging.rule(request)
        self.judging.gate_limits(request)
        if request.mask is not None and request.mask.shape != (height, width):
            raise InvalidRequestError(f"mask is {request.mask.shape}, the picture is {(height, width)} (height, width)")
        factor = self.components.vae_scale_factor
        self._check_registry(request, (height // factor, width // factor))
        return height, width

    def _check_redraft(self, request: GenerationRequest) -> None:
        """A second draft must be one that runs here, and tell more than the first."""
        steps = request.redraft
        if steps is None:
            return
        again = request.draft.model_copy(update={"steps": steps})
        if not request.draft.steps < steps or again.evaluations > self.max_steps:
            raise InvalidRequestError(
                f"redraft {steps}: a second draft has more steps than the first, {request.draft.steps}, and at most "
                f"this engine's {self.max_steps}"
            )
        check_steps("redraft", again, self.components.scheduler, self.components.sampler)

    @property
    def _embedded(self) -> bool:
        return self.components.unet.config.time_cond_proj_dim is not None

    def _size(self, request: GenerationRequest) -> tuple[int, int]:
        default_height, default_width = self.components.size
        height, width = request.height or default_height, request.width or default_width
        step = self.components.vae_scale_factor
        for name, value in (("height", height), ("width", width)):
            if value % step:
                nearest = max(step, round(value / step) * step)
                raise InvalidRequestError(f"{name} {value} is not a multiple of {step}; the nearest is {nearest}")
        if height * width > self.max_pixels:
            raise InvalidRequestError(
                f"{width} x {height} pixels exceed this engine's {self.max_pixels}; allow more with max_pixels=..."
            )
        self.check_size(height, width)
        return height, width

    def prompt_tokens(self, prompt: str, syntax: PromptSyntax) -> int:
        """Tokens of a prompt, start and end of each chunk included."""
        return sum(len(chunk.ids) + 2 for chunk in self._chunks(prompt, syntax))

    def _chunks(self, prompt: str, syntax: PromptSyntax) -> list[Chunk]:
        return chunked(self.components.tokenizer, prompt, syntax, self.components.max_tokens)

    def _check_prompt(self, name: str, prompt: str, syntax: PromptSyntax) -> int:
        """How many chunks a prompt takes, if they are as few as are served."""
        length, chunks = self.components.max_tokens, self._chunks(prompt, syntax)
        if len(chunks) > self.max_chunks:
            ids = next(chunk.ids for chunk in chunks[self.max_chunks :] if chunk.ids)
            cut = shown(self.components.tokenizer.decode(ids))
            raise InvalidRequestError(
                f"{name} has {self.prompt_tokens(prompt, syntax)} tokens in {len(chunks)} chunks of {length}, "
                f"start and end included, and this engine takes {self.max_chunks}; give it "
                f"max_prompt_chunks={len(chunks)} or more, or it would be cut before: {cut!r}"
            )
        return len(chunks)

    def _check_skip(self, request: GenerationRequest) -> None:
        """The text encoders must have the layers that are skipped; of two, as in SDXL, one is left out as it is."""
        encoders, skip = self.components.text_encoders, request.clip_skip
        most = min(encoder.config.num_hidden_layers for encoder in encoders) - (len(encoders) - 1)
        if skip is not None and skip > most:
            raise InvalidRequestError(f"clip_skip {skip}: this model's text encoder has {most} layers to leave out")

    def _check_parts(self, request: GenerationRequest) -> None:
        """Whatever the request switches on must be there."""
        control = request.avoidance.moved_control
        if control is not None and self.components.controlnet is None:
            raise InvalidRequestError(
                "avoidance.moved_control needs a ControlNet and this model has none: load one with controlnet=..., or "
                "draw plain pictures with Preset.PLAIN"
            )
        if self.components.segmenter is not None:
            return
        if control is not None or (request.avoidance.heeds_shape and request.mask is None):
            raise InvalidRequestError(
                "finding the shape to avoid needs a segmenter and this model has none: load one with segmenter=..., or "
                "draw plain pictures with Preset.PLAIN"
            )
        if request.avoidance.restated_prompt is not None:
            raise InvalidRequestError(
                "avoidance.restated_prompt knows objects by a segmenter's labels and this model has none: load one "
                "with segmenter=..., or set it to null"
            )
        if request.source is not None and request.mask is None:
            raise InvalidRequestError(
                "a source is there for its shape, which a segmenter finds, and this model has none: load one with "
                "segmenter=..., or bring a mask"
            )

    def _check_controls(self, request: GenerationRequest) -> None:
        """Each control image must be there, and be one of a ControlNet that is."""
        known = self.components.controlnets
        for control in request.controls:
            if control.name not in known:
                there = (
                    f"they are {', '.join(known)}" if known else "it has none; load one with controlnet=['NAME=PATH']"
                )
                raise InvalidRequestError(
                    f"controls: this model has no further ControlNet {shown(repr(control.name), 80)}: {there}"
                )
            if control.image is None:
                raise InvalidRequestError(f"controls: {control.name} has no image to follow")

    def _check_rows(self, request: GenerationRequest) -> None:
        runs = {"final": final_run(request, request.avoidance, self._embedded)}
        if request.source is None:
            runs["draft"] = draft_run(request, self._embedded)
        for stage, run in runs.items():
            if run.most_rows > self.max_rows:
                raise InvalidRequestError(
                    f"a step of the {stage} needs {run.most_rows} rows of the UNet and this engine's calls have "
                    f"{self.max_rows}; give it Limits(rows={run.most_rows}) or more, or lower what adds rows: guidance "
                    "above 1, moved_control.negative, initial_noise.sharpness_steps"
                )

    def _check_framing(self, request: GenerationRequest) -> None:
        if request.framing != Framing() and self.components.text_encoder_2 is None:
            raise InvalidRequestError(
                "framing is what SDXL is told of a picture's size and this checkpoint reads nothing of it: leave it out"
            )

    def _check_tokens(self, request: GenerationRequest, chunks: int) -> None:
        rule = request.avoidance.masked_attention
        positions = rule.tokens if rule is not None and isinstance(rule.tokens, tuple) else ()
        length = self.components.max_tokens
        last = chunks * length - 1
        if strange := [each for each in positions if not (0 < each <= last and each % length)]:
            raise InvalidRequestError(
                f"avoidance.masked_attention.tokens: position {strange[0]} is no word's or padding's; the first of "
                f"each {length} is a start token, and the others are 1 to {last}"
            )
        if request.source is not None and rule is not None and rule.listens:
            raise InvalidRequestError(
                "avoidance.masked_attention.tokens: spikes are found in a draft, and a source takes its place; "
                "name words, padding, all or positions"
            )

    def _check_registry(self, request: GenerationRequest, shape: tuple[int, int]) -> None:
        """Repulsion needs works to be repelled from, encoded at the picture's size."""
        registry = self.judging.registry
        if request.avoidance.repulsion is None:
            return
        if registry is None:
            raise InvalidRequestError(
                "avoidance.repulsion needs registered works and this engine has none: give it a registry=..., or set "
                "repulsion to null"
            )
        registered = tuple(registry.latents.shape[2:])
        if registered != shape:
            factor = self.components.vae_scale_factor
            height, width = (side * factor for side in registered)
            raise InvalidRequestError(
                f"avoidance.repulsion: the works were registered at {width} x {height} pixels, the picture is "
                f"{shape[1] * factor} x {shape[0] * factor}; ask for their size, or set repulsion to null"
            )


def _prompts(request: GenerationRequest) -> tuple[tuple[str, str], ...]:
    """Both prompts, by what they are called."""
    return ("prompt", request.prompt), ("negative prompt", request.negative_prompt)


def _warn_of_marks(request: GenerationRequest) -> None:
    if request.prompt_syntax is PromptSyntax.PLAIN:
        return
    if (said := unserved_text(prompt for _, prompt in _prompts(request))) is not None:
        warnings.warn(said, TwigWarning, stacklevel=2)


def _source(request: GenerationRequest, height: int, width: int) -> Tensor | None:
    return None if request.source is None else _pixels(request.source, height, width)


def _pixels(picture: Picture | None, height: int, width: int) -> Tensor:
    assert picture is not None
    return to_pixels(load_picture(picture), height, width)


def _check_mask(request: GenerationRequest) -> None:
    """A mask that is brought along must be able to steer where mechanisms act."""
    mask, policy = request.mask, request.avoidance
    if mask is None or policy == Avoidance.off():
        return
    control = policy.moved_control
    inside = policy.model_copy(update={"moved_control": None}).heeds_shape
    moved = control is not None and control.warp != Warp.NONE
    if not (moved or inside):
        warnings.warn(
            "mask: no mechanism of this request's avoidance keeps away from a mask, so that pictures are only measured "
            "inside it; moved_control, masked_noise, masked_attention and initial_noise.resample do",
            TwigWarning,
            stacklevel=2,
        )
        return
    if not mask.any():
        raise InvalidRequestError(
            "mask marks nothing to keep away from: make a part of it true (white), or leave it out"
        )
    if mask.all() and not inside:
        raise InvalidRequestError(
            "mask marks the whole picture, which leaves no place to go to: make a part of it false (black)"
        )
