"""The noise that runs start from."""

import torch
from torch import Tensor


def seeded_noise(channels: int, shape: tuple[int, int], seed: int) -> Tensor:
    """Unit noise (C, h, w) of a seed, as a diffusers pipeline draws it from a CPU generator."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn((1, channels, *shape), generator=generator)[0]
