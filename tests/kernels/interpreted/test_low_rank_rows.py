import pytest
import torch

from twig.kernels.low_rank_rows import Window, launch_low_rank_rows, low_rank_rows_reference
from twig.kernels.testing import TOLERANCES, assert_close, low_rank_inputs

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def added(shape, window, dtype, **changes):
    """What the kernel and the reference in fp64 make of the same layer."""
    inputs = low_rank_inputs(*shape, window=window, dtype=dtype) | changes
    wide = {
        name: each.double() if name in ("y", "x", "down", "up") else each
        for name, each in inputs.items()
        if name not in ("most", "window")
    }
    launch_low_rank_rows(**inputs)
    low_rank_rows_reference(**wide, most=inputs["most"], window=inputs["window"])
    return inputs["y"], wide["y"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 9, 40, 24), (3, 70, 36, 100)])
def test_tokens(dtype, shape):
    assert_close(*added(shape, Window(), dtype), 2 * TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [Window(3, 1, 1), Window(3, 2, 1), Window(1, 1, 0)])
def test_convolutions(dtype, window):
    assert_close(*added((3, (9, 7), 12, 20), window, dtype), 2 * TOLERANCES[dtype])


def test_vectors_and_ranks_of_several_blocks():
    assert_close(*added((4, None, 48, 32), Window(), torch.float32, ranks=torch.tensor([70, 0, 3]), most=70), 1e-4)


def test_a_part_of_a_packed_result_changes_alone():
    inputs = low_rank_inputs(3, 9, 16, 16)
    packed = torch.zeros(3, 9, 48)
    inputs["y"] = packed[..., 16:32]
    launch_low_rank_rows(**inputs)
    assert packed[..., 16:32].any()
    assert not packed[..., :16].any()
    assert not packed[..., 32:].any()
