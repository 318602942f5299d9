"""Distance transforms against SciPy's, whoever computes them."""

import pytest
import torch
from scipy.ndimage import distance_transform_edt

from twig.engine.judging import distances as module
from twig.engine.judging.distances import by_rows, distances


def masks(density, height=37, width=82, count=3):
    return torch.rand(count, height, width, generator=torch.Generator().manual_seed(5)) < density


@pytest.mark.parametrize("density", [0.001, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("transform", [distances, by_rows])
def test_distances_are_exact(density, transform):
    shapes = masks(density)
    shapes[:, 11, 50] = True
    expected = torch.stack([torch.from_numpy(distance_transform_edt(~shape)) for shape in shapes.numpy()])
    assert torch.allclose(transform(shapes).double(), expected, rtol=1e-6, atol=0)


def test_rows_are_compared_a_part_at_a_time(monkeypatch):
    shapes = masks(0.02)
    whole = by_rows(shapes)
    monkeypatch.setattr(module, "_CHUNK", 82 * 82 * 7)
    assert torch.equal(by_rows(shapes), whole)


@pytest.mark.parametrize("transform", [distances, by_rows])
def test_an_empty_mask_is_further_away_than_anything(transform):
    shapes = torch.zeros(2, 30, 40, dtype=torch.bool)
    shapes[0, 0, 0] = True
    assert (transform(shapes)[1] > 50).all()
    assert transform(shapes)[0].max() < 50
