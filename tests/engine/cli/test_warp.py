"""`twig generate --warp bank` and what it draws from."""

import json

from small_banks import small_bank
from twig.engine.api.choices import Preset
from twig.engine.api.settings import Stage
from twig.engine.cli.actions.generating import _bundle
from twig.engine.cli.main import run
from twig.engine.cli.status import DONE, USER_ERROR


def manifest(folder):
    (path,) = (path for path in folder.glob("twig-*.json") if "explain" not in path.name)
    return json.loads(path.read_text())


def test_a_final_follows_a_composed_map_after_a_short_draft_and_is_replayed_with_its_bank(
    tiny_checkpoint, tmp_path, capsys
):
    bank = tmp_path / "shapes.safetensors"
    small_bank().save(bank)
    words = ["generate", "a star", "--model", str(tiny_checkpoint), "--steps", "3", "--draft-steps", "2", "--always"]
    assert (
        run([*words, "--warp", "bank", "--bank", str(bank), "--retries", "0", "--out", str(tmp_path / "out")]) == DONE
    )
    found = manifest(tmp_path / "out")
    assert found["bank"] == small_bank().version
    assert len(found["attempts"][0]["shapes"]) == 1
    assert (
        found["request"]["avoidance"]["moved_control"] | {"warp": "bank", "max_iou": 0.2, "scale": 2.0}
        == (found["request"]["avoidance"]["moved_control"])
    )
    assert (found["request"]["draft"]["steps"], found["request"]["final"]["steps"], found["draft_rows"]) == (2, 3, 4)
    (path,) = (tmp_path / "out").glob("twig-*.json")
    assert run(["inspect", str(path), "--replay"]) == USER_ERROR
    assert "name the one of then with --bank" in capsys.readouterr().err
    assert run(["inspect", str(path), "--replay", "--bank", str(bank)]) == DONE


def test_a_gate_listens_to_a_whole_draft_and_the_default_draws_a_short_one():
    for gate, asked, steps, redraft in (
        (None, None, 4, 20),
        (False, 6, 6, 20),
        (True, None, 20, None),
        (True, 6, 6, 20),
    ):
        bundle = _bundle(Preset.DEFAULT, gate, asked)
        assert (bundle.gate is not None) == bool(gate)
        stages = bundle.stages(Stage(steps=20))
        assert (stages["draft"].steps, stages["redraft"]) == (steps, redraft)
    assert _bundle(Preset.GENTLE, False, None).gate is None


def test_a_model_without_a_bank_moves_objects_and_says_so(tiny_checkpoint, tmp_path, capsys):
    words = ["generate", "a star", "--model", str(tiny_checkpoint), "--steps", "1", "--always", "--warp", "bank"]
    assert run([*words, "--out", str(tmp_path)]) == DONE
    assert "this model has no bank of shapes" in capsys.readouterr().err
    assert manifest(tmp_path)["attempts"][0]["shapes"] == []


def test_a_warp_needs_a_map(tmp_path, capsys):
    assert run(["generate", "a star", "--preset", "off", "--warp", "bank", "--out", str(tmp_path)]) == USER_ERROR
    assert "--warp bank is of the final's control map, and this preset follows none" in capsys.readouterr().err
