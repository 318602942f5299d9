"""Keys that are called served draw what the library draws; the others are refused by name."""

import inspect

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel

from twig.engine.models import layout, parts
from twig.engine.models.configs import SERVED, check_network
from twig.engine.models.networks import ControlInputs, Denoiser, DenoiserInputs

SMALL = {
    "sample_size": 16, "block_out_channels": (16, 32, 32), "layers_per_block": 1, "cross_attention_dim": 32,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 2,
    "norm_num_groups": 8,
}  # fmt: skip
TEXT_TIME = {
    "addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 72,
}  # fmt: skip
BOTH = [
    {}, {"flip_sin_to_cos": False}, {"freq_shift": 1}, {"block_out_channels": (16, 16, 32)}, {"layers_per_block": 2},
    {"downsample_padding": 0}, {"mid_block_scale_factor": 0.5}, {"act_fn": "gelu"}, {"norm_num_groups": 4},
    {"norm_eps": 1e-3}, {"attention_head_dim": 4}, {"attention_head_dim": (1, 2, 4)},
    {"transformer_layers_per_block": 2}, {"transformer_layers_per_block": (1, 2, 1)}, {"use_linear_projection": True},
    {"upcast_attention": True}, {"resnet_time_scale_shift": "scale_shift"}, TEXT_TIME,
    TEXT_TIME | {"addition_embed_type_num_heads": 8},
]  # fmt: skip
UNETS = [
    *BOTH, {"center_input_sample": True}, {"dropout": 0.5}, {"resnet_skip_time_act": True},
    {"resnet_out_scale_factor": 2.0}, {"time_embedding_dim": 48}, {"time_embedding_act_fn": "silu"},
    {"timestep_post_act": "silu"}, {"conv_in_kernel": 5}, {"conv_out_kernel": 5}, {"layers_per_block": (1, 2, 1)},
    {
        "transformer_layers_per_block": ((1,), (2,), (1,)),
        "reverse_transformer_layers_per_block": ((1, 1), (2, 2), (1, 1)),
    },
]  # fmt: skip


def inputs(options):
    """Return latents, timesteps, text and what is added for two rows."""
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(2, 4, 12, 20, generator=generator)
    added = ()
    if "addition_embed_type" in options:
        added = torch.randn(2, 24, generator=generator), torch.randint(1, 99, (2, 6), generator=generator)
    return sample, torch.tensor([999.0, 301.0]), torch.randn(2, 7, 32, generator=generator), added


def keywords(added):
    return {"added_cond_kwargs": {"text_embeds": added[0], "time_ids": added[1]} if added else {}}


def sized(denoiser, added):
    if not added:
        return ()
    return added[0], denoiser.unet.add_time_proj.make(added[1].flatten()).view(2, -1)


def seeded(cls, options):
    """Return the same random network each time; of `SMALL`, what its class has a key for."""
    known = inspect.signature(cls.__init__).parameters
    torch.manual_seed(0)
    return cls(**{name: value for name, value in SMALL.items() if name in known} | options).eval().requires_grad_(False)


@pytest.mark.parametrize("options", UNETS, ids=str)
def test_a_unet_with_a_served_key_predicts_what_the_library_predicts(options, tmp_path):
    unet = seeded(UNet2DConditionModel, options)
    sample, timesteps, text, added = inputs(options)
    expected = unet(sample, timesteps, text, **keywords(added)).sample
    check_network(tmp_path, {"_class_name": "UNet2DConditionModel", **options})
    denoiser = Denoiser(unet, None)
    (first, second) = denoiser.encode(text)
    kv = tuple(torch.stack(pair) for pair in zip(first.unet, second.unet, strict=True))
    found = denoiser.predict(
        DenoiserInputs(sample, denoiser.time_proj(timesteps), kv, sized(denoiser, added), None, None, None)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def controlnet(options):
    """Return one whose residuals are not zero."""
    network = seeded(ControlNetModel, {"conditioning_embedding_out_channels": (8, 8, 16)} | options)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return network


def residuals(network, unet, options):
    sample, timesteps, text, added = inputs(options)
    denoiser = Denoiser(unet, network)
    (first, second) = denoiser.encode(text)
    kv = tuple(torch.stack(pair) for pair in zip(first.controlnet, second.controlnet, strict=True))
    hint = denoiser.controller().embed_hint(hints())
    return denoiser.control(
        ControlInputs(
            sample, denoiser.controller().time_proj(timesteps), kv, sized(denoiser, added), hint, torch.ones(2)
        )
    )


def hints():
    return torch.rand(2, 3, 48, 80, generator=torch.Generator().manual_seed(2))


CONTROLS = [*BOTH, {"conditioning_embedding_out_channels": (8, 16, 24)}]


@pytest.mark.parametrize("options", CONTROLS, ids=str)
def test_a_controlnet_with_a_served_key_gives_the_librarys_residuals(options, tmp_path):
    network, unet = (
        controlnet(options),
        seeded(UNet2DConditionModel, TEXT_TIME if "addition_embed_type" in options else {}),
    )
    sample, timesteps, text, added = inputs(options)
    down, mid = network(sample, timesteps, text, hints(), return_dict=False, **keywords(added))
    check_network(tmp_path, {"_class_name": "ControlNetModel", **options})
    for found, expected in zip(residuals(network, unet, options), (*down, mid), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_controlnet_that_reads_blue_green_red_gives_the_librarys_residuals(tmp_path):
    network = controlnet({"controlnet_conditioning_channel_order": "bgr"})
    network.save_pretrained(tmp_path)
    sample, timesteps, text, _ = inputs({})
    down, mid = network(sample, timesteps, text, hints(), return_dict=False)
    sketch = parts.controlnet(layout.sketched_module(ControlNetModel, tmp_path))
    loaded = parts.controlnet(layout.load_module(ControlNetModel, sketch, tmp_path, torch.float32, "cpu"))
    for found, expected in zip(residuals(loaded, seeded(UNet2DConditionModel, {}), {}), (*down, mid), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    plain = residuals(network, seeded(UNet2DConditionModel, {}), {})
    assert not torch.allclose(plain[0], down[0], atol=1e-3), "the order of colours says nothing here"


def test_every_served_key_of_the_denoising_networks_is_proven_here():
    proven = {"in_channels", "out_channels", "sample_size", "cross_attention_dim"}
    proven |= {"time_cond_proj_dim"}  # by whole pipelines, in test_few_steps.py
    for name, cases in (("UNet2DConditionModel", UNETS), ("ControlNetModel", CONTROLS)):
        assert SERVED[name] <= proven | {key for options in cases for key in options}, name
