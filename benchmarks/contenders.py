"""Those who race: the plain reference, diffusers' pipelines batched per call, and the engine under each policy.

A contender takes a list of requests and returns a picture (H, W, 3) uint8 for each. All of them do the same work
(draft, segment, move, final, score) on the same weights, and are timed only while their pictures agree.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from diffusers import StableDiffusionControlNetPipeline, StableDiffusionPipeline
from torch import Tensor

from ..engine.api.request import GenerationRequest
from ..engine.api.settings import Stage
from ..engine.avoidance.placement import moved_labels
from ..engine.batching.carried import attempt_seed
from ..engine.batching.scheduler import ContinuousPolicy, Limits, Policy, StaticPolicy
from ..engine.engine import Engine
from ..engine.models.checkpoint import Components, load
from ..engine.models.layout import Source
from .reference import pipeline as reference
from .reference.solvers import make_scheduler

Contender = Callable[[Sequence[GenerationRequest]], list[np.ndarray]]

REFERENCE, DIFFUSERS, STATIC, CONTINUOUS = "reference", "diffusers", "engine-static", "engine-continuous"
POLICIES: dict[str, Callable[[], Policy]] = {STATIC: StaticPolicy, CONTINUOUS: ContinuousPolicy}


class Disagreement(RuntimeError):  # noqa: N818
    """A contender's pictures are not the reference's, so that its time would mean nothing."""


@dataclass(frozen=True)
class Models:
    """The same weights twice: the engine puts its own attention into the networks it serves."""

    plain: Components
    served: Components
    device: str
    dtype: torch.dtype

    @classmethod
    def load(cls, source: Source | None, device: str, dtype: torch.dtype) -> Self:
        """Load both. Raises CheckpointError."""
        plain, served = (load(source, dtype=dtype, device=device) for _ in range(2))
        return cls(plain, served, device, dtype)

    def engine(self, policy: Policy, limits: Limits, **options: Any) -> Engine:
        """Return an engine, its graphs captured."""
        made = Engine(self.served, device=self.device, dtype=self.dtype, limits=limits, policy=policy, **options)
        made.warmup()
        return made


def contenders(models: Models, limits: Limits) -> dict[str, Contender]:
    """Everyone, by name; the reference comes first."""
    engines = {name: EngineContender(models.engine(policy(), limits)) for name, policy in POLICIES.items()}
    return {REFERENCE: Reference(models.plain), DIFFUSERS: DiffusersPipelines(models.plain), **engines}


@dataclass(frozen=True)
class Reference:
    """Plain PyTorch, one request at a time."""

    components: Components

    def __call__(self, requests: Sequence[GenerationRequest]) -> list[np.ndarray]:
        """One picture a request."""
        finals = [reference.generate(self.components, r, attempt_seed(r.seed, 0, 0))[1] for r in requests]
        return [to_array(final.pixels[0]) for final in finals]


@dataclass(frozen=True)
class EngineContender:
    """The engine; closed batches come as one call."""

    engine: Engine

    def __call__(self, requests: Sequence[GenerationRequest]) -> list[np.ndarray]:
        """One picture a request. Raises RuntimeError when a request failed."""
        results = self.engine.generate(requests)
        failed = [result.error for result in results if result.image is None]
        if failed:
            raise RuntimeError(f"{len(failed)} of {len(results)} requests failed, the first with: {failed[0]}")
        return [np.asarray(result.image) for result in results]


class DiffusersPipelines:
    """StableDiffusionPipeline on all drafts, then StableDiffusionControlNetPipeline on all finals.

    One call has one step count, guidance scale and ControlNet window for the whole batch: requests that differ in
    them, or that delay guidance, are refused.
    """

    def __init__(self, components: Components) -> None:
        self.components = components

    def __call__(self, requests: Sequence[GenerationRequest]) -> list[np.ndarray]:
        """One picture a request, each scored by SSIM to its draft as the reference does."""
        first = requests[0]
        alike = all((r.draft, r.final, r.avoidance) == (first.draft, first.final, first.avoidance) for r in requests)
        if not alike or first.avoidance.moved_control is None or first.avoidance.delayed_guidance is not None:
            raise ValueError("a pipeline call has one setting for its batch, moves a map and cannot delay guidance")
        drafts = self._draft(requests)
        finals = self._final(requests, drafts)
        for final, draft in zip(finals, drafts, strict=True):
            reference.ssim(final[None], draft[None])
        return [to_array(pixels) for pixels in finals]

    def drafts(self, requests: Sequence[GenerationRequest]) -> list[np.ndarray]:
        """Text to image alone, one picture a request."""
        return [to_array(pixels) for pixels in self._draft(requests)]

    def _draft(self, requests: Sequence[GenerationRequest]) -> Tensor:
        pipeline = self._pipeline(StableDiffusionPipeline, requests[0].draft)
        stage, noise = requests[0].draft, self._noise(requests, [r.seed for r in requests])
        return pipeline(**self._common(requests, noise), **_stage(stage)).images.float()

    def _final(self, requests: Sequence[GenerationRequest], drafts: Tensor) -> Tensor:
        parts, seeds = self.components, [attempt_seed(r.seed, 0, 0) for r in requests]
        segmenter, control = parts.segmenter, requests[0].avoidance.moved_control
        assert segmenter is not None
        assert control is not None
        steps = requests[0].final.steps
        labels = segmenter(drafts).cpu().numpy()
        moved = [moved_labels(m, segmenter.background, control, seed=s) for m, s in zip(labels, seeds, strict=True)]
        hints = torch.from_numpy(segmenter.palette[np.stack(moved)]).permute(0, 3, 1, 2).float() / 255
        pipeline = self._pipeline(StableDiffusionControlNetPipeline, requests[0].final, controlnet=parts.controlnet)
        return pipeline(
            **self._common(requests, self._noise(requests, seeds)),
            **_stage(requests[0].final),
            image=hints.to(parts.unet.device, parts.unet.dtype),
            controlnet_conditioning_scale=control.scale,
            control_guidance_start=control.start,
            # Diffusers rounds a window that ends within a step down, twig up.
            control_guidance_end=math.ceil(control.stop * steps) / steps,
        ).images.float()

    def _pipeline(self, cls: Any, stage: Stage, **parts: Any) -> Any:
        c = self.components
        solver = c.sampler.settled(stage).solver
        assert solver is not None
        made = cls(
            vae=c.vae, text_encoder=c.text_encoder, tokenizer=c.tokenizer, unet=c.unet,
            scheduler=make_scheduler(solver, c.scheduler), safety_checker=None, feature_extractor=None,
            requires_safety_checker=False, **parts,
        )  # fmt: skip
        made.set_progress_bar_config(disable=True)
        return made

    def _noise(self, requests: Sequence[GenerationRequest], seeds: Sequence[int]) -> Tensor:
        noises = [reference.initial_noise(self.components, r, s) for r, s in zip(requests, seeds, strict=True)]
        return torch.cat(noises).to(self.components.unet.dtype)

    def _common(self, requests: Sequence[GenerationRequest], noise: Tensor) -> dict[str, Any]:
        height, width = reference.image_size(self.components, requests[0])
        prompts, negatives = [r.prompt for r in requests], [r.negative_prompt for r in requests]
        common = {"prompt": prompts, "negative_prompt": negatives, "latents": noise, "output_type": "pt"}
        return {**common, "height": height, "width": width}


def _stage(stage: Stage) -> dict[str, Any]:
    return {"num_inference_steps": stage.steps, "guidance_scale": stage.guidance_scale}


def to_array(pixels: Tensor) -> np.ndarray:
    """Pixels (3, H, W) in [0, 1] -> (H, W, 3) uint8."""
    return (pixels.permute(1, 2, 0).cpu().numpy() * 255).round().astype(np.uint8)


def quality(pictures: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> dict[str, float]:
    """How close `pictures` are to the reference's: lowest and mean SSIM, and the largest difference of 255 levels."""
    pairs = list(zip(pictures, expected, strict=True))
    similarities = [float(reference.ssim(_pixels(a), _pixels(b))) for a, b in pairs]
    largest = max(int(np.abs(a.astype(np.int16) - b).max()) for a, b in pairs)
    return {"ssim_lowest": min(similarities), "ssim_mean": float(np.mean(similarities)), "largest_difference": largest}


def _pixels(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255


def gate(
    contenders: dict[str, Contender], requests: Sequence[GenerationRequest], least_ssim: float
) -> dict[str, dict[str, float]]:
    """Quality of everyone's pictures, or Disagreement where one falls below `least_ssim`."""
    expected = contenders[REFERENCE](requests)
    found = {name: quality(contender(requests), expected) for name, contender in contenders.items()}
    worst = min(found, key=lambda name: found[name]["ssim_lowest"])
    if found[worst]["ssim_lowest"] < least_ssim:
        raise Disagreement(
            f"nothing is timed: a picture of {worst} has SSIM {found[worst]['ssim_lowest']:.4f} to the reference's, "
            f"and {least_ssim} is the least that counts as the same"
        )
    return found
