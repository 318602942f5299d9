"""A pretended device goes as it came."""

import pytest
import torch

from pretend import CannotPretendError, installed


def test_nothing_is_left_of_it(guard):
    before = torch.cuda.Stream, torch.tensor, torch.cuda.is_available()
    with installed(guard):
        assert torch.cuda.is_available()
        assert torch.cuda.Stream is not before[0]
    assert (torch.cuda.Stream, torch.tensor, torch.cuda.is_available()) == before
    assert type(torch.ones(2) + 1) is torch.Tensor


def test_it_says_why_it_cannot_be(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CannotPretendError), installed(tmp_path):
        pass
