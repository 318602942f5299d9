"""The command line as a whole: a user's mistakes, its help, and commands that other packages add."""

import re

import pytest
from PIL import Image

from twig.engine.cli.main import command_line, run
from twig.engine.cli.status import DONE, INTERRUPTED, USER_ERROR

_PYTHONS = re.compile(r"=\.\.\.|Value error|Input should|\w+_\w+:|avoidance\.")


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
        ("--preset plain --mask {tmp}/small.png", "--preset plain draws by the prompt alone; leave out --mask"),
        ("--preset plain --source {tmp}/small.png", "--preset plain draws by the prompt alone; leave out --source"),
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
