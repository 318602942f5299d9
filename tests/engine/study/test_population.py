import json

import numpy as np
import pytest
from PIL import Image

from twig.engine.api.errors import InvalidRequestError
from twig.engine.api.settings import Stage
from twig.engine.cli.main import run
from twig.engine.cli.status import DONE, USER_ERROR
from twig.engine.engine import Engine
from twig.engine.study.population import JUDGED, calibrated, generated, unrelated

STAGE = Stage(steps=4, guidance_scale=3.0)


@pytest.fixture(scope="module")
def engine(tiny_checkpoint):
    return Engine.from_pretrained(tiny_checkpoint)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed in range(4):
        noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((80, 64), Image.Resampling.BICUBIC).save(folder / f"{seed}.png")
    return folder


def test_pairs_are_drawn_without_avoidance_from_fresh_seeds(engine):
    population = generated(engine, ["a red star", "the moon"], 3, STAGE)
    assert population.count == 6
    assert {len(values) for values in population.scores.values()} == {6}
    assert len(set(population.scores["ssim"])) == 6, "no pair is drawn twice"
    assert all(0 < value < 10 for value in population.signals["guidance"])
    assert "6 pairs generated from 2 captions" in population.description


def test_a_population_is_known_by_what_it_was_made_from(engine):
    first = generated(engine, ["tree"], 1, STAGE)
    assert generated(engine, ["tree"], 1, STAGE) == first
    assert generated(engine, ["tree"], 1, STAGE, seed=1).sha256 != first.sha256
    assert generated(engine, ["moon"], 1, STAGE).sha256 != first.sha256


def test_a_users_own_pictures_are_compared_with_one_another(engine, pictures):
    population = unrelated(engine, pictures)
    assert population.count == 6
    assert unrelated(engine, pictures, pairs=4).count == 4
    assert population.signals == {}
    with pytest.raises(InvalidRequestError, match="holds 1 pictures; at least two"):
        unrelated(engine, pictures / "0.png")


def test_limits_are_found_on_both_together(engine, pictures):
    drawn, own = generated(engine, ["tree"], 2, STAGE), unrelated(engine, pictures)
    found = calibrated(engine, [drawn, own], quantile=0.9)
    assert set(found.limits) == set(JUDGED)
    assert found.count == 8
    assert found.limits["ms_ssim"] in drawn.scores["ms_ssim"] + own.scores["ms_ssim"]
    assert found.gate["guidance"] == max(drawn.signals["guidance"])
    assert found.version != calibrated(engine, [drawn], quantile=0.9).version
    with pytest.raises(InvalidRequestError, match="unknown metric 'lpips'"):
        calibrated(engine, [drawn], ["lpips"])


def test_the_command_writes_a_calibration_that_generate_judges_by(tiny_checkpoint, tmp_path, capsys):
    (tmp_path / "captions.txt").write_text("a red star\n\nthe moon\n")
    model, out = ["--model", str(tiny_checkpoint)], str(tmp_path / "found.json")
    command = ["calibrate", "--captions", str(tmp_path / "captions.txt"), "--per-caption", "2", "--steps", "4"]
    assert run([*command, "--metric", "ssim", "--out", out, *model]) == DONE
    printed = capsys.readouterr().out
    assert "gate: guidance" in printed
    assert "with 4 pairs each limit is the most similar pair's; 1000 or more" in printed
    written = json.loads((tmp_path / "found.json").read_text())
    assert set(written["limits"]) == {"ssim"}
    assert len(written["population_sha256"]) == 64
    options = ["--gate", "--steps", "4", "--out", str(tmp_path / "out"), "--calibration", out, "--retries", "0", *model]
    assert run(["generate", "a blue house", *options]) == DONE
    (manifest,) = (tmp_path / "out").glob("*.json")
    record = json.loads(manifest.read_text())
    assert record["calibration"] == written["version"]
    assert record["rule"] == f"refuse if ssim > {written['limits']['ssim']!r}"
    assert record["gate"]["signals"]["guidance"]["limit"] == written["gate"]["guidance"]
    capsys.readouterr()
    assert run(["inspect", str(manifest), "--replay"]) == DONE, capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "nothing to calibrate on"),
        ("--captions {tmp}/none.txt", "none.txt"),
        ("--captions {tmp}/empty.txt", "there are no captions to draw"),
        ("--captions {tmp}/empty.txt --quantile 1", "--quantile must lie between 0 and 1"),
        ("--pictures {tmp}/nowhere", "there is no folder"),
    ],
)
def test_a_mistake_is_one_line(tiny_checkpoint, tmp_path, capsys, options, message):
    (tmp_path / "empty.txt").write_text("\n")
    assert run(["calibrate", "--model", str(tiny_checkpoint), *options.format(tmp=tmp_path).split()]) == USER_ERROR
    assert message in capsys.readouterr().err


def test_the_registry_commands(tiny_checkpoint, pictures, tmp_path, capsys):
    model, file = ["--model", str(tiny_checkpoint)], ["--registry", str(tmp_path / "works.safetensors")]
    assert run(["registry", "add", str(pictures), *file, *model]) == DONE
    assert run(["registry", "add", str(pictures / "0.png"), *file, *model]) == DONE
    assert "4 works added, 4 in" in (out := capsys.readouterr().out)
    assert "0 works added, 4 in" in out
    assert run(["registry", "list", *file]) == DONE
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in listed] == [f'"{seed}.png"' for seed in range(4)]
    assert run(["registry", "check", str(pictures / "2.png"), *file, *model]) == DONE
    out = capsys.readouterr().out
    assert '1.000  "2.png"' in out.splitlines()[0]
    assert f"nearest: {listed[2].split()[0]}" in out
    assert "registry_ssim_aligned" in out
    assert run(["generate", "a star", "--steps", "1", "--out", str(tmp_path / "out"), *file, *model]) == DONE
    (manifest,) = (tmp_path / "out").glob("*.json")
    assert json.loads(manifest.read_text())["attempts"][0]["nearest"] in {line.split()[0] for line in listed}
    capsys.readouterr()
    assert run(["inspect", str(manifest), "--replay"]) == USER_ERROR
    assert "this is none; name the one of then with --registry" in capsys.readouterr().err
    assert run(["inspect", str(manifest), "--replay", *file]) == DONE
    out = capsys.readouterr().out
    assert "gate          open: guidance" in out
    assert "nearest work" in out
    assert run(["registry", "remove", listed[0].split()[0], *file]) == DONE
    assert run(["registry", "remove", "nothing", *file]) == USER_ERROR
    assert "no work 'nothing'" in capsys.readouterr().err
