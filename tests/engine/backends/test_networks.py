"""The two-step job on every backend that can run here, and how backends are chosen and refused."""

import numpy as np
import pytest
import torch

pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("openvino", reason="openvino is not installed")

from twig.engine.api.errors import BackendError, InvalidRequestError
from twig.engine.api.request import GenerationRequest
from twig.engine.api.result import Verdict
from twig.engine.api.settings import Stage
from twig.engine.backends import networks as backend_networks
from twig.engine.engine import Engine
from twig.engine.models.tensors import Network
from twig.export.parity import image_ssim

STAGE = Stage(steps=3, guidance_scale=3.0)
PROMPTS = ("a red star", "a blue house and a moon", "a green tree")
REQUESTS = [GenerationRequest(prompt=p, seed=i, draft=STAGE, final=STAGE) for i, p in enumerate(PROMPTS)]


@pytest.fixture(scope="module")
def reference(make_engine):
    """What PyTorch draws."""
    return make_engine().generate(REQUESTS)


@pytest.mark.parametrize(
    ("backend", "precision", "tolerance", "similarity"),
    [
        ("onnxruntime", "fp32", 2, 0.999),
        ("openvino", "fp32", 2, 0.999),
        pytest.param("openvino", "bf16", 64, 0.95, id="openvino-bf16"),
    ],
)
def test_the_same_pictures_on_every_backend(
    make_engine, reference, skip_without_bf16, backend, precision, tolerance, similarity
):
    if precision == "bf16":
        skip_without_bf16()
    engine = make_engine(backend, precision)
    results = engine.generate(REQUESTS)
    assert [result.error for result in results] == [None] * 3
    for found, wanted in zip(results, reference, strict=True):
        assert np.abs(np.asarray(found.image, float) - np.asarray(wanted.image, float)).max() <= tolerance
    assert image_ssim([r.image for r in reference], [r.image for r in results]) >= similarity
    chosen = engine.stats().backends
    assert results[0].backends == dict.fromkeys(chosen, f"{backend} {precision}")
    assert results[0].manifest(engine).backends == results[0].backends
    assert reference[0].backends == {}
    assert {name: choice["backend"] for name, choice in chosen.items()} == dict.fromkeys(
        ("unet", "controlnet", "vae_decoder", "text_encoder", "segmenter"), backend
    )


LONG = [
    REQUESTS[0],
    REQUESTS[1].model_copy(update={"prompt": "a red star BREAK a blue house"}),
    REQUESTS[2].model_copy(update={"clip_skip": 1}),
]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_compiled_networks_take_the_chunks_that_they_were_made_for(make_engine, backend):
    with pytest.raises(InvalidRequestError, match="this engine takes 1; give it max_prompt_chunks=2 or more"):
        make_engine(backend).admit(LONG[1])
    results = make_engine(backend, max_prompt_chunks=2).generate(LONG)
    for found, wanted in zip(results, make_engine().generate(LONG), strict=True):
        assert found.error is None
        assert np.abs(np.asarray(found.image, float) - np.asarray(wanted.image, float)).max() <= 2


def test_networks_choose_one_by_one(make_engine, reference):
    engine = make_engine({"vae_decoder": "onnxruntime"})
    (result,) = engine.generate(REQUESTS[:1])
    chosen = engine.stats().backends
    assert chosen["vae_decoder"]["backend"] == "onnxruntime"
    assert chosen["text_encoder"]["backend"] == "torch"
    assert np.abs(np.asarray(result.image, float) - np.asarray(reference[0].image, float)).max() <= 2


def test_auto_measures_once_and_remembers(make_engine):
    first = make_engine({"vae_decoder": "auto"})
    first.generate(REQUESTS[:1])
    measured = first.stats().backends["vae_decoder"]
    assert set(measured["seconds"]) == {"torch", "onnxruntime", "openvino"}
    assert measured["backend"] == min(measured["seconds"], key=measured["seconds"].get)
    second = make_engine({"vae_decoder": "auto"})
    second.generate(REQUESTS[:1])
    remembered = second.stats().backends["vae_decoder"]
    assert remembered["seconds"] == measured["seconds"]
    assert "before" in remembered["reason"]


def test_an_explained_request_runs_where_attention_can_be_read(make_engine):
    request = REQUESTS[0].model_copy(update={"explain": True})
    (result,) = make_engine({"unet": "onnxruntime"}).generate(request)
    assert result.verdict is not Verdict.FAILED
    assert result.explanation is not None


@pytest.mark.parametrize(
    ("backend", "precision", "message"),
    [
        ("tflite", "fp32", r"no backend 'tflite'; known: torch, onnxruntime, openvino"),
        ({"encoder": "torch"}, "fp32", r"no network 'encoder'; known: unet"),
        ("torch", "int8", r"no precision 'int8'; known: fp32"),
    ],
)
def test_what_does_not_exist_is_refused_at_once(make_engine, backend, precision, message):
    with pytest.raises(BackendError, match=message):
        make_engine(backend, precision)


def test_a_backend_that_is_not_installed_is_refused_at_once(make_engine, monkeypatch):
    monkeypatch.setattr(backend_networks, "_installed", lambda backend: False)
    with pytest.raises(BackendError, match="package openvino, which is not installed"):
        make_engine("openvino")


def test_a_precision_the_backend_lacks_fails_with_its_reason(make_engine):
    (result,) = make_engine({"vae_decoder": "openvino"}, "fp16").generate(REQUESTS[:1])
    assert result.verdict is Verdict.FAILED
    assert "openvino computes fp32 and bf16" in result.error


def test_a_precision_the_backend_lacks_is_told_before_a_model_is_read(tmp_path):
    with pytest.raises(BackendError, match="openvino computes fp32 and bf16"):
        Engine.from_pretrained(tmp_path / "nowhere", backend="openvino", precision="fp16")


def test_a_resolution_that_plans_were_not_built_for_is_refused_at_the_door(components, builder, monkeypatch):
    monkeypatch.setattr(backend_networks, "_installed", lambda backend: True)
    engine = Engine(components, backend={"unet": "tensorrt"}, artifacts=builder)
    wide = REQUESTS[0].model_copy(update={"width": 128})
    with pytest.raises(InvalidRequestError, match=r"128 x 64 pixels .* plans for unet, unet_shallow .* 64 x 64"):
        engine.submit(wide)
    engine.submit(REQUESTS[0])
    free = Engine(components, backend={"unet": "openvino"}, artifacts=builder)
    free.submit(wide)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_size_that_no_graph_halves_evenly_is_drawn_as_pytorch_draws_it(make_engine, backend):
    """40 x 72 pixels are 10 x 18 latents, which halve to odd sides."""
    request = REQUESTS[0].model_copy(update={"height": 40, "width": 72})
    (expected,) = make_engine().generate(request)
    engine = make_engine(backend)
    (found,) = engine.generate(request)
    assert found.error is None
    assert found.verdict is expected.verdict
    assert found.image.size == (72, 40)
    assert image_ssim([found.image], [expected.image]) > 0.99
    (even,) = engine.generate(REQUESTS[0])
    assert even.error is None
    assert engine.stats().backends["unet"]["backend"] == backend


def test_texts_of_several_calls_are_kept_from_a_runtime_that_answers_in_the_same_memory(make_engine):
    networks = make_engine().networks
    ids = torch.arange(11).repeat(77, 1).T.contiguous()
    answered = torch.empty(networks.buckets[-1], 77)

    def run(inputs, wanted=None):
        answered[: len(inputs[0])] = inputs[0]
        return (answered[: len(inputs[0])],)

    networks._ready[Network.TEXT_ENCODER] = run
    (states,) = networks.text_states(Network.TEXT_ENCODER, ids, None)
    assert torch.equal(states, ids.float())
