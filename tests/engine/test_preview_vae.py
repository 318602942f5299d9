"""A small autoencoder that shows drafts and previews: decoded as by diffusers, and nothing measured is its."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, StableDiffusionXLPipeline
from PIL import Image

from tiny_models import build_vae
from twig.engine.api.errors import CheckpointError
from twig.engine.api.event import State
from twig.engine.api.mechanisms import Avoidance
from twig.engine.api.request import GenerationRequest, SimilarityPolicy
from twig.engine.api.settings import Stage
from twig.engine.batching.scheduler import Limits
from twig.engine.cli.actions.engines import load_engine
from twig.engine.cli.options import EngineChoice
from twig.engine.engine import Engine
from twig.engine.judging.registry import index_works
from twig.engine.models.checkpoint import load
from twig.engine.records.manifest import Manifest
from twig.engine.records.model_record import ModelRecord
from twig.engine.replay import replay

STAGE = Stage(steps=2, guidance_scale=3.0)
LIMITS = Limits(slots=2, rows=8)
PLAIN = GenerationRequest(
    prompt="a red star", seed=3, draft=STAGE, final=STAGE, avoidance=Avoidance.off(),
    similarity=SimilarityPolicy(limits={}, retries=0),
)  # fmt: skip


@pytest.fixture(scope="module")
def preview(tmp_path_factory):
    """Folder of a tiny autoencoder whose pictures are not those of the model's own."""
    folder = tmp_path_factory.mktemp("preview")
    torch.manual_seed(5)
    build_vae().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def engines(tiny_checkpoint, preview):
    """An engine without a preview autoencoder, and one with it."""
    plain = Engine.from_pretrained(tiny_checkpoint, limits=LIMITS)
    return plain, Engine.from_pretrained(tiny_checkpoint, preview_vae=preview, limits=LIMITS)


def drawn(engine, request):
    """The events of a request that hold pictures, and its result."""
    events = []
    (result,) = engine.generate([request], events.append)
    return [event for event in events if event.picture is not None], result


def test_latents_are_scaled_as_diffusers_scales_them_for_it(tiny_xl_checkpoint, preview):
    engine = Engine.from_pretrained(tiny_xl_checkpoint, preview_vae=preview, limits=LIMITS)
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_xl_checkpoint)
    assert isinstance(pipeline.vae, AutoencoderKL)
    pipeline.vae = AutoencoderTiny.from_pretrained(preview)
    pipeline.set_progress_bar_config(disable=True)
    asked = {"num_inference_steps": 1, "height": 64, "width": 64, "guidance_scale": 0.0, "latents": latents[:1]}
    with torch.inference_mode():
        left = pipeline("a red star", output_type="latent", **asked).images
        wanted = pipeline("a red star", output_type="pt", **asked).images
        found = engine.stages.denoising.decoder.preview(left)
    assert torch.allclose(found, wanted, atol=1e-5)


def test_it_may_be_a_single_file_and_must_be_tiny_and_of_the_models_scale(tiny_checkpoint, tmp_path):
    name = "diffusion_pytorch_model.safetensors"
    AutoencoderTiny().save_pretrained(tmp_path / "tiny")
    with pytest.raises(CheckpointError, match="preview autoencoder's pixels per latent is 8, but must be"):
        load(tiny_checkpoint, preview_vae=tmp_path / "tiny" / name)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    AutoencoderKL(block_out_channels=(32, 32, 32, 32), **blocks).save_pretrained(tmp_path / "large")
    with pytest.raises(CheckpointError, match="preview autoencoder is AutoencoderKL, but must be an AutoencoderTiny"):
        load(tiny_checkpoint, preview_vae=tmp_path / "large" / name)


def test_it_shows_drafts_and_previews_and_changes_nothing_else(engines):
    request = PLAIN.model_copy(update={"preview": 1})
    (before, plain), (after, previewed) = (drawn(engine, request) for engine in engines)
    assert [event.state for event in before] == [event.state for event in after]
    assert State.SEGMENTED in {event.state for event in after}
    for mine, other in zip(before, after, strict=True):
        assert not np.array_equal(np.asarray(mine.picture), np.asarray(other.picture))
    for name in ("image", "draft"):
        assert np.array_equal(np.asarray(getattr(plain, name)), np.asarray(getattr(previewed, name)))
    assert plain.scores["ssim"] == previewed.scores["ssim"]  # of whole pictures; others are of the mask


def test_a_draft_is_decoded_in_full_once_for_all_that_is_held_against_it(engines, monkeypatch):
    _, engine = engines
    judging, counts = engine.stages.judging.decoder, []
    decode = judging.decode
    monkeypatch.setattr(judging, "decode", lambda latents: (counts.append(len(latents)), decode(latents))[1])
    results = engine.generate([PLAIN.model_copy(update={"num_images": 2})])
    assert [result.error for result in results] == [None, None]
    assert sum(counts) == 3  # the draft and two finals


def test_the_mask_is_of_the_preview_and_a_replay_finds_it(engines, tiny_checkpoint, preview):
    plain, engine = engines
    request = PLAIN.model_copy(update={"avoidance": Avoidance()})
    (result,) = engine.generate([request])
    (other,) = plain.generate([request])
    assert not np.array_equal(result.label_map, other.label_map)
    record = Manifest.of(result, ModelRecord.of(engine.components))
    assert record.model.preview_vae == str(preview.resolve())
    again = load_engine(EngineChoice(str(tiny_checkpoint), preview_vae=record.model.preview_vae))
    assert replay(record, again).identical
    with pytest.raises(CheckpointError, match="preview_vae has SHA-256"):
        replay(record, plain)


def test_a_draft_that_is_compared_with_works_is_decoded_in_full(engines, tmp_path):
    plain, engine = engines
    Image.new("RGB", (64, 64), "green").save(tmp_path / "work.png")
    works = index_works(engine.components, [tmp_path / "work.png"])
    registered = Engine(engine.components, limits=LIMITS, registry=works)
    (before, _), (after, _) = drawn(plain, PLAIN), drawn(registered, PLAIN)
    assert np.array_equal(np.asarray(before[0].picture), np.asarray(after[0].picture))


def test_it_runs_on_other_backends(engines, builder):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    _, engine = engines
    exported = Engine(
        engine.components, limits=LIMITS, backend={"preview_decoder": "onnxruntime"}, artifacts=builder
    )  # fmt: skip
    (before, _), (after, _) = (drawn(each, PLAIN) for each in (engine, exported))
    assert exported.stats().backends["preview_decoder"]["backend"] == "onnxruntime"
    for mine, other in zip(before, after, strict=True):
        assert np.abs(np.asarray(mine.picture, float) - np.asarray(other.picture, float)).max() <= 1


def tiny(**changes):
    widths = {"encoder_block_out_channels": (8,) * 3, "decoder_block_out_channels": (8,) * 3}
    return AutoencoderTiny(**{**widths, "num_encoder_blocks": (1,) * 3, "num_decoder_blocks": (1,) * 3, **changes})


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (tiny(latent_channels=16), "latent_channels is 16, but must be the autoencoder's 4"),
        (
            tiny(
                encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4, num_encoder_blocks=(1,) * 4,
                num_decoder_blocks=(1,) * 4,
            ),
            "pixels per latent is 8, but must be the autoencoder's 4",
        ),
        (AutoencoderKL(block_out_channels=(32,)), "holds a AutoencoderKL, which is not served as a AutoencoderTiny"),
    ],
    ids=["channels", "factor", "class"],
)  # fmt: skip
def test_one_that_does_not_fit_is_refused(tiny_checkpoint, tmp_path, network, said):
    network.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=said):
        load(tiny_checkpoint, preview_vae=tmp_path)


def test_one_in_memory_stays_as_it_is(engines, preview):
    network = AutoencoderTiny.from_pretrained(preview)
    components = load(engines[0].components.sources["source"], preview_vae=network)
    assert components.preview_vae is not network
    assert components.sources["preview_vae"] == "AutoencoderTiny in memory"
