"""Values between host and device where both are one: nothing is copied."""

import torch

from twig.engine.models.transfers import constant, fetched, sent

CPU = torch.device("cpu")


def test_on_a_processor_nothing_is_copied():
    tensor = torch.arange(3)
    (there,) = sent([tensor], CPU)
    (back,) = fetched([{"values": tensor}])
    assert there is tensor is back["values"]


def test_a_constant_is_made_once_for_a_dtype():
    like = torch.zeros(2)
    assert constant((1, 2), like) is constant((1, 2), torch.ones(5))
    assert constant((1, 2), like).dtype is torch.float32
    assert constant(((1, 2), (3, 4)), like.long()).tolist() == [[1, 2], [3, 4]]
