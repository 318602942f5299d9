"""Maps composed out of a bank: what was asked for, elsewhere, whole, apart, at any size, from the seed alone."""

import numpy as np
import pytest

from small_banks import CIRCLE, SQUARE, STAR, drawn, small_bank
from tiny_models import LABELS
from twig.engine.avoidance.composing import Composer, Wanted
from twig.engine.avoidance.gathering import gathered, shapes_of
from twig.engine.avoidance.objects import Aligned, counted, objects_of
from twig.engine.avoidance.pieces import intersection_over_union


@pytest.fixture(scope="module")
def composer():
    return Composer(small_bank(), LABELS, frozenset({0}))


def wanted(objects, labels, avoided=None):
    return Wanted(tuple(objects), labels, labels > 0, avoided)


DRAFT = drawn([(CIRCLE, 18, 18, 9), (STAR, 44, 44, 10)])


@pytest.mark.parametrize("size", [(64, 64), (128, 128), (96, 64), (512, 512), (100, 260)])
def test_arrangements_are_new_whole_and_apart_at_every_size(composer, size):
    rows, columns = (np.arange(side) * 64 // side for side in size)
    draft = DRAFT[np.ix_(rows, columns)]
    for seed in range(6):
        found = composer.compose(wanted([CIRCLE, STAR], draft), 0.2, seed)
        assert found.labels.shape == size
        assert found.labels.dtype == draft.dtype
        assert intersection_over_union(found.labels > 0, draft > 0) <= 0.2
        objects = objects_of(found.labels, {0})
        assert counted(objects) == {CIRCLE: 1, STAR: 1}
        assert len(objects_of((found.labels > 0).astype(int), {0})) == 2, "no two touch"
        if size == (64, 64):
            assert Aligned(draft > 0).iou(found.labels > 0) < 0.5
        assert len(found.shapes) == len(set(found.shapes)) == 2


def test_the_seed_alone_decides(composer):
    maps = [composer.compose(wanted([SQUARE], DRAFT), 0.2, seed).labels for seed in (5, 5, 6, 7)]
    assert np.array_equal(maps[0], maps[1])
    assert not np.array_equal(maps[0], maps[2])
    again = Composer(small_bank(), LABELS, frozenset({0})).compose(wanted([SQUARE], DRAFT), 0.2, 5)
    assert np.array_equal(again.labels, maps[0])


def test_shapes_are_the_banks_own_at_its_size_and_smooth_at_larger_ones(composer):
    ids = {shape.id for shape in composer.bank.shapes}
    found = composer.compose(wanted([CIRCLE], DRAFT), 0.2, 3)
    assert set(found.shapes) <= ids
    (shape,) = (shape for shape in composer.bank.shapes if (shape.id, shape.label) == (found.shapes[0], "circle"))
    (one,) = objects_of(found.labels, {0})
    assert np.array_equal(one.mask, shape.mask) or np.array_equal(one.mask, shape.mask[:, ::-1])
    large = composer.compose(wanted([CIRCLE], np.zeros((512, 512), int)), 0.2, 3).labels
    widths = np.count_nonzero(large[large.any(1)], axis=1)
    assert abs(np.diff(widths)).max() < 60
    assert np.mean(np.diff(widths) != 0) > 0.3, "a disc's outline goes in steps of a pixel, not of a cell"


def test_several_of_a_class_are_several_objects(composer):
    found = composer.compose(wanted([SQUARE, SQUARE], DRAFT), 0.2, 1)
    assert counted(objects_of(found.labels, {0})) == {SQUARE: 2}


def test_a_users_mask_is_kept_clear(composer):
    avoided = np.zeros((64, 64), bool)
    avoided[:, :40] = True
    for seed in range(5):
        found = composer.compose(wanted([CIRCLE], DRAFT, avoided), 0.2, seed).labels > 0
        assert np.count_nonzero(found & avoided) <= 0.05 * np.count_nonzero(found)


@pytest.mark.parametrize("objects", [[], [CIRCLE] * 9])
def test_nothing_and_too_much_cannot_be_composed(composer, objects):
    assert composer.compose(wanted(objects, DRAFT), 0.2, 0) is None


def test_what_has_no_shape_cannot_be_composed():
    circles = gathered([shapes_of(drawn([(CIRCLE, 30, 30, 9)]), LABELS, {0})], "a circle")
    composer = Composer(circles, LABELS, frozenset({0}))
    assert composer.compose(wanted([CIRCLE], DRAFT), 0.2, 0) is not None
    assert composer.compose(wanted([CIRCLE, SQUARE], DRAFT), 0.2, 0) is None


def test_where_nothing_keeps_away_the_least_overlap_is_taken():
    only = drawn([(CIRCLE, 32, 32, 12)])
    composer = Composer(gathered([shapes_of(only, LABELS, {0})], "one"), LABELS, frozenset({0}))
    found = composer.compose(wanted([CIRCLE], drawn([(CIRCLE, 32, 32, 26)])), 0.1, 0)
    assert found is not None
    assert counted(objects_of(found.labels, {0})) == {CIRCLE: 1}


def test_where_no_shape_may_stay_it_takes_the_place_of_others():
    circles = [drawn([(CIRCLE, 30 + i, 32, 10)]) for i in range(5)]
    squares = [drawn([(SQUARE, 14, 14 + 2 * i, 9)]) for i in range(5)]
    bank = gathered([shapes_of(labels, LABELS, {0}) for labels in circles + squares], "")
    composer, draft = Composer(bank, LABELS, frozenset({0})), drawn([(CIRCLE, 32, 32, 11)])
    for seed in range(5):
        found = composer.compose(wanted([CIRCLE], draft), 0.2, seed).labels
        assert counted(objects_of(found, {0})) == {CIRCLE: 1}
        assert intersection_over_union(found > 0, draft > 0) <= 0.2


def test_where_every_shape_of_a_class_is_alike_arrangements_still_differ():
    scenes = [drawn([(CIRCLE, row, column, 11)]) for row in range(14, 50, 9) for column in range(14, 50, 9)]
    alike = gathered([shapes_of(labels, LABELS, {0}) for labels in scenes], "discs of one size")
    composer, draft = Composer(alike, LABELS, frozenset({0})), drawn([(CIRCLE, 20, 20, 11)])
    maps = [composer.compose(wanted([CIRCLE], draft), 0.2, seed).labels for seed in range(8)]
    assert len({each.tobytes() for each in maps}) > 4
    assert all(intersection_over_union(each > 0, draft > 0) <= 0.2 for each in maps)


def test_objects_stand_on_the_ground_they_stood_on():
    names = ("sky", "grass", "tree", "bird")
    rng, scenes = np.random.default_rng(0), []
    for _ in range(24):
        labels = np.zeros((64, 64), int)
        labels[36:] = 1
        top, left = int(rng.integers(20, 40)), int(rng.integers(2, 50))
        labels[top : top + 18, left : left + 9] = 2
        labels[4:12, (left + 20) % 50 + 2 : (left + 20) % 50 + 12] = 3
        scenes.append(shapes_of(labels, names, {0, 1}))
    composer = Composer(gathered(scenes, ""), names, frozenset({0, 1}))
    draft = np.zeros((64, 64), int)
    draft[44:] = 1
    draft[30:50, 10:20] = 2
    for seed in range(8):
        found = composer.compose(Wanted((2, 3), draft, np.isin(draft, (2, 3))), 0.2, seed).labels
        foot = np.flatnonzero((found == 2).any(1))[-1]
        assert foot + 1 >= 44, "the tree stands in the grass, however high that reaches"
        assert set(np.unique(found)) == {0, 1, 2, 3}


def test_a_prompt_names_objects_and_a_draft_shows_them(composer):
    assert composer.named("two squares and a red star") == (SQUARE, SQUARE, STAR)
    assert composer.named("something") == ()
    assert sorted(composer.shown(DRAFT)) == [CIRCLE, STAR]
    loose = DRAFT.copy()
    loose[2:9, 54:62] = CIRCLE
    assert sorted(composer.shown(loose)) == [CIRCLE, STAR], "a fragment is no second circle"
    assert composer.shown(np.zeros((64, 64), int)) == ()
    assert sorted(composer.shown(DRAFT.repeat(8, 0).repeat(8, 1))) == [CIRCLE, STAR]
