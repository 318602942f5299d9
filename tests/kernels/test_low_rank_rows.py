"""Low-rank changes by the row, as users call them, on a CPU."""

import pytest
import torch
import torch.nn.functional as F

from twig.kernels import Window, low_rank_rows
from twig.kernels.low_rank_rows import low_rank_rows_reference
from twig.kernels.testing import TOLERANCES, assert_close, low_rank_inputs

SHAPES = [
    ((4, 9, 24, 16), Window()),
    ((4, None, 24, 16), Window()),
    ((3, (9, 7), 12, 20), Window(3, 1, 1)),
    ((3, (9, 7), 12, 20), Window(3, 2, 1)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("shape", "window"), SHAPES)
def test_it_is_what_the_reference_says(shape, window, dtype):
    inputs = low_rank_inputs(*shape, window=window, dtype=dtype)
    wide = {k: v.double() if k in ("y", "x", "down", "up") else v for k, v in inputs.items()}
    low_rank_rows_reference(**wide)
    assert_close(low_rank_rows(**inputs), wide["y"], 4 * TOLERANCES[dtype])


def test_it_is_a_layer_whose_weight_was_changed():
    """Of a convolution, by PyTorch's own: its weight plus up times down."""
    inputs = low_rank_inputs(2, (8, 8), 6, 10, window=Window(3, 1, 1))
    x, down, up = inputs["x"].double(), inputs["down"].double(), inputs["up"].double()
    adapters, weights = inputs["adapters"], inputs["weights"]
    weight = torch.randn(10, 6, 3, 3, dtype=torch.float64)
    changed = [weight.clone() for _ in range(2)]
    for row, slot in (adapters >= 0).nonzero().tolist():
        start, rank = (int(inputs[name][adapters[row, slot]]) for name in ("starts", "ranks"))
        own = slice(start, start + rank)
        change = torch.einsum("rm,rtk->mkt", up[own], down[own]).unflatten(2, (3, 3))
        changed[row] += float(weights[row, slot]) * change
    inputs |= {"y": F.conv2d(x, weight, padding=1).float(), "x": x.float()}
    expected = torch.cat([F.conv2d(x[i : i + 1], changed[i], padding=1) for i in range(2)])
    assert_close(low_rank_rows(**inputs), expected, 1e-5)


def test_a_row_without_an_adapter_stays_as_it_was_and_each_as_if_alone():
    inputs = low_rank_inputs(4, 9, 24, 16)
    before = inputs["y"].clone()
    together = low_rank_rows(**inputs)
    assert torch.equal(together[0], before[0])
    for row in range(4):
        own = {k: v[row : row + 1] if k in ("x", "adapters", "weights") else v for k, v in inputs.items()}
        alone = low_rank_rows(**own | {"y": before[row : row + 1].clone()})
        assert torch.equal(alone[0], together[row])


def test_as_an_operator():
    inputs = low_rank_inputs(2, 5, 8, 6)
    *tensors, most, window = inputs.values()
    torch.library.opcheck(torch.ops.twig.low_rank_rows.default, (*tensors, most, list(window)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": torch.zeros(4, 9, 15)}, r"y must have shape \(4, 9, 16\), got \(4, 9, 15\)"),
        ({"adapters": torch.zeros(4, 3)}, "adapters must be torch.int64, got torch.float32"),
        ({"window": Window(3, 1, 1)}, "x must be vectors, tokens, or of a convolution pictures"),
    ],
)
def test_wrong_arguments_are_refused_with_the_value(changes, message):
    with pytest.raises((ValueError, TypeError), match=message):
        low_rank_rows(**low_rank_inputs(4, 9, 24, 16) | changes)
