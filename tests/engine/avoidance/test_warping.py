"""Scenes scaled and bent where they stand: whole objects in the frame, overlapping their old shape little enough."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from twig.engine.api.mechanisms import MovedControl
from twig.engine.avoidance.pieces import intersection_over_union
from twig.engine.avoidance.placement import moved_labels

KINDS = ["scale", "elastic"]


def disc(size=64, centre=(30, 34), radius=12):
    rows, columns = np.mgrid[:size, :size]
    return ((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2).astype(np.int64)


def edges(shape):
    return [line.any() for line in (shape[0], shape[-1], shape[:, 0], shape[:, -1])]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(centre=st.tuples(st.integers(14, 50), st.integers(14, 50)), radius=st.integers(5, 13), seed=st.integers(0, 999))
@example(centre=(14, 50), radius=13, seed=1)  # touches the frame's edge, and stays there
def test_an_object_keeps_the_limit_and_stays_whole_in_the_frame(kind, centre, radius, seed):
    labels = disc(64, centre, radius)
    policy = MovedControl(warp=kind, max_iou=0.4)
    warped = moved_labels(labels, {0}, policy, seed)
    assert intersection_over_union(labels > 0, warped > 0) <= 0.4
    assert all(was or not now for was, now in zip(edges(labels > 0), edges(warped > 0), strict=True))
    assert (warped == 1).any()
    assert np.array_equal(warped, moved_labels(labels, {0}, policy, seed))


def test_seeds_give_different_warps_and_scaling_different_sizes():
    for kind in KINDS:
        found = [moved_labels(disc(), {0}, MovedControl(warp=kind), seed) for seed in range(12)]
        assert len({labels.tobytes() for labels in found}) >= 8
    sizes = {int((moved_labels(disc(), {0}, MovedControl(warp="scale"), seed) > 0).sum()) for seed in range(12)}
    assert min(sizes) < (disc() > 0).sum()


def test_bending_changes_the_contour_and_scaling_keeps_its_proportions():
    labels = np.zeros((80, 80), np.int64)
    labels[24:56, 30:46] = 1
    scaled, bent = (moved_labels(labels, {0}, MovedControl(warp=kind, max_iou=0.6), 3) > 0 for kind in KINDS)

    def box(shape):
        rows, columns = np.flatnonzero(shape.any(1)), np.flatnonzero(shape.any(0))
        return rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1

    height, width = box(scaled)
    assert height / width == pytest.approx(2, abs=0.3)
    assert scaled.sum() == height * width, "a box stays a box"
    assert bent.sum() < np.prod(box(bent)), "and a bent one does not"


def test_objects_keep_their_labels_and_gaps_take_the_nearest_background():
    labels = np.zeros((64, 64), np.uint8)
    labels[40:] = 7
    labels[14:30, 10:26] = 1
    labels[44:60, 34:54] = 2
    for kind in KINDS:
        warped = moved_labels(labels, {0, 7}, MovedControl(warp=kind, max_iou=0.5), 5)
        assert warped.dtype == labels.dtype
        assert set(np.unique(warped)) == {0, 1, 2, 7}
        gap = (labels == 2) & (warped != 2)
        assert gap.any()
        assert set(np.unique(warped[gap])) <= {1, 7}


def test_what_the_edge_cuts_off_stays_at_that_edge_when_scaled():
    labels = np.zeros((64, 64), np.int64)
    labels[40:, 20:44] = 1
    for seed in range(6):
        warped = moved_labels(labels, {0}, MovedControl(warp="scale"), seed) > 0
        assert edges(warped) == [False, True, False, False]


@pytest.mark.parametrize("kind", KINDS)
def test_a_crowded_frame_takes_the_smallest_overlap_found(kind):
    labels = np.ones((48, 48), np.int64)
    labels[:3] = 0
    warped = moved_labels(labels, {0}, MovedControl(warp=kind, max_iou=0.1), 0)
    assert intersection_over_union(labels > 0, warped > 0) < 1
    empty = np.zeros((16, 16), np.int64)
    assert np.array_equal(moved_labels(empty, {0}, MovedControl(warp=kind), 0), empty)


@pytest.mark.parametrize("kind", KINDS)
def test_large_frames_keep_the_limit_at_full_size(kind):
    labels = np.kron(disc(), np.ones((5, 4), np.int64))
    warped = moved_labels(labels, {0}, MovedControl(warp=kind, max_iou=0.3), 1)
    assert warped.shape == labels.shape
    assert intersection_over_union(labels > 0, warped > 0) <= 0.3
