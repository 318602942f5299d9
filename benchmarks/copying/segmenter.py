"""Training of the test bed's segmenter: a small SegFormer over the eight classes."""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor, nn
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from .autoencoder import to_tensor
from .data import Pool, build_pool
from .scenes import CLASSES, SIZE
from .training import Run, Schedule, autocast

PALETTE = (
    (0, 0, 0),
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (255, 255, 0),
    (255, 0, 255),
    (0, 255, 255),
    (255, 255, 255),
    (128, 128, 128),
)
"""Colour of each label in a control image, background first."""

_HELD_OUT = 512


def build_segmenter() -> SegformerForSemanticSegmentation:
    """Return an untrained SegFormer whose logits have half the picture's resolution."""
    labels = ("background", *CLASSES)
    config = SegformerConfig(
        depths=[1, 1, 2, 1],
        hidden_sizes=[32, 48, 96, 128],
        num_attention_heads=[1, 2, 4, 4],
        sr_ratios=[8, 4, 2, 1],
        strides=[2, 2, 2, 2],
        patch_sizes=[7, 3, 3, 3],
        mlp_ratios=[2, 2, 2, 2],
        decoder_hidden_size=96,
        drop_path_rate=0.0,
        classifier_dropout_prob=0.0,
        id2label=dict(enumerate(labels)),
        label2id={name: i for i, name in enumerate(labels)},
        palette=[list(colour) for colour in PALETTE],
    )
    return SegformerForSemanticSegmentation(config)


def train_segmenter(folder: Path, steps: int, device: str) -> None:
    """Train into `folder/segmenter`, on scenes as drawn and as the autoencoder returns them from noisy latents."""
    vae = AutoencoderTiny.from_pretrained(folder / "vae").to(device).eval()
    pool = build_pool(duplicated=False)
    model = build_segmenter().to(device)

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng((17, step))
        chosen = rng.integers(_HELD_OUT, len(pool.pixels), size=32)
        pixels = to_tensor(pool.pixels[chosen], device)
        torch.manual_seed(step)
        with autocast(device):
            pixels[::2] = _decoded(vae, pixels[::2]).float()
            logits = model(pixels).logits
        target = torch.from_numpy(pool.labels[chosen]).to(device).long()
        return F.cross_entropy(upsample(logits), target)

    def evaluate(model: nn.Module) -> dict[str, float]:
        return {"miou": mean_iou(model, pool, device)}

    Run(folder / "runs/segmenter", model, Schedule(steps, 1.5e-3), loss, evaluate=evaluate).run()
    model.save_pretrained(folder / "segmenter")
    preprocessing = {
        "image_processor_type": "SegformerImageProcessor",
        "do_resize": True,
        "size": {"height": SIZE, "width": SIZE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    path = folder / "segmenter/preprocessor_config.json"
    path.write_text(json.dumps(preprocessing, indent=2) + "\n")


@torch.no_grad()
def _decoded(vae: AutoencoderTiny, pixels: Tensor) -> Tensor:
    """Send pictures through the autoencoder with a random amount of latent noise, up to 0.4."""
    latent = vae.encoder(pixels)
    noise = torch.randn_like(latent) * torch.rand(len(latent), 1, 1, 1) * 0.4
    return vae.decoder(latent + noise).clamp(-1, 1)


def upsample(logits: Tensor) -> Tensor:
    """Logits (B, L, h, w) -> (B, L, 64, 64) float32."""
    return F.interpolate(logits.float(), (SIZE, SIZE), mode="bilinear", align_corners=False)


@torch.no_grad()
def mean_iou(model: nn.Module, pool: Pool, device: str) -> float:
    """Mean intersection over union of all labels on the first 512 scenes, which are never trained on."""
    model.eval()
    inter, union = np.zeros(len(PALETTE)), np.zeros(len(PALETTE))
    for start in range(0, _HELD_OUT, 64):
        batch = slice(start, start + 64)
        found = upsample(model(to_tensor(pool.pixels[batch], device)).logits).argmax(1).cpu().numpy()
        for label in range(len(PALETTE)):
            a, b = found == label, pool.labels[batch] == label
            inter[label] += (a & b).sum()
            union[label] += (a | b).sum()
    model.train()
    return float((inter / union.clip(1)).mean())
