"""Blocks on our operators against diffusers' own, on CPU tensors through the operators' references."""

import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel

from tiny_models import build_controlnet, build_unet, build_xl_unet
from twig.engine.backends import options
from twig.engine.backends.fp8 import Fp8Linear
from twig.engine.backends.fused import FusedResnetBlock, FusedTransformer
from twig.engine.backends.options import TorchOptions
from twig.engine.models.networks import Denoiser
from twig.engine.models.tensors import Sizes, control_inputs, controlnet_spec, unet_inputs, unet_spec

FUSED = TorchOptions(fused=True, channels_last=True)


def plain_unet():
    """Two levels in Stable Diffusion 1.5's proportions: heads of 40, 1x1 convolutions around the transformers."""
    return UNet2DConditionModel(
        sample_size=16, block_out_channels=(80, 160), layers_per_block=1, cross_attention_dim=32,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2, norm_num_groups=8,
    )  # fmt: skip


@pytest.fixture(scope="module", params=[build_unet, build_xl_unet, plain_unet], ids=["embedded", "xl", "sd"])
def denoisers(request):
    torch.manual_seed(0)
    unet = request.param().eval()
    plain = Denoiser(unet, build_controlnet(unet).eval())
    return plain, FUSED.denoiser(plain)


def drawn(spec, sizes):
    return [torch.randn(sizes.of(t, spec)).to(t.dtype or torch.float32) for t in spec.inputs]


@pytest.mark.parametrize("shape", [(16, 16), (13, 9)])
@torch.inference_mode()
def test_networks_predict_the_same(denoisers, shape):
    plain, fused = denoisers
    sizes = Sizes(3, *shape)
    inputs = unet_inputs(drawn(unet_spec(plain, 12), sizes), plain)
    expected, found = plain.predict(inputs), fused.predict(inputs)
    assert (found - expected).abs().max() < 2e-5 * max(1, expected.abs().max())
    inputs = control_inputs(drawn(controlnet_spec(plain, 12), sizes), plain)
    for expected, found in zip(plain.control(inputs), fused.control(inputs), strict=True):
        assert (found - expected).abs().max() < 2e-5 * max(1, expected.abs().max())


@torch.inference_mode()
def test_pictures_lie_channels_last_from_block_to_block(denoisers):
    plain, fused = denoisers
    seen = {}

    def note(module, _, output):
        output = output[0] if isinstance(output, tuple) else output
        seen.setdefault(type(module), set()).add(output.is_contiguous(memory_format=torch.channels_last))

    hooks = [
        module.register_forward_hook(note)
        for module in fused.unet.modules()
        if isinstance(module, FusedResnetBlock | FusedTransformer | torch.nn.Conv2d)
    ]
    spec = unet_spec(plain, 12)
    tensors = drawn(spec, Sizes(2, 16, 16))
    tensors = [t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for t in tensors]
    fused.predict(unet_inputs(tensors, fused))
    for hook in hooks:
        hook.remove()
    assert seen == {kind: {True} for kind in (FusedResnetBlock, FusedTransformer, torch.nn.Conv2d)}


def test_the_original_and_its_names_are_unharmed(denoisers):
    plain, fused = denoisers
    assert not any(isinstance(module, FusedResnetBlock | FusedTransformer) for module in plain.unet.modules())
    for one, other in ((plain.unet, fused.unet), (plain.controlnet, fused.controlnet)):
        here, there = one.state_dict(), other.state_dict()
        assert list(here) == list(there)
        assert all(here[name].data_ptr() == there[name].data_ptr() for name in here), "the tensors are shared"
        assert isinstance(other, UNet2DConditionModel | ControlNetModel)


def test_a_second_engine_finds_the_projections_beside_each_other(denoisers):
    plain, fused = denoisers
    packed = [network.processor.project.weight.data_ptr() for network in self_attention(fused)]
    assert packed == [layer.to_q.weight.data_ptr() for layer in self_attention(plain)]
    again = FUSED.denoiser(plain)
    assert packed == [network.processor.project.weight.data_ptr() for network in self_attention(again)]


def self_attention(denoiser):
    return [module for name, module in denoiser.unet.named_modules() if name.endswith("attn1")]


@torch.inference_mode()
def test_an_autoencoder_decodes_and_encodes_the_same():
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(16, 32), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1,
    ).eval()  # fmt: skip
    fused = FUSED.autoencoder(vae)
    latents = torch.randn(2, 4, 6, 5)
    pixels, found = vae.decode(latents).sample, fused.decode(latents).sample
    assert (found - pixels).abs().max() < 2e-5
    assert (fused.encode(pixels).latent_dist.mean - vae.encode(pixels).latent_dist.mean).abs().max() < 2e-5
    assert not any(isinstance(module, FusedResnetBlock) for module in vae.modules())


def test_cuda_takes_it_unless_told_otherwise_and_a_cpu_only_if_told(monkeypatch):
    monkeypatch.setattr(options, "AVAILABLE", True)
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert (TorchOptions().on(cuda).fused, TorchOptions().on(cuda).channels_last) == (True, True)
    assert (TorchOptions().on(cpu).fused, TorchOptions().on(cpu).channels_last) == (False, False)
    assert TorchOptions(channels_last=False).on(cuda).fused is False
    assert TorchOptions(fused=True).on(cpu).channels_last is True
    assert TorchOptions(fused=False).on(cuda).channels_last is True


@torch.inference_mode()
def test_eight_bits_are_near_and_only_where_asked(denoisers):
    plain, _ = denoisers
    rounded = TorchOptions(fp8=True).on(torch.device("cpu")).denoiser(plain)
    inputs = unet_inputs(drawn(unet_spec(plain, 12), Sizes(2, 16, 16)), plain)
    expected, found = plain.predict(inputs), rounded.predict(inputs)
    error = (found - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert 1e-3 < error < 0.2, "each product rounds by about 4 %"
    layers = [name for name, module in rounded.unet.named_modules() if isinstance(module, Fp8Linear)]
    assert any("ff.net.2" in name for name in layers)
    assert any("attn2.to_q" in name for name in layers)
    assert not any("time_emb" in name or "to_k" in name for name in layers)
    assert not any(isinstance(module, Fp8Linear) for module in plain.unet.modules())


@torch.inference_mode()
def test_a_token_in_eight_bits_does_not_depend_on_its_company():
    layer = Fp8Linear(torch.nn.Linear(32, 48))
    tokens = torch.randn(3, 5, 32) * torch.tensor([1.0, 100.0, 0.01]).view(3, 1, 1)
    assert torch.equal(layer(tokens)[:1], layer(tokens[:1]))
    exact = torch.nn.functional.linear(tokens, layer.weight.float() * layer.scale, layer.bias)
    assert ((layer(tokens) - exact).norm(dim=-1) < 0.05 * exact.norm(dim=-1) + 1e-3).all()
