"""The operators of the networks' blocks as users call them, on a CPU."""

import pytest
import torch
import torch.nn.functional as F

from twig.kernels import group_norm
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
