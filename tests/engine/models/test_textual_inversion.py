"""Words that text encoders were taught, against diffusers' own loader; what is refused, and what is recorded."""

import copy

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from twig.engine.api.errors import CheckpointError, InvalidRequestError
from twig.engine.api.mechanisms import Avoidance
from twig.engine.api.request import GenerationRequest, SimilarityPolicy
from twig.engine.api.settings import Stage
from twig.engine.batching.scheduler import Limits
from twig.engine.cli.actions.engines import load_engine
from twig.engine.cli.options import EngineChoice
from twig.engine.engine import Engine
from twig.engine.models.checkpoint import load
from twig.engine.models.textual_inversion import extend_encoder, extended_tokenizer
from twig.engine.models.vocabulary import unknown_words
from twig.engine.records.manifest import Manifest
from twig.engine.records.model_record import ModelRecord
from twig.engine.replay import replay

LIMITS = Limits(slots=2, rows=8)


def vectors(count, width, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def ids(tokenizer, prompt):
    return tokenizer(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One file of each form, for the tiny models."""
    folder = tmp_path_factory.mktemp("embeddings")
    save_file({"<cat>": vectors(3, 32)}, folder / "learned_embeds.safetensors")
    save_file({"<dog>": vectors(1, 32, 1)[0]}, folder / "single.safetensors")
    save_file({"emb_params": vectors(2, 32, 2).half()}, folder / "EasyBad.safetensors")
    save_file({"clip_l": vectors(2, 32, 3), "clip_g": vectors(2, 48, 4)}, folder / "style.safetensors")
    return folder


@pytest.fixture(scope="module")
def taught(tiny_checkpoint, files):
    """An engine that knows three words."""
    names = ["learned_embeds", "single", "EasyBad"]
    paths = [files / f"{name}.safetensors" for name in names]
    return Engine.from_pretrained(tiny_checkpoint, embeddings=paths, limits=LIMITS)


@pytest.fixture(scope="module")
def pipeline(taught, tiny_checkpoint, files):
    """A pipeline of diffusers that knows the same words."""
    components = taught.components
    made = StableDiffusionPipeline(
        components.vae, CLIPTextModel.from_pretrained(tiny_checkpoint / "text_encoder"),
        CLIPTokenizer.from_pretrained(tiny_checkpoint / "tokenizer"), components.unet, components.scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    for name, token in (("learned_embeds", "<cat>"), ("single", "<dog>"), ("EasyBad", "easybad")):
        made.load_textual_inversion(files / f"{name}.safetensors", token=token)
    return made


@pytest.mark.parametrize(
    "prompt", ["a <cat> on the moon", "<dog> and <cat>, a <cat>", "a red house, EasyBad", "a (<Cat>) with <dog>s"]
)
def test_a_prompt_means_what_it_means_to_diffusers(taught, pipeline, prompt):
    # Which rewrites prompts only where words stand in the case that they were loaded in.
    wanted, _ = pipeline.encode_prompt(prompt.lower(), "cpu", 1, False)
    components = taught.components
    with torch.inference_mode():
        found = components.text_encoder(ids(components.tokenizer, prompt))[0]
    assert torch.allclose(found, wanted, atol=1e-5)


def test_both_encoders_of_sdxl_are_taught(tiny_xl_checkpoint, files):
    path, prompt = files / "style.safetensors", "a house in style on the moon"
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_xl_checkpoint)
    tensors = load_file(path)
    pipeline.load_textual_inversion(
        tensors["clip_l"], token="style", text_encoder=pipeline.text_encoder, tokenizer=pipeline.tokenizer
    )
    pipeline.load_textual_inversion(
        tensors["clip_g"], token="style", text_encoder=pipeline.text_encoder_2, tokenizer=pipeline.tokenizer_2
    )
    states, _, pooled, _ = pipeline.encode_prompt(prompt, device="cpu", do_classifier_free_guidance=False)
    components = load(tiny_xl_checkpoint, embeddings=path)
    with torch.inference_mode():
        outputs = [
            encoder(ids(tokenizer, prompt), output_hidden_states=True)
            for tokenizer, encoder in zip(components.tokenizers, components.text_encoders, strict=True)
        ]
    found = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
    assert torch.allclose(found, states, atol=1e-5)
    assert torch.allclose(outputs[1].text_embeds, pooled, atol=1e-5)


def test_an_old_configuration_takes_no_word_for_the_end_of_a_text(tiny_xl_checkpoint, files):
    components = load(tiny_xl_checkpoint, embeddings=files / "style.safetensors")
    encoder = copy.deepcopy(load(tiny_xl_checkpoint).text_encoder_2)
    for module in encoder.modules():
        if hasattr(module, "eos_token_id"):
            module.eos_token_id = 2
    extend_encoder(encoder, components.tokenizer_2, components.embeddings, 1)
    given = ids(components.tokenizer_2, "a style")
    with torch.inference_mode():
        assert torch.allclose(encoder(given).text_embeds, components.text_encoder_2(given).text_embeds, atol=1e-5)


def test_a_word_is_known_whole_and_in_any_case(taught):
    tokenizer = taught.components.tokenizer
    assert tokenizer.tokenize("EASYBAD,")[:2] == tokenizer.tokenize("easybad") == ["easybad", "easybad_1"]
    assert "easybad" not in tokenizer.tokenize("easybadness")
    assert tokenizer.tokenize("<cat> <cat>_1 <cat>_2") == ["<cat>", "<cat>_1", "<cat>_2"]
    assert tokenizer("<cat>").input_ids == copy.deepcopy(tokenizer)("<cat>").input_ids
    assert len(tokenizer("<cat>").input_ids) == 5
    assert unknown_words(tokenizer, ["a zorp, EasyBad and <cat>"]) == ["zorp"]


def test_the_door_counts_all_its_tokens(tiny_checkpoint, tmp_path):
    save_file({"<long>": vectors(74, 32)}, tmp_path / "long.safetensors")
    long = tmp_path / "long.safetensors"
    engine = Engine.from_pretrained(tiny_checkpoint, embeddings=long, limits=LIMITS, max_prompt_chunks=1)
    engine.admit(GenerationRequest(prompt="<long> star", avoidance=Avoidance.off()))
    with pytest.raises(InvalidRequestError, match="has 80 tokens in 2 chunks"):
        engine.admit(GenerationRequest(prompt="<long> red star", avoidance=Avoidance.off()))


def test_a_picture_is_drawn_recorded_and_made_again(taught, tiny_checkpoint):
    stage = Stage(steps=2, guidance_scale=3.0)
    plain = GenerationRequest(
        prompt="a <cat>", negative_prompt="EasyBad", seed=1, draft=stage, final=stage, avoidance=Avoidance.off(),
        similarity=SimilarityPolicy(limits={}, retries=0),
    )  # fmt: skip
    (result,) = taught.generate([plain])
    record = Manifest.of(result, ModelRecord.of(taught.components))
    assert [each.token for each in record.model.embeddings] == ["<cat>", "<dog>", "EasyBad"]
    record = Manifest.model_validate_json(record.model_dump_json())
    named = tuple(f"{each.path}:{each.token}" for each in record.model.embeddings)
    again = load_engine(EngineChoice(str(tiny_checkpoint), embeddings=named))
    assert replay(record, again).identical
    untaught = Engine.from_pretrained(tiny_checkpoint, limits=LIMITS)
    (other,) = untaught.generate([plain])
    assert not np.array_equal(np.asarray(result.image), np.asarray(other.image))
    with pytest.raises(CheckpointError, match="embeddings has SHA-256"):
        replay(record, untaught)


@pytest.mark.slow
def test_a_compiled_text_encoder_holds_them(taught, builder):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    exported = Engine(
        taught.components, limits=LIMITS, backend={"text_encoder": "onnxruntime"}, artifacts=builder
    )  # fmt: skip
    encoded = [engine.stages.encoding._encoded(["a <cat>"])[0] for engine in (taught, exported)]
    for mine, other in zip(encoded[0].unet, encoded[1].unet, strict=True):
        assert torch.allclose(mine, other, atol=1e-4)


def test_a_tokenizer_of_another_stays_as_it_is(taught):
    before = load(taught.components.sources["source"]).tokenizer
    size = len(before)
    extended = extended_tokenizer(before, taught.components.embeddings)
    assert (len(before), len(extended)) == (size, size + 6)


@pytest.mark.parametrize(
    ("tensors", "token", "said"),
    [
        ({"<x>": vectors(1, 48)}, None, "vectors of 48 numbers, this model's text encoder takes 32"),
        ({"star": vectors(1, 32)}, None, "'star' is a word of the model's vocabulary already"),
        ({"<x>": vectors(1, 32)}, "Star", "'star' is a word of the model's vocabulary already"),
        ({"<cat>": vectors(1, 32)}, None, r"'<cat>' is a word of .*learned_embeds\.safetensors already"),
        ({"clip_l": vectors(1, 32), "clip_g": vectors(1, 48)}, None, "is for SDXL's two text encoders"),
        ({"<x>": vectors(1, 32), "<y>": vectors(1, 32)}, None, "holds <x>, <y>; an embedding"),
        ({"<x>": vectors(1, 32) * torch.nan}, None, "holds NaN or infinity"),
        ({"<x>": vectors(76, 32)}, None, "holds 76 vectors; a prompt has room for 1 to 75"),
        ({"<x>": vectors(0, 32)}, None, "holds 0 vectors"),
        ({"<x>": vectors(4, 32).reshape(2, 2, 32)}, None, "no lists of vectors"),
        ({"a word": vectors(1, 32)}, None, "'a word' cannot be typed as one word"),
        ({"<x>": vectors(1, 32)}, "(x)", "cannot be typed as one word"),
    ],
)
def test_what_does_not_fit_is_refused_before_weights_are_read(tiny_checkpoint, files, tmp_path, tensors, token, said):
    save_file(tensors, tmp_path / "one.safetensors")
    given = tmp_path / "one.safetensors" if token is None else f"{tmp_path}/one.safetensors:{token}"
    with pytest.raises(CheckpointError, match=said):
        load(tiny_checkpoint, embeddings=[files / "learned_embeds.safetensors", given])


def test_a_file_for_one_encoder_is_refused_by_sdxl(tiny_xl_checkpoint, files):
    with pytest.raises(CheckpointError, match="is for one text encoder, and this model has SDXL's two"):
        load(tiny_xl_checkpoint, embeddings=files / "single.safetensors")


@pytest.mark.parametrize(
    ("name", "said"), [("none.safetensors", "there is no file"), ("cat.pt", "pickles, which can run code")]
)
def test_what_is_no_file_of_embeddings_is_refused(tiny_checkpoint, tmp_path, name, said):
    (tmp_path / "cat.pt").write_bytes(b"\x80")
    with pytest.raises(CheckpointError, match=said):
        load(tiny_checkpoint, embeddings=tmp_path / name)
