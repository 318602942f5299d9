"""The shallow part of a UNet, held against the whole network on the same rows."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from twig.engine.models.layers import latent_grids
from twig.engine.models.networks import Denoiser, DenoiserInputs
from twig.engine.models.shallow import ShallowInputs, can_be_split, num_skips, shallow_share

ROWS, TOKENS, SIDE = 3, 5, 8


def network(down=("CrossAttnDownBlock2D", "DownBlock2D"), up=("UpBlock2D", "CrossAttnUpBlock2D"), **settings):
    torch.manual_seed(0)
    sizes = {"block_out_channels": (8, 16), "layers_per_block": 2, "norm_num_groups": 4, "cross_attention_dim": 8}
    unet = UNet2DConditionModel(down_block_types=down, up_block_types=up, attention_head_dim=2, **sizes | settings)
    return unet.eval()


def inputs(denoiser, *, controlled):
    drawn = torch.Generator().manual_seed(1)
    pixels = sum(height * width for height, width in latent_grids((SIDE, SIDE), denoiser.num_levels))
    residuals = [torch.randn((ROWS, *shape), generator=drawn) for shape in denoiser.residual_shapes((SIDE, SIDE))]
    return DenoiserInputs(
        torch.randn((ROWS, 4, SIDE, SIDE), generator=drawn),
        denoiser.time_proj(torch.tensor([900.0, 500.0, 20.0])),
        tuple(torch.randn((ROWS, TOKENS, 2 * layer.inner), generator=drawn) for layer in denoiser.layers),
        (),
        torch.rand((ROWS, pixels), generator=drawn),
        torch.randn((ROWS, 5, TOKENS), generator=drawn),
        torch.rand((ROWS, len(denoiser.layers), 3), generator=drawn),
        tuple(residuals) if controlled else None,
    )


def shallow(denoiser, whole, deep):
    kv = tuple(whole.text_kv[layer] for layer in denoiser.shallow_layers)
    residuals = None if whole.residuals is None else whole.residuals[: num_skips(denoiser.unet)]
    return ShallowInputs(*whole[:2], kv, *whole[3:7], deep, residuals)


@pytest.mark.parametrize("controlled", [False, True])
@torch.inference_mode()
def test_with_its_own_feature_it_predicts_what_the_whole_network_does(controlled):
    """Masked attention, control and the timestep act in it as they do there, to the last bit."""
    denoiser = Denoiser(network(), None)
    whole = inputs(denoiser, controlled=controlled)
    predicted, deep = denoiser.predict_keeping(whole)
    assert torch.equal(predicted, denoiser.predict(whole))
    read = shallow(denoiser, whole, deep)
    assert torch.equal(predicted, denoiser.recall(read))
    assert len(denoiser.shallow_layers) == 5
    for change in ({"scalars": 0 * whole.scalars}, {"mask_pyramid": 0 * whole.mask_pyramid}, {"deep": 0 * deep}):
        assert not torch.equal(predicted, denoiser.recall(read._replace(**change)))


def test_its_share_of_the_work_counts_each_resolution():
    assert 0.2 < shallow_share(network()) < 0.6
    assert shallow_share(network(layers_per_block=1)) > shallow_share(network(block_out_channels=(8, 32)))


def test_networks_of_other_blocks_are_not_split():
    assert can_be_split(network())
    alone = network(("CrossAttnDownBlock2D",), ("CrossAttnUpBlock2D",), block_out_channels=(8,))
    other = network(("AttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "AttnUpBlock2D"))
    assert not can_be_split(alone)
    assert not can_be_split(other)
