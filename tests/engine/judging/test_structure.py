"""Contours, tiles and hashes, against scikit-image and by hand."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_dilation
from skimage.metrics import hausdorff_distance

from smooth_scenes import disc, scene, whole
from twig.engine.avoidance.objects import Aligned
from twig.engine.judging.distances import by_rows
from twig.engine.judging.structure import arrangement, contour, hausdorff, l2_ratio, mask_iou, outside, phash, tile_l2


def test_hausdorff_is_scikit_images_on_contours():
    a, b = disc(50, 70), disc(50, 70, y=20, x=40, r=9)
    lines = (contour(each)[0].numpy() for each in (a, b))
    expected = hausdorff_distance(*lines) / np.hypot(50, 70)
    assert float(hausdorff(a, b)) == pytest.approx(expected, rel=1e-5)


@pytest.fixture(params=["processor", "device"])
def whoever(request, monkeypatch):
    """Run distance transforms as a processor and as a device does."""
    if request.param == "device":
        monkeypatch.setattr("twig.engine.judging.structure.distances", by_rows)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6), st.sampled_from([(24, 40), (33, 17), (64, 64)]))
def test_batches_of_masks_are_measured_as_each_by_hand(whoever, seed, size):
    generator = torch.Generator().manual_seed(seed)
    blobs = torch.nn.functional.interpolate(torch.rand(8, 1, 5, 5, generator=generator), size, mode="bilinear")[:, 0]
    a, b = (blobs > torch.rand(8, 1, 1, generator=generator)).chunk(2)
    lengths, alike = hausdorff(a, b).tolist(), arrangement(a, b).tolist()
    for one, other, length, overlap in zip(a, b, lengths, alike, strict=True):
        lines = [contour(each[None])[0].numpy() for each in (one, other)]
        expected = (
            hausdorff_distance(*lines) / np.hypot(*size) if one.any() and other.any() else one.any() != other.any()
        )
        assert length == pytest.approx(float(expected), rel=1e-5)
        assert overlap == pytest.approx(Aligned(other.numpy()).iou(one.numpy()), abs=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (96, 40), (200, 200)])
def test_the_background_is_what_no_object_is_near(size):
    shape = disc(*size, y=size[0] // 3, x=size[1] // 2, r=min(size) // 6)
    reach = max(1, round(0.05 * min(size)))
    expected = binary_dilation(shape[0].numpy(), np.ones((2 * reach + 1,) * 2))
    assert np.array_equal(outside(shape)[0].numpy(), ~expected)


def test_an_arrangement_is_the_same_wherever_it_lies_at_every_size():
    for factor in (1, 4):
        a = disc(64 * factor, 64 * factor, 20 * factor, 20 * factor, 9 * factor)
        a |= disc(64 * factor, 64 * factor, 44 * factor, 40 * factor, 6 * factor)
        moved, nothing = a.roll((8 * factor, 12 * factor), (1, 2)).flip(2), torch.zeros_like(a)
        apart = disc(64 * factor, 64 * factor, 40 * factor, 40 * factor, 5 * factor)
        found = arrangement(torch.cat([moved, apart, nothing]), a.expand(3, -1, -1))
        assert found.tolist() == pytest.approx([1, 0.2, 0], abs=0.03)


def test_tile_l2_sees_one_tile_that_differs():
    a, b = torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64)
    b[..., 16:32, 32:48] = 0.5
    assert float(tile_l2(a, b, whole(a))) == pytest.approx(0.5)


def test_l2_ratio_is_small_only_for_the_odd_one_out():
    population = torch.cat([scene(s) for s in range(10, 40)])
    reference = scene(1)
    near, far = (reference + 0.02 * scene(2)).clamp(0, 1), scene(3)
    assert float(l2_ratio(near, reference, population)) < 0.5
    assert float(l2_ratio(far, reference, population)) > 1.5
    expected = (far - reference).norm() / (0.5 * (population - far).flatten(1).norm(dim=1).mean())
    assert float(l2_ratio(far, reference, population)) == pytest.approx(float(expected), rel=1e-4)


def test_l2_ratio_uses_the_closest_fifty():
    near = 0.8 * scene(2) + 0.2 * scene(1)
    population = torch.cat([near] * 50 + [scene(s) for s in range(10, 30)])
    expected = (scene(2) - scene(3)).norm() / (0.5 * (scene(2) - near).norm())
    assert float(l2_ratio(scene(2), scene(3), population)) == pytest.approx(float(expected), rel=1e-4)


def test_hash_survives_brightness_and_size_but_not_another_picture():
    source = scene(0)
    smaller = torch.nn.functional.interpolate(source, (48, 48), mode="area")
    assert int((phash(source) != phash(source * 0.7 + 0.2)).sum()) == 0
    assert int((phash(source) != phash(smaller)).sum()) <= 6
    assert int((phash(source) != phash(scene(1))).sum()) > 16


def test_masks_that_are_empty():
    nothing, something = torch.zeros(1, 8, 8, dtype=torch.bool), torch.ones(1, 8, 8, dtype=torch.bool)
    assert float(mask_iou(nothing, nothing)) == 0
    assert float(hausdorff(nothing, nothing)) == 0
    assert float(hausdorff(nothing, something)) == 1
    assert float(mask_iou(something, something)) == 1
