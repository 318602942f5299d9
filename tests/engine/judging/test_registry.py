import json
import multiprocessing
import stat
from contextlib import suppress
from threading import BrokenBarrierError

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from twig.engine.api.errors import CheckpointError, InvalidRequestError
from twig.engine.api.request import GenerationRequest, SimilarityPolicy
from twig.engine.api.result import Verdict
from twig.engine.api.settings import Stage
from twig.engine.cli.registry import add, remove
from twig.engine.engine import Engine
from twig.engine.judging.registry import Registry, encode, index_works, pictures_in
from twig.engine.models.checkpoint import load
from twig.engine.models.pictures import to_pixels

WORKS = 12


@pytest.fixture(scope="module")
def components(tiny_checkpoint):
    return load(tiny_checkpoint)


def work(seed):
    """Discs and bars of chance colours."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:64, :64]
    picture = np.broadcast_to(rng.integers(0, 256, 3), (64, 64, 3)).astype(np.uint8).copy()
    for _ in range(4):
        left, top, size = rng.integers(0, 56), rng.integers(0, 56), rng.integers(8, 24)
        round_ = rng.random() < 0.5
        inside = (x - left) ** 2 + (y - top) ** 2 < size**2 if round_ else (abs(x - left) < size) & (abs(y - top) < 6)
        picture[inside] = rng.integers(0, 256, 3)
    return Image.fromarray(picture)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("works")
    for seed in range(WORKS):
        work(seed).save(path / f"work{seed:02}.png")
    (path / "notes.txt").write_text("no picture")
    return path


@pytest.fixture(scope="module")
def registry(components, folder):
    return index_works(components, pictures_in(folder))


@pytest.mark.parametrize(
    "change",
    [
        lambda picture: picture,
        ImageOps.mirror,
        lambda picture: picture.resize((200, 200)),
        lambda picture: ImageEnhance.Brightness(picture).enhance(0.8),
        lambda picture: Image.fromarray(np.roll(np.asarray(picture), 2, (0, 1))),
    ],
    ids=["as it is", "mirrored", "scaled", "darker", "shifted"],
)
def test_a_work_is_found_whatever_was_done_to_it(registry, change):
    pixels = torch.cat([to_pixels(change(work(seed)), 64, 64) for seed in range(WORKS)])
    found = registry.nearest(pixels, 3)
    assert [registry.works[i].name for i in found.positions[:, 0]] == [f"work{seed:02}.png" for seed in range(WORKS)]
    assert (found.similarity[:, 0] > 0.7).all()
    assert (np.diff(found.similarity, axis=1) <= 0).all()
    assert all(len(set(row)) == 3 for row in found.positions.tolist())


def test_a_strange_picture_is_like_none(registry):
    found = registry.nearest(torch.cat([to_pixels(work(seed), 64, 64) for seed in range(100, 130)]))
    assert np.quantile(found.similarity, 0.9) < 0.8


def test_the_file_holds_no_pixels_and_is_its_owners_alone(registry, tmp_path):
    registry.save(tmp_path / "works.safetensors")
    assert stat.S_IMODE((tmp_path / "works.safetensors").stat().st_mode) == 0o600
    again = Registry.load(tmp_path / "works.safetensors")
    assert again.works == registry.works
    assert torch.equal(again.latents, registry.latents)
    assert not again.pictures
    assert again.version == registry.version


def altered(source, target, header=(), **tensors):
    """Write a registry's file anew with other tensors or other words in its header."""
    with safe_open(source, "pt") as file:
        metadata = file.metadata() | dict(header)
    save_file(load_file(source) | tensors, target, metadata)
    return target


@pytest.mark.parametrize("name", ["descriptors", "latents", "picture"])
def test_a_registry_that_was_altered_is_refused_by_name(components, folder, tmp_path, name):
    kept = index_works(components, pictures_in(folder)[:2], keep_pictures=True)
    kept.save(tmp_path / "works.safetensors")
    key = f"picture.{kept.works[1].id}" if name == "picture" else name
    emptied = torch.zeros_like(load_file(tmp_path / "works.safetensors")[key])
    path = altered(tmp_path / "works.safetensors", tmp_path / "altered.safetensors", **{key: emptied})
    with pytest.raises(CheckpointError, match=rf"altered\.safetensors claims to be registry '{kept.version}'"):
        Registry.load(path)


def test_an_altered_registry_without_its_claim_has_another_version(registry, tmp_path):
    registry.save(tmp_path / "works.safetensors")
    emptied = torch.zeros_like(registry.descriptors)
    path = altered(tmp_path / "works.safetensors", tmp_path / "altered.safetensors", descriptors=emptied)
    with safe_open(path, "pt") as file:
        header = {name: text for name, text in file.metadata().items() if name != "version"}
    save_file(load_file(path), path, header)
    assert Registry.load(path).version != registry.version
    renamed = [dict(vars(work)) for work in registry.works]
    renamed[0]["name"] = "another.png"
    again = altered(tmp_path / "works.safetensors", path, {"works": json.dumps(renamed)})
    with pytest.raises(CheckpointError, match="it was altered"):
        Registry.load(again)


def test_pictures_are_kept_when_asked(components, folder, tmp_path):
    kept = index_works(components, pictures_in(folder)[:2], keep_pictures=True)
    kept.save(tmp_path / "works.safetensors")
    again = Registry.load(tmp_path / "works.safetensors")
    assert torch.equal(again.pictures[again.works[0].id].permute(1, 2, 0), torch.from_numpy(np.array(work(0))))
    assert not again.without([again.works[0].id, again.works[1].id]).pictures


def test_latents_are_what_the_models_autoencoder_makes_of_the_works(components, registry):
    assert registry.latents.shape == (WORKS, 4, 16, 16)
    assert torch.allclose(registry.latents[3:4], encode(components, to_pixels(work(3), 64, 64)), atol=1e-5)


def test_works_are_added_once_and_removed(components, registry, folder, tmp_path):
    work(50).save(tmp_path / "new.png")
    more = index_works(components, [tmp_path / "new.png", folder / "work00.png"])
    grown = registry.adding(more)
    assert len(grown) == WORKS + 1
    assert grown.version != registry.version
    less = grown.without([more.works[0].id])
    assert less.works == registry.works
    assert torch.equal(less.descriptors, registry.descriptors)
    with pytest.raises(InvalidRequestError, match="no work 'nothing' is registered"):
        registry.without(["nothing"])


def test_processes_that_change_a_registry_take_turns(tiny_checkpoint, registry, folder, tmp_path, monkeypatch):
    path, context, loaded = tmp_path / "works.safetensors", multiprocessing.get_context("fork"), Registry.load
    registry.save(path)
    both = context.Barrier(2)

    def load_together(path):
        """Load once another process has loaded too, unless none can."""
        found = loaded(path)
        with suppress(BrokenBarrierError):
            both.wait(timeout=1)
        return found

    monkeypatch.setattr(Registry, "load", load_together)
    work(50).save(tmp_path / "new.png")
    work(51).save(tmp_path / "newer.png")
    gone = registry.works[2]
    changes = [
        context.Process(target=add, args=([tmp_path / "new.png"], path, False, str(tiny_checkpoint))),
        context.Process(target=add, args=([tmp_path / "newer.png"], path, False, str(tiny_checkpoint))),
        context.Process(target=remove, args=([gone.id], path)),
    ]
    for process in changes:
        process.start()
    for process in changes:
        process.join(timeout=60)
        assert process.exitcode == 0
    kept = {one.name for one in registry.works if one != gone}
    assert {one.name for one in loaded(path).works} == {*kept, "new.png", "newer.png"}


def test_a_registry_in_no_folder_is_refused(tmp_path):
    with pytest.raises(InvalidRequestError, match="there is no folder"):
        remove(["any"], tmp_path / "none" / "works.safetensors")


def test_what_is_no_registry_is_refused(registry, components, tmp_path):
    for name, data in (("none", None), ("text", b"hello"), ("pickle", b"\x80\x04.")):
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(CheckpointError, match=f"{name} is no registry of Twig"):
            Registry.load(tmp_path / name)
    with pytest.raises(CheckpointError, match="another model"):
        registry.adding(Registry("other", registry.works, registry.descriptors, registry.latents))
    with pytest.raises(CheckpointError, match="add the works again"):
        Engine(components, registry=Registry("other", registry.works, registry.descriptors, registry.latents))


@pytest.fixture(scope="module")
def guarded(components, registry):
    """An engine that knows the works and what its own model draws for one prompt."""
    request = asked("the moon", seed=5)
    (recited,) = Engine(components).generate(request)
    return recited, components, request


def asked(prompt, rule="accept everything", **changes):
    stage = Stage(steps=2)
    return GenerationRequest(prompt=prompt, draft=stage, final=stage, similarity=SimilarityPolicy(rule=rule), **changes)


def test_a_final_like_a_registered_work_is_refused_and_the_work_named(guarded, registry, tmp_path):
    recited, components, request = guarded
    recited.image.save(tmp_path / "own.png")
    own = index_works(components, [tmp_path / "own.png"], keep_pictures=True)
    engine = Engine(components, registry=registry.adding(own))
    rule = SimilarityPolicy(rule="refuse if registry_ssim > 0.9")
    caught, other = engine.generate([request.model_copy(update={"similarity": rule}), asked("a house", seed=9)])
    assert caught.verdict is Verdict.REFUSED
    assert caught.scores["registry_ssim"].value > 0.99
    assert caught.scores["registry_tile_l2"].value < 0.01
    assert caught.attempts[0].nearest == own.works[0].id
    assert caught.registry == engine.registry.version
    assert other.scores["registry_ssim"].value < 0.9
    assert other.scores["registry_descriptor"].value < caught.scores["registry_descriptor"].value
    assert other.gate.nearest in {work.id for work in engine.registry.works}


def test_without_kept_pictures_works_are_compared_as_decoded(guarded, tmp_path):
    recited, components, request = guarded
    recited.image.save(tmp_path / "own.png")
    own = index_works(components, [tmp_path / "own.png"])
    engine = Engine(components, registry=own)
    (result,) = engine.generate(request)
    with torch.inference_mode():
        decoded = components.vae.decode(own.latents).sample.div(2).add(0.5).clamp(0, 1)
    assert torch.allclose(engine.judge.protected.work(own.works[0].id, torch.device("cpu")), decoded, atol=1e-5)
    assert result.attempts[0].nearest == own.works[0].id


def test_a_rule_about_works_needs_a_registry(components):
    with pytest.raises(InvalidRequestError, match="unknown metric 'registry_ssim'"):
        Engine(components).generate(asked("a star", "refuse if registry_ssim > 0.9"))


def test_an_empty_registry_changes_nothing(components, registry):
    empty = registry.without([work.id for work in registry.works])
    (result,) = Engine(components, registry=empty).generate(asked("a star"))
    assert not any(name.startswith("registry_") for name in result.scores)
    assert json.dumps(list(result.gate.signals)) == '["guidance"]'
