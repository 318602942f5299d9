"""`twig generate` as a user meets it, on a tiny random model."""

import json
import shutil
import signal
import stat
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from drawn_folders import PROMPT, manifests, pictures
from model_folders import WEIGHTS, edit
from twig.engine.batching.scheduler import Limits
from twig.engine.cli.main import run
from twig.engine.cli.progress import StageBars
from twig.engine.cli.status import DONE, INTERRUPTED, USER_ERROR
from twig.engine.engine import Engine
from twig.engine.records.wording import HELD_AGAINST_WORKS


def test_generate_writes_pictures_manifests_a_sheet_and_a_log(generated):
    assert len(pictures(generated)) == len(manifests(generated)) == 2
    assert [path.stem for path in pictures(generated)] == [path.stem for path in manifests(generated)]
    assert len(list(generated.glob("*-sheet.png"))) == 1
    assert Image.open(pictures(generated)[0]).size == (64, 64)
    assert len((generated / "audit.jsonl").read_text().splitlines()) == 2
    assert not list(generated.glob(".*"))


def test_the_pictures_of_one_prompt_differ(generated):
    first, second = (np.asarray(Image.open(path)) for path in pictures(generated))
    assert (first != second).any()


def test_the_prompt_is_in_the_manifest_alone(generated):
    assert json.loads(manifests(generated)[0].read_text())["request"]["prompt"] == PROMPT
    for path in generated.iterdir():
        assert path.suffix == ".json" or b"red star" not in path.read_bytes()
    private = [*manifests(generated), generated / "audit.jsonl"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}


def test_prompts_are_logged_on_request(tiny_checkpoint, tmp_path):
    run(["generate", PROMPT, "--steps", "1", "--model", str(tiny_checkpoint), "--out", str(tmp_path), "--log-prompts"])
    assert PROMPT in (tmp_path / "audit.jsonl").read_text()


def test_the_same_command_gives_the_same_files(tiny_checkpoint, generated, tmp_path):
    run(["generate", PROMPT, "-n", "2", "--steps", "3", "--model", str(tiny_checkpoint), "--out", str(tmp_path)])
    assert [path.name for path in pictures(tmp_path)] == [path.name for path in pictures(generated)]
    assert pictures(tmp_path)[1].read_bytes() == pictures(generated)[1].read_bytes()


def test_generate_says_where_everything_is(tiny_checkpoint, tmp_path, capsys):
    options = ["--gate", "--steps", "1", "--model", str(tiny_checkpoint), "--out", str(tmp_path)]
    run(["generate", "a star", "a moon", *options])
    out = capsys.readouterr().out
    assert out.count("accepted") == 2, "once for each picture"
    assert out.count("gate          open: ") == 2, "a model without thresholds is avoided throughout"
    for path in tmp_path.iterdir():
        assert path.suffix == ".json" or str(path) in out


def test_generate_on_a_photo_with_every_option(tiny_checkpoint, tmp_path, capsys):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    Image.fromarray(np.arange(64, dtype=np.uint8).repeat(32).reshape(64, 32) * 4).save(tmp_path / "mask.png")
    out = tmp_path / "out"
    command = (
        f"--out {out} --model {tiny_checkpoint} --controlnet {tiny_checkpoint}/controlnet "
        f"--segmenter {tiny_checkpoint}/segmenter --source {tmp_path}/photo.png --mask {tmp_path}/mask.png "
        "--width 32 --height 64 --seed 5 --steps 2 --guidance 2 --solver euler --sigmas karras --spacing trailing "
        "--guidance-interval 0:0.9 --guidance-rescale 0.5 --cache-interval 2 --cache-rhythm early --negative moon "
        "--preset default --retries 1 --device cpu --dtype float32 --explain"
    )
    assert run(["generate", "a star", *command.split()]) == DONE
    assert Image.open(out / f"{manifests(out)[0].stem}.png").size == (32, 64)
    assert Image.open(out / f"{manifests(out)[0].stem}-explain.png").width > 64
    explained = json.loads((out / f"{manifests(out)[0].stem}-explain.json").read_text())
    assert explained["sentences"][0].startswith("Verdict: ")
    with np.load(out / f"{manifests(out)[0].stem}-explain.npz", allow_pickle=False) as arrays:
        assert arrays["similarity_reference"].shape == (64, 32)
        assert arrays["mass_inside"].shape == (2, 77)
    capsys.readouterr()
    assert run(["inspect", str(manifests(out)[0]), "--replay"]) == DONE
    assert "identical in mask" in capsys.readouterr().out
    Image.new("RGB", (80, 80), 0).save(tmp_path / "photo.png")
    assert run(["inspect", str(manifests(out)[0]), "--replay"]) == USER_ERROR
    assert "not the manifest's source" in capsys.readouterr().err


def test_a_refused_picture_is_named_so(strict_checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--steps", "1", "--retries", "1", "--model", str(strict_checkpoint), "--out", str(out)]
    assert run(["generate", "a star", *options]) == DONE
    assert [path.name.endswith("-refused.png") for path in pictures(out)] == [True]
    assert "refused after 1 retry" in capsys.readouterr().out
    assert json.loads(manifests(out)[0].read_text())["verdict"] == "refused"


def test_a_picture_for_review_is_named_so_and_replays(tiny_checkpoint, tmp_path, capsys):
    (tmp_path / "rule.txt").write_text("# what counsel asked for\nreview if ssim > -1\nretry 1\n")
    options = ["--steps", "1", "--model", str(tiny_checkpoint), "--out", str(tmp_path / "out")]
    assert run(["generate", "a star", *options, "--rule", f"@{tmp_path / 'rule.txt'}"]) == DONE
    assert [path.name.endswith("-review.png") for path in pictures(tmp_path / "out")] == [True]
    (manifest,) = manifests(tmp_path / "out")
    assert json.loads(manifest.read_text())["rule"] == "review if ssim > -1.0; retry 1"
    (line,) = (tmp_path / "out/audit.jsonl").read_text().splitlines()
    assert json.loads(line)["verdict"] == "review"
    assert json.loads(line)["reasons"][0].startswith("ssim > -1.0: it is ")
    capsys.readouterr()
    assert run(["inspect", str(manifest), "--replay"]) == DONE
    out = capsys.readouterr().out
    assert "review if ssim > -1.0; retry 1" in out
    assert "identical in draft" in out


def test_an_error_inside_a_run_is_reported_and_recorded(tiny_checkpoint, tmp_path, capsys):
    options = ["--steps", "2", "--guidance", "50", "--model", str(_poisoned(tiny_checkpoint, tmp_path)), "--out"]
    assert run(["generate", "a star", *options, str(tmp_path / "out")]) == USER_ERROR
    assert "NaN or infinity" in capsys.readouterr().err
    assert json.loads((tmp_path / "out/audit.jsonl").read_text())["verdict"] == "failed"


def _poisoned(checkpoint, folder):
    """A copy of `checkpoint` whose UNet predicts NaN."""
    copy = shutil.copytree(checkpoint, folder / "poisoned")
    (weights,) = (copy / "unet").glob("*.safetensors")
    tensors = load_file(weights)
    tensors["conv_out.bias"] = torch.full_like(tensors["conv_out.bias"], torch.nan)
    save_file(tensors, weights)
    return copy


def interrupt_once(monkeypatch, wanted, times=1):
    """Press Ctrl-C `times` times at the first event that `wanted` accepts."""
    show, pressed = StageBars.show, []

    def press(bars, event):
        show(bars, event)
        if wanted(event) and not pressed:
            pressed.append(event)
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(StageBars, "show", press)


def test_ctrl_c_keeps_what_is_finished(tiny_checkpoint, tmp_path, capsys, monkeypatch):
    """One slot, so that the second picture has not begun when the first is done."""
    before = signal.getsignal(signal.SIGINT)
    load = Engine.from_pretrained
    monkeypatch.setattr(Engine, "from_pretrained", partial(load, limits=Limits(slots=1, rows=2)))
    interrupt_once(monkeypatch, lambda event: event.result is not None)
    options = ["-n", "2", "--steps", "2", "--model", str(tiny_checkpoint), "--out", str(tmp_path)]
    assert run(["generate", "a star", *options]) == INTERRUPTED
    assert len(pictures(tmp_path)) == len(manifests(tmp_path)) == 1
    assert "contact sheet" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_before_anything_is_finished(tiny_checkpoint, tmp_path, capsys, monkeypatch, times):
    interrupt_once(monkeypatch, lambda event: event.step == 1, times)
    options = ["--steps", "2", "--model", str(tiny_checkpoint), "--out", str(tmp_path / "out")]
    assert run(["generate", "a star", *options]) == INTERRUPTED
    assert not (tmp_path / "out").exists()
    assert capsys.readouterr().out == ""


@pytest.fixture
def bare_checkpoint(tiny_checkpoint, tmp_path):
    """The same model without ControlNet, segmenter and limits, which asks for a safety checker."""
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "bare")
    shutil.rmtree(copy / "controlnet")
    shutil.rmtree(copy / "segmenter")
    edit(copy / "model_index.json", requires_safety_checker=True)
    return copy


def test_a_folder_without_controlnet_and_segmenter_draws_plain_pictures(bare_checkpoint, tmp_path, capsys):
    command = ["generate", "a [red:blue:0.5] star", "--steps", "1", "--model", str(bare_checkpoint), "--out"]
    assert run([*command, str(tmp_path / "out"), "--preset", "off", "--json"]) == DONE
    told = capsys.readouterr()
    (one,) = map(json.loads, told.out.splitlines())
    assert (one["verdict"], one["scores"]) == ("not judged", {})
    assert one["why"].startswith("not measured: ")
    assert json.loads(manifests(tmp_path / "out")[0].read_text())["verdict"] == "not judged"
    assert "pictures are not filtered" in told.err
    assert told.err.count("[from:to:when] in a prompt is read as plain characters") == 1
    assert run(["inspect", str(manifests(tmp_path / "out")[0]), "--replay"]) == DONE
    assert "not judged" in capsys.readouterr().out
    assert run([*command, str(tmp_path / "plain"), "--preset", "plain", "--json"]) == DONE
    (once,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (once["verdict"], once["why"]) == ("not judged", HELD_AGAINST_WORKS)
    assert 2 * once["rows"] == one["rows"], "one run, and not two"
    assert run([*command, str(tmp_path / "out"), "--preset", "off", "--quiet"]) == DONE
    assert capsys.readouterr() == ("", "")
    assert run([*command, str(tmp_path / "none"), "--quiet"]) == USER_ERROR
    said = capsys.readouterr().err
    assert "--preset asks for control, which needs a ControlNet and this model has none" in said
    assert said.endswith("load one with --controlnet, or draw plain pictures with --preset plain\n")
    assert not (tmp_path / "none").exists()


def test_parts_from_elsewhere_are_recorded_and_replayed(tiny_checkpoint, tmp_path, capsys):
    vae = shutil.copytree(tiny_checkpoint / "vae", tmp_path / "vae")
    tensors = load_file(vae / WEIGHTS["vae"])
    save_file({name: value / 2 for name, value in tensors.items()}, vae / "diffusion_pytorch_model.fp16.safetensors")
    options = ["--steps", "1", "--model", str(tiny_checkpoint), "--vae", str(vae), "--variant", "fp16"]
    assert run(["generate", "a star", *options, "--out", str(tmp_path / "out")]) == DONE
    (manifest,) = manifests(tmp_path / "out")
    model = json.loads(manifest.read_text())["model"]
    assert (model["vae"], model["variant"]) == (str(vae), "fp16")
    assert run(["inspect", str(manifest), "--replay"]) == DONE, capsys.readouterr().out
