"""Steps that take the network's deep part over: against the plain reference, in company, at every turn of a job."""

import numpy as np
import pytest
import torch
from small_requests import NEVER, Padded, request, same

from twig.benchmarks.reference import pipeline as reference
from twig.engine.api.errors import InvalidRequestError
from twig.engine.api.mechanisms import Avoidance, DelayedGuidance, MaskedAttention, MovedControl, RestatedPrompt
from twig.engine.api.settings import Stage
from twig.engine.batching.carried import attempt_seed
from twig.engine.batching.scheduler import Limits
from twig.engine.engine import Engine
from twig.engine.models.checkpoint import load
from watched import final_latents

OFF = Avoidance.off()
POLICIES = {
    "plain": OFF,
    "control": OFF.model_copy(update={"moved_control": MovedControl(stop=0.6)}),
    "negative control": OFF.model_copy(update={"moved_control": MovedControl(negative=0.5, start=0.5)}),
    "masked attention": OFF.model_copy(update={"masked_attention": MaskedAttention(bias=-4, layers=("down", "up"))}),
    "delayed guidance, restated prompt": OFF.model_copy(
        update={"delayed_guidance": DelayedGuidance(stop=0.4), "restated_prompt": RestatedPrompt(stop=0.6)}
    ),
}


def cached(policy, number, **changes):
    """A request whose draft and final take steps over, each in its own rhythm."""
    solver, rhythm = ("ddim", "heun", "dpmpp_2m")[number % 3], ("even", "early")[number // 2 % 2]
    draft, final = (
        Stage(steps=3, solver=solver, cache_interval=2),
        Stage(steps=6, solver=solver, guidance_stop=0.8, cache_interval=2 + number % 2, cache_rhythm=rhythm),
    )
    prompt = f"a red star {number}" if policy.restated_prompt is None else "a red star and a square on a field untitled"
    return request(prompt, seed=number, draft=draft, final=final, avoidance=policy, **changes)


@pytest.fixture(scope="module")
def batch():
    plain = request("a house", seed=9, avoidance=OFF)
    return [*(cached(policy, number) for number, policy in enumerate(POLICIES.values())), plain]


WAYS = [
    pytest.param(("tiny_checkpoint", None), id="torch"),
    pytest.param(("tiny_xl_checkpoint", None), id="torch, xl"),
    pytest.param(("tiny_checkpoint", "openvino"), id="openvino"),
    pytest.param(("tiny_xl_checkpoint", "onnxruntime"), id="onnxruntime, xl", marks=pytest.mark.slow),
]
"""A model, and what runs its UNet compiled."""


@pytest.fixture(scope="module", params=WAYS)
def way(request):
    model, backend = request.param
    return request.getfixturevalue(model), backend


@pytest.fixture(scope="module")
def checkpoint(way):
    return way[0]


@pytest.fixture(scope="module")
def components(checkpoint):
    return load(checkpoint)


@pytest.fixture(scope="module")
def drawn(way, batch, request):
    (checkpoint, backend), options = way, {}
    if backend is not None:
        pytest.importorskip(backend, reason=f"{backend} is not installed")
        pytest.importorskip("onnx", reason="onnx is not installed")
        options = {"backend": {"unet": backend}, "artifacts": request.getfixturevalue("builder")}
    engine = Engine.from_pretrained(checkpoint, limits=Limits(slots=8, rows=8), **options)
    drawn = list(zip(*final_latents(engine, batch), strict=True))
    assert set(engine.networks.compiled) == (set() if backend is None else {"unet", "unet_shallow"})
    return drawn


@pytest.mark.parametrize("index", range(len(POLICIES)), ids=POLICIES)
def test_is_what_the_plain_reference_draws(components, batch, drawn, index):
    wanted, (latent, result) = batch[index], drawn[index]
    _, final = reference.generate(components, wanted, attempt_seed(wanted.seed, 0, 0))
    assert (latent - final.latent[0]).abs().max() <= 1e-4
    whole = wanted.model_copy(update={"final": wanted.final.model_copy(update={"cache_interval": 1})})
    _, other = reference.generate(components, whole, attempt_seed(wanted.seed, 0, 0))
    assert (latent - other.latent[0]).abs().max() > 1e-3, "it was computed in full"
    assert result.verdict == "accepted"


@pytest.fixture(scope="module")
def engine(tiny_checkpoint):
    return Padded(load(tiny_checkpoint), limits=Limits(slots=8, rows=8, boundary=1))


def test_a_retry_begins_anew(engine):
    """Its first step takes nothing over from the attempt before, nor from who had the slot."""
    wanted = cached(POLICIES["control"], 0, similarity=NEVER)
    (first,) = engine.generate(wanted)
    assert len(first.attempts) == 2
    arena = engine.arenas.loop((16, 16)).arena
    with torch.inference_mode():
        for kept in (arena.deep, *arena.kept_residuals):
            kept.fill_(float("nan"))
    (again,) = engine.generate(wanted)
    assert same(first, again)


def test_previews_and_explanations_change_nothing(engine):
    wanted = cached(POLICIES["masked attention"], 0)
    (plain,) = engine.generate(wanted)
    (explained,) = engine.generate(wanted.model_copy(update={"explain": True, "preview": 2}))
    assert same(plain, explained)
    known = ~np.isnan(explained.explanation.mass_inside).all(axis=1)
    assert known.tolist() == [True, False, True, False, True, True]  # where guidance ends a step is whole


def test_a_network_of_another_make_is_refused_by_name(engine, monkeypatch):
    monkeypatch.setattr("twig.engine.staging.can_be_split", lambda unet: False)
    with pytest.raises(InvalidRequestError, match=r"final\.cache_interval 2: .*; leave it at 1"):
        engine.submit(request(final=Stage(steps=4, cache_interval=2)))


@pytest.mark.parametrize("size", [64, 72])
def test_a_compiled_one_leaves_records_and_uneven_sizes_to_pytorch(tiny_checkpoint, engine, builder, size):
    """A whole step that records attention, and a size that no graph takes, hand over to what runs the next one."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    compiled = Engine.from_pretrained(tiny_checkpoint, backend={"unet": "onnxruntime"}, artifacts=builder)
    wanted = cached(POLICIES["masked attention"], 0, height=size, width=size, explain=True)
    (first,), (second,) = engine.generate(wanted), compiled.generate(wanted)
    assert same(first, second, tolerance=1)
