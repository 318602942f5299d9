import numpy as np
import pytest

from small_banks import CIRCLE, SQUARE, STAR, drawn
from twig.engine.avoidance.objects import Aligned, coarse, counted, objects_of


def test_objects_are_connected_parts_and_specks_are_none():
    labels = drawn([(CIRCLE, 16, 16, 8), (CIRCLE, 16, 48, 6), (SQUARE, 48, 30, 9)])
    labels[60:62, 60:62] = STAR
    found = objects_of(labels, {0})
    assert counted(found) == {CIRCLE: 2, SQUARE: 1}
    assert [one.area for one in found] == sorted((one.area for one in found), reverse=True)
    for one in found:
        assert (labels[one.rows, one.columns][one.mask] == one.label).all()


def test_background_is_no_object_and_touching_classes_are_two():
    labels = drawn([(CIRCLE, 30, 26, 9), (SQUARE, 30, 40, 9)])
    assert counted(objects_of(labels, {0})) == {CIRCLE: 1, SQUARE: 1}
    assert counted(objects_of(labels, {0, SQUARE})) == {CIRCLE: 1}
    assert objects_of(np.zeros((64, 64), int), {0}) == []


def test_large_maps_are_counted_on_a_small_grid():
    labels = drawn([(CIRCLE, 16, 16, 8), (STAR, 46, 40, 10)]).repeat(16, 0).repeat(16, 1)
    assert coarse(labels).shape == (128, 128)
    assert counted(objects_of(coarse(labels), {0})) == {CIRCLE: 1, STAR: 1}
    assert coarse(np.zeros((100, 300, 3))).shape == (34, 100, 3)


@pytest.mark.parametrize(("down", "right"), [(0, 0), (9, -7), (-4, 12)])
def test_a_moved_or_mirrored_shape_is_the_same_after_alignment(down, right):
    shape = drawn([(CIRCLE, 24, 20, 8), (SQUARE, 40, 38, 9)]) > 0
    moved = np.roll(shape, (down, right), (0, 1))
    for other in (moved, moved[:, ::-1]):
        assert Aligned(shape).iou(other) == pytest.approx(1, abs=1e-5)


def test_other_arrangements_are_not_and_emptiness_is_nothing():
    shape = drawn([(CIRCLE, 16, 16, 8), (SQUARE, 46, 46, 9)]) > 0
    other = drawn([(CIRCLE, 46, 16, 8), (SQUARE, 46, 50, 9)]) > 0
    assert Aligned(shape).iou(other) < 0.6
    nothing = np.zeros_like(shape)
    assert Aligned(shape).iou(nothing) == Aligned(nothing).iou(nothing) == 0


def test_whether_shapes_reach_a_likeness_is_told_as_their_likeness_says():
    rng = np.random.default_rng(3)
    shapes = [
        drawn([(int(kind), *rng.uniform(14, 50, 2), rng.uniform(4, 12)) for kind in rng.permutation([1, 2, 3])[:count]])
        for count in (1, 1, 2, 2, 3) * 4
    ]
    shapes = [shape > 0 for shape in shapes] + [np.zeros((64, 64), bool)]
    told = [
        (Aligned(one).reaches(least, other), Aligned(one).iou(other) >= least)
        for one in shapes[::3] for other in shapes for least in (0.0, 0.3, 0.5, 0.7, 0.9)
    ]  # fmt: skip
    assert all(short == whole for short, whole in told)
    assert {whole for _, whole in told} == {True, False}
