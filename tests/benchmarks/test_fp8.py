import pytest

from twig.benchmarks import fp8


@pytest.mark.slow
def test_every_variant_is_held_against_the_pictures_of_pytorch_as_it_is(setup, tiny_checkpoint):
    rows = list(fp8.measure(setup, str(tiny_checkpoint), pictures=2, steps=1))
    fused, eight_bits = rows
    assert (fused["variant"], eight_bits["variant"]) == ("torch fused", "torch fp8")
    assert fused["ssim_drafts"] > 0.9999
    assert 0.5 < eight_bits["ssim_drafts"] < fused["ssim_drafts"]
