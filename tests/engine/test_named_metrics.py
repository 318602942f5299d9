"""Measures with weights from the command line to the manifest, and back by a replay."""

import json

import pytest
from safetensors.torch import load_file, save_file

from twig.engine.api.errors import InvalidRequestError
from twig.engine.api.mechanisms import Avoidance
from twig.engine.api.request import GenerationRequest
from twig.engine.api.settings import Stage
from twig.engine.cli.main import run
from twig.engine.cli.status import DONE, USER_ERROR
from twig.engine.engine import Engine
from twig.engine.judging import perceptual_wheel
from twig.engine.records.manifest import Manifest
from twig.engine.serve.config import ServeConfig

pytest.importorskip("stlpips_pytorch")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        perceptual_wheel.weights()
        yield


def test_a_rule_may_name_it_and_a_replay_finds_it_again(tiny_checkpoint, tmp_path, capsys):
    rule = "refuse if st_lpips < 5"
    common = ["--model", str(tiny_checkpoint), "--steps", "1", "--preset", "off", "--rule", rule, "--json"]
    assert run(["generate", "a star", *common, "--out", str(tmp_path)]) == USER_ERROR
    assert "st_lpips is measured where it is asked for: --metric lpips" in capsys.readouterr().err
    assert run(["generate", "a star", *common, "--metric", "lpips", "--out", str(tmp_path)]) == DONE
    said = json.loads(capsys.readouterr().out)
    assert said["verdict"] == "refused"
    (path,) = (each for each in tmp_path.glob("twig-*.json") if "explain" not in each.name)
    kept = Manifest.load(path)
    assert kept.metrics == {"lpips": perceptual_wheel.CONTENT}
    assert kept.attempts[-1].scores["st_lpips"].direction == "distance"
    assert run(["inspect", str(path), "--replay", "--json"]) == DONE
    assert "identical in" in json.loads(capsys.readouterr().out)["checks"]["replay"]["text"]
    other = load_file(perceptual_wheel.cached())
    other["lin0.model.1.weight"] *= 2
    save_file(other, tmp_path / "other.safetensors")
    assert run(["inspect", str(path), "--replay", "--metric", f"lpips={tmp_path / 'other.safetensors'}"]) == USER_ERROR
    assert "measured by lpips, with weights of other digests" in capsys.readouterr().err


def test_calibration_finds_its_limit(tiny_checkpoint, tmp_path, capsys):
    (tmp_path / "captions.txt").write_text("a red star\nthe moon\n")
    out, model = tmp_path / "found.json", ["--model", str(tiny_checkpoint)]
    command = ["calibrate", "--captions", str(tmp_path / "captions.txt"), "--per-caption", "1", "--steps", "1"]
    assert run([*command, "--metric", "lpips", "--metric", "ssim", "--out", str(out), *model, "--quiet"]) == DONE
    assert set(json.loads(out.read_text())["limits"]) == {"st_lpips", "ssim"}
    engine = Engine.from_pretrained(tiny_checkpoint, metrics=["lpips"], calibration=out)
    step = Stage(steps=1)
    (result,) = engine.generate(GenerationRequest(prompt="a star", draft=step, final=step, avoidance=Avoidance.off()))
    assert "st_lpips <" in result.rule
    assert result.scores["st_lpips"].limit is not None


def test_one_name_is_one_measure(tiny_checkpoint):
    with pytest.raises(InvalidRequestError, match="'st_lpips' is named in metrics and given in extra_metrics"):
        Engine.from_pretrained(
            tiny_checkpoint, metrics=["lpips"], extra_metrics={"st_lpips": lambda a, b: (a - b).mean((1, 2, 3))}
        )


def test_a_servers_file_names_it_from_its_folder(tmp_path):
    path = tmp_path / "serve.yaml"
    path.write_text("model: {metrics: [lpips, clip=encoder]}\n")
    assert ServeConfig.load(path).model.metrics == ("lpips", f"clip={tmp_path / 'encoder'}")
