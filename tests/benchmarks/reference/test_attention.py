import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

from twig.benchmarks.reference.attention import AttentionRule, MaskedCrossAttention
from twig.engine.api.mechanisms import MaskedAttention
from twig.kernels.masked_attention import masked_attention_reference

HEADS, WIDTH, TOKENS = 2, 16, 77
GRID = (6, 10)


def attention():
    torch.manual_seed(0)
    return Attention(WIDTH, cross_attention_dim=12, heads=HEADS, dim_head=WIDTH // HEADS)


def rule(obeys, scalars, seed=0):
    generator = torch.Generator().manual_seed(seed)
    b, bbar, c, g, pad = torch.rand(5, TOKENS, generator=generator) * 2
    tokens = torch.stack((b - 1, bbar - 1, c, g, pad - 1))
    made = AttentionRule(MaskedAttention(), 10, torch.rand(48, 80, generator=generator), tokens)
    made.scalars = torch.tensor([scalars])
    made.obeys = torch.tensor(obeys)
    return made


@pytest.mark.parametrize(
    "scalars", [(1.0, 1.0, 0.0), (1.0, 0.0, 0.0), (0.5, 0.3, 0.7), (0.0, 0.0, 0.0), (0.0, 1.0, 1.0)]
)
@pytest.mark.parametrize("obeys", [(0.0, 1.0), (1.0, 1.0)])
@torch.no_grad()
def test_processor_agrees_with_the_operators_reference(scalars, obeys):
    layer, active = attention(), rule(obeys, scalars)
    pixels, text = torch.randn(2, GRID[0] * GRID[1], WIDTH), torch.randn(2, TOKENS, 12)
    made = MaskedCrossAttention(active, 0, [(12, 20), GRID])(layer, pixels, text)
    mask = torch.nn.functional.interpolate(active.mask[None, None], GRID, mode="area")[0].expand(2, -1, -1)
    per_row = torch.tensor([scalars]) * torch.tensor(obeys)[:, None]
    attended, _, _ = masked_attention_reference(
        layer.to_q(pixels), layer.to_k(text), layer.to_v(text), mask, active.tokens.expand(2, -1, -1), per_row,
        heads=HEADS, grid=GRID,
    )  # fmt: skip
    torch.testing.assert_close(made, layer.to_out[0](attended), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_rows_that_do_not_obey_are_plain_attention():
    layer, active = attention(), rule((0.0, 1.0), (1.0, 1.0, 0.5))
    active.tokens[4] = 0  # the bias of padding masks holds everywhere
    pixels, text = torch.randn(2, GRID[0] * GRID[1], WIDTH), torch.randn(2, TOKENS, 12)
    made = MaskedCrossAttention(active, 0, [GRID])(layer, pixels, text)
    plain = AttnProcessor2_0()(layer, pixels, text)
    torch.testing.assert_close(made[0], plain[0], atol=1e-5, rtol=1e-5)
    assert float((made[1] - plain[1]).abs().max()) > 1e-3
