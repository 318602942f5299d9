"""The judge asks whether a final shows what its control map asked for."""

import numpy as np
import pytest

from twig.engine.api.mechanisms import Avoidance
from twig.engine.api.request import GenerationRequest, SimilarityPolicy
from twig.engine.api.settings import Stage
from twig.engine.engine import Engine
from twig.engine.judging.judge import Asked


@pytest.fixture(scope="module")
def engine(tiny_checkpoint):
    return Engine.from_pretrained(tiny_checkpoint)


def request(**changes):
    stage = Stage(steps=2)
    return GenerationRequest(prompt="a red star", draft=stage, final=stage, **changes)


def label_map(*areas):
    """A frame of 64 x 64 background pixels (0) with `areas` pixels of classes 1, 2, ..."""
    labels = np.zeros(64 * 64, np.int64)
    for label, area in enumerate(areas, start=1):
        labels[1000 * (label - 1) : 1000 * (label - 1) + area] = label
    return labels.reshape(64, 64)


@pytest.mark.parametrize(
    ("final", "control", "kept"),
    [
        ((500, 300), (400, 200), 1.0),
        ((500, 0), (400, 200), 0.5),
        ((0, 500), (500, 0), 0.0),
        ((500, 20), (500, 0), 1.0),  # a speck is no object
        ((), (), 1.0),
    ],
)
def test_classes_kept_are_those_of_both_maps(engine, final, control, kept):
    measured = shown(engine, label_map(*final), label_map(*control))
    assert measured["classes_kept"][0] == kept


def test_a_second_object_of_a_class_counts_and_is_told(engine):
    double = label_map(600)
    double[4, :] = 0  # rows 0 to 9 in two halves
    assert shown(engine, double, label_map(600))["classes_kept"] == (0.5, "1 circle too many")


def test_a_colour_is_asked_for_where_the_prompt_names_one(engine):
    labels = label_map(600)
    assert shown(engine, labels, labels, "a red circle")["colours_kept"] == (
        0.0,
        "0% of the circle is red, most of it grey",
    )
    assert shown(engine, labels, labels, "a circle")["colours_kept"] is None


def shown(engine, final, control, prompt="a circle"):
    """What the judge finds of a grey final with these labels."""
    grey = np.full((64, 64, 3), 128, np.uint8)
    asked = engine.judge.asked(prompt, control)
    assert isinstance(asked, Asked)
    return engine.judge._shown(grey, final, asked)


def test_only_finals_that_follow_a_map_are_asked_for_its_classes(engine):
    followed, free = engine.generate([request(), request(avoidance=Avoidance.off())])
    assert 0 <= followed.scores["classes_kept"].value <= 1
    assert "classes_kept" not in free.scores


def test_a_final_that_lost_a_class_is_drawn_again(engine, monkeypatch):
    answers = iter([0.5, 1.0])
    monkeypatch.setattr("twig.engine.judging.judge.kept", lambda seen, asked: next(answers))
    policy = SimilarityPolicy(rule="refuse if classes_kept < 1; retry 2")
    (result,) = engine.generate(request(similarity=policy))
    assert [attempt.scores["classes_kept"].value for attempt in result.attempts] == [0.5, 1.0]
    assert result.verdict == "accepted"
    assert result.attempts[0].reasons[0].startswith("classes_kept < 1.0: it is 0.5 (")
