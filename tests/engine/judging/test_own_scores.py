"""Exact copies of works that the autoencoder does not give back, through the embedded model."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from twig.engine.api.errors import InvalidRequestError
from twig.engine.api.request import GenerationRequest, SimilarityPolicy
from twig.engine.api.result import Verdict
from twig.engine.api.rules import Rule
from twig.engine.api.settings import Stage
from twig.engine.cli.main import run
from twig.engine.engine import Engine
from twig.engine.judging.registry import Registry, index_works
from twig.engine.judging.similarity import judge
from twig.engine.models.checkpoint import load
from twig.engine.models.pictures import to_pixels

README = (Path(__file__).parents[3] / "engine/README.md").read_text()
(RULE,) = re.findall(r'--rule "(refuse if registry_[^"]*)"', README)
STAGE = Stage(steps=4)
FAINT = 3


def photo(seed):
    """Grain over soft shades, as photographs have it, which the embedded autoencoder does not give back."""
    noise = np.random.default_rng(seed).standard_normal((64, 64, 3))
    shades, grain = gaussian_filter(noise, (9, 9, 0)), gaussian_filter(noise, (0.8, 0.8, 0))
    picture = 128 + 45 * shades / shades.std() + 18 * grain / grain.std()
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def components():
    return load(None)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(FAINT):
        photo(seed).save(folder / f"photo{seed}.png")
    return folder


def verdict_on(engine, picture, rule):
    pixels = to_pixels(picture, 64, 64)
    (measured,) = engine.judge.compare(pixels, 1 - pixels)
    asked = GenerationRequest(prompt="", similarity=SimilarityPolicy(rule=rule))
    return judge(measured.values, engine.judge.rule(asked)).decision, measured.values


@pytest.mark.parametrize("kept", [False, True], ids=["as decoded", "as kept"])
def test_the_readmes_rule_refuses_an_exact_copy_of_a_registered_photo(components, photos, kept):
    works = index_works(components, sorted(photos.iterdir()), keep_pictures=kept)
    engine = Engine(components, registry=works)
    relative = RULE.replace(" or any calibrated limit is crossed", "")
    decision, values = verdict_on(engine, photo(1), relative)
    assert decision == "refuse"
    assert values["registry_ssim_aligned_share"] >= 0.999
    assert kept or values["registry_ssim_aligned"] < 0.6, "which an absolute limit misses"
    assert verdict_on(engine, photo(50), relative)[0] == "accept"


@pytest.mark.parametrize("kept", [False, True], ids=["as decoded", "as kept"])
def test_the_best_that_the_model_can_draw_of_a_work_is_a_copy_too(components, photos, kept):
    works = index_works(components, sorted(photos.iterdir()), keep_pictures=kept)
    undecoded = Engine(components, registry=replace(works, pictures={}))
    decoded = undecoded.judge.protected.work(works.works[0].id, torch.device("cpu"))
    engine = Engine(components, registry=works)
    (measured,) = engine.judge.compare(decoded, 1 - decoded)
    assert measured.values["registry_ssim_aligned_share"] >= 0.999


def test_a_picture_that_is_generated_again_is_refused_and_the_manifest_replays(tmp_path, capsys):
    drawing = ["generate", "a red star on a green field", "--steps", "4", "--seed", "3", "--out"]
    assert run([*drawing, str(tmp_path / "first")]) == 0
    (drawn,) = (path for path in (tmp_path / "first").glob("*.png") if "sheet" not in path.name)
    registry = tmp_path / "works.safetensors"
    assert run(["registry", "add", str(drawn), "--registry", str(registry)]) == 0
    run([*drawing, str(tmp_path / "second"), "--registry", str(registry), "--rule", RULE.replace("retry 2; ", "")])
    (path,) = (tmp_path / "second").glob("*.json")
    scores = json.loads(path.read_text())["attempts"][-1]["scores"]
    assert scores["registry_ssim_aligned_share"]["value"] > 0.9
    assert not scores["registry_ssim_aligned_share"]["passed"]
    assert run(["inspect", str(path), "--replay", "--registry", str(registry)]) == 0
    assert "identical" in capsys.readouterr().out


def test_adding_a_work_that_usual_limits_miss_warns_by_name(photos, tmp_path, capsys):
    registry = tmp_path / "works.safetensors"
    assert run(["registry", "add", str(photos), "--registry", str(registry)]) == 0
    err = capsys.readouterr().err
    assert err.count('an exact copy of "photo') == FAINT
    assert "ssim_aligned 0." in err
    assert "registry_ssim_aligned_share > 0.9" in err
    assert "--keep-pictures" in err
    assert run(["registry", "list", "--registry", str(registry)]) == 0
    assert re.search(r'Z  0\.\d{3}  "photo0.png"', capsys.readouterr().out)
    assert run(["registry", "check", str(photos / "photo0.png"), "--registry", str(registry)]) == 0
    assert "registry_ssim_aligned_share" in capsys.readouterr().out


def test_the_version_covers_what_works_score(components, photos, tmp_path):
    works = index_works(components, [photos / "photo0.png"])
    works.save(tmp_path / "works.safetensors")
    assert Registry.load(tmp_path / "works.safetensors").works == works.works
    (work,) = works.works
    louder = replace(works, works=(replace(work, own={**work.own, "ssim_aligned": 0.1}),))
    assert louder.version != works.version


def older(registry):
    """The registry as it was before works' own scores were kept."""
    return replace(registry, works=tuple(replace(work, own={}) for work in registry.works))


def test_an_older_registry_loads_says_so_and_is_completed_by_adding_again(components, photos, tmp_path, capsys):
    now = index_works(components, sorted(photos.iterdir()))
    path = tmp_path / "works.safetensors"
    older(now).save(path)
    engine = Engine(components, registry=Registry.load(path))
    assert "registry_ssim_aligned_share" not in engine.judge.directions
    request = GenerationRequest(prompt="a star", draft=STAGE, final=STAGE, similarity=SimilarityPolicy(rule=RULE))
    with pytest.raises(InvalidRequestError, match=r"3 works of the registry.*add them again"):
        engine.generate(request)
    assert run(["registry", "list", "--registry", str(path)]) == 0
    assert "not known of 3 works" in capsys.readouterr().err
    again = Registry.load(path).adding(now)
    assert again.works == now.works
    assert torch.equal(again.latents, now.latents)
    assert not again.unmeasured


def test_a_share_is_no_percentage_of_a_hundred(components, photos):
    engine = Engine(components, registry=index_works(components, [photos / "photo0.png"]))
    with pytest.raises(InvalidRequestError, match=r"write a share between 0 and 1, got 90\.0"):
        Rule.parse("refuse if registry_ssim_aligned_share > 90").check(engine.judge.directions)


def test_what_the_works_score_does_not_refuse_other_pictures(components, photos):
    engine = Engine(components, registry=index_works(components, sorted(photos.iterdir())))
    rule = SimilarityPolicy(rule="refuse if registry_ssim_aligned_share > 0.9")
    (result,) = engine.generate(
        GenerationRequest(prompt="a red star on a green field", seed=8, draft=STAGE, final=STAGE, similarity=rule)
    )
    assert result.verdict is Verdict.ACCEPTED
