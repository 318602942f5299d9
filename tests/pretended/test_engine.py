"""The whole engine on a device: it draws a processor's pictures, and copies and waits no more than a table says."""

from collections import defaultdict
from typing import NamedTuple

import numpy as np
import pytest
import torch
from small_adapters import save_adapter
from small_requests import pixels, request

from pretend import Kind
from small_banks import small_bank
from twig.engine.api.mechanisms import (
    Avoidance,
    InitialNoise,
    MaskedAttention,
    MaskedNoise,
    MovedControl,
    Repulsion,
)
from twig.engine.api.request import Gate, SimilarityPolicy
from twig.engine.api.settings import Stage
from twig.engine.batching.scheduler import Limits
from twig.engine.engine import Engine
from twig.engine.judging.registry import Registry, index_works
from twig.engine.models.checkpoint import load


class Traffic(NamedTuple):
    """Most of what one call of a stage may do: copies to the device and from it, waits for everything."""

    up: int = 0
    down: int = 0
    waits: int = 0


ALLOWED = {
    "encode": Traffic(up=1),
    "start_draft": Traffic(up=1),
    "start_witness": Traffic(up=1),
    "start_final": Traffic(up=2),  # the labels of its maps, and what its slot holds
    "deliver_draft": Traffic(),
    "denoise": Traffic(up=1),
    "previews": Traffic(down=1, waits=1),
    "segment": Traffic(up=1, down=1, waits=1),  # up: the pictures that take a draft's place
    "hear_witness": Traffic(up=1, waits=1),
    "judge": Traffic(up=1, down=2, waits=2),  # the first: which registered works are nearest
    "whole": Traffic(down=1, waits=1),  # what a request has explained
}

EVERYTHING = Avoidance(
    initial_noise=InitialNoise(resample=0.5, sharpness_steps=1),
    masked_noise=MaskedNoise(),
    masked_attention=MaskedAttention(tokens="spikes"),
    moved_control=MovedControl(negative=0.5),
    repulsion=Repulsion(radius=4.0),
)
STRICT = SimilarityPolicy(limits={"ssim": -1.0}, retries=1, early=(0.5,))
LONG = Stage(steps=4)
HEARD = {"draft": LONG, "final": LONG}


def photo():
    return picture(0)


def picture(seed):
    from PIL import Image

    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8))


def mask():
    found = np.zeros((64, 64), bool)
    found[10:30, 10:40] = True
    return found


COMPANY = {
    "plain": request(seed=1, draft=Stage(steps=2, solver="dpmpp_2m"), final=Stage(steps=2, solver="euler_ancestral")),
    "everything": request(
        "a blue square", seed=2, steps=2, avoidance=EVERYTHING, similarity=STRICT, explain=True, preview=2
    ),
    "source": request(seed=3, source=photo()),
    "cached": request(seed=9, draft=Stage(steps=3, cache_interval=2), final=Stage(steps=4, cache_interval=2)),
    "mask": request(seed=4, mask=mask(), num_images=2),
    "wide": request(seed=5, width=96, height=48),
    "bank": request("a circle and a star", seed=6, avoidance=Avoidance(moved_control=MovedControl(warp="bank"))),
    "redraft": request(
        "two stars", seed=7, redraft=4, similarity=SimilarityPolicy(rule="refuse if classes_kept < 1; retry 1")
    ),
    "recited": request(seed=8, gate=Gate(limits={"agreement": -2.0}, witnesses=2), **HEARD),
    "long": request("a red star BREAK the (moon:1.3)", seed=10, clip_skip=1),
    "delivered": request(seed=9, gate=Gate(limits={"agreement": 2.0}, witnesses=2), explain=True, **HEARD),
    "adapted": request(
        seed=10, draft=Stage(steps=2, lora={"all": 0.5, "some": 1.0}), final=Stage(steps=2, lora={"some": 1.0})
    ),
}
"""A request a way through the engine."""


def engine_on(folder, device, registry, adapters):
    return Engine.from_pretrained(
        folder, device=device, bank=small_bank(), registry=registry, adapters=adapters, limits=Limits(slots=6, rows=4)
    )


@pytest.fixture(scope="module")
def adapters(guard, tiny_checkpoint, tmp_path_factory):
    """Files of two adapters, one of every layer."""
    folder, components = tmp_path_factory.mktemp("adapters"), load(tiny_checkpoint)
    return {
        "all": save_adapter(folder / "all.safetensors", components, 1),
        "some": save_adapter(folder / "some.safetensors", components, 2, 7, lambda name: "attn" in name),
    }


@pytest.fixture(scope="module")
def works(guard, tiny_checkpoint, tmp_path_factory):
    """A file of registered works, one of which is kept as a picture too."""
    folder = tmp_path_factory.mktemp("works")
    for seed in range(3):
        picture(10 + seed).save(folder / f"{seed}.png")
    engine = Engine.from_pretrained(tiny_checkpoint)
    index_works(engine.components, sorted(folder.glob("*.png"))).save(folder / "works")
    return folder / "works"


@pytest.fixture(scope="module")
def expected(tiny_checkpoint, works, adapters):
    """What a processor draws, asked before there is a device."""
    return engine_on(tiny_checkpoint, "cpu", Registry.load(works), adapters).generate([*COMPANY.values()])


@pytest.fixture(scope="module")
def drawn(expected, tiny_checkpoint, works, adapters, divided_arenas, device):
    """The engine of a device, what it drew, and what was counted in each call of a stage."""
    engine = engine_on(tiny_checkpoint, "cuda", Registry.load(works), adapters)
    warmed = engine.warmup()
    calls = defaultdict(list)
    for owner, name in staged(engine):
        count_in(device, owner, name, calls)
    return engine, warmed, engine.generate([*COMPANY.values()]), calls


def staged(engine):
    """What runs a batch or a part of one, and where."""
    stages = engine.stages
    owners = {
        stages.encoding: ("encode",),
        stages.starting: ("start_draft", "start_witness", "start_final", "deliver_draft"),
        stages.denoising: ("denoise", "previews"),
        stages.segmenting: ("segment", "hear_witness"),
        stages.judging: ("judge",),
        engine._lifecycle.results: ("whole",),
    }
    return [(owner, name) for owner, names in owners.items() for name in names]


def count_in(device, owner, name, calls):
    work = getattr(owner, name)

    def counted(*args):
        with device.counted() as counts:
            result = work(*args)
        calls[name].append(counts)
        return result

    setattr(owner, name, counted)


def test_every_bucket_is_captured(drawn):
    engine, warmed, _, _ = drawn
    assert (warmed["captured"], warmed["dropped"]) == (5 * len(engine.arenas.buckets), [])
    assert engine.graphs.stats.hits > 0


def test_it_draws_the_pictures_of_the_processor(drawn, expected):
    _, _, results, _ = drawn
    assert [r.error for r in results] == [None] * len(expected)
    for one, other in zip(results, expected, strict=True):
        assert (one.verdict, len(one.attempts)) == (other.verdict, len(other.attempts))
        assert np.abs(pixels(one) - pixels(other)).max() <= 1
        assert one.gate.opened == other.gate.opened
        for name, score in other.scores.items():
            assert one.scores[name].value == pytest.approx(score.value, rel=0.01, abs=0.01), name


def test_drafts_masks_and_maps_are_the_same(drawn, expected):
    _, _, results, _ = drawn
    for one, other in zip(results, expected, strict=True):
        assert (one.draft is None) == (other.draft is None) == (other.request.source is not None)
        for name in ("mask", "label_map", "control_map"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_what_is_explained_is_the_same(drawn, expected):
    _, _, results, _ = drawn
    explained = [(r.explanation, e.explanation) for r, e in zip(results, expected, strict=True) if e.request.explain]
    assert len(explained) == 2
    assert explained[0][0].noise_moved > 0 < explained[0][0].repulsion.max()
    for one, other in explained:
        for name in ("mass_inside", "mass_outside", "neutral_inside", "repulsion", "noise_moved"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-3, atol=1e-4)
        for name, values in other.similarity.items():
            np.testing.assert_allclose(one.similarity[name], values, atol=1e-2)


@pytest.mark.parametrize("stage", ALLOWED)
def test_a_stage_copies_and_waits_no_more_than_it_may(drawn, stage):
    _, _, _, calls = drawn
    assert calls[stage], f"no request went through {stage}"
    allowed = ALLOWED[stage]
    for counts in calls[stage][1:] or calls[stage]:  # the first may copy constants, which stay on the device
        kinds = counts.kinds
        up = sum(kinds[kind] for kind in (Kind.UPLOAD, Kind.PAGEABLE, Kind.BLOCKING_UPLOAD))
        found = Traffic(up, kinds[Kind.DOWNLOAD] + kinds[Kind.BLOCKING_DOWNLOAD], counts.waits)
        assert all(a <= b for a, b in zip(found, allowed, strict=True)), (found, [*counts.places.items()])
        assert kinds[Kind.PAGEABLE] == kinds[Kind.BLOCKING_UPLOAD] == 0, [*counts.places]


def test_memory_of_a_request_that_is_done_is_given_back(drawn):
    engine, *_ = drawn
    engine.generate([COMPANY["plain"]])
    before = torch.cuda.memory_allocated()
    engine.generate([COMPANY["plain"]])
    assert torch.cuda.memory_allocated() == before
