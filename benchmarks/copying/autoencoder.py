"""Training of the test bed's autoencoder: 64x64 pictures to 16x16x4 latents of zero mean and unit variance."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor, nn

from .data import Pool, build_pool
from .training import Run, Schedule, autocast


def build_autoencoder(channels: int = 48) -> AutoencoderTiny:
    """Return an untrained autoencoder that shrinks each side fourfold."""
    vae = AutoencoderTiny(
        encoder_block_out_channels=(channels,) * 3,
        decoder_block_out_channels=(channels,) * 3,
        num_encoder_blocks=(0, 1, 3),
        num_decoder_blocks=(3, 2, 1),
        latent_channels=4,
        scaling_factor=1.0,
    )
    for module in vae.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            module.weight.data *= 0.7
    return vae


class _Normalised(nn.Module):
    """Autoencoder with its latents normalised per channel, so that diffusion's last step leaks no channel mean."""

    def __init__(self, vae: AutoencoderTiny) -> None:
        super().__init__()
        self.vae = vae
        self.norm = nn.BatchNorm2d(vae.config.latent_channels, affine=False, momentum=0.02)

    def forward(self, pixels: Tensor, noise: Tensor) -> Tensor:
        latent = self.norm(self.vae.encoder(pixels).float())
        return self.vae.decoder(latent + noise).float()

    def fold(self) -> AutoencoderTiny:
        """Move the normalisation into the encoder's last convolution and return the autoencoder."""
        last = self.vae.encoder.layers[-1]
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        assert self.norm.running_mean is not None
        assert self.norm.running_var is not None
        scale = (self.norm.running_var + self.norm.eps).rsqrt()
        last.weight.data *= scale.view(-1, 1, 1, 1)
        last.bias.data = (last.bias.data - self.norm.running_mean) * scale
        return self.vae


def train_autoencoder(folder: Path, steps: int, device: str) -> None:
    """Train into `folder/vae`. Loss: squared and absolute error, plus absolute error of the gradients."""
    pool = build_pool(duplicated=False)
    model = _Normalised(build_autoencoder()).to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng((11, step))
        pixels = to_tensor(pool.pixels[rng.integers(len(pool.pixels), size=32)], device)
        torch.manual_seed(step)
        noise = 0.08 * torch.randn(len(pixels), 4, 16, 16, device=device)
        with autocast(device):
            decoded = model(pixels, noise)
        error = decoded - pixels
        edges = sum(error.diff(dim=axis).abs().mean() for axis in (2, 3))
        return 4 * F.mse_loss(decoded, pixels) + 0.5 * error.abs().mean() + 0.5 * edges

    def evaluate(model: nn.Module) -> dict[str, float]:
        assert isinstance(model, _Normalised)
        return {"psnr": psnr(model, pool, device)}

    run = Run(folder / "runs/vae", model, Schedule(steps, 2e-3), loss, evaluate=evaluate)
    run.run()
    model.fold().to(memory_format=torch.contiguous_format).save_pretrained(folder / "vae")


def to_tensor(pixels: np.ndarray, device: str) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 in [-1, 1], channels last."""
    return torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def psnr(model: _Normalised, pool: Pool, device: str, count: int = 256) -> float:
    """Mean peak signal-to-noise ratio in dB over the first `count` pictures of `pool`."""
    model.eval()
    pixels = to_tensor(pool.pixels[:count], device)
    decoded = model.vae.decoder(model.norm(model.vae.encoder(pixels))).clamp(-1, 1)
    model.train()
    return float((10 * torch.log10(4 / ((decoded - pixels) ** 2).mean(dim=(1, 2, 3)))).mean())
