"""What steers a step: branches and their guidance, control, attention rules, repulsion; every formula written out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...engine.api.mechanisms import Avoidance, MaskedAttention, MovedControl, Repulsion
from ...engine.api.request import GenerationRequest
from ...engine.api.settings import Stage
from ...engine.avoidance.conditioning import token_vectors
from ...engine.avoidance.restating import restated
from ...engine.avoidance.words import lexicon
from ...engine.models.checkpoint import Components
from .attention import AttentionRule
from .inputs import conditional_ids, image_size


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


def branches_at(i: int, stage: Stage, policy: Avoidance) -> tuple[str, ...]:
    """Branches that step `i` evaluates: one while guidance is delayed (Jain et al., CVPR 2025), or at scale 0 or 1."""
    if policy.delayed_guidance is not None and policy.delayed_guidance.active(i, stage.evaluations):
        return (policy.delayed_guidance.branch,)
    alone = {0.0: ("unconditional",), 1.0: ("conditional",)}
    return alone.get(stage.scale_at(i), ("unconditional", "conditional"))


def guide(outputs: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance of both branches (2, C, h, w); a single branch as it is."""
    if len(outputs) == 1:
        return outputs
    unconditional, conditional = outputs.chunk(2)
    return unconditional + scale * (conditional - unconditional)


def rescaled(output: Tensor, text: Tensor, share: float) -> Tensor:
    """Guided output with `share` of its deviation brought back to the text's own (Lin et al., arXiv 2305.08891)."""
    return share * output * (text.std() / output.std()) + (1 - share) * output


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
    if control is None or not control.negative or not control.active(i, stage.evaluations):
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
    if policy is None or hint is None or not policy.active(i, stage.evaluations):
        return None, None
    assert components.controlnet is not None, "moved control needs a ControlNet"
    down, mid = components.controlnet(
        z, t, controlnet_cond=torch.cat([hint] * len(branches)).to(z), conditioning_scale=policy.scale,
        return_dict=False, **text,
    )  # fmt: skip
    controlled = torch.tensor([policy.rows == "both" or branch == "conditional" for branch in branches])
    keep = controlled.to(z).view(-1, 1, 1, 1)
    return [residual * keep for residual in down], mid * keep


def restated_words(components: Components, request: GenerationRequest, policy: Avoidance) -> str | None:
    """The prompt in another order, where the policy asks for it and it can be said so."""
    if policy.restated_prompt is None or request.words != request.prompt:
        return None
    assert components.segmenter is not None, "a restated prompt needs a segmenter's labels"
    return restated(request.prompt, lexicon(components.segmenter.labels, components.segmenter.background))


def restated_tokens(components: Components, request: GenerationRequest, policy: Avoidance, words: str) -> Tensor:
    """Token vectors (5, T) of a restated prompt; positions and spikes are the prompt's own."""
    rule = policy.masked_attention
    kinds = rule if rule is not None and rule.tokens in ("words", "padding", "all") else None
    vectors = token_vectors(kinds, conditional_ids(components, request, words), components.tokenizer)
    return vectors.to(components.unet.device)


def attention_rule(
    components: Components, request: GenerationRequest, stage: Stage, steering: Steering
) -> AttentionRule | None:
    """The masked attention of this run, or None where the policy has none."""
    policy, ids = steering.policy.masked_attention, conditional_ids(components, request)
    if steering.listens:
        nowhere = torch.zeros(image_size(components, request), device=components.unet.device)
        silent = MaskedAttention(tokens=())
        tokens = token_vectors(silent, ids, components.tokenizer)
        return AttentionRule(silent, stage.evaluations, nowhere, tokens.to(nowhere))
    if policy is None:
        return None
    assert steering.mask is not None
    tokens = token_vectors(policy, ids, components.tokenizer, steering.masses)
    return AttentionRule(policy, stage.evaluations, steering.mask, tokens.to(steering.mask))
