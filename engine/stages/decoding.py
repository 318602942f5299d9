"""Latents to pixels, and pixels to labels; whether a latent can be decoded at all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..api.errors import NonFiniteLatentError
from ..backends.networks import Networks
from ..batching.job import Job
from ..models.components import Components
from ..models.tensors import Network

if TYPE_CHECKING:
    from ..models.parts import Vae


class Decoder:
    """The decoders and the segmenter of a checkpoint, on whatever backend runs them."""

    def __init__(self, components: Components, networks: Networks) -> None:
        self.components = components
        self.networks = networks

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> pixels (B, 3, H, W) float32 in [0, 1]."""
        return self._decoded(Network.VAE_DECODER, self.components.vae, latents)

    def preview(self, latents: Tensor) -> Tensor:
        """What `decode` returns, or nearly: by the preview autoencoder where there is one, for pictures on the way."""
        vae = self.components.preview_vae
        if vae is None:
            return self.decode(latents)
        return self._decoded(Network.PREVIEW_DECODER, vae, latents)

    def labels(self, pixels: Tensor) -> Tensor | None:
        """Labels (B, H, W) of pictures, None without a segmenter."""
        segmenter = self.components.segmenter
        return None if segmenter is None else segmenter(pixels, self._scores)

    @torch.inference_mode()
    def rehearse(self, shape: tuple[int, int], pictures: int) -> None:
        """Decode and segment so many pictures of a latent shape (height, width), as a batch between steps does."""
        channels, device = self.components.unet.config.in_channels, self.networks.device
        self.labels(self.decode(torch.zeros(pictures, channels, *shape, device=device)))

    def _decoded(self, network: Network, vae: Vae, latents: Tensor) -> Tensor:
        """Latents by the decoder of `vae`, each with the scaling that it was trained on."""
        scaled = latents / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
        (decoded,) = self.networks(network, [scaled.to(vae.dtype)])
        return (decoded.float() / 2 + 0.5).clamp(0, 1)

    def _scores(self, pixels: Tensor) -> Tensor:
        """Score of each label, from pixels as the segmenter sees them."""
        return self.networks(Network.SEGMENTER, [pixels])[0]


def finite(latents: Tensor) -> Tensor:
    """Which latents (B, C, h, w) hold neither NaN nor infinity, (B,) bool."""
    return latents.isfinite().flatten(1).all(1)


def check_finite(jobs: Sequence[Job], flags: Iterable[bool]) -> None:
    """Raise NonFiniteLatentError for the first of `jobs` whose latent is not `finite`."""
    for job, flag in zip(jobs, flags, strict=True):
        if not flag:
            raise NonFiniteLatentError(
                f"the {job.state.value} run of request {job.id} left NaN or infinity in its latent; "
                "a lower guidance scale or another dtype may help"
            )
