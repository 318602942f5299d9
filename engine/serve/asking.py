"""From a body to a request of the engine: every field by name, within the operator's limits and the key's."""

import secrets
from typing import Any

import numpy as np
from pydantic import ValidationError

from ..api.choices import Preset, Rhythm
from ..api.presets import BUNDLES
from ..api.reading import shown
from ..api.request import Control, Gate, GenerationRequest
from ..api.settings import Stage
from ..engine import Engine
from .bodies import ImageBody, TwigOptions
from .config import Bounds, ServeConfig
from .errors import ApiError, wrong_field
from .keys import Key
from .tightening import policy_for, preset_for, presets_from
from .uploads import Uploads, control_image, scaled


class Asking:
    """Makes requests. size: the model's own (height, width). calibrated: whether it has limits of its own."""

    def __init__(self, config: ServeConfig, size: tuple[int, int], calibrated: bool) -> None:
        self.config, self.size, self.calibrated = config, size, calibrated

    @classmethod
    def over(cls, engine: Engine, config: ServeConfig) -> "Asking":
        """What makes requests of this engine. config: a view of one model."""
        components = engine.components
        calibrated = components.calibration is not None and bool(components.calibration.limits)
        return cls(config, components.size, calibrated)

    def request(self, body: ImageBody, key: Key, brought: Uploads | None = None) -> GenerationRequest:
        """The request that a body stands for. Raises ApiError naming the field that asks for too much.

        Which model is asked is chosen already; what it cannot serve of it, the engine's own door says.
        """
        self._check_adapters(body.twig)
        _check_bounds(body, self.config.bounds, key)
        _check_shown(body, self.config.bounds, drafted=brought is None)
        options, (width, height) = body.twig, body.sides
        stage = self._stage(options)
        tightened = self._tightened(options, stage)
        _check_preset(tightened["gate"], brought, self.config.drawing.preset)
        return _checked(
            prompt=body.prompt,
            negative_prompt=options.negative_prompt,
            prompt_syntax=options.prompt_syntax,
            clip_skip=options.clip_skip,
            seed=secrets.randbits(63) if options.seed is None else options.seed,
            width=width,
            height=height,
            num_images=body.n or 1,
            source=None if brought is None else brought.photo,
            mask=None if brought is None or brought.mask is None else self._mask(brought.mask, width, height),
            controls=self._controls(options),
            priority=min(0, key.priority) if options.priority is None else options.priority,
            timeout=options.deadline or self.config.bounds.deadline,
            preview=_preview(body, stage.steps, drafts=1 if brought is None else 0),
            explain=options.explain,
            **tightened,
        )

    def _controls(self, options: TwigOptions) -> tuple[Control, ...]:
        """Control images, decoded within the operator's bounds."""
        most = self.config.bounds.upload_pixels
        return tuple(
            Control(**each.model_dump(exclude={"image"}), image=control_image(each.image, most))
            for each in options.controls
        )

    def _stage(self, options: TwigOptions) -> Stage:
        drawing, (start, stop) = self.config.drawing, options.guidance_interval or (0.0, 1.0)
        rescale = options.guidance_rescale
        return Stage(
            steps=options.steps or min(drawing.steps, self.config.bounds.steps),
            guidance_scale=drawing.guidance if options.guidance is None else options.guidance,
            guidance_start=start,
            guidance_stop=stop,
            guidance_rescale=drawing.guidance_rescale if rescale is None else rescale,
            solver=options.solver or drawing.solver,
            lora=options.lora,
            spacing=options.spacing or drawing.spacing,
            sigmas=options.sigmas or drawing.sigmas,
            eta=options.eta,
            cache_interval=options.cache_interval or 1,
            cache_rhythm=options.cache_rhythm or Rhythm.EVEN,
        )

    def _tightened(self, options: TwigOptions, stage: Stage) -> dict[str, Any]:
        """The fields that say how much is avoided, from what draft, and what is refused."""
        drawing = self.config.drawing
        preset = preset_for(options.preset, drawing.preset)
        bundle, calibrated = BUNDLES[preset], self.calibrated
        return {
            **bundle.stages(stage, options.own_draft, self._said(options)),
            "avoidance": bundle.avoidance,
            "gate": None if options.always else bundle.gate,
            "similarity": policy_for(options.rule, options.retries, drawing.rule, preset, calibrated=calibrated),
        }

    def _said(self, options: TwigOptions) -> list[str]:
        """Fields of a stage that a preset leaves as they are: what the client asks for, and the operator's solver."""
        asked = {
            "steps": options.steps,
            "solver": options.solver or self.config.drawing.solver,
            "guidance_stop": options.guidance_interval,
            "cache_interval": options.cache_interval,
        }
        return [name for name, value in asked.items() if value is not None]

    def _check_adapters(self, options: TwigOptions) -> None:
        served = sorted(self.config.model.adapters)
        for field, chosen in (("twig.lora", options.lora), ("twig.draft_lora", options.draft_lora or {})):
            if strange := sorted(chosen.keys() - set(served)):
                there = f"there is {', '.join(served)}" if served else "there are none"
                message = f"{field}: the adapter {shown(repr(strange[0]))} does not exist here; {there}"
                raise ApiError(400, "adapter_not_found", message, param=field)

    def _mask(self, mask: np.ndarray, width: int | None, height: int | None) -> np.ndarray:
        own_height, own_width = self.size
        return scaled(mask, width or own_width, height or own_height)


def _checked(**fields: Any) -> GenerationRequest:
    try:
        return GenerationRequest(**fields)
    except ValidationError as error:
        raise wrong_field(error) from error


def _check_preset(gate: Gate | None, brought: Uploads | None, operators: Preset) -> None:
    """A photo takes a draft's place, which the plain preset has none of."""
    if brought is not None and gate is not None and gate.shut:
        served = ", ".join(preset for preset in presets_from(operators) if preset is not Preset.PLAIN)
        message = f"twig.preset: plain draws what a prompt says, and nothing of a photo; for edits there are {served}"
        raise ApiError(400, "preset_without_edits", message, param="twig.preset")


def _check_bounds(body: ImageBody, bounds: Bounds, key: Key) -> None:
    options = body.twig
    _at_most("n", body.n or 1, bounds.images)
    _at_most("twig.steps", options.steps or 1, bounds.steps)
    _at_most("twig.deadline", options.deadline or 0, bounds.deadline)
    width, height = body.sides
    _at_most("size", (width or 1) * (height or 1), bounds.pixels, "pixels")
    if options.controls and not bounds.controls:
        message = "twig.controls: this server takes no control images"
        raise ApiError(403, "controls_not_taken", message, param="twig.controls")
    if options.priority is not None and options.priority > key.priority:
        message = f"twig.priority: {options.priority} is above this key's {key.priority}"
        raise ApiError(403, "priority_too_high", message, param="twig.priority")


def _check_shown(body: ImageBody, bounds: Bounds, *, drafted: bool) -> None:
    """Drafts and their shapes may be kept back; the mask of a photo is the client's own."""
    options = body.twig
    asked = options.draft or options.explain or options.sheet or (options.mask and drafted) or body.partial_images
    if asked and not bounds.drafts:
        fields = "twig.draft, twig.explain, twig.sheet, partial_images, and twig.mask unless the draft is a photo"
        message = f"this server shows neither drafts nor previews: leave out {fields}"
        raise ApiError(403, "drafts_not_shown", message)


def _at_most(field: str, value: float, most: float, unit: str = "") -> None:
    if value > most:
        message = f"{field}: {value:.12g} {unit}".rstrip() + f" exceed this server's {most:.12g}"
        raise ApiError(400, "limit_exceeded", message, param=field)


def _preview(body: ImageBody, steps: int, drafts: int) -> int:
    """Every how many steps a preview is due, that as many come of the final as the draft leaves to be shown."""
    wanted = max(0, (body.partial_images or 0) - drafts)
    return max(1, steps // (wanted + 1)) if wanted else 0
