"""Two-step generation in plain PyTorch: one request at a time, with diffusers' own networks and schedulers.

    draft -> decode -> segment -> mask -> final under the avoidance policy -> decode -> SSIM

The oracle of the engine's tests and the baseline of its benchmarks: no slots, no batching, no caches. It shares with
the engine the request, the pure functions that turn a label map into masks, moved labels and token vectors, and the
counter-based noise; the solvers are diffusers', and every formula of a step is written out here once more.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from skimage.metrics import structural_similarity
from torch import Tensor
from transformers import CLIPTokenizer

from ...engine.api.mechanisms import Avoidance, InitialNoise, MaskedAttention, MovedControl, Repulsion
from ...engine.api.request import GenerationRequest
from ...engine.api.settings import Stage
from ...engine.avoidance.conditioning import avoidance_mask, moved_labels, token_vectors, transition_point
from ...engine.avoidance.initial_noise import resampled_noise
from ...engine.models.checkpoint import Components
from ...engine.models.pictures import load_picture, to_pixels
from .attention import AttentionRule
from .solvers import Scheduler, make_scheduler, masked_noise, moved_output, predicted_noise, predicted_x0, step


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
class Steering:
    """What acts on a denoising run beside its prompt: the policy, the mask (H, W) in [0, 1], and the control images
    (1, 3, H, W) of the moved and of the draft's own labels, latents (K, C, h, w) of protected works, and the
    attention (T,) that tokens drew in the draft; listens: whether a draft is to find that out."""

    policy: Avoidance
    mask: Tensor | None = None
    hint: Tensor | None = None
    own_hint: Tensor | None = None
    protected: Tensor | None = None
    masses: Tensor | None = None
    listens: bool = False


@dataclass(frozen=True)
class Text:
    """A prompt as the networks read it: states (1, T, D), and in SDXL pooled text (1, P) and sizes (1, 6) by name."""

    states: Tensor
    added: dict[str, Tensor] = field(default_factory=dict)


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
        control_labels = moved_labels(drafted.labels, segmenter.background, policy.moved_control, seed=noise_seed)
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
    scheduler = make_scheduler(stage.solver, components.scheduler)
    scheduler.set_timesteps(stage.steps, device=unet.device)
    x = starting_noise(components, request, seed, steering) * scheduler.init_noise_sigma
    x = sharpened_noise(components, scheduler, x, texts, policy.initial_noise)
    rule = attention_rule(components, request, stage, steering)
    with rule.installed(unet, x.shape[2:]) if rule else nullcontext():
        for i, t in enumerate(scheduler.timesteps):

            def predict(
                branches: Sequence[str], hint: Tensor | None, x: Tensor = x, i: int = i, t: Tensor = t
            ) -> Tensor:
                z = scheduler.scale_model_input(torch.cat([x] * len(branches)), t).to(unet.dtype)
                text = conditions([texts[branch] for branch in branches])
                if rule:
                    rule.at(i, branches)
                down, mid = control(components, i, stage, policy.moved_control, branches, hint, z, t, text)
                residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
                return unet(z, t, **text, **residuals).sample.float()

            branches = branches_at(i, stage, policy)
            outputs = predict(branches, steering.hint)
            if notes is not None and len(branches) == 2:
                noises = [predicted_noise(scheduler, i, output, x) for output in outputs]
                notes.magnitudes.append(float((noises[1] - noises[0]).square().mean().sqrt()))
            output = guide(outputs, stage.guidance_scale)
            if negative_at(i, stage, policy):
                output = output + negative_guidance(steering, branches[-1:], predict, outputs[-1:])
            if policy.repulsion is not None and policy.repulsion.active(i, stage.steps):
                push = repulsion(predicted_x0(scheduler, i, output, x), steering.protected, policy.repulsion)
                output = moved_output(scheduler, i, output, push)
            x0 = predicted_x0(scheduler, i, output, x)
            x = step(scheduler, i, t, output, x, seed)
            if policy.masked_noise is not None and policy.masked_noise.active(i, stage.steps):
                x = masked_noise(scheduler, i, x, x0, steering.mask, policy.masked_noise, seed)
    if notes is not None and rule:
        notes.masses.extend(rule.masses)
    return x


def image_size(components: Components, request: GenerationRequest) -> tuple[int, int]:
    """Height and width in pixels."""
    height, width = components.size
    return request.height or height, request.width or width


def initial_noise(components: Components, request: GenerationRequest, seed: int) -> Tensor:
    """Unit noise (1, C, h, w), as diffusers' pipelines draw it from a CPU generator."""
    height, width = (side // components.vae_scale_factor for side in image_size(components, request))
    generator = torch.Generator("cpu").manual_seed(seed)
    noise = torch.randn((1, components.unet.config.in_channels, height, width), generator=generator)
    return noise.to(components.unet.device)


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


def encode(components: Components, request: GenerationRequest, branch: str) -> Text:
    """What the networks read of a branch's prompt."""
    prompt = request.prompt if branch == "conditional" else request.negative_prompt
    ids = [token_ids(components, prompt, tokenizer).to(components.unet.device) for tokenizer in components.tokenizers]
    if components.text_encoder_2 is None:
        return Text(components.text_encoder(ids[0])[0])
    encoders = zip(components.text_encoders, ids, strict=True)
    outputs = [encoder(its_ids, output_hidden_states=True) for encoder, its_ids in encoders]
    states, pooled = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1), outputs[1].text_embeds
    if components.zero_empty and branch == "unconditional" and not prompt:
        states, pooled = torch.zeros_like(states), torch.zeros_like(pooled)
    sizes = torch.tensor([request.framing.sizes(*image_size(components, request))], device=states.device)
    return Text(states, {"text_embeds": pooled, "time_ids": sizes})


def conditions(texts: Sequence[Text]) -> dict[str, Any]:
    """Arguments of a network for rows of `texts`."""
    added = {name: torch.cat([text.added[name] for text in texts]) for name in texts[0].added}
    return {"encoder_hidden_states": torch.cat([text.states for text in texts]), "added_cond_kwargs": added}


def token_ids(components: Components, prompt: str, tokenizer: CLIPTokenizer) -> Tensor:
    """Prompt -> token ids (1, T), padded."""
    return tokenizer(
        prompt, padding="max_length", max_length=components.max_tokens, truncation=True, return_tensors="pt"
    ).input_ids


def decode(components: Components, latent: Tensor) -> Tensor:
    """Latent (1, C, h, w) -> pixels (1, 3, H, W) in [0, 1]."""
    vae = components.vae
    decoded = vae.decode((latent / vae.config.scaling_factor).to(vae.dtype)).sample
    return (decoded.float() / 2 + 0.5).clamp(0, 1)


def ssim(a: Tensor, b: Tensor) -> float:
    """Structural similarity with Gaussian windows of deviation 1.5 (Wang et al., IEEE TIP 2004)."""
    first, second = (pixels[0].permute(1, 2, 0).cpu().numpy() for pixels in (a, b))
    return structural_similarity(
        first, second, channel_axis=2, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )


def branches_at(i: int, stage: Stage, policy: Avoidance) -> tuple[str, ...]:
    """Branches that step `i` evaluates: one while guidance is delayed (Jain et al., CVPR 2025) or its scale is 1."""
    if policy.delayed_guidance is not None and policy.delayed_guidance.active(i, stage.steps):
        return (policy.delayed_guidance.branch,)
    return ("conditional",) if stage.guidance_scale == 1 else ("unconditional", "conditional")


def guide(outputs: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance of both branches (2, C, h, w); a single branch as it is."""
    if len(outputs) == 1:
        return outputs
    unconditional, conditional = outputs.chunk(2)
    return unconditional + scale * (conditional - unconditional)


def repulsion(x0: Tensor, protected: Tensor | None, policy: Repulsion) -> Tensor:
    """How far SPELL (Kirchhof et al., ICML 2025) pushes x0 (1, C, h, w), work by work."""
    assert protected is not None
    push = torch.zeros_like(x0)
    for work in protected:
        away = x0 - work
        distance = float(away.square().mean().sqrt())
        push += policy.strength * max(policy.radius / distance - 1, 0) * away
    return push


def negative_at(i: int, stage: Stage, policy: Avoidance) -> bool:
    """Whether step `i` turns away from the draft's own shape: where its last branch is controlled."""
    control = policy.moved_control
    if control is None or not control.negative or not control.active(i, stage.steps):
        return False
    return control.rows == "both" or branches_at(i, stage, policy)[-1] == "conditional"


def negative_guidance(
    steering: Steering,
    branch: Sequence[str],
    predict: Callable[[Sequence[str], Tensor | None], Tensor],
    moved: Tensor,
) -> Tensor:
    """r (eps(k+) - eps(k-)), k- being the draft's own shape; with eps of no control in place of eps(k+) if so asked."""
    policy = steering.policy.moved_control
    assert policy is not None
    better = moved if policy.negative_against == "moved" else predict(branch, None)
    return policy.negative * (better - predict(branch, steering.own_hint))


def control(
    components: Components,
    i: int,
    stage: Stage,
    policy: MovedControl | None,
    branches: Sequence[str],
    hint: Tensor | None,
    z: Tensor,
    t: Tensor,
    text: dict[str, Any],
) -> tuple[list[Tensor] | None, Tensor | None]:
    """ControlNet's residuals for the skip connections and the middle, or None outside its window."""
    if policy is None or hint is None or not policy.active(i, stage.steps):
        return None, None
    assert components.controlnet is not None, "moved control needs a ControlNet"
    down, mid = components.controlnet(
        z, t, controlnet_cond=torch.cat([hint] * len(branches)).to(z), conditioning_scale=policy.scale,
        return_dict=False, **text,
    )  # fmt: skip
    controlled = torch.tensor([policy.rows == "both" or branch == "conditional" for branch in branches])
    keep = controlled.to(z).view(-1, 1, 1, 1)
    return [residual * keep for residual in down], mid * keep


def attention_rule(
    components: Components, request: GenerationRequest, stage: Stage, steering: Steering
) -> AttentionRule | None:
    """The masked attention of this run, or None where the policy has none."""
    policy, ids = steering.policy.masked_attention, token_ids(components, request.prompt, components.tokenizer)[0]
    if steering.listens:
        nowhere = torch.zeros(image_size(components, request), device=components.unet.device)
        silent = MaskedAttention(tokens=())
        return AttentionRule(silent, stage.steps, nowhere, token_vectors(silent, ids, components.tokenizer).to(nowhere))
    if policy is None:
        return None
    assert steering.mask is not None
    tokens = token_vectors(policy, ids, components.tokenizer, steering.masses)
    return AttentionRule(policy, stage.steps, steering.mask, tokens.to(steering.mask))
