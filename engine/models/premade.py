"""What a network would make anew in every call, made once a request or outside it: its timesteps, a control image."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import ControlNetModel, UNet2DConditionModel
    from diffusers.models.embeddings import TimestepEmbedding


class Premade(nn.Module):
    """Takes the place of a module whose outputs are made once a request: they pass unchanged. make: that module."""

    def __init__(self, make: nn.Module) -> None:
        super().__init__()
        self.make = make

    def forward(self, made: Tensor) -> Tensor:
        """Return what was made."""
        return made


class ProjectedTimestep(nn.Module):
    """Takes the place of a network's time embedding: the timestep's sinusoids come made, as its condition.

    A network that computes in bf16 throughout would round the timestep itself, and tell few integers above 256 apart;
    sinusoids lie within [-1, 1] and lose no more than anything else does. width: sinusoids of a timestep.
    """

    def __init__(self, project: nn.Module, embed: TimestepEmbedding) -> None:
        super().__init__()
        self.project = project
        self.embed = embed
        self.width: int = embed.linear_1.in_features

    def forward(self, _: Tensor, time_proj: Tensor) -> Tensor:
        """(R, F) -> (R, D)."""
        return self.embed(time_proj)


def guidance_sinusoids(guidances: Tensor, width: int) -> Tensor:
    """Guidance scales less 1, (R,) -> sinusoids (R, width) float32 (Luo et al., arXiv 2310.04378, appendix)."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=guidances.device) * (-math.log(10000.0) / (half - 1)))
    angles = 1000.0 * guidances.float()[:, None] * frequencies
    return torch.cat((angles.sin(), angles.cos()), 1)


def project_timesteps(network: UNet2DConditionModel | ControlNetModel) -> None:
    """Let `network` take its timesteps, and the sizes where it reads any, projected."""
    if not isinstance(network.time_embedding, ProjectedTimestep):
        network.time_embedding = ProjectedTimestep(network.time_proj, network.time_embedding)
        network.time_proj = nn.Identity()
    if network.config.addition_embed_type is not None:
        premake(network, "add_time_proj")


def premake(network: nn.Module, name: str) -> None:
    """Let `network` take what its module `name` would make, made."""
    module = getattr(network, name)
    if not isinstance(module, Premade):
        setattr(network, name, Premade(module))
