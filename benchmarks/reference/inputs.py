"""What a run starts from and ends in: prompts as text states, noise of a seed, pictures of latents."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from ...engine.api.request import GenerationRequest
from ...engine.models.checkpoint import Components


@dataclass(frozen=True)
class Text:
    """A prompt as the networks read it: states (1, T, D), and in SDXL pooled text (1, P) and sizes (1, 6) by name."""

    states: Tensor
    added: dict[str, Tensor] = field(default_factory=dict)


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
