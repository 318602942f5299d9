"""Prompts of several chunks, weights and skipped layers: equal to diffusers, in any company, and on the record."""

import numpy as np
import pytest
import torch
from diffusers import (
    StableDiffusionPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from small_requests import pixels, request, same
from transformers import CLIPTextModel

from twig.engine.api.errors import InvalidRequestError
from twig.engine.api.mechanisms import Avoidance, MaskedAttention
from twig.engine.api.request import SimilarityPolicy
from twig.engine.api.settings import Solver, Stage
from twig.engine.batching.carried import attempt_seed
from twig.engine.batching.scheduler import Limits
from twig.engine.engine import Engine
from twig.engine.models.checkpoint import load
from twig.engine.records.manifest import Manifest
from twig.engine.replay import replay

PLAIN = {
    "avoidance": Avoidance.off(), "similarity": SimilarityPolicy(limits={}, retries=0),
    "draft": Stage(steps=3, solver=Solver.DDIM), "final": Stage(steps=3, solver=Solver.DDIM),
}  # fmt: skip
TWO = "a red star, " * 20
THREE = "a red star on the moon, " * 27


@pytest.fixture(scope="module")
def components(tiny_checkpoint):
    """A model whose text states have a mean, as a trained one's have."""
    loaded = load(tiny_checkpoint)
    norm = next(m for name, m in loaded.text_encoder.named_modules() if name.endswith("final_layer_norm"))
    norm.bias.requires_grad_(False).add_(0.3)
    return loaded


@pytest.fixture(scope="module")
def engine(components):
    return Engine(components, limits=Limits(slots=6, rows=6))


@pytest.fixture(scope="module")
def xl(tiny_xl_checkpoint):
    return Engine.from_pretrained(tiny_xl_checkpoint)


@pytest.fixture(scope="module", autouse=True)
def where_diffusers_looks_for_the_last_norm():
    """Its pipelines ask for `text_encoder.text_model`, which newer transformers have no more."""
    with pytest.MonkeyPatch.context() as patch:
        if not hasattr(CLIPTextModel, "text_model"):
            patch.setattr(CLIPTextModel, "text_model", property(lambda self: self), raising=False)
        yield


@pytest.fixture(scope="module")
def pipeline(components):
    made = StableDiffusionPipeline(
        vae=components.vae, text_encoder=components.text_encoder, tokenizer=components.tokenizer,
        unet=UNet2DConditionModel.from_pretrained(components.name, subfolder="unet"), scheduler=components.scheduler,
        safety_checker=None, feature_extractor=None,
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def xl_pipeline(tiny_xl_checkpoint):
    parts = StableDiffusionXLControlNetPipeline.from_pretrained(tiny_xl_checkpoint).components
    made = StableDiffusionXLPipeline(**{name: part for name, part in parts.items() if name != "controlnet"})
    made.set_progress_bar_config(disable=True)
    return made


def ids_of(tokenizer, chunks):
    """Ids of chunks that are written out by hand, (chunks, 77)."""
    return tokenizer(list(chunks), padding="max_length", max_length=77, return_tensors="pt").input_ids


def drawn(pipeline, wanted, seed, **options):
    return pipeline(
        num_inference_steps=wanted.final.steps, guidance_scale=wanted.final.guidance_scale,
        generator=torch.Generator().manual_seed(seed), **options,
    ).images[0]  # fmt: skip


def differ(a, b):
    return np.abs(np.asarray(a, int) - np.asarray(b, int)).max()


# --- equal to diffusers ---


def test_chunks_are_what_diffusers_draws_of_states_side_by_side(engine, pipeline):
    wanted = request("a (red:1.5) star BREAK " + "a moon " * 40, negative_prompt="blue", **PLAIN)
    (result,) = engine.generate(wanted)
    encode, tokenizer = pipeline.text_encoder, pipeline.tokenizer
    with torch.no_grad():
        asked = encode(ids_of(tokenizer, ["a red star", ("a moon " * 40).rsplit(" ", 6)[0], "moon a moon a moon"]))[0]
        unsaid = encode(ids_of(tokenizer, ["blue", "", ""]))[0]
    first = asked[0].clone()
    first[2] *= 1.5
    asked[0] = first * (asked[0].mean() / first.mean())
    options = {"prompt_embeds": asked.flatten(0, 1)[None], "negative_prompt_embeds": unsaid.flatten(0, 1)[None]}
    assert options["prompt_embeds"].shape[1] == 231
    assert differ(result.draft, drawn(pipeline, wanted, wanted.seed, **options)) <= 1
    assert differ(result.image, drawn(pipeline, wanted, attempt_seed(wanted.seed, 0, 0), **options)) <= 1
    (short,) = engine.generate(request("a red star", negative_prompt="blue", **PLAIN))
    assert not same(short, result)


def test_two_encoders_take_their_weights_apart_and_pool_the_first_chunk(xl, xl_pipeline):
    wanted = request("a red [star] BREAK a moon", **PLAIN)
    (result,) = xl.generate(wanted)
    states, pooled = [], None
    with torch.no_grad():
        for tokenizer, encoder in (
            (xl_pipeline.tokenizer, xl_pipeline.text_encoder),
            (xl_pipeline.tokenizer_2, xl_pipeline.text_encoder_2),
        ):
            output = encoder(ids_of(tokenizer, ["a red star", "a moon"]), output_hidden_states=True)
            own = output.hidden_states[-2].clone()
            scaled = own[0].clone()
            scaled[3] /= 1.1
            own[0] = scaled * (own[0].mean() / scaled.mean())
            states.append(own.flatten(0, 1)[None])
            pooled = output[0][:1]
    asked = torch.cat(states, dim=-1)
    options = {"prompt_embeds": asked, "negative_prompt_embeds": torch.zeros_like(asked)}
    options |= {"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": torch.zeros_like(pooled)}
    assert differ(result.draft, drawn(xl_pipeline, wanted, wanted.seed, **options)) <= 1


@pytest.mark.parametrize("skip", [0, 1, 2])
def test_layers_are_skipped_as_diffusers_skips_them(engine, pipeline, skip):
    wanted = request("a red star", clip_skip=skip, negative_prompt="blue", **PLAIN)
    (result,) = engine.generate(wanted)
    expected = drawn(pipeline, wanted, wanted.seed, prompt="a red star", negative_prompt="blue", clip_skip=skip)
    assert differ(result.draft, expected) <= 1
    assert skip == 0 or not same(result, *engine.generate(request("a red star", negative_prompt="blue", **PLAIN)))


def test_of_two_encoders_layers_are_skipped_as_diffusers_skips_them(xl, xl_pipeline):
    wanted = request("a red star", clip_skip=1, negative_prompt="blue", **PLAIN)
    (result,) = xl.generate(wanted)
    expected = drawn(xl_pipeline, wanted, wanted.seed, prompt="a red star", negative_prompt="blue", clip_skip=1)
    assert differ(result.draft, expected) <= 1
    with pytest.raises(InvalidRequestError, match="clip_skip 2: this model's text encoder has 1 layers to leave out"):
        xl.admit(request(clip_skip=2))


def test_the_plain_syntax_draws_the_characters(engine, pipeline):
    wanted = request("a (red:1.5) star", prompt_syntax="plain", **PLAIN)
    (result,) = engine.generate(wanted)
    expected = drawn(pipeline, wanted, wanted.seed, prompt="a (red:1.5) star", negative_prompt="")
    assert differ(result.draft, expected) <= 1


# --- in one batch ---


class Padded(Engine):
    """An engine whose every call has the same rows, so that rounding cannot differ between companies."""

    def __init__(self, components):
        super().__init__(components, limits=Limits(slots=3, rows=6, boundary=1))
        self.arenas.buckets = (6,)


def test_prompts_of_all_lengths_share_calls_and_change_nothing_of_each_other(components):
    batch = [request(prompt, seed=seed, steps=3) for seed, prompt in enumerate(("a red star", TWO, THREE))]
    together = Padded(components)
    loop, tokens = together.arenas.loop((16, 16)), []
    predict = loop._predict
    loop._predict = lambda rows, length, *more, **named: (tokens.append(length), predict(rows, length, *more, **named))
    results = together.generate(batch)
    assert 231 in tokens
    assert [result.chunks for result in results] == [1, 2, 3]
    for wanted, result in zip(batch, results, strict=True):
        (alone,) = Padded(components).generate(wanted)
        assert np.array_equal(pixels(alone), pixels(result)), f"the prompt of {result.chunks} chunks"


def test_memory_for_long_prompts_is_taken_when_one_comes(components):
    engine = Engine(components, limits=Limits(slots=2, rows=4))
    engine.generate(request())
    short = engine.arenas.nbytes
    assert engine.arenas.loop((16, 16)).lengths == [77]
    engine.generate([request(), request(TWO)])
    assert engine.arenas.loop((16, 16)).lengths == [77, 231]
    assert engine.arenas.nbytes == engine.arenas.loop((16, 16)).nbytes > short
    prepared = Engine(components, limits=Limits(slots=2, rows=4))
    prepared.warmup(long_prompts=True)
    assert prepared.arenas.nbytes == engine.arenas.nbytes


def test_a_long_prompt_waits_where_its_memory_does_not_fit_beside_others(components):
    short = Engine(components, limits=Limits(slots=2, rows=4))
    short.warmup()
    engine = Engine(components, limits=Limits(slots=2, rows=4), arena_budget=short.arenas.nbytes + 1)
    results = engine.generate([request(), request(TWO), request(width=96), request(THREE)])
    assert [result.error for result in results] == [None] * 4


# --- what reads tokens ---


@pytest.mark.parametrize("kind", ["words", "padding", "all", "spikes", (78, 80, 160)])
def test_masked_attention_heeds_every_chunk(engine, kind):
    policy = Avoidance.off().model_copy(
        update={"masked_attention": MaskedAttention(bias=-5, tokens=kind, spike_threshold=0.5)}
    )
    asked = {"avoidance": policy, "explain": True, "final": Stage(steps=2)}
    (result,) = engine.generate(request("a red star BREAK moon BREAK star", **asked))
    told = result.explanation
    assert len(told.tokens) == 231 == told.mass_inside.shape[1]
    moved = np.abs(told.moved).sum(0)
    if kind == "words":
        weighed = [i for i, token in enumerate(told.tokens) if not token.startswith("<|")]
        assert {1, 2, 3, 78, 155} == set(weighed)
        assert (told.moved.sum(0)[weighed] > 0).all()
    assert moved[77:].sum() > 0, "chunks behind the first are touched too"


def test_a_position_may_lie_in_any_chunk_but_is_no_start_token(engine):
    def asking(position, prompt):
        rule = MaskedAttention(tokens=(position,))
        return request(prompt, avoidance=Avoidance.off().model_copy(update={"masked_attention": rule}))

    engine.admit(asking(78, TWO))
    for position, prompt in ((77, TWO), (154, TWO), (78, "a star")):
        with pytest.raises(InvalidRequestError, match=f"position {position} is no word's or padding's"):
            engine.admit(asking(position, prompt))


# --- at the door and on the record ---


def test_too_many_chunks_are_refused_with_what_would_be_cut(components):
    engine = Engine(components, max_prompt_chunks=2)
    engine.admit(request(TWO))
    with pytest.raises(InvalidRequestError, match=r"162 tokens in 3 chunks of 77.*this engine takes 2.*cut before: 'a"):
        engine.admit(request("a star " * 78))
    with pytest.raises(InvalidRequestError, match="negative prompt has"):
        engine.admit(request(negative_prompt="star " * 151))
    with pytest.raises(InvalidRequestError, match="max_prompt_chunks 0"):
        Engine(components, max_prompt_chunks=0)


def test_the_manifest_says_how_prompts_were_read_and_a_replay_reads_them_so(components):
    engine = Engine(components)
    (result,) = engine.generate(request("a (red:1.3) star BREAK [moon]", negative_prompt="blue", clip_skip=1))
    written = Manifest.model_validate_json(result.manifest(engine).model_dump_json())
    assert written.parsed.prompt == ((("a ", 1), ("red", 1.3), (" star ", 1)), ((" ", 1), ("moon", 1 / 1.1)))
    assert written.parsed.negative_prompt == ((("blue", 1),),)
    assert (written.parsed.chunks, written.request.clip_skip) == (2, 1)
    found = replay(written, Engine(components), saved=result.image)
    assert found.identical, str(found)
    assert "reading of the prompts" in found.same


def test_a_manifest_of_before_there_was_a_syntax_is_read_as_plain_characters(components):
    engine = Engine(components)
    (result,) = engine.generate(request("a (red:1.3) star", prompt_syntax="plain"))
    old = result.manifest(engine).model_dump_json(exclude={"parsed": True, "request": {"prompt_syntax"}})
    assert replay(Manifest.model_validate_json(old), Engine(components), saved=result.image).same["image"]
