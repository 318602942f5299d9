"""How much an engine takes on where nobody says it."""

import pytest
import torch

from twig.engine.batching.capacity import usual_budget, usual_limits
from twig.engine.batching.scheduler import Limits

GIB = 2**30


def test_a_processor_has_the_limits_that_are_written_and_gives_a_higher_priority_a_call_to_itself():
    assert usual_limits("cpu") == Limits(company=0)
    assert usual_budget("cpu") == 2 * GIB


@pytest.mark.parametrize(("memory", "rows"), [(8, 16), (16, 32), (24, 32), (40, 64), (80, 64)])
def test_a_gpu_has_more_by_its_memory(monkeypatch, memory, rows):
    asked = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (asked.append(device), memory * GIB))
    assert usual_limits("cuda:1") == Limits(slots=rows, rows=rows)
    assert usual_budget("cuda:1") == memory * GIB // 4
    assert set(asked) == {"cuda:1"}
