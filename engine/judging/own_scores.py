"""What an exact copy of a work scores against it: less than 1 where the autoencoder does not give the work back."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..api.calibration import Calibration
from ..api.metrics import METRICS
from ..models.components import Components
from .descriptors import descriptors
from .similarity import measure
from .works import shapes

OWN = "ssim_aligned"
"""The measure by which works' own scores are told in one number."""

_CHUNK = 16
_USUAL = {OWN: 0.6}


def self_scores(components: Components, pixels: Tensor, latents: Tensor, *, kept: bool) -> list[dict[str, float]]:
    """What an exact copy of each work scores at least, by each measure in which a copy scores high.

    A work has two exact copies: its own picture, and the best that the model can draw of it, which is what its latents
    decode to. Whichever of them the work is not compared with as (`kept`: as its picture, else as decoded) scores
    less. pixels (B, 3, H, W) in [0, 1]; latents (B, C, h, w). The work's shape is what the model's segmenter finds.
    """
    parts = zip(pixels.split(_CHUNK), latents.split(_CHUNK), strict=True)
    return [scores for part in parts for scores in _self_scores(components, *part, kept=kept)]


def _self_scores(components: Components, pixels: Tensor, latents: Tensor, *, kept: bool) -> list[dict[str, float]]:
    drawn = decode(components, latents)
    copies, works = (drawn, pixels) if kept else (pixels, drawn)
    values = measure(copies, works, shapes(works, components.segmenter))
    similar = {name: value for name, value in values.items() if METRICS[name].direction == "similarity"}
    similar["descriptor"] = (descriptors(drawn) * descriptors(pixels)).sum(1)
    return [{name: round(float(value[i]), 6) for name, value in similar.items()} for i in range(len(pixels))]


@torch.inference_mode()
def decode(components: Components, latents: Tensor) -> Tensor:
    """Latents (B, C, h, w), scaled as a UNet takes them -> pixels (B, 3, H, W) float32 in [0, 1] on the CPU."""
    vae = components.vae
    scaled = latents / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
    decoded = vae.decode(scaled.to(next(vae.parameters())), return_dict=False)[0]
    return (decoded.float() / 2 + 0.5).clamp(0, 1).cpu().clone()


def usual_limits(calibration: Calibration | None) -> dict[str, float]:
    """Limits that rules on registered works usually set: a fixed one, and a model's calibrated ones of similarity."""
    calibrated = calibration.limits if calibration is not None else {}
    similar = {name: limit for name, limit in calibrated.items() if name in METRICS}
    return _USUAL | {name: limit for name, limit in similar.items() if METRICS[name].direction == "similarity"}


def missed(own: Mapping[str, float], limits: Mapping[str, float]) -> list[str]:
    """Which of `limits` an exact copy may keep of a work with scores `own`, in words; none where these are unknown."""
    kept = [name for name, limit in limits.items() if own.get(name, math.inf) <= limit]
    return [f"{name} {own[name]:.3f} (limit {limits[name]:.3g})" for name in kept]
