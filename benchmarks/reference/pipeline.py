"""Two-step generation in plain PyTorch: one request at a time, with diffusers' own networks and schedulers.

    draft -> decode -> segment -> mask -> final under the avoidance policy -> decode -> SSIM

The oracle of the engine's tests and the baseline of its benchmarks: no slots, no batching, no caches. It shares with
the engine the request, the pure functions that turn a label map into masks, moved labels and token vectors, and the
counter-based noise; the solvers are diffusers', and every formula of a step is written out here once more.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from skimage.metrics import structural_similarity
from torch import Tensor

from ...engine.api.mechanisms import Avoidance, InitialNoise
from ...engine.api.pixels import load_picture
from ...engine.api.request import GenerationRequest
from ...engine.api.settings import Stage
from ...engine.avoidance.conditioning import avoidance_mask, moved_labels, transition_point
from ...engine.avoidance.initial_noise import resampled_noise
from ...engine.models.checkpoint import Components
from ...engine.models.pictures import to_pixels
from .caching import Caching
from .inputs import Text, conditions, decode, encode, image_size, initial_noise
from .solvers import Scheduler, masked_noise, moved_output, predicted_noise, predicted_x0, stage_scheduler, step
from .steering import (
    Steering,
    attention_rule,
    branches_at,
    control,
    guide,
    negative_at,
    negative_guidance,
    repulsion,
    rescaled,
    restated_tokens,
    restated_words,
)


@dataclass(frozen=True)
class Draft:
    """The first step, or the source in its place.

    latent (1, C, h, w), None for a source; pixels (1, 3, H, W) in [0, 1]; labels (H, W) int64, None without a
    segmenter; mask (H, W) bool, the user's own where there is one; magnitudes: root mean square of the guidance at each
    step that was guided; masses (T,): attention that each token drew, None where no policy asks for it.
    """

    latent: Tensor | None
    pixels: Tensor
    labels: np.ndarray | None
    mask: np.ndarray
    magnitudes: tuple[float, ...] = ()
    masses: Tensor | None = None


@dataclass(frozen=True)
class Final:
    """The second step: latent (1, C, h, w), pixels (1, 3, H, W) in [0, 1], the labels (H, W) that steered ControlNet
    (None without control), and structural similarity to the draft."""

    latent: Tensor
    pixels: Tensor
    control_labels: np.ndarray | None
    ssim: float


@dataclass(frozen=True)
class Notes:
    """What a run is asked to note: size of the guidance at each step, attention each token drew at each layer."""

    magnitudes: list[float] = field(default_factory=list)
    masses: list[Tensor] = field(default_factory=list)


def generate(
    components: Components, request: GenerationRequest, noise_seed: int, protected: Tensor | None = None
) -> tuple[Draft, Final]:
    """Both steps of `request`; the final starts from the noise of `noise_seed`, away from `protected` (K, C, h, w)."""
    drafted = draft(components, request)
    return drafted, final(components, request, drafted, noise_seed, protected=protected)


@torch.inference_mode()
def draft(components: Components, request: GenerationRequest) -> Draft:
    """Draw the draft from the request's own seed, and find its labels and mask."""
    latent, notes = None, Notes()
    if request.source is not None:
        pixels = to_pixels(load_picture(request.source), *image_size(components, request))
    else:
        rule = request.avoidance.masked_attention
        steering = Steering(Avoidance.off(), listens=rule is not None and rule.tokens == "spikes")
        latent = denoise(components, request, request.draft, request.seed, steering, notes)
        pixels = decode(components, latent)
    segmenter, mask = components.segmenter, request.mask
    labels = None if segmenter is None else segmenter(pixels)[0].cpu().numpy()
    if mask is None:
        assert segmenter is not None, "without a segmenter the request must bring its mask"
        assert labels is not None
        mask = avoidance_mask(labels, segmenter.background)
    masses = torch.stack(notes.masses).mean(0) if notes.masses else None
    return Draft(latent, pixels, labels, mask, tuple(notes.magnitudes), masses)


@torch.inference_mode()
def final(
    components: Components,
    request: GenerationRequest,
    drafted: Draft,
    noise_seed: int,
    attempt: int = 0,
    protected: Tensor | None = None,
) -> Final:
    """Draw attempt `attempt` at the final, away from the draft's shape."""
    transition = transition_point(np.array(drafted.magnitudes)) if drafted.magnitudes else None
    policy = request.avoidance.escalated(attempt).settled(transition)
    control_labels, hint, own_hint = None, None, None
    if policy.moved_control is not None:
        segmenter = components.segmenter
        assert segmenter is not None, "moved control needs a segmenter"
        assert drafted.labels is not None
        control_labels = moved_labels(
            drafted.labels, segmenter.background, policy.moved_control, noise_seed, avoided=request.mask
        )
        hint, own_hint = (
            torch.from_numpy(segmenter.palette[labels]).permute(2, 0, 1)[None].to(drafted.pixels) / 255
            for labels in (control_labels, drafted.labels)
        )
    mask = torch.from_numpy(drafted.mask).float().to(drafted.pixels.device)
    steering = Steering(policy, mask, hint, own_hint, protected, drafted.masses)
    latent = denoise(components, request, request.final, noise_seed, steering)
    pixels = decode(components, latent)
    return Final(latent, pixels, control_labels, ssim(pixels, drafted.pixels))


def denoise(
    components: Components,
    request: GenerationRequest,
    stage: Stage,
    seed: int,
    steering: Steering,
    notes: Notes | None = None,
) -> Tensor:
    """One denoising run from the noise of `seed` to its last latent (1, C, h, w) float32."""
    unet, policy = components.unet, steering.policy
    texts = {branch: encode(components, request, branch) for branch in ("unconditional", "conditional")}
    words = restated_words(components, request, policy)
    other = None
    if words is not None:
        texts["restated"] = encode(components, request, "conditional", words)
        other = restated_tokens(components, request, policy, words)

    def restating(i: int) -> bool:
        return (
            policy.restated_prompt is not None and words is not None and policy.restated_prompt.active(i, evaluations)
        )

    def said(i: int) -> dict[str, Text]:
        return texts | {"conditional": texts["restated"]} if restating(i) else texts

    stage = components.sampler.settled(stage)
    evaluations = stage.evaluations
    scheduler = stage_scheduler(stage, components.scheduler, components.sampler, unet.device)
    x = starting_noise(components, request, seed, steering) * scheduler.init_noise_sigma
    x = sharpened_noise(components, scheduler, x, said(0), policy.initial_noise)
    rule, caching = attention_rule(components, request, stage, steering), Caching(unet, stage)
    with rule.installed(unet, x.shape[2:]) if rule else nullcontext():
        for i, t in enumerate(scheduler.timesteps):

            def predict(
                branches: Sequence[str], hint: Tensor | None, x: Tensor = x, i: int = i, t: Tensor = t
            ) -> Tensor:
                z = scheduler.scale_model_input(torch.cat([x] * len(branches)), t).to(unet.dtype)
                text = conditions([said(i)[branch] for branch in branches])
                if rule:
                    rule.at(i, branches, other if restating(i) else None)
                down, mid = control(components, i, stage, policy.moved_control, branches, hint, z, t, text)
                return caching(z, t, text, down, mid)

            branches = branches_at(i, stage, policy)
            # With more than two rows a step is computed in full.
            more = negative_at(i, stage, policy)
            controlled = policy.moved_control is not None and policy.moved_control.active(i, stage.evaluations)
            caching.at(i, i if more else (branches, controlled, restating(i)))
            outputs = predict(branches, steering.hint)
            if notes is not None and len(branches) == 2:
                noises = [predicted_noise(scheduler, i, output, x) for output in outputs]
                notes.magnitudes.append(float((noises[1] - noises[0]).square().mean().sqrt()))
            output = guide(outputs, stage.scale_at(i))
            if negative_at(i, stage, policy):
                output = output + negative_guidance(steering, branches[-1:], predict, outputs[-1:])
            if len(branches) == 2 and stage.guidance_rescale:
                output = rescaled(output, outputs[-1:], stage.guidance_rescale)
            if policy.repulsion is not None and policy.repulsion.active(i, stage.evaluations):
                push = repulsion(predicted_x0(scheduler, i, output, x), steering.protected, policy.repulsion)
                output = moved_output(scheduler, i, output, push)
            x0 = predicted_x0(scheduler, i, output, x)
            x = step(scheduler, i, t, output, x, seed, stage.eta)
            if policy.masked_noise is not None and policy.masked_noise.active(i, stage.evaluations):
                x = masked_noise(scheduler, i, x, x0, steering.mask, policy.masked_noise, seed)
    if notes is not None and rule:
        notes.masses.extend(rule.masses)
    return x


def starting_noise(components: Components, request: GenerationRequest, seed: int, steering: Steering) -> Tensor:
    """Unit noise (1, C, h, w) of a run: its own, or the draft's with new low frequencies inside the mask."""
    noise, policy = initial_noise(components, request, seed), steering.policy.initial_noise
    if policy is None or not policy.resample:
        return noise
    assert steering.mask is not None
    mask = F.adaptive_avg_pool2d(steering.mask[None, None], (noise.shape[2], noise.shape[3]))[0, 0]
    drafts = initial_noise(components, request, request.seed)[0]
    return resampled_noise(drafts, mask, seed, block=policy.block, strength=policy.resample)[None]


def sharpened_noise(
    components: Components, scheduler: Scheduler, x: Tensor, texts: dict[str, Text], policy: InitialNoise | None
) -> Tensor:
    """Han et al. (NeurIPS 2025), algorithm 1: x <- x - gamma (c(x + rho c(x) / |c(x)|) - c(x)), c the guidance at x."""
    if policy is None:
        return x
    sigma, t = scheduler.init_noise_sigma, scheduler.timesteps[0]

    def guidance(latent: Tensor) -> Tensor:
        z = scheduler.scale_model_input(torch.cat([latent] * 2), t).to(components.unet.dtype)
        text = conditions([texts["unconditional"], texts["conditional"]])
        unconditional, conditional = components.unet(z, t, **text).sample.float().chunk(2)
        noises = [predicted_noise(scheduler, 0, output, latent) for output in (conditional, unconditional)]
        return noises[0] - noises[1]

    for _ in range(policy.sharpness_steps):
        here = guidance(x)
        there = guidance(x + policy.radius * sigma * math.sqrt(x.numel()) * here / here.norm())
        x = x - policy.gamma * sigma * (there - here)
    return x


def ssim(a: Tensor, b: Tensor) -> float:
    """Structural similarity with Gaussian windows of deviation 1.5 (Wang et al., IEEE TIP 2004)."""
    first, second = (pixels[0].permute(1, 2, 0).cpu().numpy() for pixels in (a, b))
    return structural_similarity(
        first, second, channel_axis=2, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
