import pytest
import torch

from twig.kernels.add_bias import add_bias_reference, launch_add_bias
from twig.kernels.add_layer_norm import add_layer_norm_reference, launch_add_layer_norm
from twig.kernels.fp8_rows import fp8_rows_reference, launch_fp8_rows
from twig.kernels.geglu import geglu_reference, launch_geglu
from twig.kernels.testing import TOLERANCES, assert_close

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 9, 80), (3, 1300), (1, 17, 6)])
def test_geglu(dtype, shape):
    x = 3 * normal(*shape, dtype=dtype)
    out = launch_geglu(x)
    assert out.dtype == dtype
    assert_close(out, geglu_reference(x.double()), TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 9, 40), (3, 640), (1, 5, 28), (1, 2, 4100)])
def test_add_layer_norm(dtype, shape):
    x, residual = normal(*shape, dtype=dtype), normal(*shape, dtype=dtype, seed=1)
    weight, bias = normal(shape[-1], dtype=dtype, seed=2), normal(shape[-1], dtype=dtype, seed=3)
    expected = add_layer_norm_reference(x.double(), residual.double(), weight.double(), bias.double(), 1e-5)
    for name, found, wanted in zip(
        ("sum", "normed"), launch_add_layer_norm(x, residual, weight, bias, 1e-5), expected, strict=True
    ):
        assert found.dtype == dtype
        assert_close(found, wanted, TOLERANCES[dtype], name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 40, 9, 7), (1, 3, 31, 29)])
def test_add_bias(dtype, shape):
    x, residual = (
        normal(*shape, dtype=dtype, seed=seed).contiguous(memory_format=torch.channels_last) for seed in (0, 1)
    )
    bias = normal(shape[1], dtype=dtype, seed=2)
    expected = add_bias_reference(x.double(), residual.double(), bias.double())
    assert_close(launch_add_bias(x, residual, bias), expected, TOLERANCES[dtype])
    planes = launch_add_bias(x, residual.contiguous(), bias)
    assert planes.is_contiguous(memory_format=torch.channels_last)
    assert_close(planes, expected, TOLERANCES[dtype])


def test_nothing_is_nothing():
    assert launch_geglu(torch.zeros(0, 8)).shape == (0, 4)
    assert launch_add_bias(*[torch.zeros(0, 8, 2, 2)] * 2, torch.zeros(8)).shape == (0, 8, 2, 2)
    assert launch_add_layer_norm(*[torch.zeros(0, 8)] * 2, *[torch.zeros(8)] * 2, 1e-5)[0].shape == (0, 8)


@pytest.mark.parametrize(
    ("launch", "message"),
    [
        (lambda: launch_geglu(torch.zeros(2, 7)), r"even number of channels last, got shape \(2, 7\)"),
        (lambda: launch_geglu(torch.zeros(4, 8).t()), r"x must be contiguous, got strides \(1, 8\)"),
        (
            lambda: launch_add_bias(torch.zeros(1, 8, 2, 2), torch.zeros(1, 8, 2, 3), torch.zeros(8)),
            r"residual must have shape \(1, 8, 2, 2\), got \(1, 8, 2, 3\)",
        ),
        (
            lambda: launch_add_layer_norm(*[torch.zeros(2, 8)] * 2, torch.zeros(8), torch.zeros(7), 1e-5),
            r"bias must have shape \(8\), got \(7,\)",
        ),
    ],
)
def test_wrong_arguments_are_refused_with_the_value(launch, message):
    with pytest.raises((ValueError, TypeError), match=message):
        launch()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(9, 40), (3, 1300)])
def test_fp8_rows(dtype, shape):
    """Of numbers that eight bits hold: the interpreter's own rounding to them forgets to carry."""
    numbers = (40 * normal(*shape)).clamp(-448, 448).to(torch.float8_e4m3fn).float()
    numbers[numbers.abs() < 2**-6] = 0
    numbers[:, 3], numbers[1] = -448, 0
    scale = 2.0 ** (torch.arange(shape[0]) - 4).unsqueeze(1)
    out, scales = launch_fp8_rows((numbers * scale).to(dtype))
    assert out.dtype == torch.float8_e4m3fn
    assert torch.equal(out.float(), numbers)
    expected = fp8_rows_reference((numbers * scale).to(dtype))
    assert torch.equal(expected[0].float(), numbers)
    assert torch.equal(scales, expected[1])
