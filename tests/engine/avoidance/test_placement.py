from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from twig.engine.api.mechanisms import MovedControl
from twig.engine.avoidance.pieces import background_of, intersection_over_union, take_apart
from twig.engine.avoidance.placement import avoidance_mask, moved_labels

BACKGROUND = frozenset({0, 7})


@st.composite
def scenes(draw, height=48, width=56):
    """One to three ellipses or boxes of labels 1 to 3 on one or two backgrounds."""
    labels = np.zeros((height, width), np.int64)
    if draw(st.booleans()):
        labels[height // 2 :] = 7
    rows, columns = np.mgrid[:height, :width]
    for label in range(1, 1 + draw(st.integers(1, 3))):
        tall, wide = draw(st.integers(3, 10)), draw(st.integers(3, 10))
        y, x = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        if draw(st.booleans()):
            inside = ((rows - y) / tall) ** 2 + ((columns - x) / wide) ** 2 <= 1
        else:
            inside = (abs(rows - y) <= tall) & (abs(columns - x) <= wide)
        labels[inside] = label
    return labels


def shape_of(labels):
    return avoidance_mask(labels, BACKGROUND)


def sizes(labels):
    return {label: int((labels == label).sum()) for label in np.unique(labels) if label not in BACKGROUND}


def two_objects():
    labels = np.zeros((64, 64), np.uint8)
    labels[20:40, 4:20] = 1
    labels[30:50, 40:58] = 2
    return labels


@settings(max_examples=150, deadline=None)
@given(scenes(), st.sampled_from(["auto", "flip", "shift"]), st.sampled_from([0.2, 0.4, 0.7]), st.integers(0, 99))
def test_small_scenes_keep_the_limit_whole_and_at_full_size(labels, warp, max_iou, seed):
    assume(shape_of(labels).mean() < 0.25)
    policy = MovedControl(warp=warp, max_iou=max_iou)
    moved = moved_labels(labels, BACKGROUND, policy, seed)
    assert moved.shape == labels.shape
    assert moved.dtype == labels.dtype
    assert sizes(moved).keys() == sizes(labels).keys()
    assert set(np.unique(moved)) - set(np.unique(labels)) == set()
    iou = intersection_over_union(shape_of(labels), shape_of(moved))
    if warp == "auto":
        assert iou <= max_iou
    if iou <= max_iou:
        shrunk = {label: size / sizes(labels)[label] for label, size in sizes(moved).items()}
        assert all(0.4 <= share <= 1 for share in shrunk.values())
    assert np.array_equal(moved, moved_labels(labels, BACKGROUND, policy, seed))


@settings(max_examples=60, deadline=None)
@given(scenes(), st.integers(0, 99))
def test_scenes_with_room_change_no_size(labels, seed):
    assume(shape_of(labels).mean() < 0.1)
    assert sizes(moved_labels(labels, BACKGROUND, MovedControl(), seed)) == sizes(labels)


@settings(max_examples=60, deadline=None)
@given(scenes(), st.integers(0, 99))
def test_no_scene_comes_closer_than_it_was(labels, seed):
    """Even where nothing keeps the limit, something moves away from the old shape."""
    moved = moved_labels(labels, BACKGROUND, MovedControl(max_iou=0.0), seed)
    assert intersection_over_union(shape_of(labels), shape_of(moved)) < 1 or shape_of(labels).all()


def test_each_object_leaves_its_place_not_only_the_larger_one():
    labels = np.zeros((64, 64), np.int64)
    labels[4:44, 2:40] = 1
    labels[50:60, 50:60] = 2
    for seed in range(10):
        moved = moved_labels(labels, {0}, MovedControl(max_iou=0.45), seed)
        for label in (1, 2):
            assert intersection_over_union(labels == label, moved == label) <= 0.45


def test_seeds_give_different_placements():
    placements = {moved_labels(two_objects(), {0}, MovedControl(), seed).tobytes() for seed in range(16)}
    assert len(placements) >= 12


def random_scenes(count):
    """Scenes (64, 64) of one to three ellipses, most of them with room to move."""
    rng = np.random.default_rng(5)
    rows, columns = np.mgrid[:64, :64]
    for _ in range(count):
        labels = np.zeros((64, 64), np.int64)
        for label in range(1, 1 + rng.integers(1, 4)):
            y, x, tall, wide = *rng.uniform(8, 56, 2), *rng.uniform(5, 14, 2)
            labels[((rows - y) / tall) ** 2 + ((columns - x) / wide) ** 2 <= 1] = label
        yield labels


def with_rounding_errors(labels, seed):
    """Four pixels beside another label take it."""
    rng = np.random.default_rng(seed)
    beside = np.roll(labels, rng.choice([-1, 1]), axis=rng.integers(2))
    edge = np.argwhere(labels != beside)
    disturbed = labels.copy()
    for row, column in rng.choice(edge, 4, replace=False):
        disturbed[row, column] = beside[row, column]
    return disturbed


def test_a_few_pixels_of_the_mask_do_not_decide_where_objects_go():
    alike = []
    for number, labels in enumerate(random_scenes(60)):
        for seed in range(3):
            pair = labels, with_rounding_errors(labels, seed)
            moved = [shape_of(moved_labels(each, BACKGROUND, MovedControl(), 100 * number + seed)) for each in pair]
            alike.append(intersection_over_union(*moved) > 0.9)
    assert np.mean(alike) > 0.95


def test_seeds_spread_objects_over_the_frame():
    overlaps, moves = [], []
    for labels in random_scenes(30):
        shapes = [shape_of(moved_labels(labels, BACKGROUND, MovedControl(), seed)) for seed in range(5)]
        overlaps += [intersection_over_union(a, b) for a, b in combinations(shapes, 2)]
        home = np.argwhere(shape_of(labels)).mean(0)
        moves += [np.argwhere(shape).mean(0) - home for shape in shapes]
    assert np.mean(overlaps) < 0.4
    assert (np.std(moves, axis=0) > [5, 10]).all()  # pixels down and right


def test_flip_mirrors_and_shift_does_not():
    labels = np.zeros((64, 64), np.int64)
    labels[20:40, 6:20] = 1
    labels[20:26, 20:30] = 1  # an arm to the right
    for seed in range(5):
        mirrored = moved_labels(labels, {0}, MovedControl(warp="flip"), seed) > 0
        shifted = moved_labels(labels, {0}, MovedControl(warp="shift"), seed) > 0
        assert crop(shifted).tolist() == crop(labels > 0).tolist()
        assert crop(mirrored).tolist() == crop(labels > 0)[:, ::-1].tolist()


def crop(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def test_touching_objects_stay_together():
    labels = np.zeros((64, 64), np.int64)
    labels[20:30, 8:28] = 1
    labels[30:40, 10:24] = 2
    for seed in range(8):
        moved = moved_labels(labels, {0}, MovedControl(warp="shift"), seed)
        assert np.array_equal(moved[crop_area(moved > 0)], labels[20:40, 8:28])


def crop_area(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def test_fragments_of_a_noisy_segmentation_follow_their_object():
    labels = np.zeros((64, 64), np.int64)
    labels[24:44, 6:26] = 1
    labels[30, 28] = 1
    labels[33, 10] = 2
    moved = moved_labels(labels, {0}, MovedControl(warp="shift"), 3)
    assert np.array_equal(moved[crop_area(moved > 0)], labels[24:44, 6:29])


def test_an_object_on_the_frames_edge_stays_on_an_edge():
    labels = np.zeros((64, 64), np.int64)
    labels[44:64, 0:20] = 1  # cut off below and on the left
    for seed in range(8):
        moved = moved_labels(labels, {0}, MovedControl(), seed) > 0
        assert moved[-1].any()


def test_what_fits_only_when_smaller_is_made_smaller():
    labels = np.zeros((60, 60), np.int64)
    labels[2:58, 12:48] = 1
    moved = moved_labels(labels, {0}, MovedControl(max_iou=0.4), 0)
    assert intersection_over_union(labels > 0, moved > 0) <= 0.4
    assert 0.5 <= (moved > 0).sum() / (labels > 0).sum() < 0.9


def test_crowded_scene_takes_the_smallest_overlap_found():
    labels = np.ones((32, 32), np.int64)
    labels[:2] = 0
    moved = moved_labels(labels, {0}, MovedControl(max_iou=0.1), 0)
    assert intersection_over_union(labels > 0, moved > 0) < 0.65
    assert (moved > 0).any()


@pytest.mark.parametrize("labels", [np.zeros((16, 16), np.int64), np.ones((16, 16), np.int64)])
def test_nothing_to_move_or_nowhere_to_go(labels):
    assert np.array_equal(moved_labels(labels, {0}, MovedControl(), 0), labels)


def test_without_a_warp_the_labels_stay():
    assert np.array_equal(moved_labels(two_objects(), {0}, MovedControl(warp="none"), 0), two_objects())


def test_gaps_take_the_nearest_background():
    labels = np.zeros((64, 64), np.int64)
    labels[40:] = 7
    labels[44:60, 4:24] = 1
    moved = moved_labels(labels, BACKGROUND, MovedControl(warp="shift"), 0)
    vacated = (labels == 1) & (moved != 1)
    assert vacated.any()
    assert (moved[vacated] == 7).all()


@pytest.mark.parametrize(("height", "width"), [(256, 192), (130, 250), (97, 61)])
def test_large_and_odd_frames(height, width):
    labels = np.zeros((height, width), np.int64)
    labels[height // 4 : height // 2, width // 8 : width // 2] = 4
    for seed in range(3):
        moved = moved_labels(labels, {0}, MovedControl(max_iou=0.3), seed)
        assert intersection_over_union(labels > 0, moved > 0) <= 0.3
        assert (moved == 4).sum() == (labels == 4).sum()


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("region", [None, slice(0, 60)])
def test_a_larger_picture_moves_as_its_cells_do(factor, region):
    """Fragments, gaps between two backgrounds and all: what is searched is the same grid."""
    labels = np.zeros((128, 96), np.int64)
    labels[70:] = 7
    labels[20:50, 10:40], labels[60:96, 50:80], labels[40:44, 45:47] = 1, 2, 1
    avoided = None
    if region is not None:
        avoided = np.zeros(labels.shape, bool)
        avoided[region] = True

    def larger(field):
        return None if field is None else field.repeat(factor, 0).repeat(factor, 1)

    for seed in range(6):
        moved = moved_labels(labels, BACKGROUND, MovedControl(), seed, avoided)
        assert np.array_equal(
            moved_labels(larger(labels), BACKGROUND, MovedControl(), seed, larger(avoided)), larger(moved)
        )


def test_gaps_are_filled_from_where_there_is_background_however_little():
    labels = np.ones((200, 200), np.int64)
    labels[199, 199] = 0
    assert (background_of(labels, labels > 0) == 0).all()
    assert np.array_equal(background_of(labels, np.ones((200, 200), bool)), labels)


def test_what_is_thinner_than_a_cell_of_the_search_moves_whole():
    labels = np.zeros((512, 512), np.int64)
    labels[101, 30:200] = 1
    labels[200:420, 333] = 2
    assert max(take_apart(labels, labels > 0).grid) <= 128
    for seed in range(4):
        moved = moved_labels(labels, {0}, MovedControl(), seed)
        assert sizes(moved) == sizes(labels)
        assert intersection_over_union(moved > 0, labels > 0) <= MovedControl().max_iou


def test_mask_and_iou():
    labels = np.array([[0, 7, 1], [2, 0, 0]])
    mask = avoidance_mask(labels, BACKGROUND)
    assert mask.tolist() == [[False, False, True], [True, False, False]]
    assert intersection_over_union(mask, mask) == 1
    assert intersection_over_union(mask, ~mask) == 0
    assert intersection_over_union(np.zeros((2, 2), bool), np.zeros((2, 2), bool)) == 0


# --- a mask of the user's ---


def region(side=64):
    """The left half."""
    mask = np.zeros((side, side), bool)
    mask[:, : side // 2] = True
    return mask


def share_inside(labels, mask):
    return float((shape_of(labels) & mask).sum() / shape_of(labels).sum())


@pytest.mark.parametrize("warp", ["auto", "flip", "shift"])
def test_objects_go_where_a_mask_leaves_room(warp):
    labels, mask = two_objects(), region()
    for avoided in (mask, ~mask):
        shares = [
            share_inside(moved_labels(labels, {0}, MovedControl(warp=warp), seed, avoided=avoided), avoided)
            for seed in range(12)
        ]
        assert max(shares) <= MovedControl().max_iou
        if warp != "flip":
            assert np.mean(shares) < 0.1, "places that are clear of it are preferred"


def test_what_a_mask_leaves_alone_may_stay():
    labels = np.zeros((64, 64), np.uint8)
    labels[40:52, 40:52] = 1
    moved = [moved_labels(labels, {0}, MovedControl(), seed, avoided=region()) for seed in range(24)]
    overlaps = [intersection_over_union(shape_of(each), shape_of(labels)) for each in moved]
    assert max(overlaps) > MovedControl().max_iou
    assert all(share_inside(each, region()) == 0 for each in moved)


@pytest.mark.parametrize("warp", ["scale", "elastic"])
def test_warps_keep_out_of_a_mask_as_far_as_they_can(warp):
    labels = np.zeros((64, 64), np.uint8)
    labels[20:44, 20:44] = 1
    mask = np.zeros((64, 64), bool)
    mask[:, :26] = True
    policy = MovedControl(warp=warp, max_iou=0.15)
    shares = [share_inside(moved_labels(labels, {0}, policy, seed, avoided=mask), mask) for seed in range(6)]
    assert np.mean(shares) < share_inside(labels, mask)
