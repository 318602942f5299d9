"""Streams, staging and graphs of the engine, on a device that tells where they would race."""

import pytest
import torch

from pretend import Kind, RaceError
from twig.engine.batching.columns import Column, Columns
from twig.engine.batching.streams import Streams

CUDA = torch.device("cuda", 0)


@pytest.fixture
def streams(device):
    made = Streams(CUDA)
    with torch.inference_mode(), made.between():
        yield made


def zeros():
    return torch.zeros(1, device=CUDA)


def test_a_step_waits_for_what_came_before_it_and_the_rest_for_the_step_that_it_needs(streams):
    first, second = zeros(), zeros()
    with streams.step() as mark:
        first.add_(1)
    with streams.step():
        second.add_(1)
    with pytest.raises(RaceError, match="may still be at"):
        first.cpu()
    streams.after(mark)
    assert first.cpu().item() == 1
    with pytest.raises(RaceError, match="may still be at"):
        second.cpu()
    streams.settle()
    assert second.cpu().item() == 1


def test_the_host_is_two_steps_ahead_and_no_more(device, streams):
    waits = []
    for _ in range(5):
        with device.counted() as counts, streams.step():
            pass
        waits.append(counts.kinds[Kind.WAIT])
    assert waits == [0, 0, 1, 1, 1]
    assert len(streams.finished()) == 5


def test_the_device_tells_how_long_steps_took(streams):
    with streams.step():
        torch.ones(512, 512, device=CUDA) @ torch.ones(512, 512, device=CUDA)
    with pytest.raises(RuntimeError, match="no memory"), streams.step():
        raise RuntimeError("no memory")
    (seconds,) = streams.finished()
    assert 0 < seconds <= streams.inside()


def test_columns_arrive_in_one_copy_that_nobody_waits_for(device, streams):
    columns = Columns({"slots": Column(("rows",), torch.int64, -1)}, {"rows": 4}, CUDA)
    read = []
    for number in range(8):
        with device.counted() as counts, streams.step():
            columns.write({"slots": [number]}, {"rows": 2})
            read.append(columns.views["slots"][:2].clone())
        assert (counts.kinds[Kind.UPLOAD], counts.copies, counts.waits) == (1, 1, 0)
    streams.settle()
    assert [each.tolist() for each in read] == [[number, -1] for number in range(8)]
