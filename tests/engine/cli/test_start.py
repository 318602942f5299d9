"""What a start costs: no command, help or mistake imports what only a running command needs."""

import json
import os
import subprocess
import sys

import pytest

HEAVY = (
    "torch", "diffusers", "transformers", "tokenizers", "huggingface_hub", "safetensors", "numpy", "scipy", "skimage",
    "PIL", "jinja2", "filelock", "onnx", "onnxscript", "onnxruntime", "openvino", "tensorrt", "triton", "pandas",
    "matplotlib",
)  # fmt: skip

TRIED = """
import json, sys, typer
from twig.engine.cli.main import command_line, run

def paths(command, words):
    yield words
    for name, below in getattr(command, "commands", {}).items():
        yield from paths(below, [*words, name])

from contextlib import redirect_stdout
from io import StringIO

heavy, mistakes = json.load(sys.stdin)
every = list(paths(typer.main.get_command(command_line()), []))
lines = [["--version"], *mistakes, *([*words, option] for words in every for option in ("--help", "--no-such-option"))]
print(file=sys.stderr)
for line in lines:
    with redirect_stdout(StringIO()) as said:
        status = run(line)
    loaded = [name for name in heavy if name in sys.modules]
    print(json.dumps([line, status, loaded, said.getvalue()]), file=sys.stderr)
"""

MISTAKES = (
    "", "nothing", "generate", "generate star --solver magic", "generate star --preset strong", "generate star -n few",
    "generate star --dtype int8", "inspect", "calibrate", "calibrate --captions none.txt --quantile 2", "registry",
    "registry nothing", "registry add", "registry remove", "registry check", "assess",
    "assess --prompts none.txt --sources .", "assess --prompts THIS --sources . --presets severe",
    "generate --prompts none.txt", "generate star --seed 8..1",
    "export --to caffe", "export --precision int4", "export --attention none",
    "artifacts", "artifacts prune --max-mib much",
)  # fmt: skip


def python(*arguments, **options):
    """A Python that finds the package as this one does, and not because of the folder it starts in."""
    return subprocess.run([sys.executable, "-P", *arguments], capture_output=True, text=True, timeout=60, **options)


@pytest.fixture(scope="module")
def tried():
    """What was asked, how it ended and what was imported by then, each of every command's help and every mistake."""
    mistakes = [[__file__ if word == "THIS" else word for word in line.split()] for line in MISTAKES]
    done = python("-c", TRIED, input=json.dumps([HEAVY, mistakes]), check=True)
    return [json.loads(line) for line in done.stderr.splitlines() if line.startswith("[")]


def test_help_and_mistakes_import_nothing_heavy(tried):
    assert {(" ".join(line), *heavy) for line, _, heavy, _ in tried if heavy} == set()


def test_every_command_was_asked(tried):
    asked = {tuple(line[:-1]): status for line, status, *_ in tried if line[-1:] == ["--help"]}
    assert {(), ("generate",), ("registry", "check"), ("assess",), ("export",), ("artifacts", "prune")} <= asked.keys()
    assert set(asked.values()) == {0}
    mistakes = [status for line, status, *_ in tried if line and line[-1] not in ("--help", "--version")]
    assert set(mistakes) == {2}


def test_help_speaks_no_python(tried):
    said = {" ".join(line): text for line, _, _, text in tried if line[-1:] == ["--help"]}
    assert {line for line, text in said.items() if "<list[" in text or "}..." in text} == set()
    assert "Usage: twig registry add [OPTIONS] PICTURE..." in said["registry add --help"]


def test_the_options_of_generate_are_grouped_and_exit_statuses_told(tried):
    (said,) = (text for line, _, _, text in tried if line == ["generate", "--help"])
    assert [name for name in ("Drawing", "Avoiding", "Judging", "Model", "Output") if f"─ {name} ─" not in said] == []
    for status in (0, 1, 2, 3, 70, 130, 141, 143):
        assert f" {status}: " in said


def test_the_package_itself_costs_nothing():
    absent = (*HEAVY, "pydantic", "typer", "rich")
    done = python("-c", f"import sys, twig; print([name for name in {absent} if name in sys.modules])", check=True)
    assert done.stdout == "[]\n"


def test_the_package_runs_as_a_module():
    done = python("-m", "twig", "--version", check=True)
    assert done.stdout.startswith("twig 0.")
    assert "Usage: twig generate [OPTIONS]" in python("-m", "twig", "generate", "--help", check=True).stdout
    failed = python("-m", "twig", "generate", "--colour")
    assert failed.returncode == 2
    assert failed.stderr.startswith("twig: No such option: --colour")


@pytest.mark.parametrize("command", ["generate star", "registry list", "export"])
def test_ctrl_c_while_the_engine_is_imported(tmp_path, command):
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = python("-m", "twig", *command.split(), env=os.environ | {"PYTHONPATH": path})
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
