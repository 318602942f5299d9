import torch

from twig.benchmarks.gpu.models import SD15, networks, random_components, random_models
from twig.engine.api.request import GenerationRequest
from twig.engine.api.settings import Stage
from twig.engine.engine import Engine


def test_the_networks_are_stable_diffusions():
    unet, controlnet = networks(SD15, torch.device("meta"), torch.float16)
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964
    assert sum(p.numel() for p in controlnet.parameters()) == 361_279_120


def test_a_random_model_draws_and_finds_the_same_objects_in_every_picture(bench):
    served = Engine(random_components(bench))
    stage = Stage(steps=1)
    results = served.generate([GenerationRequest(prompt="a", seed=s, draft=stage, final=stage) for s in (1, 2)])
    assert [result.error for result in results] == [None, None]
    assert results[0].image.tobytes() != results[1].image.tobytes()
    assert (results[0].mask == results[1].mask).all()
    assert 0.1 < results[0].mask.mean() < 0.5


def test_the_plain_model_is_the_served_one_without_its_attention(bench):
    models = random_models(bench)
    pairs = zip(models.plain.unet.parameters(), models.served.unet.parameters(), strict=True)
    assert all(one.data_ptr() == other.data_ptr() for one, other in pairs)
    assert models.plain.unet is not models.served.unet


def test_weights_are_those_of_the_seed(bench):
    one, same, other = (random_components(bench, seed) for seed in (1, 1, 2))
    assert torch.equal(one.unet.conv_in.weight, same.unet.conv_in.weight)
    assert not torch.equal(one.unet.conv_in.weight, other.unet.conv_in.weight)
    assert one.hashes == same.hashes != other.hashes
