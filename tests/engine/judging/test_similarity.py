import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.metrics import hausdorff_distance, structural_similarity

from twig.engine.api.rules import limits_rule
from twig.engine.judging.similarity import MASK_METRICS, METRICS, POPULATION_METRICS, direction_of, judge, measure
from twig.engine.judging.ssim import ssim_scales
from twig.engine.judging.structure import contour, hausdorff, l2_ratio, mask_iou, phash, tile_l2


def scene(seed=0, height=64, width=64, smooth=3.0):
    """A smooth random picture (1, 3, H, W) in [0, 1] with a few sharp discs."""
    rng = np.random.default_rng(seed)
    picture = gaussian_filter(rng.random((3, height, width)), (0, smooth, smooth), mode="wrap")
    picture = (picture - picture.min()) / (picture.max() - picture.min())
    rows, columns = np.mgrid[:height, :width]
    for _ in range(4):
        y, x, r = rng.uniform(0.1, 0.9) * height, rng.uniform(0.1, 0.9) * width, rng.uniform(4, 8)
        picture[:, (rows - y) ** 2 + (columns - x) ** 2 < r**2] = rng.random((3, 1))
    return torch.from_numpy(picture).float()[None]


def disc(height=64, width=64, y=30, x=26, r=14):
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return ((rows - y) ** 2 + (columns - x) ** 2 < r**2)[None]


def measured(final, reference, mask=None, **more):
    mask = disc(*final.shape[2:]) if mask is None else mask
    return {name: float(value) for name, value in measure(final, reference, mask, **more).items()}


def whole(picture):
    return torch.ones_like(picture[:, 0], dtype=torch.bool)


# --- against scikit-image and by hand ---


@pytest.mark.parametrize("size", [(64, 64), (37, 81), (128, 96)])
def test_ssim_is_scikit_images(size):
    a, b = scene(1, *size), scene(2, *size)
    b = 0.5 * a + 0.5 * b
    mask = disc(*size)
    expected, full = structural_similarity(
        a[0].double().numpy(), b[0].double().numpy(), channel_axis=0, data_range=1.0, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False, full=True,
    )  # fmt: skip
    found = measured(a, b, mask)
    assert found["ssim"] == pytest.approx(expected, abs=1e-5)
    assert found["ssim_masked"] == pytest.approx(full.mean(0)[mask[0].numpy()].mean(), abs=1e-5)


def test_ms_ssim_multiplies_scales():
    """From scikit-image's SSIM and Gaussian means at each scale, weights as published."""
    a, b = scene(1, 192, 192), scene(2, 192, 192)
    b = 0.6 * a + 0.4 * b
    weights = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333]
    x, y, product = a[0].double().numpy(), b[0].double().numpy(), 1.0
    for scale, weight in enumerate(weights):
        parts = []
        for u, v in zip(x, y, strict=True):
            mean = {
                k: gaussian_filter(f, 1.5, truncate=3.5)
                for k, f in (("u", u), ("v", v), ("uv", u * v), ("uu", u * u), ("vv", v * v))
            }
            cs = (2 * (mean["uv"] - mean["u"] * mean["v"]) + 0.03**2) / (
                mean["uu"] - mean["u"] ** 2 + mean["vv"] - mean["v"] ** 2 + 0.03**2
            )
            light = (2 * mean["u"] * mean["v"] + 0.01**2) / (mean["u"] ** 2 + mean["v"] ** 2 + 0.01**2)
            parts.append((cs * light if scale == 4 else cs)[5:-5, 5:-5].mean())
        product *= np.mean(parts) ** (weight / sum(weights))
        x, y = (f.reshape(3, f.shape[1] // 2, 2, f.shape[2] // 2, 2).mean((2, 4)) for f in (x, y))
    assert float(ssim_scales(a, b, whole(a))[1]) == pytest.approx(product, abs=1e-4)


def test_hausdorff_is_scikit_images_on_contours():
    a, b = disc(50, 70), disc(50, 70, y=20, x=40, r=9)
    lines = (contour(each)[0].numpy() for each in (a, b))
    expected = hausdorff_distance(*lines) / np.hypot(50, 70)
    assert float(hausdorff(a, b)) == pytest.approx(expected, rel=1e-5)


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


# --- invariances ---

BEST = {"similarity": 1.0, "distance": 0.0}


@pytest.mark.parametrize("size", [(64, 64), (48, 96), (8, 8), (300, 200)])
def test_identical_pictures_score_as_copies(size):
    picture, mask = scene(0, *size), disc(*size, y=3, x=3, r=3)
    values = measured(picture, picture, mask, final_masks=mask)
    for name, value in values.items():
        assert value == pytest.approx(BEST[direction_of(name)], abs=2e-5), name


@pytest.mark.parametrize("name", sorted(METRICS))
def test_a_near_copy_is_closer_than_another_picture(name):
    source = scene(0)
    noise = torch.randn(source.shape, generator=torch.Generator().manual_seed(0))
    near, far = measured((source + 0.05 * noise).clamp(0, 1), source), measured(scene(7), source)
    sign = 1 if direction_of(name) == "similarity" else -1
    assert sign * near[name] > sign * far[name]


@pytest.mark.parametrize("shift", [(5, 0), (0, -9), (-12, 7), (15, -15)])
def test_a_shifted_copy_is_found(shift):
    large = scene(3, 128, 128)
    reference = large[..., 32:96, 32:96]
    moved = large[..., 32 - shift[0] : 96 - shift[0], 32 - shift[1] : 96 - shift[1]]
    assert_copy_is_found(measured(moved, reference))


def test_a_mirrored_and_shifted_copy_is_found():
    large = scene(4, 64, 128)
    assert_copy_is_found(measured(large[..., 20:84].flip(-1), large[..., 28:92]))


@pytest.mark.parametrize("scale", [0.8, 0.9, 1.1, 1.25])
def test_a_scaled_copy_is_found(scale):
    large = torch.nn.functional.interpolate(scene(5, 160, 160), scale_factor=4, mode="bicubic")
    side = round(64 / scale * 4)
    start = (large.shape[-1] - side) // 2
    crop = large[..., start : start + side, start : start + side]
    start = (large.shape[-1] - 256) // 2
    reference = torch.nn.functional.interpolate(
        large[..., start : start + 256, start : start + 256], (64, 64), mode="area"
    )
    final = torch.nn.functional.interpolate(crop, (64, 64), mode="bilinear", antialias=True).clamp(0, 1)
    values = measured(final, reference)
    assert values["ssim_aligned"] > 0.95
    assert values["ssim_aligned"] > values["ssim"] + 0.15


def test_a_shift_at_full_resolution_is_found_to_the_pixel():
    large = scene(6, 320, 320)
    values = measured(large[..., 35:291, 19:275], large[..., 32:288, 32:288])
    assert values["ssim_aligned"] > 0.99


def assert_copy_is_found(values):
    assert values["ssim_aligned"] > 0.98
    assert values["ms_ssim_aligned"] > 0.98
    assert values["ssim_masked_aligned"] > 0.95
    assert values["edge_f1_aligned"] > 0.95
    assert values["tile_l2_aligned"] < 0.02
    assert values["ssim"] < 0.7
    assert values["tile_l2"] > 0.1


def test_alignment_never_hides_and_does_not_invent_a_copy():
    finals = torch.cat([scene(s) for s in range(8)])
    references = torch.cat([scene(s) for s in range(50, 58)])
    values = measure(finals, references, disc().expand(8, -1, -1))
    for name in ("ssim", "ssim_masked", "ms_ssim", "edge_f1"):
        assert (values[f"{name}_aligned"] >= values[name]).all()
    assert (values["tile_l2_aligned"] <= values["tile_l2"]).all()
    assert values["ssim_aligned"].max() < 0.7


def test_masked_similarity_looks_inside_the_mask_only():
    source, other = scene(0), scene(9)
    inside = torch.where(disc()[:, None], source, other)
    outside = torch.where(disc()[:, None], other, source)
    assert measured(inside, source)["ssim_masked"] > 0.8 > 0.5 > measured(outside, source)["ssim_masked"]


def test_an_empty_mask_means_the_whole_frame():
    a, b = scene(0), scene(1)
    empty = measured(a, b, torch.zeros(1, 64, 64, dtype=torch.bool))
    assert empty["ssim_masked"] == pytest.approx(measured(a, b, whole(a))["ssim_masked"])


def test_recoloured_copy_keeps_its_edges():
    source = scene(0)
    recoloured = source[:, [1, 2, 0]] * 0.3 + 0.7 * source.mean(1, keepdim=True)
    assert measured(recoloured, source)["edge_f1"] > 0.6 > measured(scene(8), source)["edge_f1"]


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


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_flat_pictures_have_finite_scores(level):
    flat = torch.full((1, 3, 32, 32), level)
    mask = disc(32, 32, 16, 16, 6)
    for other in (flat, torch.zeros(1, 3, 32, 32), scene(0, 32, 32)):
        assert all(np.isfinite(value) for value in measured(flat, other, mask, final_masks=mask).values())


def test_rows_of_a_batch_are_independent():
    finals = torch.cat([scene(s) for s in range(5)])
    references = torch.cat([scene(s) for s in (0, 7, 2, 8, 9)])
    masks = torch.cat([disc(y=20 + 4 * i) for i in range(5)])
    batch = measure(finals, references, masks, final_masks=masks.flip(0), population=finals)
    for i in range(5):
        alone = measure(finals[[i]], references[[i]], masks[[i]], final_masks=masks.flip(0)[[i]], population=finals)
        for name, value in alone.items():
            assert float(batch[name][i]) == pytest.approx(float(value), abs=1e-5), name


def test_half_precision_pictures_are_measured_in_single():
    values = measure(scene(0).half(), scene(1).half(), disc())
    assert all(value.dtype == torch.float32 for value in values.values())
    assert float(values["ssim"]) == pytest.approx(measured(scene(0), scene(1))["ssim"], abs=1e-3)


def test_everything_is_computed_on_the_pictures_device():
    """A device without data refuses to mix with another and to be read."""
    pictures = torch.empty(2, 3, 64, 64, device="meta")
    values = measure(pictures, pictures, torch.empty(2, 64, 64, dtype=torch.bool, device="meta"), population=pictures)
    assert all(value.device.type == "meta" and value.shape == (2,) for value in values.values())


def test_what_is_measured_is_what_the_table_lists():
    assert measure(scene(0), scene(1), disc()).keys() == METRICS.keys()
    with_more = measure(scene(0), scene(1), disc(), final_masks=disc(), population=scene(2))
    assert with_more.keys() == METRICS.keys() | {"mask_iou", "hausdorff"} | POPULATION_METRICS.keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((scene(0), scene(0, 32, 32), disc()), "finals and references"),
        ((scene(0), scene(0), disc(32, 32)), "masks must be"),
        ((scene(0)[:, :1], scene(0)[:, :1], disc()), "finals and references"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        measure(*arguments)
    with pytest.raises(ValueError, match="population must be"):
        measure(scene(0), scene(0), disc(), population=scene(0, 32, 32))


# --- verdicts ---


def scores_of(values, limits, extra=None):
    directions = {name: direction_of(name, extra) for name in [*METRICS, *MASK_METRICS, *(extra or ())]}
    return judge(values, limits_rule(limits, directions)).scores


def test_similarity_passes_up_to_its_limit_and_distance_from_it():
    values = {"ssim": 0.4, "tile_l2": 0.2, "phash": 20.0}
    scores = scores_of(values, {"ssim": 0.4, "tile_l2": 0.2})
    assert {name: score.passed for name, score in scores.items()} == {"ssim": True, "tile_l2": True, "phash": True}
    assert scores["phash"].limit is None
    scores = scores_of(values, {"ssim": 0.39, "tile_l2": 0.21, "phash": 25})
    assert not any(score.passed for score in scores.values())


def test_nan_never_passes():
    assert not scores_of({"ssim": float("nan")}, {"ssim": 0.5})["ssim"].passed
    assert not scores_of({"tile_l2": float("nan")}, {"tile_l2": 0.5})["tile_l2"].passed


def test_a_limit_that_cannot_be_checked_is_refused():
    with pytest.raises(ValueError, match="limit of 'mask_iou'"):
        scores_of({"ssim": 0.1}, {"mask_iou": 0.4})


def test_a_users_own_metric_points_where_it_says():
    def agreement(finals, references):
        return 1 - (finals - references).abs().mean((1, 2, 3))

    def difference(finals, references):
        return (finals - references).abs().mean((1, 2, 3))

    difference.direction = "distance"
    extra = {"agreement": agreement, "difference": difference}
    values = {name: float(metric(scene(0), scene(0))) for name, metric in extra.items()}
    scores = scores_of(values, {"agreement": 0.9, "difference": 0.1}, extra)
    assert not scores["agreement"].passed
    assert not scores["difference"].passed
    with pytest.raises(ValueError, match="unknown metric 'agreement'"):
        scores_of(values, {"agreement": 0.9})


def test_a_direction_that_is_none_is_refused():
    def odd(finals, references):
        return finals

    odd.direction = "sideways"
    with pytest.raises(ValueError, match="sideways"):
        direction_of("odd", {"odd": odd})
