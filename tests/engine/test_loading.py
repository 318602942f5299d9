"""Options by keyword, before anything is loaded."""

import warnings

import pytest
import torch

from twig.benchmarks.copying.baselines.ren import RenEngine
from twig.engine import loading
from twig.engine.engine import Engine


@pytest.fixture
def unloaded(monkeypatch):
    """Let nothing be loaded."""

    def load(*_, **__):
        raise AssertionError("it was loaded")

    monkeypatch.setattr("twig.engine.engine.opened", load)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("limit", "'limit' is no option of an engine; did you mean 'limits'"),
        (
            "safety_checker",
            "'safety_checker' is no option of an engine; known: adapters, arena_budget, artifacts, b",
        ),
        ("varient", "'varient' is no option of an engine; did you mean 'variant'"),
        ("components", "'components' is no option"),
    ],
)
def test_an_unknown_option_is_refused_before_anything_is_loaded(unloaded, option, message):
    with pytest.raises(TypeError, match=message):
        Engine.from_pretrained(**{option: None})


def test_an_engine_of_another_kind_has_options_of_its_own(unloaded):
    with pytest.raises(AssertionError, match="it was loaded"):
        RenEngine.from_pretrained(start_scale=1.2, max_steps=9)
    with pytest.raises(TypeError, match="did you mean 'start_scale'"):
        RenEngine.from_pretrained(start_scales=1.2)


def test_diffusers_name_for_the_dtype_is_taken(tiny_checkpoint):
    engine = Engine.from_pretrained(tiny_checkpoint, torch_dtype=torch.bfloat16)
    assert {engine.networks.dtype, engine.components.unet.dtype} == {torch.bfloat16}


@pytest.mark.parametrize("supported", [True, False])
def test_a_dtype_that_the_processor_lacks_is_warned_about(monkeypatch, supported):
    monkeypatch.setattr(loading, "_computes", lambda dtype: supported)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loading.warn_of_slow_dtype(torch.bfloat16, "cpu")
        loading.warn_of_slow_dtype(torch.float32, "cpu")
        loading.warn_of_slow_dtype(torch.bfloat16, "cuda")
    assert ["bfloat16" in str(each.message) for each in caught] == ([] if supported else [True])
