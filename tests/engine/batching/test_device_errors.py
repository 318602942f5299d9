"""Which errors of a device it comes back from."""

import pytest
import torch

from twig.engine.batching.faults import device_failed, memory_ran_out

ADVICE = "\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n"


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: device-side assert triggered",
        "CUDA error: unspecified launch failure",
        "CUDA error: misaligned address",
        "CUDA error: uncorrectable ECC error encountered",
        "Triton Error [CUDA]: an illegal memory access was encountered",
    ],
)
def test_a_device_that_failed_stays_failed(said):
    assert device_failed(RuntimeError(said + ADVICE)) == said
    assert not memory_ran_out(RuntimeError(said + ADVICE))


def test_it_is_known_by_what_an_error_came_of():
    with pytest.raises(RuntimeError, match="left") as raised:
        leave_after(RuntimeError("CUDA error: device-side assert triggered" + ADVICE))
    assert device_failed(raised.value) == "CUDA error: device-side assert triggered"


def leave_after(error):
    """A block whose end fails, as that of a stream does, of what failed within it."""
    try:
        raise error
    finally:
        raise RuntimeError("the stream could not be left")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("CUDA error: out of memory" + ADVICE),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_memory_can_be_had_again(error):
    assert device_failed(error) is None
    assert memory_ran_out(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: invalid argument" + ADVICE),
        RuntimeError("an illegal memory access in a metric of somebody's"),
        ValueError("CUDA error: device-side assert triggered"),
    ],
)
def test_other_errors_are_their_callers(error):
    assert device_failed(error) is None
    assert not memory_ran_out(error)
