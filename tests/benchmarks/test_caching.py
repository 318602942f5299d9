import pytest

from twig.benchmarks import caching


def test_a_row_tells_speed_likeness_and_fullness_of_each_way(setup):
    found = {row["way"]: row for row in caching.measure(setup, jobs=1, steps=4, rounds=1)}
    assert set(found) == set(caching.WAYS)
    assert found["whole"]["speedup"] == 1
    assert found["whole"]["ssim_lowest"] == pytest.approx(1)
    assert found["final 2"]["ssim_mean"] < 1
    assert all(row["rows_a_call"] == 2 for row in found.values())
