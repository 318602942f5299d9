"""What a step takes beside its networks."""

from twig.benchmarks.host import step_rows


def test_a_step_is_its_networks_and_the_host(tiny_checkpoint):
    row, other = step_rows("torch", str(tiny_checkpoint), [1, 2], steps=2)
    assert (row["jobs"], other["jobs"]) == (1, 2)
    assert row["steps"] == 4, "of a draft and a final; those of the picture before it do not count"
    step, networks, host = (row[name]["p50"] for name in ("step_ms", "networks_ms", "host_ms"))
    assert 0 < host < step
    assert 0 < networks < step
