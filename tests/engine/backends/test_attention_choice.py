"""Plain attention by the kernel that was fastest at its level, on the kernels that a CPU has."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend

from twig.engine.backends import attention_choice
from twig.engine.backends.attention_choice import AttentionChoice
from twig.engine.backends.options import TorchOptions


@pytest.fixture
def choice(monkeypatch):
    """A clock by which the plain product is fastest at 16 pixels and FlashAttention elsewhere."""
    asked = []

    def milliseconds(call):
        out = call()
        asked.append(out.shape)
        return 1 + (out.shape[2] == 16 if len(asked) % 2 else out.shape[2] != 16)

    monkeypatch.setattr(attention_choice, "CANDIDATES", (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH))
    made = AttentionChoice(milliseconds)
    made.asked = asked
    return made


def inputs(rows, pixels):
    return [torch.randn(rows, 2, pixels, 8) for _ in range(3)]


def test_each_level_is_measured_once_whatever_its_rows(choice):
    with choice.measuring():
        for rows, pixels in ((4, 16), (2, 16), (4, 64), (1, 64)):
            q, k, v = inputs(rows, pixels)
            torch.testing.assert_close(choice(q, k, v), F.scaled_dot_product_attention(q, k, v))
    assert [shape[2] for shape in choice.asked] == [16, 16, 64, 64]
    assert list(choice.fastest.values()) == [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION]


def test_nothing_is_measured_while_serving(choice):
    q, k, v = inputs(1, 16)
    torch.testing.assert_close(choice(q, k, v), F.scaled_dot_product_attention(q, k, v))
    assert not choice.asked


def test_a_kernel_that_cannot_run_here_is_passed_over(choice, monkeypatch):
    monkeypatch.setattr(attention_choice, "CANDIDATES", (SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH))
    with choice.measuring():
        choice(*inputs(1, 32))
    assert list(choice.fastest.values()) == [SDPBackend.MATH]


def test_trials_end_with_the_warm_up():
    settled = TorchOptions().on(torch.device("cuda"))
    with settled.warming():
        assert torch.backends.cudnn.benchmark
        assert attention_choice.attend._measuring
    assert not torch.backends.cudnn.benchmark
    assert not attention_choice.attend._measuring
    assert not TorchOptions(deterministic=True).on(torch.device("cuda")).tune
    assert not TorchOptions().on(torch.device("cpu")).tune
