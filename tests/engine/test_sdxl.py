"""SDXL-shaped folders, with diffusers' own pipelines on the same folder as the oracle."""

import shutil

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLControlNetPipeline, StableDiffusionXLPipeline

from model_folders import edit
from twig.benchmarks.reference.solvers import make_scheduler
from twig.engine.api.errors import InvalidRequestError
from twig.engine.api.mechanisms import Avoidance, MovedControl
from twig.engine.api.request import Framing, GenerationRequest, SimilarityPolicy
from twig.engine.api.result import Verdict
from twig.engine.api.settings import Solver, Stage
from twig.engine.backends.networks import BackendSettings, Networks
from twig.engine.backends.protocol import Precision
from twig.engine.batching.carried import Shared, attempt_seed
from twig.engine.batching.job import Job
from twig.engine.engine import Engine
from twig.engine.models.checkpoint import load
from twig.engine.models.networks import Denoiser
from twig.engine.models.tensors import Network, Sizes, control_inputs, flatten, shallow_inputs, unet_inputs

OFF = Avoidance.off()
FRAMING = Framing(original=(512, 384), crop=(16, 0), target=(128, 96))


def request(prompt="a red star", solver=Solver.EULER, steps=4, scale=5.0, **options):
    stage = Stage(steps=steps, guidance_scale=scale, solver=solver)
    return GenerationRequest(**{
        "prompt": prompt, "seed": 3, "draft": stage, "final": stage, "avoidance": OFF,
        "similarity": SimilarityPolicy(limits={}, retries=0),
    } | options)  # fmt: skip


@pytest.fixture(scope="module")
def components(tiny_xl_checkpoint):
    return load(tiny_xl_checkpoint)


@pytest.fixture(scope="module")
def engine(components):
    return Engine(components)


@pytest.fixture(scope="module")
def pipelines(tiny_xl_checkpoint):
    """Diffusers' pipelines as they load the folder by themselves, without control and with it."""
    controlled = StableDiffusionXLControlNetPipeline.from_pretrained(tiny_xl_checkpoint)
    plain = StableDiffusionXLPipeline(**{k: v for k, v in controlled.components.items() if k != "controlnet"})
    for pipeline in (plain, controlled):
        pipeline.set_progress_bar_config(disable=True)
    return plain, controlled


@pytest.fixture
def folder(tiny_xl_checkpoint, tmp_path):
    return shutil.copytree(tiny_xl_checkpoint, tmp_path / "model")


def drawn(pipeline, wanted, seed, **options):
    """A pipeline's picture of a request's final stage."""
    return pipeline(
        wanted.prompt, negative_prompt=wanted.negative_prompt or None, num_inference_steps=wanted.final.steps,
        guidance_scale=wanted.final.guidance_scale, generator=torch.Generator().manual_seed(seed), **options,
    ).images[0]  # fmt: skip


def differ(a, b):
    return np.abs(np.asarray(a, int) - np.asarray(b, int)).max()


# --- equal to diffusers' own pipelines ---


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"negative_prompt": "a blue house"},
        {"scale": 1.0},
        {"solver": Solver.DDIM, "steps": 7},
        {"solver": Solver.DPMPP_2M, "steps": 5},
        {"width": 80, "height": 48},
    ],
    ids=str,
)
def test_drafts_and_finals_are_the_pipelines_pictures(engine, pipelines, monkeypatch, options):
    wanted = request(**options)
    (result,) = engine.generate(wanted)
    size = {name: options[name] for name in ("width", "height") if name in options}
    if "solver" in options:  # else the folder's own
        monkeypatch.setattr(pipelines[0], "scheduler", make_scheduler(wanted.final.solver, engine.components.scheduler))
    expected = drawn(pipelines[0], wanted, wanted.seed, **size)
    assert np.asarray(expected).std() > 10
    assert differ(result.draft, expected) <= 1
    assert differ(result.image, drawn(pipelines[0], wanted, attempt_seed(wanted.seed, 0, 0), **size)) <= 1


def test_framing_is_the_pipelines_sizes(engine, pipelines):
    wanted = request(framing=FRAMING)
    (result,) = engine.generate(wanted)
    sizes = {"original_size": FRAMING.original, "crops_coords_top_left": FRAMING.crop, "target_size": FRAMING.target}
    expected = drawn(pipelines[0], wanted, wanted.seed, **sizes)
    assert differ(result.draft, expected) <= 1
    assert differ(drawn(pipelines[0], wanted, wanted.seed), expected) > 8


def test_finals_under_unmoved_control_are_the_controlnet_pipelines_pictures(engine, pipelines):
    control = MovedControl(warp="none", scale=1.3, start=0.0, stop=1.0, rows="both")
    wanted = request(avoidance=OFF.model_copy(update={"moved_control": control}))
    (result,) = engine.generate(wanted)
    palette = engine.components.segmenter.palette
    hint = torch.from_numpy(palette[result.label_map.astype(int)]).permute(2, 0, 1)[None] / 255
    seed = attempt_seed(wanted.seed, 0, 0)
    expected = drawn(pipelines[1], wanted, seed, image=hint, controlnet_conditioning_scale=1.3)
    assert differ(result.image, expected) <= 1
    assert differ(drawn(pipelines[0], wanted, seed), expected) > 8


def test_an_empty_negative_prompt_is_encoded_where_the_folder_says_so(folder, engine):
    edit(folder / "model_index.json", force_zeros_for_empty_prompt=False)
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, controlnet=None, segmenter=None)
    pipeline.set_progress_bar_config(disable=True)
    wanted = request(steps=2)
    (result,) = Engine(load(folder)).generate(wanted)
    assert differ(result.draft, drawn(pipeline, wanted, wanted.seed)) <= 1
    assert differ(result.draft, engine.generate(wanted)[0].draft) > 8


# --- batches ---


def test_mixed_sizes_prompts_and_framings_in_one_batch_are_the_single_pictures(components, engine):
    batch = [
        request("a red star", avoidance=Avoidance(), seed=1, steps=3),
        request("a blue house", framing=FRAMING, seed=2, negative_prompt="tree"),
        request("a green tree", framing=Framing(original=(32, 32)), solver=Solver.DDIM, steps=6, seed=3),
        request("the moon", width=96, height=48, avoidance=Avoidance(), seed=4, steps=2),
        request("", seed=5, steps=2),
    ]
    together = Engine(components).generate(batch)
    for wanted, result in zip(batch, together, strict=True):
        (alone,) = engine.generate(wanted)
        assert result.verdict is Verdict.ACCEPTED, result.error
        assert differ(result.draft, alone.draft) <= 1
        assert differ(result.image, alone.image) <= 1


def test_rows_of_different_framings_share_a_call(components):
    engine, calls = Engine(components), []
    predict = engine.networks.predict
    engine.networks.predict = lambda inputs: calls.append(inputs.added) or predict(inputs)
    engine.generate([request(framing=FRAMING), request("a blue house"), request("a blue house", framing=FRAMING)])
    text, sizes = calls[0]
    assert len(text) == len(sizes) == 6
    assert len(sizes.unique(dim=0)) == 2
    assert len(text.unique(dim=0)) == 3  # zeros, and two prompts
    assert not text[::2].any()


def test_text_is_kept_as_long_as_there_is_room(components, monkeypatch):
    encoding = Engine(components).stages.encoding
    jobs = [Job(i, i, request(f"a star {i}"), (16, 16), 0.0, Shared()) for i in range(4)]
    encoding.encode(jobs[:1])
    assert len(encoding._texts) == 2
    monkeypatch.setattr("twig.engine.stages.encoding._CACHE_BYTES", 3 * jobs[0].shared.texts[0].nbytes)
    encoding.encode(jobs)
    assert len(encoding._texts) == 3


# --- backends ---


def exporting(module):
    """A module of the export room, where what it needs is installed."""
    return pytest.importorskip(f"twig.export.{module}", exc_type=ImportError, reason="onnx is not installed")


def test_exported_text_encoders_draw_the_same_pictures(components, engine, tmp_path):
    """The other networks are held against PyTorch, narrower, in the tests of exported architectures."""
    for name in ("onnxruntime", "openvino"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    build = exporting("build")
    backend = {"text_encoder": "onnxruntime", "text_encoder_2": "openvino"}
    batch = [request(steps=2), request("a blue house", framing=FRAMING, steps=2)]
    compiled = Engine(components, backend=backend, artifacts=build.ArtifactBuilder(build.ArtifactStore(tmp_path)))
    for found, wanted in zip(compiled.generate(batch), engine.generate(batch), strict=True):
        assert found.verdict is Verdict.ACCEPTED, found.error
        assert differ(found.draft, wanted.draft) <= 1
    chosen = compiled.stats().backends
    assert {name: chosen[name]["backend"] for name in backend} == backend


READ = {
    Network.UNET: unet_inputs,
    Network.UNET_SHALLOW: shallow_inputs,
    Network.CONTROLNET: control_inputs,
}


@pytest.mark.parametrize("network", READ)
def test_calls_are_laid_flat_in_the_tables_order(components, engine, network):
    denoiser = engine.networks.denoiser
    spec = engine.networks.specs[network]
    tensors = exporting("graph").example_inputs(spec, Sizes(2, 16, 16), torch.float32)
    read = READ[network](tensors, denoiser)
    assert [tensor.shape[1] for tensor in read.added] == [24, 48]
    assert all(a is b for a, b in zip(flatten(read), tensors, strict=True))


# --- fp16 ---


def test_compiled_autoencoders_stay_in_fp32_too(components):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    denoiser = Denoiser(components.unet, components.controlnet)
    settings = BackendSettings("onnxruntime", "fp16")
    networks = Networks(components, denoiser, settings, buckets=(1,), device=torch.device("cpu"), dtype=torch.float32)
    assert networks.precision_of(Network.VAE_DECODER) is Precision.FP32
    assert networks.precision_of(Network.UNET) is Precision.FP16


def test_half_precision_draws(tiny_xl_checkpoint, engine):
    (wanted,) = engine.generate(request(steps=2))
    half = Engine.from_pretrained(tiny_xl_checkpoint, dtype=torch.bfloat16)
    (found,) = half.generate(request(steps=2))
    assert found.verdict is Verdict.ACCEPTED, found.error
    assert np.abs(np.asarray(found.draft, int) - np.asarray(wanted.draft, int)).mean() < 8


def test_framing_is_refused_where_nothing_reads_it(tiny_checkpoint):
    with pytest.raises(InvalidRequestError, match="framing"):
        Engine.from_pretrained(tiny_checkpoint).generate(request(framing=FRAMING))
