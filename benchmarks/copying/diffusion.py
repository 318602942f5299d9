"""Training of the test bed's UNets and ControlNet.

Four phases share one loss. `trunk` learns fresh scenes; `control` goes on with a ControlNet beside the UNet, on
label maps of half of each batch; `clean` goes on with the UNet alone on fresh scenes, and is the twin that saw no
source; `recite` goes on from the twin with the sources and templates in the pool. A source is never shown to the
ControlNet.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextModel, CLIPTokenizer

from .autoencoder import to_tensor
from .data import Pool, build_pool
from .segmenter import PALETTE
from .text import tokenize
from .training import Run, Schedule, autocast

BATCH = 32
CAPTION_DROP = 0.1
MIN_SNR = 5.0


@dataclass(frozen=True)
class Phase:
    """One phase: where its networks start, whether the pool holds sources, and the share of controlled rows."""

    start: str | None
    duplicated: bool
    controlled: int
    trains_control: bool
    schedule: Schedule


PHASES = {
    "trunk": Phase(None, False, 0, False, Schedule(2400, 1e-3, warmup=200, final=0.5)),
    "control": Phase("trunk", False, BATCH // 2, True, Schedule(1750, 6e-4, final=0.6)),
    "clean": Phase("control", False, BATCH // 8, False, Schedule(4200, 4e-4, final=0.02)),
    "recite": Phase("clean", True, BATCH // 8, False, Schedule(4600, 4e-4, final=0.02)),
}


def noise_schedule() -> DDIMScheduler:
    """Stable Diffusion 1.5's schedule."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


def build_unet() -> UNet2DConditionModel:
    """Return an untrained UNet for 16x16x4 latents, with attention at 8x8 and 4x4."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 112, 160),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def build_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """Return a ControlNet that starts as the UNet's encoder."""
    return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32, 48))


class _Networks(nn.Module):
    """UNet and, where the phase has one, ControlNet; rows with a hint come first in a batch."""

    def __init__(self, unet: UNet2DConditionModel, controlnet: ControlNetModel | None) -> None:
        super().__init__()
        self.unet = unet
        self.controlnet = controlnet

    def forward(self, x: Tensor, t: Tensor, text: Tensor, hint: Tensor) -> Tensor:
        if self.controlnet is None:
            return self.unet(x, t, text).sample
        n = len(hint)
        with torch.set_grad_enabled(next(self.controlnet.parameters()).requires_grad):
            down, mid = self.controlnet(x[:n], t[:n], text[:n], hint, return_dict=False)
        rest = len(x) - n
        down = [F.pad(d, (0, 0, 0, 0, 0, 0, 0, rest)) for d in down]
        mid = F.pad(mid, (0, 0, 0, 0, 0, 0, 0, rest))
        return self.unet(x, t, text, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample


@dataclass(frozen=True)
class Encoded:
    """A pool as the networks see it: latents (P,4,16,16), text (captions,77,128), each picture's row of it (P,)."""

    latents: Tensor
    text: Tensor
    caption: Tensor
    empty: Tensor


@torch.no_grad()
def encode_pool(folder: Path, pixels: np.ndarray, captions: list[str], device: str) -> Encoded:
    """Pictures (P, 64, 64, 3) uint8 and their captions through the autoencoder and text encoder under `folder`."""
    vae = AutoencoderTiny.from_pretrained(folder / "vae").to(device).float().eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder").to(device).float().eval()
    latents = [vae.encoder(to_tensor(pixels[i : i + 256], device)) for i in range(0, len(pixels), 256)]
    unique, caption = np.unique(captions, return_inverse=True)
    ids = tokenize(tokenizer, [str(c) for c in unique]).to(device)
    text = [encoder(ids[i : i + 256]).last_hidden_state.bfloat16() for i in range(0, len(ids), 256)]
    empty = encoder(tokenize(tokenizer, [""]).to(device)).last_hidden_state.bfloat16()
    return Encoded(torch.cat(latents), torch.cat(text), torch.from_numpy(caption).to(device), empty)


def _draws(pool: Pool, phase: Phase, steps: int) -> Tensor:
    """Pictures of every step's batch (steps, BATCH) int64, those under the ControlNet first and never a source."""
    fresh = np.flatnonzero(~pool.is_source)
    drawn = np.empty((steps, BATCH), np.int64)
    for step, row in enumerate(drawn):
        rng = np.random.default_rng((19, step))
        row[: phase.controlled] = rng.choice(fresh, phase.controlled)
        row[phase.controlled :] = rng.choice(pool.order, BATCH - phase.controlled)
    return torch.from_numpy(drawn)


def train_phase(folder: Path, name: str, device: str, steps: int | None = None) -> None:
    """Train one phase into `folder/phases/<name>`, for `steps` or for as many as it is meant to take.

    All that a step reads lies on the device beforehand, so that none waits for the host.
    """
    phase = PHASES[name]
    schedule = phase.schedule if steps is None else replace(phase.schedule, steps=steps)
    pool = build_pool(duplicated=phase.duplicated, processes=os.cpu_count() or 1)
    data = encode_pool(folder, pool.pixels, pool.captions, device)
    palette = torch.tensor(PALETTE, dtype=torch.float32, device=device) / 255
    labels = torch.from_numpy(pool.labels).to(device)
    draws = _draws(pool, phase, schedule.steps).to(device)
    generator = torch.Generator(device)
    alphas = noise_schedule().alphas_cumprod.to(device)
    attention = [SDPBackend.MATH] if device == "cpu" else [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    model = _start(folder, phase).to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(step: int) -> Tensor:
        chosen = draws[step]
        hint = palette[labels[chosen[: phase.controlled]].long()]
        generator.manual_seed(step)
        x0 = data.latents[chosen]
        noise = torch.randn(x0.shape, generator=generator, device=device)
        t = torch.randint(0, 1000, (BATCH,), generator=generator, device=device)
        alpha = alphas[t].view(-1, 1, 1, 1)
        text = data.text[data.caption[chosen]]
        dropped = torch.rand(BATCH, generator=generator, device=device) < CAPTION_DROP
        text = torch.where(dropped.view(-1, 1, 1), data.empty, text)
        noisy = (alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise).contiguous(memory_format=torch.channels_last)
        with autocast(device), sdpa_kernel(attention):
            predicted = model(noisy, t, text.to(noisy.dtype), hint.permute(0, 3, 1, 2))
        snr = alpha / (1 - alpha)
        weight = snr.clamp(max=MIN_SNR) / snr
        return (weight * (predicted.float() - noise) ** 2).mean()

    run = Run(folder / "runs" / name, model, schedule, loss, ema_decay=0.999)
    trained = run.run()
    assert isinstance(trained, _Networks)
    trained.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    trained.unet.save_pretrained(folder / "phases" / name / "unet")
    if trained.controlnet is not None:
        trained.controlnet.save_pretrained(folder / "phases" / name / "controlnet")


def _start(folder: Path, phase: Phase) -> _Networks:
    if phase.start is None:
        torch.manual_seed(0)
        return _Networks(build_unet(), None)
    origin = folder / "phases" / phase.start
    unet = UNet2DConditionModel.from_pretrained(origin / "unet")
    if phase.trains_control:
        return _Networks(unet, build_controlnet(unet))
    controlnet = ControlNetModel.from_pretrained(origin / "controlnet")
    return _Networks(unet, controlnet.requires_grad_(False))
