"""The tiny model's networks, exported once for all tests here."""

import pytest
import torch
from torch import nn

from twig.engine.models import checkpoint
from twig.engine.models.networks import Denoiser
from twig.engine.models.tensors import Network, NetworkSpec, TensorSpec, network_specs
from twig.kernels import masked_attention


@pytest.fixture(scope="session")
def components(tiny_checkpoint):
    return checkpoint.load(tiny_checkpoint)


@pytest.fixture(scope="session")
def denoiser(components):
    return Denoiser(components.unet, components.controlnet)


@pytest.fixture(scope="session")
def specs(components, denoiser):
    return network_specs(components, denoiser)


class OneLayer(nn.Module):
    """Masked attention and a projection, so that there is a parameter."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(16, 16)

    def forward(self, *tensors):
        q, k, v, mask, tokens, scalars = tensors
        grid = tuple(mask.shape[1:])
        return self.out(masked_attention(q, k, v, mask, tokens, scalars, heads=2, grid=grid))


LAYER = NetworkSpec(
    Network.UNET,
    (
        TensorSpec("q", ("rows", "pyramid", 16)),
        TensorSpec("k", ("rows", 7, 16)),
        TensorSpec("v", ("rows", 7, 16)),
        TensorSpec("mask", ("rows", "height", "width"), torch.float32),
        TensorSpec("tokens", ("rows", 5, 7), torch.float32),
        TensorSpec("scalars", ("rows", 3), torch.float32),
    ),
    (TensorSpec("out", ("rows", "pyramid", 16)),),
)


@pytest.fixture
def one_layer():
    """A network of one masked attention, and its table."""
    return OneLayer().eval(), LAYER
