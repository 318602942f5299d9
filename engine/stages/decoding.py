"""Latents to pixels, and pixels to labels."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..backends.networks import Networks
from ..models.checkpoint import Components
from ..models.tensors import Network


class Decoder:
    """The autoencoder's decoder and the segmenter of a checkpoint, on whatever backend runs them."""

    def __init__(self, components: Components, networks: Networks) -> None:
        self.components = components
        self.networks = networks

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> pixels (B, 3, H, W) float32 in [0, 1]."""
        vae = self.components.vae
        scaled = latents / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
        (decoded,) = self.networks(Network.VAE_DECODER, [scaled.to(vae.dtype)])
        return (decoded.float() / 2 + 0.5).clamp(0, 1)

    def labels(self, pixels: Tensor) -> Tensor | None:
        """Labels (B, H, W) of pictures, None without a segmenter."""
        segmenter = self.components.segmenter
        return None if segmenter is None else segmenter(pixels, self._scores)

    @torch.inference_mode()
    def rehearse(self, shape: tuple[int, int], pictures: int) -> None:
        """Decode and segment so many pictures of a latent shape (height, width), as a batch between steps does."""
        channels, device = self.components.unet.config.in_channels, self.networks.device
        self.labels(self.decode(torch.zeros(pictures, channels, *shape, device=device)))

    def _scores(self, pixels: Tensor) -> Tensor:
        """Score of each label, from pixels as the segmenter sees them."""
        return self.networks(Network.SEGMENTER, [pixels])[0]


def to_picture(pixels: Tensor) -> Image.Image:
    """Pixels (3, H, W) in [0, 1] -> 8-bit RGB."""
    array = (pixels.permute(1, 2, 0).cpu().numpy() * 255).round().astype(np.uint8)
    return Image.fromarray(array)
