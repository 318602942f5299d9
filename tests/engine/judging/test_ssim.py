"""Structural similarity against scikit-image's."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

from smooth_scenes import disc, measured, scene, whole
from twig.engine.judging.ssim import ssim_scales


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
