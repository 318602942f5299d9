"""Networks that run compiled, as far as PyTorch needs them: configurations, and the layers whose outputs are made once
a request."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..sampling.settings import Settings
from .layers import CrossLayer
from .networks import Controller, Denoiser
from .premade import Premade


class Skeleton(nn.Module):
    """A network that says what it is, and does not run. config: of diffusers or transformers; number type, device."""

    def __init__(self, config: Mapping[str, Any], dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        self.config = Settings(config)
        self._held = nn.Parameter(torch.empty(0, dtype=dtype, device=device), requires_grad=False)
        self.layers: tuple[CrossLayer, ...] = ()
        self.shallow_share = 1.0

    @property
    def dtype(self) -> torch.dtype:
        """Number type of its weights."""
        return self._held.dtype

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self._held.device

    def furnish(self, layers: Sequence[CrossLayer], tensors: Mapping[str, Tensor]) -> None:
        """Give a denoiser what makes keys, values and sinusoids. tensors: as of `furniture`."""
        self.layers = tuple(layers)
        for layer in layers:
            place = self._place(layer.name)
            for name in ("to_k", "to_v"):
                place.add_module(name, _linear(tensors[f"{layer.name}.{name}.weight"]))
        width, flip, shift = self.config.block_out_channels[0], self.config.flip_sin_to_cos, self.config.freq_shift
        self.time_embedding = ProjectsTimestep(Sinusoids(width, flip, shift))
        if self.config.get("addition_embed_type") is not None:
            self.add_time_proj = Premade(Sinusoids(self.config.addition_time_embed_dim, flip, shift))
        if "conditioning_embedding_out_channels" in self.config:
            self.controlnet_cond_embedding = Premade(_hint_embedding(tensors))

    def _place(self, name: str) -> nn.Module:
        """The module called `name`, made where it is not there."""
        place: nn.Module = self
        for part in name.split("."):
            if not hasattr(place, part):
                place.add_module(part, nn.Module())
            place = getattr(place, part)
        return place


class ProjectsTimestep(nn.Module):
    """Stands where a network's time embedding does. width: sinusoids of a timestep."""

    def __init__(self, project: Sinusoids) -> None:
        super().__init__()
        self.project = project
        self.width = project.width


class Sinusoids(nn.Module):
    """Numbers (N,) -> sinusoids (N, width) float32, as diffusers' `Timesteps` makes them (Ho et al., 2006.11239)."""

    def __init__(self, width: int, flip: bool, shift: float) -> None:
        super().__init__()
        self.width, self._flip, self._shift = width, flip, shift

    def forward(self, numbers: Tensor) -> Tensor:
        """Sines, then cosines; the other way round where flipped."""
        half = self.width // 2
        exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=numbers.device)
        angles = numbers[:, None].float() * torch.exp(exponent / (half - self._shift))[None]
        sines = torch.cat((angles.cos(), angles.sin()) if self._flip else (angles.sin(), angles.cos()), dim=-1)
        return nn.functional.pad(sines, (0, self.width % 2))


_HINT = "controlnet_cond_embedding"


def furniture(network: Any, layers: Sequence[CrossLayer]) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a denoiser of diffusers that `Skeleton.furnish` needs, by their names in it."""
    for layer in layers:
        attention = network.get_submodule(layer.name)
        assert attention.to_k.bias is None
        yield f"{layer.name}.to_k.weight", attention.to_k.weight
        yield f"{layer.name}.to_v.weight", attention.to_v.weight
    if hasattr(network, _HINT):
        embedding: Any = getattr(network, _HINT)
        embedding = embedding.make if isinstance(embedding, Premade) else embedding
        convolutions = [embedding.conv_in, *embedding.blocks, embedding.conv_out]
        for number, convolution in enumerate(convolutions):
            yield f"{_HINT}.{number}.weight", convolution.weight
            yield f"{_HINT}.{number}.bias", convolution.bias


def _linear(weight: Tensor) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    made.weight = nn.Parameter(weight, requires_grad=False)
    return made


def _hint_embedding(tensors: Mapping[str, Tensor]) -> nn.Sequential:
    """Diffusers' `ControlNetConditioningEmbedding`: convolutions, every second one between the ends of stride 2."""
    count = sum(name.startswith(_HINT) for name in tensors) // 2
    modules: list[nn.Module] = []
    for number in range(count):
        weight = tensors[f"{_HINT}.{number}.weight"]
        halves = 0 < number < count - 1 and number % 2 == 0
        made = nn.Conv2d(
            weight.shape[1], weight.shape[0], 3, stride=2 if halves else 1, padding=1, device="meta"
        )  # fmt: skip
        made.weight = nn.Parameter(weight, requires_grad=False)
        made.bias = nn.Parameter(tensors[f"{_HINT}.{number}.bias"], requires_grad=False)
        modules += [made, nn.SiLU()]
    return nn.Sequential(*modules[:-1])


class SkeletonController(Controller):
    """A ControlNet that runs compiled."""

    def __init__(self, controlnet: Skeleton) -> None:
        self.controlnet: Any = controlnet
        self.layers = controlnet.layers


class SkeletonDenoiser(Denoiser):
    """UNet and ControlNet that run compiled: what they read is made here, and they themselves are not."""

    def __init__(self, unet: Skeleton, controlnet: Skeleton | None) -> None:
        self.unet: Any = unet
        self.controlnet: Any = controlnet
        self.layers = unet.layers
        self.shallow_share = unet.shallow_share
        self._controller = None if controlnet is None else SkeletonController(controlnet)
        self.control_layers = () if controlnet is None else controlnet.layers
        self.further = {}
