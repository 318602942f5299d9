"""The operators of the networks' blocks as users call them, on a CPU."""

import pytest
import torch
import torch.nn.functional as F

from twig.kernels import add_bias, add_layer_norm, geglu, group_norm
from twig.kernels.testing import TOLERANCES, assert_close, group_norm_inputs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("silu", [False, True])
def test_group_norm_is_what_stands_in_a_residual_block(dtype, silu):
    inputs = group_norm_inputs(2, 24, 8, (5, 7), dtype)
    x, shift = inputs["x"].double(), inputs["shift"].double()
    y = F.group_norm(x + shift[:, :, None, None], 8, inputs["weight"].double(), inputs["bias"].double(), 1e-5)
    out = group_norm(**inputs, silu=silu)
    assert out.dtype == dtype
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert_close(out, F.silu(y) if silu else y, TOLERANCES[dtype])


@pytest.mark.parametrize("shifted", [False, True])
def test_group_norm_as_an_operator(shifted):
    inputs = group_norm_inputs(2, 24, 8, (5, 7), shifted=shifted)
    x, weight, bias, shift, groups, eps = inputs.values()
    torch.library.opcheck(torch.ops.twig.group_norm.default, (x, weight, bias, shift, groups, eps, True))


def test_wrong_arguments_are_refused_on_a_cpu_too():
    with pytest.raises(ValueError, match="groups must divide x's 24 channels, got 7"):
        group_norm(**(group_norm_inputs(1, 24, 8, (4, 4)) | {"groups": 7}))


def test_the_others_are_what_diffusers_blocks_do():
    torch.manual_seed(0)
    x, residual = torch.randn(2, 5, 12), torch.randn(2, 5, 12)
    norm = torch.nn.LayerNorm(12)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    total, normed = add_layer_norm(x, residual, norm.weight.detach(), norm.bias.detach(), norm.eps)
    assert_close(total, x + residual, 1e-6)
    assert_close(normed, norm(x + residual).detach(), 1e-5)
    value, gate = x.chunk(2, -1)
    assert_close(geglu(x), value * F.gelu(gate), 1e-6)
    picture, other, bias = torch.randn(2, 4, 3, 5), torch.randn(2, 4, 3, 5), torch.randn(4)
    out = add_bias(picture, other, bias)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert_close(out, picture + other + bias.view(-1, 1, 1), 1e-6)


def test_the_others_as_operators():
    tokens, channels = torch.randn(2, 5, 12), torch.randn(12)
    picture = torch.randn(2, 4, 3, 5)
    torch.library.opcheck(torch.ops.twig.geglu.default, (tokens,))
    torch.library.opcheck(torch.ops.twig.add_layer_norm.default, (tokens, tokens + 1, channels, channels + 1, 1e-5))
    torch.library.opcheck(torch.ops.twig.add_bias.default, (picture, picture + 1, channels[:4]))
