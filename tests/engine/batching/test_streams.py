"""Steps where everything is done when it was called; `tests/pretended` has them on a device."""

import pytest
import torch

from twig.engine.batching.streams import Streams


@pytest.fixture
def streams():
    return Streams(torch.device("cpu"))


def test_steps_are_timed_once_and_those_that_failed_are_not(streams):
    with streams.between():
        for _ in range(3):
            with streams.step() as mark:
                streams.after(mark)
        with pytest.raises(RuntimeError, match="no memory"), streams.step():
            raise RuntimeError("no memory")
    seconds = streams.finished()
    assert len(seconds) == 3
    assert 0 <= sum(seconds) <= streams.inside()
    assert (streams.finished(), streams.inside()) == ([], 0.0)
    streams.settle()
