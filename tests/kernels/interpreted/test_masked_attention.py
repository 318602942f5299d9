import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from twig.kernels.conditioning import ScalarColumn, TokenRow, neutral_scalars
from twig.kernels.masked_attention import launch_masked_attention, masked_attention_reference
from twig.kernels.testing import TOLERANCES, assert_close, attention_inputs
from twig.kernels.tiles import LONGEST_TILE, AttentionTile, attention_tile

LIGHT = settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


WIDE = (64, 8, 64)  # few programs: the interpreter's time is their number


def tiled(inputs, sizes=WIDE):
    """Give a tile of these sizes to whichever kernel the token row's length asks for."""
    return AttentionTile(*sizes, looped=inputs["k"].shape[1] > LONGEST_TILE)


def compare(inputs, sizes=WIDE, slack=0.0, tile=None):
    tolerance = TOLERANCES[inputs["q"].dtype] + slack
    tile = tile or tiled(inputs, sizes)
    out, inside, outside = launch_masked_attention(**inputs, with_mass=True, tile=tile)
    wide = {n: v.double() if n in ("q", "k", "v") else v for n, v in inputs.items()}
    expected = masked_attention_reference(**wide)
    assert out.dtype == inputs["q"].dtype
    assert_close(out, expected[0], tolerance, "out")
    assert_close(inside, expected[1], 1e-5 + slack, "mass inside")
    assert_close(outside, expected[2], 1e-5 + slack, "mass outside")


@pytest.mark.parametrize("head_dim", [8, 40, 64, 80, 160, 256])
@pytest.mark.parametrize("length", [1, 77, 154])
def test_head_dimensions_and_lengths(head_dim, length):
    compare(attention_inputs(2, 2, (5, 7), length, head_dim))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("length", [77, 231, 300])
def test_half_precisions_and_long_rows(dtype, length):
    compare(attention_inputs(2, 1, (3, 6), length, 40, dtype))


@pytest.mark.parametrize("sizes", [(16, 4, 16), (128, 8, 64)])
@pytest.mark.parametrize("length", [77, 100])
def test_the_result_does_not_depend_on_the_tile(sizes, length):
    compare(attention_inputs(1, 1, (3, 13), length, 88), sizes)


@pytest.mark.parametrize("length", [16, 77, 96])
def test_short_rows_can_be_swept_too(length):
    compare(attention_inputs(1, 1, (3, 13), length, 168), tile=AttentionTile(16, 8, 16, looped=True))


@pytest.mark.parametrize(("head_dim", "length"), [(88, 77), (88, 100), (160, 77)])
def test_the_tile_that_is_chosen(head_dim, length):
    inputs = attention_inputs(1, 1, (3, 13), length, head_dim)
    compare(inputs, tile=attention_tile(head_dim, length, torch.float32))


@pytest.mark.parametrize("length", [77, 100])
def test_the_masses_cost_the_output_nothing(length):
    inputs = attention_inputs(1, 2, (3, 5), length, 40)
    out, inside, outside = launch_masked_attention(**inputs, tile=tiled(inputs))
    assert torch.equal(out, launch_masked_attention(**inputs, tile=tiled(inputs), with_mass=True)[0])
    assert inside is None
    assert outside is None


@LIGHT
@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    mask_size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    length=st.integers(1, 130),
    head_dim=st.sampled_from([8, 16, 24, 48, 72]),
    seed=st.integers(0, 1000),
)
def test_any_shape(batch, heads, grid, mask_size, length, head_dim, seed):
    inputs = attention_inputs(batch, heads, grid, length, head_dim, seed=seed)
    inputs["mask"] = torch.rand(batch, *mask_size, generator=torch.Generator().manual_seed(seed))
    compare(inputs)


@LIGHT
@given(
    values=st.lists(st.sampled_from([-2e4, -1e4, -3.0, 0.0, 0.5, 1e4]), min_size=4, max_size=4),
    factors=st.tuples(st.sampled_from([0.0, 1.0, 1.35, 4.0]), st.sampled_from([0.0, 1.0, 7.0])),
    scalars=st.tuples(*[st.sampled_from([0.0, 0.5, 1.0])] * 3),
    fill=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_any_value(values, factors, scalars, fill):
    inputs = attention_inputs(1, 1, (4, 5), 20, 16, torch.float16)
    tokens = inputs["tokens"]
    tokens[:, TokenRow.B, 3:9] = values[0]
    tokens[:, TokenRow.B, 6:12] += values[1]
    tokens[:, TokenRow.BBAR, 1:5] = values[2]
    tokens[:, TokenRow.PAD, 15:] = min(values[3], 0.0)
    tokens[:, TokenRow.C, 2:7] = factors[0]
    tokens[:, TokenRow.G, 4:14] = factors[1]
    inputs["scalars"][:] = torch.tensor(scalars)
    inputs["mask"].fill_(fill)
    compare(inputs, slack=3e-3)  # next to a bias of 1e4 an fp32 logit is known to 1e-3 only


@pytest.mark.parametrize("length", [77, 120])
def test_stacked_biases_on_every_token_stay_finite(length):
    inputs = attention_inputs(1, 2, (4, 4), length, 40, torch.float16)
    inputs["tokens"][:, TokenRow.B] = -1e4
    inputs["tokens"][:, TokenRow.PAD] = -1e4
    inputs["tokens"][:, TokenRow.C] = 1
    inputs["scalars"][:, ScalarColumn.ETA] = 1
    inputs["mask"].fill_(1)
    out, inside, _ = launch_masked_attention(**inputs, with_mass=True)
    assert out.isfinite().all()
    assert inside.isfinite().all()


def test_extreme_logits():
    inputs = attention_inputs(1, 1, (4, 4), 77, 40)
    inputs["q"] *= 300
    compare(inputs, (16, 4, 16))


def test_rows_switched_off_are_plain_attention_to_the_bit():
    inputs = attention_inputs(3, 2, (4, 6), 77, 40)
    inputs["scalars"][1, ScalarColumn.ETA] = 0
    mixed = launch_masked_attention(**inputs)[0]
    plain = launch_masked_attention(**(inputs | {"scalars": neutral_scalars(3)}))[0]
    assert torch.equal(mixed[1], plain[1])
    compare(inputs)


def test_packed_projections_are_read_in_place():
    inputs = attention_inputs(2, 2, (3, 5), 77, 40)
    packed = torch.randn(2, 77, 2 * 80)
    wide = torch.full((2, 15, 3, 80), float("nan"))
    wide[:, :, 1] = inputs["q"]
    inputs |= {"k": packed[..., :80], "v": packed[..., 80:], "q": wide[:, :, 1]}
    inputs["tokens"] = inputs["tokens"][:1].expand(2, -1, -1)
    inputs["mask"] = inputs["mask"].transpose(1, 2).contiguous().transpose(1, 2)
    assert not inputs["k"].is_contiguous()
    compare(inputs)


def test_the_mass_uses_the_raw_mask_when_the_sample_is_off():
    inputs = attention_inputs(1, 2, (4, 4), 77, 40, active=False)
    inputs["mask"][:, :2] = 1
    inputs["mask"][:, 2:] = 0
    compare(inputs)
    _, inside, outside = launch_masked_attention(**inputs, with_mass=True)
    assert inside.untyped_storage().data_ptr() != outside.untyped_storage().data_ptr(), "results may share no memory"
    assert_close(inside.sum(-1), torch.ones(1, 2), 1e-5)
    assert not torch.allclose(inside, outside)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": (4, 5)}, r"grid must multiply to q's 24 pixels, got \(4, 5\)"),
        ({"heads": 3}, "heads must divide q's 80 channels, got 3"),
        ({"k": torch.zeros(1, 77, 72)}, r"k must have shape \(1, \*, 80\), got \(1, 77, 72\)"),
        ({"tokens": torch.zeros(1, 4, 77)}, r"tokens must have shape \(1, 5, 77\), got \(1, 4, 77\)"),
        ({"scalars": torch.zeros(2, 3)}, r"scalars must have shape \(1, 3\), got \(2, 3\)"),
        ({"mask": torch.zeros(1, 4, 6).half()}, "mask must be torch.float32, got torch.float16"),
        ({"v": torch.zeros(1, 77, 80).half()}, "v must be torch.float32, got torch.float16"),
        ({"q": torch.zeros(1, 24, 80).double()}, "q must be torch.float16 or .*, got torch.float64"),
        ({"heads": 20}, "multiple of 8 up to 256, got 4"),
        ({"v": torch.zeros(1, 80, 77).transpose(1, 2)}, r"v's channels must be adjacent, got strides \(6160, 1, 77\)"),
    ],
)
def test_wrong_arguments_are_refused_with_the_value(change, message):
    inputs = attention_inputs(1, 2, (4, 6), 77, 40) | change
    with pytest.raises((ValueError, TypeError), match=message):
        launch_masked_attention(**inputs)
