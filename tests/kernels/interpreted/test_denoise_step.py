import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from twig.kernels.denoise_step import StepColumns, denoise_step_reference, launch_denoise_step
from twig.kernels.denoise_step_cpu import denoise_step_cpu, gather_rows_cpu
from twig.kernels.gather_rows import gather_rows_reference, launch_gather_rows
from twig.kernels.testing import assert_close

LIGHT = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


WRITTEN = ("latents", "history", "carried")


def step_inputs(slots, shape=(4, 5, 7), rows=6, dtype=torch.float32, seed=0, zero=(), rescale=True):
    generator = torch.Generator().manual_seed(seed)
    arena, jobs = 5, len(slots)
    coefficients = torch.randn(arena, 3, len(StepColumns), generator=generator)
    for column in zero:
        coefficients[..., column] = 0
    return {
        "latents": torch.randn(arena, *shape, generator=generator),
        "history": torch.randn(arena, *shape, generator=generator),
        "eps": torch.randn(rows, *shape, generator=generator).to(dtype),
        "slots": torch.tensor(slots, dtype=torch.int64),
        "rows": torch.randint(0, rows, (jobs, 4), generator=generator),
        "weights": torch.randn(jobs, 4, generator=generator),
        "steps": torch.randint(0, 3, (jobs,), generator=generator),
        "coefficients": coefficients,
        "masks": torch.rand(arena, *shape[1:], generator=generator),
        "seeds": torch.randint(-(2**62), 2**62, (arena,), generator=generator),
        "carried": torch.randn(arena, *shape, generator=generator),
        "pairs": torch.randint(0, rows, (jobs, 2), generator=generator),
        "rescales": torch.rand(jobs, generator=generator) * rescale * torch.arange(jobs).fmod(3).ne(1),
    }


def run_both(inputs):
    expected, actual, here = (inputs | {name: inputs[name].clone() for name in WRITTEN} for _ in range(3))
    denoise_step_reference(**expected)
    launch_denoise_step(**actual)
    denoise_step_cpu(**here)
    for name in WRITTEN:
        assert torch.equal(actual[name], expected[name]), name
        assert torch.equal(here[name], expected[name]), f"{name} on a CPU"
    return actual


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_step_equals_the_reference_bit_for_bit(dtype):
    run_both(step_inputs([3, 0, 4], dtype=dtype))


CARRYING = (StepColumns.G, StepColumns.KX, StepColumns.KE, StepColumns.KH, StepColumns.KL)


@pytest.mark.parametrize(
    "zero",
    [
        (StepColumns.D,),
        (StepColumns.M,),
        (StepColumns.D, StepColumns.M, StepColumns.C),
        CARRYING,
        (StepColumns.G,),
        (StepColumns.KL, StepColumns.G),
        (StepColumns.KX,),
    ],
)
def test_terms_that_are_off(zero):
    run_both(step_inputs([1, 2], zero=zero))


@LIGHT
@given(
    slots=st.lists(st.integers(0, 4), unique=True, max_size=4),
    padding=st.integers(0, 2),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)),
    zero=st.sets(st.sampled_from(list(StepColumns))),
    seed=st.integers(0, 99),
)
def test_any_batch(slots, padding, shape, zero, seed):
    run_both(step_inputs(slots + [-1] * padding, shape, seed=seed, zero=zero))


def test_several_blocks_and_an_odd_end():
    run_both(step_inputs([2, 0], (3, 21, 37)))


def test_unused_rows_history_and_masks_do_not_poison():
    inputs = step_inputs([1, 2], zero=(StepColumns.C, StepColumns.M, *CARRYING), rescale=False)
    inputs["pairs"].fill_(0)
    inputs["carried"].fill_(float("nan"))
    inputs["weights"][:, 2:] = 0
    inputs["rows"][:, :2] = 1
    inputs["rows"][:, 2:] = 0
    inputs["eps"][0] = float("nan")
    inputs["history"].fill_(float("nan"))
    inputs["masks"].fill_(float("nan"))
    actual = run_both_with_nan(inputs)
    assert actual["latents"].isfinite().all()
    assert actual["history"][1:3].isfinite().all()
    assert actual["history"][0].isnan().all()
    assert actual["carried"].isnan().all()


@pytest.mark.parametrize("shape", [(4, 5, 7), (3, 21, 37)])
def test_rescaled_guidance_has_the_deviation_of_the_text(shape):
    """At a rescale of 1 the guided prediction spreads as the conditional one does; a half is half way there."""
    found = {}
    for rescale in (0.0, 0.5, 1.0):
        inputs = step_inputs([2], shape, zero=set(StepColumns) - {StepColumns.Q, StepColumns.B}, seed=3)
        inputs["coefficients"][..., [StepColumns.Q, StepColumns.B]] = 1
        inputs["rescales"].fill_(rescale)
        found[rescale] = run_both(inputs)["latents"][2]
    text = inputs["eps"][inputs["pairs"][0, 1]]
    torch.testing.assert_close(found[1.0].std(), text.std(), rtol=1e-5, atol=0)
    torch.testing.assert_close(found[0.5], (found[0.0] + found[1.0]) / 2)


def test_guidance_without_deviation_stays_as_it_is():
    inputs = step_inputs([2])
    inputs["weights"].zero_()
    assert run_both(inputs)["latents"].isfinite().all()


def run_both_with_nan(inputs):
    reference = inputs | {name: inputs[name].clone() for name in WRITTEN}
    denoise_step_reference(**reference)
    launch_denoise_step(**inputs)
    assert torch.equal(inputs["latents"], reference["latents"])
    return inputs


def test_padding_jobs_write_nothing():
    inputs = step_inputs([-1, 2, -1])
    before = inputs["latents"].clone()
    actual = run_both(inputs)
    changed = (actual["latents"] != before).flatten(1).any(1)
    assert changed.tolist() == [False, False, True, False, False]


def test_channels_last_rows():
    inputs = step_inputs([0, 3])
    planar = run_both(inputs)
    inputs["eps"] = inputs["eps"].to(memory_format=torch.channels_last)
    assert torch.equal(run_both(inputs)["latents"], planar["latents"])


def test_a_job_does_not_depend_on_its_company():
    inputs = step_inputs([3, 0, 4])
    together = run_both(inputs)
    pick = {name: inputs[name][1:2] for name in ("slots", "rows", "weights", "steps", "pairs", "rescales")}
    alone = run_both(inputs | pick)
    assert torch.equal(alone["latents"][0], together["latents"][0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gather(dtype, layout):
    inputs = step_inputs([0], (4, 9, 31))
    inputs["latents"][1] = float("nan")
    slots, steps = torch.tensor([2, 2, -1, 0, 4]), torch.tensor([0, 1, 0, 2, 1])
    expected = torch.full((5, 4, 9, 31), float("nan"), dtype=dtype)
    actual = expected.clone().to(memory_format=layout)
    gather_rows_reference(inputs["latents"], inputs["coefficients"], slots, steps, expected)
    here = actual.clone()
    launch_gather_rows(inputs["latents"], inputs["coefficients"], slots, steps, actual)
    gather_rows_cpu(inputs["latents"], inputs["coefficients"], slots, steps, here)
    assert torch.equal(here, expected)
    if dtype == torch.bfloat16:  # the interpreter truncates where a device rounds
        assert_close(actual, expected, 2**-7)
    else:
        assert torch.equal(actual, expected)
    assert (actual[2] == 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slots": torch.zeros(2, dtype=torch.int32)}, "slots must be torch.int64, got torch.int32"),
        ({"history": torch.zeros(5, 4, 5, 6)}, r"history must have shape \(5, 4, 5, 7\), got \(5, 4, 5, 6\)"),
        ({"coefficients": torch.zeros(5, 3, 11)}, r"must have shape \(5, \*, 17\), got \(5, 3, 11\)"),
        ({"pairs": torch.zeros(2, 3, dtype=torch.int64)}, r"pairs must have shape \(2, 2\), got \(2, 3\)"),
        ({"masks": torch.zeros(5, 7, 5).transpose(1, 2)}, r"masks must be contiguous, got strides \(35, 1, 5\)"),
        ({"eps": torch.zeros(6, 4, 7, 5).transpose(2, 3)}, "eps's lines must follow each other"),
        ({"latents": torch.zeros(5, 4, 5, 7).double()}, "latents must be torch.float32, got torch.float64"),
    ],
)
def test_wrong_arguments_are_refused_with_the_value(change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        launch_denoise_step(**(step_inputs([0, 1]) | change))


def test_a_gather_into_the_wrong_buffer_is_refused():
    inputs = step_inputs([0])
    slots = torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"out must have shape \(2, 4, 5, 7\), got \(3, 4, 5, 7\)"):
        launch_gather_rows(inputs["latents"], inputs["coefficients"], slots, slots, torch.zeros(3, 4, 5, 7))
