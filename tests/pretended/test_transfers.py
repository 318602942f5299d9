"""Many values of several dtypes and shapes go to a device, and come from it, in one copy as they were."""

import torch

from pretend import Kind
from twig.engine.models.transfers import constant, fetched, sent

VALUES = {
    "flags": torch.tensor([True, False, True]),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "numbers": torch.randn(2, 3),
    "half": torch.randn(3).half(),
    "whole": torch.tensor(2**40),
    "turned": torch.randn(2, 3).T,
    "none": torch.zeros(0, 4),
}


def test_values_go_there_in_one_copy_that_nobody_waits_for_and_back_in_one(device):
    with device.counted() as counts:
        there = sent([*VALUES.values()], torch.device("cuda"))
    assert {tensor.device.type for tensor in there} == {"cuda"}
    assert (counts.kinds[Kind.UPLOAD], counts.copies, counts.waits) == (1, 1, 0)
    with device.counted() as counts:
        (back,) = fetched([dict(zip(VALUES, there, strict=True))])
    assert (counts.kinds[Kind.DOWNLOAD], counts.copies, counts.waits) == (1, 1, 1)
    for name, value in VALUES.items():
        torch.testing.assert_close(back[name], value, rtol=0, atol=0)


def test_what_is_there_already_stays(device):
    here, there = torch.ones(2), torch.ones(2, device="cuda")
    with device.counted() as counts:
        moved, same = sent([here, there], there.device)
        (found,) = fetched([{"here": here, "there": there}])
    assert moved.is_cuda
    assert same is there
    assert found["here"] is here
    assert counts.copies == 2


def test_a_constant_is_copied_once(device):
    like = torch.zeros(2, device="cuda")
    constant((0.25, 17.0), like)
    with device.counted() as counts:
        assert constant((0.25, 17.0), like).tolist() == [0.25, 17.0]
    assert counts.kinds[Kind.BLOCKING_UPLOAD] == 0
