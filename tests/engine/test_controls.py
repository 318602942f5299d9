"""Several ControlNets at once, against diffusers' own pipelines, in mixed company, and from the door to the replay."""

import json

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    MultiControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
)
from PIL import Image
from small_requests import fresh, pixels, request, same
from torch import nn

from twig.engine.api.errors import CheckpointError, InvalidRequestError
from twig.engine.api.mechanisms import Avoidance, MovedControl
from twig.engine.api.request import Control, Gate, GenerationRequest
from twig.engine.batching.carried import attempt_seed
from twig.engine.batching.scheduler import Limits
from twig.engine.cli.main import run
from twig.engine.cli.status import DONE, USER_ERROR
from twig.engine.engine import Engine
from twig.engine.models.checkpoint import load

OFF = Avoidance.off()
MOVED = OFF.model_copy(update={"moved_control": MovedControl(rows="both", scale=1.5, warp="flip")})


def another(folder, seed, into):
    """A further ControlNet, of the same layout as the model's own, with weights of its own."""
    controlnet = ControlNetModel.from_pretrained(folder / "controlnet")
    torch.manual_seed(seed)
    zeros = [*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block]
    for convolution in (*zeros, controlnet.controlnet_cond_embedding.conv_out):
        nn.init.normal_(convolution.weight, std=0.1)
    controlnet.save_pretrained(into)
    return str(into)


@pytest.fixture(scope="module")
def places(tiny_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("further")
    return {name: another(tiny_checkpoint, seed, folder / name) for seed, name in ((5, "canny"), (6, "depth"))}


@pytest.fixture(scope="module")
def several(places):
    return [f"{name}={place}" for name, place in places.items()]


@pytest.fixture(scope="module")
def engine(tiny_checkpoint, several):
    return Engine.from_pretrained(tiny_checkpoint, controlnet=several, limits=Limits(slots=8, rows=16))


def drawing(seed, size=(64, 64)):
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)


CANNY = Control(name="canny", image=drawing(1), scale=0.7)
DEPTH = Control(name="depth", image=drawing(2), scale=1.2, start=0.2, stop=0.7)


def coloured(engine, labels):
    return Image.fromarray(engine.components.segmenter.palette[labels].astype(np.uint8))


def drawn(pipeline, wanted, seed, images, scales, windows=((0.0, 1.0), (0.2, 0.7))):
    """The pipeline's picture of a request's final, under several ControlNets."""
    return pipeline(
        wanted.prompt, image=images, controlnet_conditioning_scale=scales, num_inference_steps=wanted.final.steps,
        control_guidance_start=[window[0] for window in windows], control_guidance_end=[w[1] for w in windows],
        guidance_scale=wanted.final.guidance_scale, generator=torch.Generator().manual_seed(seed),
    ).images[0]  # fmt: skip


def differ(a, b):
    return np.abs(np.asarray(a, int) - np.asarray(b, int)).max()


@pytest.fixture(scope="module")
def pipelines(tiny_checkpoint, places):
    """Diffusers' pipeline under the two further ControlNets, and under the model's own and the second of them."""
    canny, depth = (ControlNetModel.from_pretrained(place) for place in places.values())
    own = ControlNetModel.from_pretrained(tiny_checkpoint / "controlnet")
    parts, made = load(tiny_checkpoint), []
    names = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")
    for controlnets in ([canny, depth], [own, depth]):
        pipeline = StableDiffusionControlNetPipeline(
            **{name: getattr(parts, name) for name in names}, controlnet=MultiControlNetModel(controlnets),
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
        pipeline.set_progress_bar_config(disable=True)
        made.append(pipeline)
    return made


def test_drafts_and_finals_are_the_pipelines_pictures(engine, pipelines):
    wanted = request(steps=5, draft={"steps": 5}, avoidance=OFF, controls=(CANNY, DEPTH))
    (result,) = engine.generate(wanted)
    images = [CANNY.image, DEPTH.image]
    for mine, seed in ((result.draft, wanted.seed), (result.image, attempt_seed(wanted.seed, 0, 0))):
        expected = drawn(pipelines[0], wanted, seed, images, [0.7, 1.2])
        assert differ(mine, expected) <= 1
        assert differ(mine, drawn(pipelines[0], wanted, seed, images, [0.7, 0.0])) > 2, "the second one shows"
        everywhere = ((0.0, 1.0), (0.0, 1.0))
        assert differ(mine, drawn(pipelines[0], wanted, seed, images, [0.7, 1.2], everywhere)) > 2, "its window does"


def test_the_moved_map_is_one_of_them(engine, pipelines):
    wanted = request(steps=5, avoidance=MOVED, controls=(DEPTH,))
    (result,) = engine.generate(wanted)
    images = [coloured(engine, result.control_map), DEPTH.image]
    expected = drawn(pipelines[1], wanted, attempt_seed(wanted.seed, 0, 0), images, [1.5, 1.2])
    assert differ(result.image, expected) <= 1


def test_the_layout_of_sdxl_takes_several(tiny_xl_checkpoint, tmp_path):
    place = another(tiny_xl_checkpoint, 7, tmp_path / "depth")
    engine = Engine.from_pretrained(tiny_xl_checkpoint, controlnet=[f"depth={place}"])
    controlnets = [ControlNetModel.from_pretrained(each) for each in (tiny_xl_checkpoint / "controlnet", place)]
    parts = StableDiffusionXLControlNetPipeline.from_pretrained(tiny_xl_checkpoint).components
    pipeline = StableDiffusionXLControlNetPipeline(**parts | {"controlnet": MultiControlNetModel(controlnets)})
    pipeline.set_progress_bar_config(disable=True)
    wanted = request(avoidance=MOVED, controls=(DEPTH,), final={"steps": 3, "solver": "euler"})
    (result,) = engine.generate(wanted)
    images = [coloured(engine, result.control_map), DEPTH.image]
    expected = drawn(pipeline, wanted, attempt_seed(wanted.seed, 0, 0), images, [1.5, 1.2])
    assert differ(result.image, expected) <= 1


def test_rows_under_different_sets_share_their_calls(engine):
    asked = [
        request(seed=number, avoidance=policy, controls=controls)
        for number, (policy, controls) in enumerate(
            [(OFF, ()), (OFF, (CANNY,)), (MOVED, ()), (MOVED, (DEPTH, CANNY)), (OFF, (DEPTH,))]
        )
    ]
    shared = fresh(engine)
    together = shared.generate(asked)
    assert shared.stats().steps <= 2 + 3 + 1, "of a draft and a final, and of the two finals that are placed first"
    for one, result in zip(asked, together, strict=True):
        (alone,) = engine.generate(one)
        assert same(alone, result, tolerance=1)
    assert not same(*engine.generate([asked[0], asked[0].model_copy(update={"controls": (CANNY,)})]), tolerance=4)


def test_who_asks_for_none_gets_the_same_bits(engine, tiny_checkpoint):
    plain = Engine.from_pretrained(tiny_checkpoint, limits=engine.limits)
    for wanted in (request(avoidance=MOVED), request(avoidance=OFF)):
        (before,), (after,) = plain.generate(wanted), fresh(engine).generate(wanted)
        assert same(before, after)


def test_a_slot_forgets_what_its_last_run_followed(engine):
    one = Engine(engine.components, limits=Limits(slots=1, rows=4))
    (first,) = one.generate(request(avoidance=OFF))
    one.generate(request(avoidance=OFF, controls=(CANNY, DEPTH)))
    assert same(first, *one.generate(request(avoidance=OFF)))


def test_a_draft_that_the_gate_delivers_is_under_control(engine):
    wanted = request(draft={"steps": 6}, final={"steps": 6}, gate=Gate(limits={"guidance": 1e9}), controls=(CANNY,))
    (gated,), (plain,) = engine.generate(wanted), engine.generate(wanted.model_copy(update={"controls": ()}))
    assert not gated.gate.opened
    assert (pixels(gated) == np.asarray(gated.draft)).all()
    assert not same(gated, plain, tolerance=4)


def test_blocks_on_our_operators_take_several(engine):
    from twig.engine.backends.options import TorchOptions

    wanted = request(avoidance=MOVED, controls=(CANNY, DEPTH))
    fused = Engine(engine.components, limits=engine.limits, torch_options=TorchOptions(fused=True))
    assert same(*engine.generate(wanted), *fused.generate(wanted), tolerance=2)


def test_compiled_networks_run_beside_them(engine, builder):
    pytest.importorskip("openvino")
    compiled = Engine(
        engine.components, backend={"unet": "openvino"}, artifacts=builder, limits=Limits(slots=1, rows=2)
    )
    wanted = request(avoidance=OFF, controls=(CANNY,))
    assert same(*engine.generate(wanted), *compiled.generate(wanted), tolerance=2)
    assert compiled.stats().backends["controlnet_canny"]["backend"] == "torch"


def test_a_folder_or_a_pipeline_of_several_is_taken_whole(engine, pipelines, tmp_path):
    pipelines[1].save_pretrained(tmp_path)
    pipelines[1].unet.save_pretrained(tmp_path / "unet")
    found = Engine.from_pretrained(tmp_path)
    assert list(found.components.controlnets) == ["1"]
    wanted = request(avoidance=OFF, similarity={"rule": "accept everything"}, controls=(DEPTH,))
    (expected,) = engine.generate(wanted)
    numbered = wanted.model_copy(update={"controls": (DEPTH.model_copy(update={"name": "1"}),)})
    assert same(expected, *found.generate(numbered), tolerance=1)
    assert same(expected, *Engine.from_pipeline(pipelines[1]).generate(numbered), tolerance=1)


@pytest.mark.parametrize(
    ("control", "message"),
    [
        ({"name": "lines", "image": drawing(1)}, "no further ControlNet 'lines': they are canny, depth"),
        ({"name": "canny"}, "canny has no image"),
    ],
)
def test_what_is_not_there_is_said_at_the_door(engine, control, message):
    with pytest.raises(InvalidRequestError, match=message):
        engine.admit(request(avoidance=OFF, controls=(Control(**control),)))


def test_a_model_of_one_says_how_to_load_more(tiny_checkpoint):
    with pytest.raises(InvalidRequestError, match=r"it has none; load one with controlnet=\['NAME=PATH'\]"):
        Engine.from_pretrained(tiny_checkpoint).admit(request(avoidance=OFF, controls=(CANNY,)))


def test_one_picture_follows_one(engine):
    with pytest.raises(ValueError, match="'canny' is given two images"):
        GenerationRequest(prompt="a star", controls=(CANNY, CANNY))


def test_names_tell_them_apart(tiny_checkpoint, places):
    own = tiny_checkpoint / "controlnet"
    with pytest.raises(CheckpointError, match="is a second ControlNet without a name"):
        load(tiny_checkpoint, controlnet=[own, own])
    with pytest.raises(CheckpointError, match="two ControlNets are named canny"):
        load(tiny_checkpoint, controlnet=[f"canny={places['canny']}"] * 2)


def test_a_request_travels_with_its_images(engine):
    wanted = request(controls=(CANNY, DEPTH))
    assert GenerationRequest.from_json(wanted.to_json()) == wanted
    with pytest.raises(InvalidRequestError, match="never a path"):
        GenerationRequest.from_json({"prompt": "a", "controls": [{"name": "canny", "image": "/etc/passwd"}]})


def test_the_command_draws_under_them_and_a_replay_finds_them(tiny_checkpoint, places, tmp_path, capsys):
    drawing(3, (40, 30)).save(tmp_path / "edges.png")
    command = ["generate", "a star", "--model", str(tiny_checkpoint), "--steps", "2", "--preset", "off", "--json"]
    followed = ["--controlnet", f"canny={places['canny']}", "--control", f"canny={tmp_path / 'edges.png'}:0.5"]
    assert run([*command, *followed, "--out", str(tmp_path / "out")]) == DONE
    (path,) = (tmp_path / "out").glob("twig-*.json")
    kept = json.loads(path.read_text())
    assert kept["controls"]["canny"]["path"] == str(tmp_path / "edges.png")
    assert kept["model"]["controlnets"] == {"canny": places["canny"]}
    assert kept["model"]["hashes"]["controlnet_canny"]
    assert kept["request"]["controls"] == [{"start": 0, "stop": 1, "name": "canny", "scale": 0.5}]
    capsys.readouterr()
    assert run(["inspect", str(path), "--replay", "--json"]) == DONE
    assert "identical in" in json.loads(capsys.readouterr().out)["checks"]["replay"]["text"]
    drawing(4).save(tmp_path / "other.png")
    assert run(["inspect", str(path), "--replay", "--control", f"canny={tmp_path / 'other.png'}"]) == USER_ERROR
    assert "this is not the manifest's control canny" in capsys.readouterr().err
    assert run([*command, "--control", "canny"]) == USER_ERROR
    assert "--control takes NAME=FILE or NAME=FILE:SCALE, got 'canny'" in capsys.readouterr().err
