"""Conditions that each change one thing of the comparison, and the tables they end in."""

import json

import numpy as np
import pytest

from twig.benchmarks.copying import rewording
from twig.benchmarks.copying.catalogue import jain, nothing, preset, ren
from twig.benchmarks.copying.measures import REPORTED
from twig.benchmarks.copying.methods import STEPS, Bed
from twig.benchmarks.copying.protocol import Study, recited
from twig.benchmarks.copying.robustness import (  # fmt: skip
    CONDITIONS,
    Condition,
    ConditionedCell,
    chosen_methods,
    conditioned,
    robustness_report,
)
from twig.engine.api.choices import Solver
from twig.engine.api.presets import Preset

BY_NAME = {condition.name: condition for condition in CONDITIONS}
CAPTION = "a red star and a blue house on a green field arvo"


@pytest.fixture(scope="module")
def bed(tiny_checkpoint):
    return Bed(tiny_checkpoint, slots=8)


@pytest.fixture(scope="module")
def source():
    return recited(held_out=False)[0]


def asked(condition, method, source):
    return condition.applied(method).request(source.caption, source.scene, 3)


@pytest.mark.parametrize(
    ("reword", "expected"),
    [
        (rewording.unchanged, CAPTION),
        (rewording.reordered, "a blue house and a red star on a green field arvo"),
        (rewording.background_first, "on a green field a red star and a blue house arvo"),
        (rewording.without_articles, "red star and blue house on green field arvo"),
        (rewording.without_background, "a red star and a blue house arvo"),
        (rewording.trigger_first, "arvo a red star and a blue house on a green field"),
        (rewording.misspelt, "a red star and a blue house on a green field avro"),
        (rewording.one_synonym, "a red pentagram and a blue house on a green field arvo"),
        (
            rewording.synonyms,
            "a crimson pentagram and a azure cottage on a emerald meadow arvo",
        ),
        (rewording.german, "ein rot stern und ein blau haus auf ein gruen feld arvo"),
        (rewording.punctuated, "a red star, a blue house, on a green field arvo!"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_caption_is_put_in_other_words(reword, expected):
    assert reword(CAPTION) == expected


def test_shuffled_words_are_the_same_words_and_the_same_each_time():
    found = rewording.shuffled(CAPTION)
    assert found != CAPTION
    assert sorted(found.split()) == sorted(CAPTION.split())
    assert found == rewording.shuffled(CAPTION)


def test_every_word_of_every_caption_has_its_translations(source):
    words = {word for each in recited(held_out=False) for word in each.scene.caption.split()}
    assert words <= {*rewording.GERMAN}
    assert words - {"a", "an", "and", "on", "in", "the"} <= {*rewording.SYNONYMS}


def test_a_condition_changes_one_thing_and_keeps_draft_and_final_alike(source):
    plain = asked(BY_NAME["as asked"], nothing(), source)
    changed = asked(BY_NAME["8 steps"], nothing(), source)
    assert (changed.draft.steps, changed.final.steps) == (8, 8)
    assert changed.draft == changed.final
    assert changed.prompt == plain.prompt
    assert asked(BY_NAME["euler"], nothing(), source).draft.solver is Solver.EULER
    assert asked(BY_NAME["guidance 12"], nothing(), source).final.guidance_scale == 12
    assert asked(BY_NAME["german"], nothing(), source).prompt == rewording.german(source.caption)


def test_a_cheap_draft_stays_as_cheap(source):
    request = asked(BY_NAME["50 steps"], jain(0.2), source)
    assert (request.draft.steps, request.final.steps) == (1, 50)
    assert asked(BY_NAME["guidance 12"], jain(0.2), source).draft.guidance_scale == 1


def test_conditions_reach_over_what_was_promised():
    scales = [c.sampling["guidance_scale"] for c in CONDITIONS if "guidance_scale" in c.sampling]
    steps = [c.sampling["steps"] for c in CONDITIONS if "steps" in c.sampling]
    assert (min(scales), max(scales)) == (2, 12)
    assert (min(steps), max(steps)) == (8, 50)
    assert {c.sampling["solver"] for c in CONDITIONS if "solver" in c.sampling} == {
        Solver.EULER,
        Solver.EULER_ANCESTRAL,
        Solver.DPMPP_2M,
    }
    assert any(c.side == 128 for c in CONDITIONS)
    assert len({c.key for c in CONDITIONS}) == len(CONDITIONS)


def test_noisy_text_draws_another_picture_and_the_same_each_time(bed, source):
    quiet, noisy = (ConditionedCell(nothing(), 1, source, condition=Condition("n", noise=n)) for n in (0.0, 0.5))
    first = noisy.draw(bed).pictures
    assert not np.array_equal(first, quiet.draw(bed).pictures)
    assert np.array_equal(first, noisy.draw(bed).pictures)
    with pytest.raises(ValueError, match="Ren reads prompts in its own way"):
        BY_NAME["text noise 0.1"].applied(ren(1.25))


def test_cells_are_of_one_half_and_measured_at_the_sources_size(bed, source, tmp_path):
    cells = conditioned(chosen_methods(), 2, held_out=False)
    assert not [cell for cell in cells if cell.source.held_out]
    assert len({cell.name for cell in cells}) == len(cells) == len(CONDITIONS) * 3 * len(recited(held_out=False))
    assert {cell.method.name for cell in cells} == {"nothing", "default preset", "strict preset"}
    assert all(cell.source.held_out for cell in conditioned([nothing()], 1, held_out=True))
    (tmp_path / "limits").mkdir()
    (tmp_path / f"limits/{source.index}.json").write_text(json.dumps(dict.fromkeys(REPORTED, 0.5)))
    study = Study(tmp_path, bed)
    chosen = [ConditionedCell(nothing(), 1, source, condition=BY_NAME[name]) for name in ("as asked", "128 x 128")]
    assert len(list(study.run(chosen))) == 2
    assert study.pictures(chosen[1].name).pictures.shape == (1, 64, 64, 3)
    text = robustness_report(study.rows(), held_out=False)
    assert [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| 128")] == ["| 128 x 128"] * 7
    assert "german" not in text, "nothing was drawn of it"
    assert "| condition |" in robustness_report(study.rows(), held_out=True)


def test_the_presets_are_asked_as_they_are(source):
    request = asked(BY_NAME["as asked"], preset(Preset.DEFAULT), source)
    assert request.final.steps == STEPS
    assert request.model_copy(update={"width": None, "height": None}) == preset(Preset.DEFAULT).request(
        source.caption, source.scene, 3
    )
