"""How near a picture is to a source, and how sharp and varied pictures are."""

import json

import numpy as np
import pytest

from twig.benchmarks.copying import measures
from twig.benchmarks.copying.measures import (  # fmt: skip
    ALIGNED,
    ARRANGEMENT,
    BACKGROUND,
    DECORATION,
    PRIMARY,
    REPORTED,
    copied,
    copy_limits,
    sharpness,
    similarities,
)
from twig.benchmarks.copying.protocol import recited
from twig.benchmarks.copying.quality import diversity, frechet_distance
from twig.benchmarks.copying.scenes import render


@pytest.fixture(scope="module")
def source():
    return recited(held_out=True)[0]


def kept(folder, source, limits):
    """Limits of a source, as a study keeps them."""
    path = folder / f"limits/{source.index}.json"
    path.parent.mkdir()
    path.write_text(json.dumps(limits))
    return path


def test_a_moved_copy_counts_as_one_by_the_aligned_measure_alone(source, tmp_path):
    moved = np.roll(source.pixels, 7, axis=1)
    labels = np.stack([np.roll(render(source.scene)[1], 7, axis=1), render(source.scene)[1]])
    values = similarities([moved, source.pixels], labels, source)
    assert values[PRIMARY][0] < 0.6 < 0.99 < values[PRIMARY][1]
    assert values[ALIGNED][0] > values[PRIMARY][0] + 0.2
    limits = dict.fromkeys(REPORTED, 0.9)
    assert copied(values, limits)[PRIMARY].tolist() == [False, True]


def test_a_layout_is_the_sources_wherever_it_stands_and_a_background_only_where_it_is(source):
    labels = render(source.scene)[1]
    moved, bare = np.roll(source.pixels, 5, axis=1), np.full_like(source.pixels, 128)
    shapes = np.stack([labels, np.roll(labels, 5, axis=1), labels[:, ::-1], np.zeros_like(labels)])
    values = similarities([source.pixels, moved, bare, bare], shapes, source)
    assert values[ARRANGEMENT][:3] == pytest.approx([1, 1, 1], abs=1e-3)
    assert values[ARRANGEMENT][3] == 0
    assert values[BACKGROUND][0] == pytest.approx(1)
    assert values[BACKGROUND][2] < 0.9
    assert values[DECORATION][0] == pytest.approx(1)
    assert values[DECORATION][3] < 0.9
    full = similarities([source.pixels], np.ones_like(shapes[:1]), source)
    assert np.isnan(full[DECORATION][0]), "objects hide all of it"
    assert not copied(full, dict.fromkeys(REPORTED, -1.0))[DECORATION][0]


def test_limits_of_an_older_study_are_found_again(source, tmp_path, monkeypatch):
    path = kept(tmp_path, source, {PRIMARY: 0.5})
    monkeypatch.setattr(measures, "_copy_limits", lambda _: dict.fromkeys(REPORTED, 0.7))
    assert copy_limits(source, tmp_path / "limits")[PRIMARY] == 0.7
    assert json.loads(path.read_text())[ARRANGEMENT] == 0.7


def test_limits_are_found_once(source, tmp_path, monkeypatch):
    kept(tmp_path, source, dict.fromkeys(REPORTED, 0.5))
    assert copy_limits(source, tmp_path / "limits")[PRIMARY] == 0.5


def test_blur_lowers_sharpness(source):
    blurred = (source.pixels.astype(int) + np.roll(source.pixels, 1, 0) + np.roll(source.pixels, 1, 1)) // 3
    sharp, soft = sharpness([source.pixels, blurred.astype(np.uint8)])
    assert soft < 0.8 * sharp


def test_the_distance_is_zero_to_itself_and_that_of_gaussians():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(4000, 3))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    # |m|^2 + sum (s - s')^2 for independent features
    assert frechet_distance(a, 2 * a + 1) == pytest.approx(3 + 3, rel=0.1)


def test_diversity_is_the_mean_distance_within_a_caption():
    assert diversity([np.array([[0.0, 0], [3, 4]]), np.array([[1.0, 1], [1, 1]])]) == pytest.approx(2.5)
