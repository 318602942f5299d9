import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from twig.kernels.group_norm import group_norm_reference, group_tile, launch_group_norm
from twig.kernels.testing import TOLERANCES, assert_close, group_norm_inputs

LIGHT = settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


def compare(inputs, silu=True):
    out = launch_group_norm(**inputs, silu=silu)
    wide = {n: v.double() if isinstance(v, torch.Tensor) else v for n, v in inputs.items()}
    assert out.dtype == inputs["x"].dtype
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert_close(out, group_norm_reference(**wide, silu=silu), TOLERANCES[out.dtype], "out")
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("silu", [False, True])
def test_activations_and_shifts(dtype, shifted, silu):
    compare(group_norm_inputs(2, 40, 8, (9, 7), dtype, shifted=shifted), silu)


@pytest.mark.parametrize(("channels", "groups"), [(320, 32), (640, 32), (960, 32), (1920, 32), (28, 4), (1280, 4)])
def test_widths_of_groups(channels, groups):
    compare(group_norm_inputs(1, channels, groups, (3, 6)))


@pytest.mark.parametrize("side", [1, 8, 23])
def test_any_number_of_chunks(side):
    compare(group_norm_inputs(1, 32, 8, (side, side)))


@LIGHT
@given(
    batch=st.integers(1, 2), groups=st.integers(1, 9), width=st.integers(1, 9),
    grid=st.tuples(st.integers(1, 7), st.integers(1, 7)), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape(batch, groups, width, grid, seed):
    if width * grid[0] * grid[1] > 1:
        compare(group_norm_inputs(batch, groups * width, groups, grid, seed=seed))


def test_a_mean_far_from_nought_cancels_nothing():
    inputs = group_norm_inputs(1, 32, 8, (12, 12), shifted=False)
    inputs["x"] += 3000
    inputs["x"] = inputs["x"].contiguous(memory_format=torch.channels_last)
    out = launch_group_norm(**inputs, silu=False)
    wide = {n: v.double() if isinstance(v, torch.Tensor) else v for n, v in inputs.items()}
    assert_close(out, group_norm_reference(**wide, silu=False), 1e-3)


def test_a_sample_does_not_depend_on_its_company():
    inputs = group_norm_inputs(3, 40, 8, (10, 6))
    alone = inputs | {"x": inputs["x"][1:2], "shift": inputs["shift"][1:2]}
    assert torch.equal(compare(alone)[0], compare(inputs)[1])


def test_planes_are_turned_over_and_a_shift_may_be_of_all_samples():
    inputs = group_norm_inputs(2, 40, 8, (6, 5))
    inputs["shift"] = inputs["shift"][:1].expand(2, -1)
    lying = compare(inputs)
    assert torch.equal(compare(inputs | {"x": inputs["x"].contiguous()}), lying)


def test_nothing_is_nothing():
    inputs = group_norm_inputs(2, 40, 8, (6, 5))
    empty = inputs | {"x": inputs["x"][:0], "shift": inputs["shift"][:0]}
    assert launch_group_norm(**empty, silu=True).shape == (0, 40, 6, 5)


@pytest.mark.parametrize("pixels", [64, 256, 1024, 4096, 16384, 262144])
def test_chunks_fill_a_device_and_moments_stay_few(pixels):
    tile = group_tile(320, 32, pixels)
    assert tile.groups * 10 <= tile.span
    assert 4 <= -(-pixels // tile.chunk) <= 256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": 7}, "groups must divide x's 40 channels, got 7"),
        ({"weight": torch.zeros(39)}, r"weight must have shape \(40\), got \(39,\)"),
        ({"shift": torch.zeros(1, 40)}, r"shift must have shape \(2, 40\), got \(1, 40\)"),
        ({"x": torch.zeros(2, 40, 6)}, r"x must have shape \(\*, \*, \*, \*\), got \(2, 40, 6\)"),
        ({"x": torch.zeros(2, 40, 6, 5).double()}, "x must be torch.float16 or .*, got torch.float64"),
    ],
)
def test_wrong_arguments_are_refused_with_the_value(change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        launch_group_norm(**(group_norm_inputs(2, 40, 8, (6, 5)) | change), silu=True)
