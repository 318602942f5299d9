"""What an installed Twig brings: run against a wheel by CI, against the folder otherwise."""

import json
import pickle
import subprocess
import sys
import tomllib
from importlib.metadata import distribution, packages_distributions
from importlib.resources import files
from pathlib import Path

import pytest

import twig
from twig.engine.engine import Engine

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LAYERS = ("kernels", "engine", "export", "benchmarks")


def asset_files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_command_leads_to_the_command_line():
    scripts = {entry.name: entry.value for entry in distribution("twig-engine").entry_points}
    assert scripts["twig"] == "twig.engine.cli.main:main"


def test_twig_is_all_that_lands_in_site_packages():
    names = {name for name, owners in packages_distributions().items() if "twig-engine" in owners}
    assert {name for name in names if not name.startswith("__editable__")} == {"twig"}


def test_every_package_of_the_source_is_installed():
    folders = {path.parent.relative_to(ROOT) for layer in LAYERS for path in (ROOT / layer).rglob("__init__.py")}
    packages = {".".join(("twig", *folder.parts)) for folder in folders} | {"twig"}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == packages


def test_the_package_brings_its_types_and_its_model():
    installed = Path(str(files("twig")))
    stubs = [ROOT / "__init__.pyi", *(path for layer in LAYERS for path in (ROOT / layer).rglob("*.pyi"))]
    for path in [ROOT / "py.typed", *stubs]:
        assert (installed / path.relative_to(ROOT)).is_file(), path
    for folder in ("engine/assets", "engine/serve/page"):
        assert asset_files(installed / folder) == asset_files(ROOT / folder)


def test_the_version_is_written_once():
    assert distribution("twig-engine").version == twig.__version__


def test_every_public_name_is_there_and_described():
    for name in twig.__all__:
        assert getattr(twig, name).__doc__, name
    assert {"Event", "State", "Limits", "Manifest", "Stats", "replay"} <= set(twig.__all__)


def test_names_that_are_imported_when_asked_for_are_names_like_any_other():
    star: dict[str, object] = {}
    exec("from twig import *", star)
    assert set(twig.__all__) <= star.keys()
    assert set(twig.__all__) <= set(dir(twig))
    assert star["Engine"] is twig.Engine is Engine
    stage = twig.Stage(steps=3)
    assert pickle.loads(pickle.dumps((stage, twig.Preset.STRICT, twig.replay))) == (stage, "strict", twig.replay)
    with pytest.raises(AttributeError, match="Motor"):
        _ = twig.Motor


def test_a_light_import():
    """The core needs none of the extras, and never torchvision, which is broken beside a CPU build of torch.

    Nor accelerate, which comes with PEFT in a development environment and imports boto3 wherever that is.
    """
    extras = (
        "onnx",
        "onnxscript",
        "onnxruntime",
        "openvino",
        "tensorrt",
        "tensorrt_rtx",
        "matplotlib",
        "sqlalchemy",
        "c2pa",
        "fastapi",
        "uvicorn",
        "opentelemetry",
        "boto3",
    )
    absent = ("torchvision", "twig.benchmarks", *extras)
    everything = "from twig import *; from twig.engine.cli.actions import *"
    hidden = "sys.modules |= {'accelerate': None, 'peft': None}"
    code = f"import sys; {hidden}; {everything}; print([name for name in {absent} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_part_of_the_model_names_the_folder_it_was_trained_in():
    configs = list((ROOT / "engine" / "assets").rglob("config.json"))
    assert configs
    for path in configs:
        assert "_name_or_path" not in json.loads(path.read_text()), path
