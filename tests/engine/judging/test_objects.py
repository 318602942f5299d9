"""Objects by class and their colours, as the judge counts them."""

from collections import Counter

import numpy as np
import pytest

from small_banks import CIRCLE, SQUARE, drawn
from tiny_models import LABELS
from twig.benchmarks.copying.scenes import CLASSES, COLOURS, random_scene, render
from twig.engine.avoidance.objects import objects_of
from twig.engine.avoidance.words import Named, lexicon
from twig.engine.judging.objects import colours_kept, difference, kept

RED, BLUE, GREY = (210, 40, 40), (40, 90, 215), (130, 130, 130)


def painted(labels, *colours):
    """A grey picture in which the n-th object from the left has the n-th colour; and its objects."""
    picture = np.full((*labels.shape, 3), GREY, np.uint8)
    objects = objects_of(labels, {0})
    for one, colour in zip(sorted(objects, key=lambda one: one.columns.start), colours, strict=True):
        picture[one.rows, one.columns][one.mask] = colour
    return picture, objects


@pytest.mark.parametrize(
    ("seen", "asked", "value", "words"),
    [
        ({1: 1, 2: 1}, {1: 1, 2: 1}, 1.0, ""),
        ({1: 2}, {1: 1, 2: 1}, 1 / 3, "1 circle too many, no square"),
        ({1: 1}, {1: 3}, 1 / 3, "1 circle of 3"),
        ({}, {3: 1}, 0.0, "no star"),
        ({}, {}, 1.0, ""),
    ],
)
def test_objects_are_counted_class_by_class(seen, asked, value, words):
    assert kept(Counter(seen), Counter(asked)) == pytest.approx(value)
    assert difference(Counter(seen), Counter(asked), LABELS) == words


def test_an_object_of_another_colour_is_found_and_told():
    picture, objects = painted(drawn([(CIRCLE, 30, 16, 9), (SQUARE, 30, 46, 9)]), BLUE, RED)
    right = [Named(CIRCLE, 1, "blue"), Named(SQUARE, 1, "red")]
    assert colours_kept(picture, objects, right, LABELS)[0] == 1
    value, words = colours_kept(picture, objects, [Named(CIRCLE, 1, "yellow"), right[1]], LABELS)
    assert value == 0
    assert words == "0% of the circle is yellow, most of it blue"


def test_of_several_of_a_class_each_takes_its_own_colour():
    picture, objects = painted(drawn([(CIRCLE, 30, 16, 9), (CIRCLE, 30, 46, 9)]), RED, BLUE)
    assert colours_kept(picture, objects, [Named(CIRCLE, 1, "blue"), Named(CIRCLE, 1, "red")], LABELS)[0] == 1
    assert colours_kept(picture, objects, [Named(CIRCLE, 2, "red")], LABELS)[0] == 0


@pytest.mark.parametrize("named", [[], [Named(CIRCLE, 1)], [Named(SQUARE, 1, "red")]])
def test_nothing_is_said_where_no_colour_is_named_or_no_such_object_there(named):
    picture, objects = painted(drawn([(CIRCLE, 30, 16, 9)]), RED)
    assert colours_kept(picture, objects, named, LABELS) is None


def test_one_limit_tells_right_colours_from_wrong_ones_in_fresh_scenes():
    rng, names = np.random.default_rng(2), ("background", *CLASSES)
    right, wrong = [], []
    for _ in range(150):
        scene = random_scene(rng)
        picture, labels = render(scene)
        objects, named = objects_of(labels, {0}), lexicon(names, frozenset({0})).read(scene.caption)
        others = [c for c in COLOURS if c not in {one.colour for one in named}]
        changed = [Named(one.label, 1, str(rng.choice(others))) for one in named]
        right.append(colours_kept(picture, objects, named, names)[0])
        wrong.append(colours_kept(picture, objects, changed, names)[0])
    assert min(right) > 0.35
    assert np.mean(np.array(wrong) > 0.35) < 0.02
