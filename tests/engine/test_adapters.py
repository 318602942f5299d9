"""Adapters of requests: rows with different ones share a call, and each is drawn as by a model it was fused into."""

import numpy as np
import pytest
from safetensors.torch import save_file
from small_adapters import random_factors, save_adapter
from small_requests import fresh, request, same

from twig.engine.api.errors import BackendError, CheckpointError, InvalidRequestError
from twig.engine.api.mechanisms import Avoidance
from twig.engine.api.settings import Stage
from twig.engine.backends.options import TorchOptions
from twig.engine.batching.scheduler import Limits
from twig.engine.engine import Engine
from twig.engine.models.checkpoint import load
from twig.engine.records.manifest import Manifest
from twig.engine.records.model_record import ModelRecord
from twig.engine.replay import replay
from watched import final_latents

PAIRS = {
    "none": ({}, {}),
    "one": ({"everything": 1.0}, {"everything": 1.0}),
    "another in the draft": ({"attention": 0.7}, {"everything": 0.5}),
    "in the final alone": ({}, {"attention": -1.0}),
    "two at once": ({}, {"everything": 0.5, "attention": 0.8}),
}


def of(draft, final, seed=3, **changes):
    changes.setdefault("avoidance", Avoidance.off())
    return request(seed=seed, draft=Stage(steps=2, lora=draft), final=Stage(steps=3, lora=final), **changes)


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint):
    return tiny_checkpoint


@pytest.fixture(scope="module")
def adapters(checkpoint, tmp_path_factory):
    return saved(tmp_path_factory.mktemp("adapters"), load(checkpoint))


def saved(folder, components):
    """Files of an adapter of every layer, text encoders included, and of one of attention alone, of another rank."""
    return {
        "everything": save_adapter(folder / "everything.safetensors", components, 1),
        "attention": save_adapter(folder / "attention.safetensors", components, 2, 7, lambda name: "attn" in name),
    }


@pytest.fixture(scope="module")
def engine(checkpoint, adapters):
    return Engine.from_pretrained(checkpoint, adapters=adapters, limits=Limits(slots=8, rows=16))


@pytest.fixture(scope="module")
def latents(engine):
    """Finals of all pairs, drawn in one company."""
    return dict(zip(PAIRS, final_latents(engine, [of(*pair) for pair in PAIRS.values()])[0], strict=True))


@pytest.mark.parametrize("name", PAIRS)
def test_a_row_is_drawn_as_by_the_model_its_adapters_were_fused_into(checkpoint, adapters, latents, name):
    fused = Engine.from_pretrained(checkpoint, lora=[f"{adapters[n]}:{w}" for n, w in PAIRS[name][1].items()])
    ((alone,), _) = final_latents(fused, [of({}, {})])
    assert (latents[name] - alone).abs().max() <= 1e-4
    if name != "none":
        assert (latents[name] - latents["none"]).abs().max() > 0.01


def test_sdxl_takes_them_too(tiny_xl_checkpoint, tmp_path):
    files = saved(tmp_path, load(tiny_xl_checkpoint))
    engine = Engine.from_pretrained(tiny_xl_checkpoint, adapters=files)
    found, _ = final_latents(engine, [of({}, {}), of({"attention": 1.0}, {"everything": 0.5})])
    fused = Engine.from_pretrained(tiny_xl_checkpoint, lora=f"{files['everything']}:0.5")
    ((alone,), _) = final_latents(fused, [of({}, {})])
    assert (found[1] - alone).abs().max() <= 1e-4
    assert (found[0] - alone).abs().max() > 0.01


def test_a_draft_has_its_own_adapters(checkpoint, adapters, engine):
    """Of a two-step job each picture is that of a model with that stage's adapters, text and all."""
    (mixed,) = engine.generate([of({"attention": 0.7}, {})])
    fused = Engine.from_pretrained(checkpoint, lora=f"{adapters['attention']}:0.7")
    (drafted,) = fused.generate([of({}, {})])
    (plain,) = engine.generate([of({}, {})])
    assert difference(mixed.draft, drafted.draft) <= 1
    assert difference(mixed.draft, plain.draft) > 1
    assert same(mixed, plain)


def difference(first, second):
    return np.abs(np.asarray(first).astype(int) - np.asarray(second).astype(int)).max()


def test_company_changes_nothing(engine):
    """Bit for bit at one padded size, whatever the others have."""
    wanted = of({"everything": 1.0}, {"attention": 0.5}, avoidance=Avoidance())
    others = [of(*pair, seed=7 + i) for i, pair in enumerate(PAIRS.values())]
    alone, together = (fresh(engine, limits=Limits(slots=8, rows=16, boundary=1)) for _ in range(2))
    alone.arenas.buckets = together.arenas.buckets = (16,)
    for each in (alone, together):
        each.generate([wanted])  # a text is encoded once, and in what company is not the question here
    (first,) = alone.generate([wanted])
    assert same(first, together.generate([wanted, *others])[0])
    assert same(first, together.generate([*others[::-1], wanted])[-1])


def test_who_asks_for_none_is_drawn_as_without_any(checkpoint, engine):
    plain = Engine.from_pretrained(checkpoint, limits=Limits(slots=8, rows=16))
    wanted = [of({}, {}, avoidance=Avoidance()), of({}, {}, seed=5)]
    for first, second in zip(plain.generate(wanted), engine.generate(wanted), strict=True):
        assert same(first, second)


@pytest.mark.parametrize(
    "options",
    [TorchOptions(fused=True), pytest.param(TorchOptions(fp8=True), marks=pytest.mark.slow)],
    ids=["fused", "fp8"],
)
def test_blocks_on_our_operators_take_them_too(engine, options):
    wanted = [of(*PAIRS[name]) for name in ("one", "two at once")]
    ours = Engine(engine.components, limits=engine.limits, torch_options=options)
    bare = final_latents(ours, [of({}, {})])[0][0]
    for found, expected in zip(final_latents(ours, wanted)[0], final_latents(engine, wanted)[0], strict=True):
        assert (found - expected).abs().max() <= (0.3 if options.fp8 else 1e-4)
        assert (found - bare).abs().max() > 0.01


def test_an_adapter_that_is_not_there_is_named(engine, checkpoint):
    with pytest.raises(InvalidRequestError, match=r"final\.lora: there is no adapter 'x'; .* attention, everything"):
        engine.admit(of({}, {"x": 1.0}))
    with pytest.raises(InvalidRequestError, match=r"draft\.lora: .*no adapters were loaded"):
        Engine.from_pretrained(checkpoint).admit(of({"x": 1.0}, {}))


def test_what_cannot_change_by_the_row_is_refused_by_name(engine):
    pytest.importorskip("openvino")
    with pytest.raises(BackendError, match=r"change text_encoder.*, unet row by row.*'unet': 'torch'.*lora="):
        fresh(engine, backend="openvino")
    with pytest.raises(BackendError, match=r"compile .* adapters=.* lora="):
        fresh(engine, torch_options=TorchOptions(compile="default"))


def test_a_replay_needs_the_adapters_that_were_used(checkpoint, adapters, tmp_path):
    engine = Engine.from_pretrained(checkpoint, adapters=adapters)  # of its own: another's layers may have been fused
    (result,) = engine.generate([of({"attention": 1.0}, {"attention": 0.5})])
    manifest = Manifest.of(result, ModelRecord.of(engine.components))
    kept = {each.name: each.sha256 for each in manifest.model.adapters}
    assert kept["attention"] == engine.components.hashes["adapter attention"]
    manifest = Manifest.model_validate_json(manifest.model_dump_json())
    enough = Engine.from_pretrained(checkpoint, adapters={"attention": adapters["attention"]})
    assert replay(manifest, enough, result.image).identical
    with pytest.raises(CheckpointError, match="its adapter attention has SHA-256"):
        replay(manifest, Engine.from_pretrained(checkpoint), result.image)
    other = {"attention": adapters["everything"]}
    with pytest.raises(CheckpointError, match="its adapter attention has SHA-256"):
        replay(manifest, Engine.from_pretrained(checkpoint, adapters=other), result.image)


def test_a_replay_needs_what_was_fused(checkpoint, adapters):
    fused = Engine.from_pretrained(checkpoint, lora=f"{adapters['attention']}:0.5")
    (result,) = fused.generate([of({}, {})])
    manifest = Manifest.of(result, ModelRecord.of(fused.components))
    assert [(each.path, each.weight) for each in manifest.model.lora] == [(str(adapters["attention"]), 0.5)]
    assert replay(manifest, fused, result.image).identical
    with pytest.raises(CheckpointError, match="its lora has SHA-256"):
        replay(manifest, Engine.from_pretrained(checkpoint, lora=adapters["attention"]), result.image)


def test_a_row_may_have_one_of_many(checkpoint, tmp_path):
    """Ranks of all sizes lie under each other, and those of one layer may be few."""
    components = load(checkpoint)
    files = {}
    for number, rank in enumerate((1, 16, 3)):
        factors = random_factors(
            components, number, rank, lambda name, n=number: name.endswith(("to_q", "conv1")[n % 2])
        )
        tensors = {f"{n}.lora_A.weight": down for n, (down, _) in factors.items()}
        tensors |= {f"{n}.lora_B.weight": up for n, (_, up) in factors.items()}
        files[f"n{number}"] = tmp_path / f"{number}.safetensors"
        save_file(tensors, files[f"n{number}"])
    engine = Engine.from_pretrained(checkpoint, adapters=files)
    found, _ = final_latents(engine, [of({}, {name: 1.0}) for name in files])
    for name, latent in zip(files, found, strict=True):
        ((alone,), _) = final_latents(Engine.from_pretrained(checkpoint, lora=files[name]), [of({}, {})])
        assert (latent - alone).abs().max() <= 1e-4
