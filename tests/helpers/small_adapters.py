"""LoRA adapters of random factors for the tiny models."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from twig.engine.models.checkpoint import Components


def random_factors(
    components: Components, seed: int, rank: int, taken: Callable[[str], bool]
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Down and up of every layer that is `taken` by its part and name, which changes what it gives by about a fifth."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for part, layers in components.adaptable.items():
        for name, layer in layers.items():
            if taken(f"{part}.{name}"):
                shape = layer.weight.shape
                down = torch.randn(rank, *shape[1:], generator=generator) / layer.weight[0].numel() ** 0.5
                up = 0.2 * torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=generator) / rank**0.5
                found[f"{part}.{name}"] = down, up
    return found


def save_adapter(
    path: Path, components: Components, seed: int, rank: int = 4, taken: Callable[[str], bool] = lambda name: True
) -> Path:
    """Write an adapter of a model in diffusers' words."""
    tensors = {}
    for name, (down, up) in random_factors(components, seed, rank, taken).items():
        tensors |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    save_file(tensors, path)
    return path
