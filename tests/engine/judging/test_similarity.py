import numpy as np
import pytest
import torch

from smooth_scenes import disc, measured, scene, whole
from twig.engine.api.rules import limits_rule
from twig.engine.judging.similarity import MASK_METRICS, METRICS, POPULATION_METRICS, direction_of, judge, measure

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


def test_masked_similarity_looks_inside_the_mask_only():
    source, other = scene(0), scene(9)
    inside = torch.where(disc()[:, None], source, other)
    outside = torch.where(disc()[:, None], other, source)
    assert measured(inside, source)["ssim_masked"] > 0.8 > 0.5 > measured(outside, source)["ssim_masked"]


def test_the_background_is_what_lies_outside_both_shapes():
    source, other, shape = scene(0), scene(9), disc()
    objects = torch.where(shape[:, None], other, source)
    everything_else = torch.where(shape[:, None], source, other)
    assert measured(objects, source, shape, final_masks=shape)["background"] > 0.9
    assert measured(everything_else, source, shape, final_masks=shape)["background"] < 0.6


def test_an_empty_mask_means_the_whole_frame():
    a, b = scene(0), scene(1)
    empty = measured(a, b, torch.zeros(1, 64, 64, dtype=torch.bool))
    assert empty["ssim_masked"] == pytest.approx(measured(a, b, whole(a))["ssim_masked"])


def test_recoloured_copy_keeps_its_edges():
    source = scene(0)
    recoloured = source[:, [1, 2, 0]] * 0.3 + 0.7 * source.mean(1, keepdim=True)
    assert measured(recoloured, source)["edge_f1"] > 0.6 > measured(scene(8), source)["edge_f1"]


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
    shapes = torch.empty(2, 64, 64, dtype=torch.bool, device="meta")
    values = measure(pictures, pictures, shapes, final_masks=shapes, population=pictures)
    assert all(value.device.type == "meta" and value.shape == (2,) for value in values.values())


def test_what_is_measured_is_what_the_table_lists():
    assert measure(scene(0), scene(1), disc()).keys() == METRICS.keys()
    with_more = measure(scene(0), scene(1), disc(), final_masks=disc(), population=scene(2))
    assert with_more.keys() == METRICS.keys() | MASK_METRICS.keys() | POPULATION_METRICS.keys()


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
