"""What a run starts from and ends in: prompts as text states, noise of a seed, pictures of latents."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTokenizer

from ...engine.api.request import GenerationRequest
from ...engine.models.checkpoint import Components
from ...engine.models.prompts import Chunk, chunked, weighted


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


def encode(components: Components, request: GenerationRequest, branch: str, words: str | None = None) -> Text:
    """What the networks read of a branch's prompt, or of other words in its place."""
    chunks = chunks_of(components, request, branch, words)
    weights = torch.tensor(
        [chunk.all_weights(components.max_tokens) for chunk in chunks], device=components.unet.device
    )
    skip = request.clip_skip if branch == "conditional" else None
    outputs = [
        encoder(token_ids(components, chunks, tokenizer).to(encoder.device), output_hidden_states=True)
        for encoder, tokenizer in zip(components.text_encoders, components.tokenizers, strict=True)
    ]
    if components.text_encoder_2 is None:
        own = outputs[0].last_hidden_state
        if skip is not None:
            own = _last_norm(components.text_encoder)(outputs[0].hidden_states[-(skip + 1)])
        return Text(_strung(weighted(own, weights)))
    last = -2 if skip is None else -(skip + 2)
    states = torch.cat([_strung(weighted(output.hidden_states[last], weights)) for output in outputs], dim=-1)
    pooled = outputs[1].text_embeds[:1]
    if components.zero_empty and branch == "unconditional" and not request.negative_prompt:
        states, pooled = torch.zeros_like(states), torch.zeros_like(pooled)
    sizes = torch.tensor([request.framing.sizes(*image_size(components, request))], device=states.device)
    return Text(states, {"text_embeds": pooled, "time_ids": sizes})


def _last_norm(encoder: nn.Module) -> nn.Module:
    return next(module for name, module in encoder.named_modules() if name.endswith("final_layer_norm"))


def _strung(states: Tensor) -> Tensor:
    """States of chunks (chunks, T, D) one after the other, (1, chunks * T, D)."""
    return states.flatten(0, 1)[None]


def conditions(texts: Sequence[Text]) -> dict[str, Any]:
    """Arguments of a network for rows of `texts`."""
    added = {name: torch.cat([text.added[name] for text in texts]) for name in texts[0].added}
    return {"encoder_hidden_states": torch.cat([text.states for text in texts]), "added_cond_kwargs": added}


def chunks_of(components: Components, request: GenerationRequest, branch: str, words: str | None = None) -> list[Chunk]:
    """Chunks of a branch's prompt, or of other words in its place, as many as the longer prompt has."""
    prompts = {"conditional": request.prompt, "unconditional": request.negative_prompt}
    count = max(len(_chunked(components, request, prompt)) for prompt in prompts.values())
    own = _chunked(components, request, prompts[branch] if words is None else words)
    return own + [Chunk()] * (count - len(own))


def _chunked(components: Components, request: GenerationRequest, text: str) -> list[Chunk]:
    return chunked(components.tokenizer, text, request.prompt_syntax, components.max_tokens)


def conditional_ids(components: Components, request: GenerationRequest, words: str | None = None) -> Tensor:
    """Token ids (T,) of all chunks of the prompt, or of other words in its place."""
    return token_ids(components, chunks_of(components, request, "conditional", words), components.tokenizer).flatten()


def token_ids(components: Components, chunks: Sequence[Chunk], tokenizer: CLIPTokenizer) -> Tensor:
    """Chunks -> token ids (chunks, T), padded."""
    return torch.tensor([chunk.padded(tokenizer, components.max_tokens) for chunk in chunks])


def decode(components: Components, latent: Tensor) -> Tensor:
    """Latent (1, C, h, w) -> pixels (1, 3, H, W) in [0, 1]."""
    vae = components.vae
    decoded = vae.decode((latent / vae.config.scaling_factor).to(vae.dtype)).sample
    return (decoded.float() / 2 + 0.5).clamp(0, 1)
