"""Copies that were moved, mirrored or scaled."""

import pytest
import torch

from smooth_scenes import disc, measured, scene
from twig.engine.judging.similarity import measure


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
