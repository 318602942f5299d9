from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from pydantic import ValidationError

from twig.engine.api.errors import InvalidRequestError
from twig.engine.api.mechanisms import MaskedAttention, MaskedNoise
from twig.engine.api.settings import Solver
from twig.engine.avoidance.conditioning import attention_scalars, mask_pyramid, masked_noise_columns, token_vectors
from twig.engine.sampling.solver import solver_table
from twig.kernels import ScalarColumn, StepColumns, TokenRow, neutral_tokens

BOS, EOS, PAD = 98, 99, 0
TOKENIZER = SimpleNamespace(bos_token_id=BOS, eos_token_id=EOS)
PROMPT = torch.tensor([BOS, 5, 6, 7, EOS, EOS, EOS, EOS])


# --- masks ---


def test_pyramid_pools_by_area():
    mask = torch.zeros(8, 8)
    mask[:4, :2] = 1
    pyramid = mask_pyramid(mask, [(4, 4), (2, 2), (1, 1)])
    assert pyramid.dtype == torch.float32
    assert pyramid.shape == (16 + 4 + 1,)
    assert pyramid[:16].view(4, 4)[:, 0].tolist() == [1, 1, 0, 0]
    assert pyramid[16:20].tolist() == [0.5, 0, 0, 0]
    assert pyramid[20] == 0.125


def test_pyramid_of_odd_grids_keeps_the_range():
    mask = (torch.rand(75, 101, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    levels = [(19, 26), (10, 13), (5, 7)]
    pyramid = mask_pyramid(mask, levels)
    assert len(pyramid) == sum(h * w for h, w in levels)
    assert 0 <= pyramid.min() <= pyramid.max() <= 1
    assert mask_pyramid(torch.ones(75, 101), levels).eq(1).all()


# --- token vectors ---


def touched(policy, ids=PROMPT):
    neutral = neutral_tokens(1, len(ids))[0]
    return sorted(set(torch.nonzero(token_vectors(policy, ids, TOKENIZER) != neutral)[:, 1].tolist()))


def test_no_policy_is_neutral():
    assert torch.equal(token_vectors(None, PROMPT, TOKENIZER), neutral_tokens(1, 8)[0])


@pytest.mark.parametrize(
    ("tokens", "positions"),
    [("words", [1, 2, 3]), ("padding", [4, 5, 6, 7]), ("all", [1, 2, 3, 4, 5, 6, 7]), ((2, 5), [2, 5])],
)
def test_rule_touches_the_tokens_it_names(tokens, positions):
    assert touched(MaskedAttention(tokens=tokens)) == positions


def test_values_stand_in_their_rows():
    policy = MaskedAttention(bias=-3, outside_bias=0.5, scale=1.25, gain=0.1, tokens=(2,))
    column = token_vectors(policy, PROMPT, TOKENIZER)[:, 2]
    assert column[TokenRow.B] == -3
    assert column[TokenRow.BBAR] == 0.5
    assert column[TokenRow.C] == 1.25
    assert column[TokenRow.G] == pytest.approx(0.1)
    assert column[TokenRow.PAD] == 0


def test_padding_that_is_not_the_end_token():
    """Stable Diffusion 2 pads with another token than the end token."""
    ids = torch.tensor([BOS, 5, EOS, PAD, PAD])
    assert touched(MaskedAttention(tokens="padding"), ids) == [2, 3, 4]
    assert touched(MaskedAttention(tokens="words"), ids) == [1]


def test_every_chunk_of_a_long_prompt_keeps_its_start_token():
    ids = torch.tensor([BOS, 5, 6, EOS, BOS, 7, EOS, EOS])
    assert touched(MaskedAttention(tokens="all"), ids) == [1, 2, 3, 5, 6, 7]
    assert touched(MaskedAttention(tokens="words"), ids) == [1, 2, 5]


@pytest.mark.parametrize(("position", "message"), [(0, "start token"), (8, "positions 1 to 7")])
def test_impossible_positions_are_refused(position, message):
    with pytest.raises(InvalidRequestError, match=message):
        token_vectors(MaskedAttention(tokens=(position,)), PROMPT, TOKENIZER)


def test_a_position_before_the_first_is_refused_where_it_is_set():
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        MaskedAttention(tokens=(-1,))


# --- schedule ---


def test_scalars_act_in_their_window_and_layers_only():
    policy = MaskedAttention(start=0.2, stop=0.6, renormalise=0.5, damping=0.25, layers=("down", "up"))
    groups = ["down", "mid", "up"]
    acting = [step for step in range(10) if attention_scalars(policy, step, 10, groups).any()]
    assert acting == [2, 3, 4, 5]
    scalars = attention_scalars(policy, 2, 10, groups)
    assert scalars.dtype == np.float32
    assert scalars[0].tolist() == scalars[2].tolist() == [1, 0.5, 0.25]
    assert [ScalarColumn.ETA, ScalarColumn.RHO, ScalarColumn.GAMMA] == [0, 1, 2]
    assert not scalars[1].any()


def test_scalars_without_a_policy_are_off():
    assert attention_scalars(None, 0, 10, ["down", "mid"]).tolist() == [[0, 0, 0]] * 2


# --- masked noise ---


def table(solver, num_steps=10):
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)
    return solver_table(solver, num_steps, scheduler)


@pytest.mark.parametrize("solver", [s for s in Solver if s is not Solver.HEUN])
def test_masked_noise_renoises_to_the_next_level(solver):
    steps = table(solver)
    columns = masked_noise_columns(steps, MaskedNoise(start=0.1, stop=0.4, strength=0.7))
    assert columns[:, StepColumns.M].tolist() == pytest.approx([0, 0.7, 0.7, 0.7, 0, 0, 0, 0, 0, 0])
    for step in (1, 2, 3):
        assert columns[step, StepColumns.R] == pytest.approx(float(steps.alphas[step + 1]))
        assert columns[step, StepColumns.N] == pytest.approx(float(steps.sigmas[step + 1]))
    others = [c for c in StepColumns if c not in (StepColumns.M, StepColumns.R, StepColumns.N)]
    assert torch.equal(columns[:, others], steps.columns[:, others])


def test_masked_noise_leaves_the_shared_table_alone():
    steps = table(Solver.DDIM)
    before = steps.columns.clone()
    masked_noise_columns(steps, MaskedNoise())
    masked_noise_columns(steps, None)[0, 0] = 5
    assert torch.equal(steps.columns, before)


# --- spikes ---


def test_spikes_are_what_draws_far_more_than_the_others_and_never_the_start():
    masses = torch.tensor([9.0, 0.1, 0.9, 0.1, 0.1, 0.1, 0.1, 0.1])
    rule = MaskedAttention(tokens="spikes", bias=-3)
    assert torch.nonzero(token_vectors(rule, PROMPT, TOKENIZER, masses)[TokenRow.B]).flatten().tolist() == [2]
    strict = MaskedAttention(tokens="spikes", spike_threshold=3)
    assert torch.equal(token_vectors(strict, PROMPT, TOKENIZER, masses), neutral_tokens(1, 8)[0])


def test_equal_masses_hold_no_spike():
    rule = MaskedAttention(tokens="spikes", spike_threshold=0)
    assert torch.equal(token_vectors(rule, PROMPT, TOKENIZER, torch.full((8,), 0.125)), neutral_tokens(1, 8)[0])
