"""The operator's file: read from YAML or TOML, told from its own folder, and refused by the value that is wrong."""

import re
from pathlib import Path

import pytest

from twig.engine.api.errors import InvalidRequestError, RecordError
from twig.engine.cli.main import run
from twig.engine.cli.status import DONE, USER_ERROR
from twig.engine.serve.config import ServeConfig
from twig.engine.serve.keys import Keys
from twig.engine.serve.server import check

YAML = """
listen: {port: 9000}
model: {name: star, aliases: [gpt-image-1], path: models/star}
drawing: {preset: strict, rule: "refuse if ssim_masked > 0.45; retry 2", review: deliver}
bounds: {images: 2, wait: 30}
records: {folder: kept}
"""
TOML = """
[listen]
port = 9000
[model]
name = "star"
aliases = ["gpt-image-1"]
path = "models/star"
[drawing]
preset = "strict"
rule = "refuse if ssim_masked > 0.45; retry 2"
review = "deliver"
[bounds]
images = 2
wait = 30
[records]
folder = "kept"
"""


def written(folder, text, name="twig.yaml"):
    path = folder / name
    path.write_text(text)
    return path


def test_both_languages_say_the_same(tmp_path):
    (tmp_path / "models").mkdir()
    read = ServeConfig.load(written(tmp_path, YAML))
    assert read == ServeConfig.load(written(tmp_path, TOML, "twig.toml"))
    assert (read.listen.port, read.bounds.images, read.drawing.review) == (9000, 2, "deliver")
    assert read.model.path == str(tmp_path / "models/star")
    assert read.records.folder == tmp_path / "kept"


def test_the_readme_shows_the_values_that_there_are(tmp_path):
    readme = (Path(__file__).parents[3] / "engine/serve/README.md").read_text()
    (shown,) = re.findall(r"^```yaml\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    usual = ServeConfig()
    assert ServeConfig.load(written(tmp_path, shown)) == usual.with_("records", folder=tmp_path / "records")


def test_a_model_that_is_no_folder_beside_the_file_stays_a_hub_id(tmp_path):
    assert ServeConfig.load(written(tmp_path, "model: {path: owner/name}")).model.path == "owner/name"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("listen: {prot: 1}", "listen.prot"),
        ("drawing: {rule: accept nothing}", "drawing.rule"),
        ("drawing: {preset: loose}", "drawing.preset"),
        ("bounds: {images: 11}", "bounds.images"),
        ("bounds: {drafts: 1}", "bounds.drafts"),
        ("records: !!python/object/apply:os.system [ls]", "no YAML"),
        ("a: [", "no YAML"),
        ("bounds: {wait: 30, images: 2, wait: 60}", "'wait' is given twice"),
        ("bounds: {wait: 30}\nmodel: {}\nbounds: {wait: 60}", "'bounds' is given twice"),
        ("models: [{path: x}]", "'twig' is given twice"),
        ("models: [{name: a, aliases: [b]}, {name: b}]", "'b' is given twice"),
        ("drawing: {steps: 4}\nmodels: [{name: a, drawing: {prest: strict}}]", "models.0.drawing.prest"),
        ("just words", "sections are expected"),
        ("", "sections are expected"),
    ],
)
def test_the_wrong_value_is_named(tmp_path, capsys, text, named):
    path = written(tmp_path, text)
    with pytest.raises(InvalidRequestError) as caught:
        ServeConfig.load(path)
    assert named in str(caught.value)
    assert run(["serve", "--check", "--config", str(path)]) == USER_ERROR
    assert named in capsys.readouterr().err


def test_further_models_are_told_from_the_folder_and_drawn_as_the_file_says_but_for_what_they_say(tmp_path):
    text = YAML + "models: [{name: fast, path: ./fast, drawing: {steps: 4}}, {name: plain}]\n"
    read = ServeConfig.load(written(tmp_path, text.replace("preset: strict", "preset: strict, steps: 9")))
    assert ServeConfig.model_validate_json(read.model_dump_json()) == read, "as devices of their own get it"
    star, fast, plain = read.views
    assert fast.model.path == str(tmp_path / "fast")
    assert [(view.model.name, view.drawing.steps) for view in read.views] == [("star", 9), ("fast", 4), ("plain", 9)]
    assert fast.drawing.model_copy(update={"steps": 9}) == star.drawing == plain.drawing
    assert {view.model.device for view in read.on("cpu").views} == {"cpu"}


def test_the_world_is_not_listened_to_without_keys(tmp_path):
    open_to_all = ServeConfig(listen={"host": "0.0.0.0"})
    with pytest.raises(InvalidRequestError, match="takes keys"):
        check(open_to_all)
    with pytest.raises(RecordError, match="no file of keys"):
        check(open_to_all.with_("listen", keys=tmp_path / "keys.json"))
    Keys(tmp_path / "keys.json").add("ann")
    check(open_to_all.with_("listen", keys=tmp_path / "keys.json"))


def test_a_check_loads_the_model_and_tries_its_rule(tmp_path, tiny_checkpoint, capsys):
    folder = f"records: {{folder: {tmp_path / 'kept'}}}\n"
    model = f"model: {{path: {tiny_checkpoint}}}\n"
    assert run(["serve", "--check", "--config", str(written(tmp_path, folder + model))]) == DONE
    assert "nothing is wrong" in capsys.readouterr().out
    for line, named in (
        ('drawing: {rule: "refuse if beauty > 1"}', "unknown metric 'beauty'"),
        ('drawing: {rule: "refuse if ms_ssim crosses its limit"}', "not calibrated"),
        ("bounds: {steps: 5}", ""),
        (f"model: {{path: {tiny_checkpoint}, device: cuda:99}}", "there is no device 'cuda:99' here"),
        (f"model: {{path: {tiny_checkpoint}, vae: {tmp_path}}}", "has no safetensors weights"),
        (f"model: {{path: {tiny_checkpoint}, bank: none.safetensors}}", "none.safetensors"),
    ):
        expected = USER_ERROR if named else DONE
        text = folder + line if line.startswith("model") else folder + model + line
        assert run(["serve", "--check", "--config", str(written(tmp_path, text))]) == expected
        assert named in capsys.readouterr().err


def test_files_of_adapters_are_told_from_the_files_folder(tmp_path):
    (tmp_path / "loras").mkdir()
    path = tmp_path / "twig.yaml"
    path.write_text("model: {lora: ['loras/fast.safetensors:0.5'], adapters: {ink: loras/ink.safetensors}}")
    model = ServeConfig.load(path).model
    assert model.lora == (f"{tmp_path}/loras/fast.safetensors:0.5",)
    assert model.adapters == {"ink": f"{tmp_path}/loras/ink.safetensors"}
