import numpy as np

from small_banks import CIRCLE, SQUARE, STAR, drawn, small_bank
from tiny_models import LABELS
from twig.engine.avoidance.gathering import gathered, shapes_of, typical


def test_whole_objects_are_gathered_with_their_place():
    labels = drawn([(CIRCLE, 20, 20, 8), (SQUARE, 45, 40, 9)])
    circle, square = sorted(shapes_of(labels, LABELS, {0}), key=lambda shape: shape.label)
    assert (circle.label, square.label) == ("circle", "square")
    assert circle.scene == square.scene
    assert circle.scene.objects == 2
    for shape, kind in ((circle, CIRCLE), (square, SQUARE)):
        height, width = shape.mask.shape
        box = labels[shape.top : shape.top + height, shape.left : shape.left + width]
        assert np.array_equal(box == kind, shape.mask)


def test_what_the_frame_cuts_off_counts_for_its_scene_and_is_no_shape():
    labels = drawn([(CIRCLE, 20, 20, 8), (SQUARE, 60, 40, 9)])
    (circle,) = shapes_of(labels, LABELS, {0})
    assert circle.label == "circle"
    assert circle.scene.objects == 2


def test_large_maps_lie_in_a_small_frame():
    labels = drawn([(CIRCLE, 200, 260, 90)], 512, 768)
    (circle,) = shapes_of(labels, LABELS, {0})
    assert (circle.scene.rows, circle.scene.columns) == (86, 128)


def test_the_ground_beneath_an_object_is_known():
    names = ("sky", "grass", "tree")
    labels = np.zeros((64, 64), int)
    labels[40:] = 1
    labels[20:45, 20:30] = 2
    labels[5:15, 40:60] = 2
    standing, flying = sorted(shapes_of(labels, names, {0, 1}), key=lambda shape: -shape.top)
    assert (standing.ground, flying.ground) == ("grass", "sky")


def test_malformed_shapes_are_left_out():
    good = [drawn([(CIRCLE, 30, 30, 8 + 0.5 * i)]) for i in range(10)]
    odd = [drawn([(STAR, 30, 30, 10)]) * CIRCLE // STAR for _ in range(1)]
    odd[0][30, 30 + 12] = CIRCLE
    shelf = [shape for labels in (*odd, *good) for shape in shapes_of(labels, LABELS, {0})]
    assert len(typical(shelf)) == 7
    assert shelf[0] not in typical(shelf)
    assert len(typical(shelf[:3])) == 3, "of few shapes all are kept"


def test_a_scene_counts_once_and_a_bank_depends_on_nothing_else():
    scenes = [shapes_of(drawn([(CIRCLE, 30, 30, 9)]), LABELS, {0})] * 3
    assert len(gathered(scenes, "").shapes) == 1
    assert small_bank(1).version == small_bank(1).version != small_bank(2).version
