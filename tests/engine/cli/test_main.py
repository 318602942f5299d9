"""The command line as a user meets it, on a tiny random model."""

import json
import re
import shutil
import signal
import stat
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from model_folders import WEIGHTS
from twig.engine.batching.scheduler import Limits
from twig.engine.cli.main import command_line, run
from twig.engine.cli.progress import StageBars
from twig.engine.cli.status import DIFFERS, DONE, INTERRUPTED, USER_ERROR
from twig.engine.engine import Engine

PROMPT = "a red star and a blue house"

_PYTHONS = re.compile(r"=\.\.\.|Value error|Input should|\w+_\w+:|avoidance\.")


@pytest.fixture(scope="module")
def generated(tiny_checkpoint, tmp_path_factory):
    """Folder with two pictures of one prompt."""
    out = tmp_path_factory.mktemp("out")
    assert run(["generate", PROMPT, "-n", "2", "--steps", "3", "--model", str(tiny_checkpoint), "--out", str(out)]) == 0
    return out


@pytest.fixture
def copied(generated, tmp_path):
    """A copy of `generated` to change."""
    return shutil.copytree(generated, tmp_path / "copy")


def manifests(folder):
    return sorted(path for path in folder.glob("*.json") if "explain" not in path.name)


def pictures(folder):
    return sorted(path for path in folder.glob("*.png") if "sheet" not in path.name)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


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
    run(
        [
            "generate",
            "a star",
            "a moon",
            "--gate",
            "--steps",
            "1",
            "--model",
            str(tiny_checkpoint),
            "--out",
            str(tmp_path),
        ]
    )
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


@pytest.fixture
def strict_checkpoint(tiny_checkpoint, tmp_path):
    """The same model, calibrated so that nothing is accepted."""
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "strict")
    edit(copy / "calibration.json", limits={"ssim": -1.0})
    return copy


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


def test_a_replay_judges_by_the_limits_of_then(strict_checkpoint, tiny_checkpoint, tmp_path, capsys):
    options = ["--steps", "1", "--retries", "1", "--model", str(strict_checkpoint), "--out", str(tmp_path / "out")]
    run(["generate", "a star", *options])
    replayed = ["inspect", str(manifests(tmp_path / "out")[0]), "--replay", "--model", str(tiny_checkpoint)]
    assert run(replayed) == DONE, capsys.readouterr().out


def test_inspect_prints_the_manifest(generated, capsys):
    assert run(["inspect", str(manifests(generated)[0])]) == DONE
    out = capsys.readouterr().out
    for text in ("accepted", PROMPT, "seed 0", "ssim", "delayed_guidance, moved_control", "are those of the manifest"):
        assert text in out


def test_inspect_notices_another_picture(copied, capsys):
    Image.new("RGB", (64, 64)).save(pictures(copied)[0])
    run(["inspect", str(manifests(copied)[0])])
    assert "NOT those of the manifest" in capsys.readouterr().out
    pictures(copied)[0].unlink()
    run(["inspect", str(manifests(copied)[0])])
    assert "not beside the manifest" in capsys.readouterr().out


def test_inspect_keeps_control_characters_off_the_terminal(copied, capsys):
    manifest = manifests(copied)[0]
    edit(manifest, request=json.loads(manifest.read_text())["request"] | {"prompt": "\x1b[2Jgone"})
    run(["inspect", str(manifest)])
    assert "\x1b" not in capsys.readouterr().out


def test_a_replay_is_identical(generated, capsys):
    assert run(["inspect", str(manifests(generated)[1]), "--replay"]) == DONE
    assert "identical in draft" in capsys.readouterr().out


def test_a_replay_that_differs_says_by_how_much(copied, capsys):
    manifest = manifests(copied)[0]
    edit(manifest, request=json.loads(manifest.read_text())["request"] | {"seed": 1})
    assert run(["inspect", str(manifest), "--replay"]) == DIFFERS
    assert "NOT identical, on the same kind of machine: differs in draft" in capsys.readouterr().out


def test_a_replay_fetches_nothing_that_a_manifest_names(copied, capsys):
    manifest = manifests(copied)[0]
    edit(manifest, model=json.loads(manifest.read_text())["model"] | {"source": "somebody/model"})
    assert run(["inspect", str(manifest), "--replay"]) == USER_ERROR
    assert '"somebody/model", which is not on this disk' in capsys.readouterr().err


def test_a_replay_with_another_model_is_refused(copied, tiny_checkpoint, tmp_path, capsys):
    manifest = manifests(copied)[0]
    hashes = json.loads(manifest.read_text())["model"]
    edit(manifest, model=hashes | {"hashes": hashes["hashes"] | {"unet": "00" * 32}})
    assert run(["inspect", str(manifest), "--replay", "--model", str(tiny_checkpoint)]) == USER_ERROR
    assert "its unet has SHA-256 0000" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--width 65", "--width 65 is not a multiple of"),
        ("--width 4", "--width must be at least 8, got 4"),
        ("--steps 0", "--steps must be at least 1, got 0"),
        ("--steps 9999", "--steps must be at most 1000, got 9999"),
        ("--steps 999", "--steps 999 exceed this engine's 150"),
        ("--steps many", "'--steps': must be a valid integer"),
        ("--seed -1", "--seed takes numbers and ranges like 7, 1..8 or 1-8,12, got '-1'"),
        ("--limit-pixels 4095", "64 x 64 pixels exceed this engine's 4095; allow more with --limit-pixels"),
        ("--limit-pixels 0", "'--limit-pixels': must be at least 1"),
        ("--prompts {tmp}/none.txt", "none.txt"),
        ("-n 0", "--num-images must be at least 1, got 0"),
        ("--guidance=-0.5", "--guidance must be at least 0, got -0.5"),
        ("--guidance-interval 0.8", "--guidance-interval takes START:STOP"),
        ("--guidance-interval 0.8:0.1", "--guidance-interval 0.8:0.1 ends before it starts"),
        ("--guidance-interval 0:2", "--guidance-interval must be at most 1, got 2.0"),
        ("--guidance-rescale 2", "--guidance-rescale must be at most 1, got 2"),
        ("--sigmas karras", "--sigmas karras are not defined for ddim"),
        ("--guidance nan", "--guidance must be a finite number, got nan"),
        ("--variant fp16", "no part has weights of the --variant 'fp16'"),
        ("--revision main", "and --revision 'main' is of a hub id"),
        ("--vae nowhere", "there is no folder or file nowhere"),
        ("--guidance much", "--guidance"),
        (
            "--solver magic",
            "'--solver': 'magic' is not one of 'ddim', 'euler', 'euler_ancestral', 'dpmpp_2m', 'dpmpp_2m_sde'",
        ),
        ("--rule @{tmp}/none.txt", "none.txt"),
        ("--rule @{tmp}/text.png", "clause 1 of the rule, 'hello': expected 'refuse' or 'review'"),
        ("--retries 1 --rule @{tmp}/rule.txt", "the rule says 0"),
        ("--preset strong", "'off', 'gentle', 'fast', 'default', 'strict'"),
        ("--calibration {tmp}/text.png", "text.png is no calibration"),
        ("--registry {tmp}/text.png", "text.png is no registry of Twig"),
        ("--negative " + "star," * 120, "--negative has"),
        ("--model nowhere", "there is no folder or file nowhere"),
        ("--controlnet nowhere", "there is no folder or file nowhere"),
        ("--source nothing.png", "no picture at nothing.png"),
        ("--source {tmp}/text.png", "text.png is no picture"),
        ("--mask {tmp}/small.png", "--mask is (8, 8), the picture is (64, 64)"),
        ("--device cuda:99", "there is no device 'cuda:99' here; there is cpu"),
        ("--dtype int8", "'float32', 'float16', 'bfloat16'"),
        ("--colour red", "No such option: --colour"),
        ("--out {tmp}/text.png", "text.png"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(tiny_checkpoint, tmp_path, capsys, options, message):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "rule.txt").write_text("review if ssim > 0.5")
    Image.new("L", (8, 8)).save(tmp_path / "small.png")
    words = options.format(tmp=tmp_path).split()
    command = ["generate", "a star", "--model", str(tiny_checkpoint), "--out", str(tmp_path / "out"), *words]
    assert run(command) == USER_ERROR
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("twig: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert not _PYTHONS.search(captured.err), "words of options alone"
    assert not (tmp_path / "out").exists(), "nothing was drawn, so nothing is left"


def test_a_missing_prompt_and_a_missing_manifest_are_mistakes_too(tmp_path, capsys):
    assert run(["generate"]) == USER_ERROR
    assert "nothing to draw; name a prompt" in capsys.readouterr().err
    assert run(["inspect", str(tmp_path / "none.json")]) == USER_ERROR
    assert "none.json" in capsys.readouterr().err


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


def test_version_and_help(capsys):
    assert run([]) == DONE
    assert "generate" in capsys.readouterr().out
    assert run(["--version"]) == DONE
    assert capsys.readouterr().out.startswith("twig 0.")
    assert run(["generate", "--help"]) == DONE
    assert "--log-prompts" in capsys.readouterr().out


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Return a function that installs a package of somebody else's, which adds the command of its name."""
    monkeypatch.syspath_prepend(tmp_path)
    command_line.cache_clear()

    def install(name, code):
        (tmp_path / f"{name}.py").write_text(code)
        facts = tmp_path / f"{name}-1.0.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (facts / "entry_points.txt").write_text(f"[twig.commands]\n{name} = {name}:app\n")

    yield install
    command_line.cache_clear()


GREETING = """
import typer

app = typer.Typer(invoke_without_command=True, help="Greet somebody.")

@app.callback()
def greet(name: str = "world") -> int:
    print(f"hello {name}")
    return 1
"""


def test_another_package_adds_a_command(installed, capsys):
    installed("greeting", GREETING)
    assert run(["greeting", "--name", "star"]) == 1
    assert capsys.readouterr().out == "hello star\n"
    assert run(["--help"]) == DONE
    assert "Greet somebody." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("code", "reason"),
    [("import nowhere_to_be_found", "No module named 'nowhere_to_be_found'"), ("app = print", "is no typer.Typer")],
)
def test_a_command_that_cannot_be_loaded_leaves_the_others_alone(installed, capsys, request, code, reason):
    name = f"broken{request.node.callspec.indices['code']}"
    installed(name, code)
    assert run(["--version"]) == DONE
    assert capsys.readouterr().out.startswith("twig 0.")
    assert run([name, "--loud", "word"]) == USER_ERROR
    error = capsys.readouterr().err
    assert error.startswith(f"twig: the command {name!r} cannot be loaded: ")
    assert reason in error
    assert error.count("\n") == 1


def test_ctrl_c_while_commands_are_loaded(installed, capsys):
    installed("interrupted", "raise KeyboardInterrupt")
    assert run(["--version"]) == INTERRUPTED
    assert capsys.readouterr().err == ""


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
    assert run([*command, str(tmp_path / "out"), "--preset", "off", "--quiet"]) == DONE
    assert capsys.readouterr() == ("", "")
    assert run([*command, str(tmp_path / "none"), "--quiet"]) == USER_ERROR
    said = capsys.readouterr().err
    assert "--preset asks for control, which needs a ControlNet and this model has none" in said
    assert said.endswith("load one with --controlnet, or draw plain pictures with --preset off\n")
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
