"""The kernel as a host launches it that passes contiguous tensors and the grid's height and width."""

import pytest
import torch

from twig.kernels._triton import triton
from twig.kernels.aot import contiguous_attention_case
from twig.kernels.masked_attention import masked_attention_reference
from twig.kernels.testing import TOLERANCES, assert_close, attention_inputs
from twig.kernels.tiles import attention_tile


def launch(case, inputs):
    """Pass the case's arguments in their order: what is no constant is a tensor or an integer."""
    height, width = inputs["grid"]
    rows, pixels, _ = inputs["q"].shape
    given = inputs | {"height": height, "width": width, "out": torch.empty_like(inputs["q"])}
    head_dim = inputs["q"].shape[-1] // inputs["heads"]
    block = attention_tile(head_dim, inputs["k"].shape[1], inputs["q"].dtype).block
    arguments = [given[name] for name, kind in case.arguments.items() if kind != "constexpr"]
    case.function[(inputs["heads"], triton.cdiv(pixels, block), rows)](*arguments, **case.constants, **case.options)
    return given["out"]


@pytest.mark.parametrize(
    ("rows", "heads", "grid", "length", "head_dim", "dtype"),
    [
        (2, 2, (5, 7), 77, 40, torch.float16),
        (1, 3, (9, 8), 77, 8, torch.float16),
        (3, 2, (2, 5), 154, 64, torch.float16),
        (2, 2, (3, 6), 77, 40, torch.float32),
        (2, 1, (3, 3), 77, 160, torch.float32),
    ],
)
def test_it_computes_what_the_reference_does(rows, heads, grid, length, head_dim, dtype):
    inputs = attention_inputs(rows, heads, grid, length, head_dim, dtype)
    inputs["mask"] = torch.rand(rows, *grid, generator=torch.Generator().manual_seed(1))
    found = launch(contiguous_attention_case(heads, head_dim, length, dtype), inputs)
    wide = {name: value.double() if name in ("q", "k", "v") else value for name, value in inputs.items()}
    assert_close(found, masked_attention_reference(**wide)[0], TOLERANCES[dtype], "out")
