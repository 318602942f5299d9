import pytest

from twig.benchmarks import presets


@pytest.mark.slow
def test_a_row_tells_what_a_job_of_each_preset_takes_beside_diffusers(setup):
    first, *rest = presets.measure(setup, jobs=1, steps=13, rounds=1, backend="torch")
    assert (first["way"], first["speedup"]) == ("diffusers", 1)
    assert [row["way"] for row in rest] == [preset.value for preset in presets.PRESETS]
    assert all(row["speedup"] > 0 for row in rest)
